"""What happened when, and how Postgres was used: before, as documented afterwards, and with steadypool."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from urllib.parse import urlsplit, urlunsplit

from steadypool_lab.clients import DRIVERS, Client, Limits, StockSqlAlchemy, StockSqlAlchemyPsycopg
from steadypool_lab.network.dns import resolving, silent_address
from steadypool_lab.network.proxy import FaultProxy, Mode
from steadypool_lab.replays.environment import ReplayEnvironment, steadily
from steadypool_lab.replays.notifier import Notifier
from steadypool_lab.suspending import SuspendingPostgres

WAYS = ("before", "documented", "steadypool")

_RATE = 4.0
"""Requests a second."""
_ASYNCPG_CONNECT, _PSYCOPG_CONNECT, _SQLALCHEMY_POOL = 60.0, 130.0, 30.0
"""What the libraries wait for where nobody said anything, in seconds. They have to be said here to be scaled."""


@dataclass(frozen=True, slots=True)
class Incident:
    """One outage; times in seconds from its beginning.

    Attributes:
        key: its date.
        title: in a few words.
        story: what happened, for the report.
        fault: from when to when something was broken.
        seconds: how long it is played.
        ways: how each way was configured, in words.
        play: makes it happen.
    """

    key: str
    title: str
    story: str
    fault: tuple[float, float]
    seconds: float
    ways: dict[str, str]
    play: Callable[[ReplayEnvironment], Awaitable[None]]


_STEADYPOOL = "steadypool, its defaults: 10 + 5 connections, timeouts 10 s, requests end after 15 s"
_DOCUMENTED = "stock SQLAlchemy + asyncpg, 10 + 5 connections, pre-ping, all timeouts 10 s"


def _peer(theatre: ReplayEnvironment, url: str, before: tuple[type[Client], Limits]) -> Client:
    scaled = theatre.scaled
    if theatre.way == "before":
        kind, limits = before
        return kind(
            url,
            Limits(
                connect=None if limits.connect is None else scaled(limits.connect),
                pool=None if limits.pool is None else scaled(limits.pool),
                statement=None if limits.statement is None else scaled(limits.statement),
                size=limits.size,
                overflow=limits.overflow,
            ),
        )
    kind = StockSqlAlchemy if theatre.driver is None else DRIVERS[theatre.driver]
    ten = scaled(10.0)
    return kind(url, Limits(connect=ten, pool=ten, statement=ten, close_grace=scaled(5.0)))


@asynccontextmanager
async def _opened(peer: Client, heal: Callable[[], None]) -> AsyncGenerator[Client]:
    await peer.open()
    try:
        yield peer
    finally:
        heal()
        # However a library ends on a broken network: the incident is over, and its figures are taken.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(10.0):
                await peer.close()


def _through(url: str, port: int, host: str = "127.0.0.1") -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@{host}:{port}"))


# -- 2025-11-17 ----------------------------------------------------------------------------------------------------


async def _listener_without_timeout(theatre: ReplayEnvironment) -> None:
    async with AsyncExitStack() as stack:
        main = await stack.enter_async_context(FaultProxy("127.0.0.1", theatre.server.port))
        queue = await stack.enter_async_context(FaultProxy("127.0.0.1", theatre.server.port))
        before = (StockSqlAlchemy, Limits(_ASYNCPG_CONNECT, _SQLALCHEMY_POOL, None, 5, 0))
        service = await stack.enter_async_context(
            _opened(
                _peer(theatre, _through(theatre.server.url, main.port), before), lambda: _cut(main, queue)
            )
        )
        documented = theatre.way == "documented"
        notifier = Notifier(
            _through(theatre.server.url, queue.port),
            connect_timeout=theatre.scaled(15.0) if documented else None,
            heartbeat=theatre.scaled(5.0) if documented else None,
        )
        if theatre.way != "steadypool":
            await notifier.open()
            stack.push_async_callback(notifier.close)
        number = count()

        async def work() -> None:
            if next(number) % 10:
                await service.ask("select pg_sleep(0.002)")
            elif theatre.way == "steadypool":
                # NOTIFY travels with the transaction, over the pool: there is no other connection to wait for.
                await service.transact(
                    ["insert into lab values (1)", "select pg_notify('queue_changes', '')"]
                )
            elif isinstance(service, StockSqlAlchemy):
                await _change_and_notify(service, notifier)

        async def serve() -> None:
            await theatre.handle(service, work)

        theatre.begin()
        sending = asyncio.create_task(theatre.send(steadily(0, 250, _RATE), serve))
        await theatre.until(20)
        theatre.note("the database answers slowly; the queue's own connection gets no answer at all")
        queue.mode = Mode.SILENT
        main.delay = theatre.scaled(0.1)
        await theatre.until(80)
        theatre.note("the database answers again; what was silent stays so")
        queue.mode = Mode.HALF_OPEN
        main.delay = 0.0
        await theatre.until(230)
        if theatre.way == "before":
            theatre.note("restarted by hand")
            queue.mode = main.mode = Mode.RESET
            await theatre.requests.finish(0.0)
            await notifier.close()
            queue.mode = main.mode = Mode.PASS
            await notifier.open()
        await sending
        await theatre.requests.finish(theatre.scaled(20.0))
        theatre.count_attempts(main)
        theatre.count_attempts(queue)


async def _change_and_notify(service: StockSqlAlchemy, notifier: Notifier) -> None:
    async with service.engine.begin() as connection:
        await connection.exec_driver_sql("insert into lab values (1)")
        await notifier.notify()


def _cut(*networks: FaultProxy) -> None:
    for network in networks:
        network.mode = Mode.RESET


# -- 2025-12-02 ----------------------------------------------------------------------------------------------------


async def _cold_start(theatre: ReplayEnvironment) -> None:
    asleep = 20.0
    wakes_in = 8.0
    async with AsyncExitStack() as stack:
        sleepy = await stack.enter_async_context(
            SuspendingPostgres(sleep_after=None, wake=theatre.scaled(wakes_in), suspend="silence")
        )
        network = await stack.enter_async_context(FaultProxy("127.0.0.1", sleepy.port))
        before = (StockSqlAlchemy, Limits(_ASYNCPG_CONNECT, _SQLALCHEMY_POOL, None, 5, 0))
        service = await stack.enter_async_context(
            _opened(_peer(theatre, _through(sleepy.url, network.port), before), lambda: _cut(network))
        )

        async def serve() -> None:
            await theatre.handle(service, lambda: service.ask("select pg_sleep(0.002)"))

        theatre.begin()
        await theatre.send(steadily(0, asleep, _RATE), serve)
        await theatre.send([asleep] * 5, serve)
        await theatre.requests.finish(theatre.scaled(10.0))
        await sleepy.fall_asleep()
        theatre.note("nobody comes for five minutes; the database is suspended, its connections go silent")
        first = theatre.now + 5
        arrivals = [first, first + 45, *[first + 104] * 3, *steadily(first + 107, first + 250, _RATE)]
        theatre.note("the first requests come back")
        await theatre.send(arrivals, serve)
        await theatre.requests.finish(theatre.scaled(20.0))
        theatre.note(f"over; woken {sleepy.knocks.wakes} times")
        theatre.count_attempts(network)


# -- 2025-12-08 ----------------------------------------------------------------------------------------------------


async def _twelve_addresses(theatre: ReplayEnvironment) -> None:
    name, live = "database.twelve-addresses.test", "127.0.0.1"
    dead = [f"127.0.1.{number}" for number in range(1, 12)]
    lookups = count()
    broken = False

    def addresses() -> list[str]:
        # A name server answers in another order each time: every other lookup has the one that works first.
        if not broken or next(lookups) % 2:
            return [live, *dead]
        return [*dead, live]

    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(FaultProxy("127.0.0.1", theatre.server.port))
        for address in dead:
            stack.enter_context(silent_address(address, network.port))
        stack.enter_context(resolving({name: addresses}))
        before = (StockSqlAlchemyPsycopg, Limits(_PSYCOPG_CONNECT, _SQLALCHEMY_POOL, None, 5, 0))
        url = _through(theatre.server.url, network.port, name)
        service = await stack.enter_async_context(_opened(_peer(theatre, url, before), lambda: _cut(network)))

        async def serve() -> None:
            await theatre.handle(service, lambda: service.ask("select pg_sleep(0.05)"))

        theatre.begin()
        pages = [moment for moment in range(5, 240, 15) for _ in range(20)]
        # No statement is in flight when the connections are reset: those would be lost with any library.
        trickle = [*steadily(0, 25, _RATE), *steadily(28, 115, _RATE), *steadily(118, 250, _RATE)]
        sending = asyncio.create_task(theatre.send(sorted([*trickle, *pages]), serve))
        await theatre.until(27)
        theatre.note("eleven of the twelve addresses answer no more; open connections are reset")
        broken = True
        network.drop_all(reset=True)
        await theatre.until(117)
        network.drop_all(reset=True)
        theatre.note("open connections are reset once more")
        await theatre.until(200)
        theatre.note("the address that works is always the first again")
        broken = False
        await sending
        await theatre.requests.finish(theatre.scaled(20.0))
        theatre.count_attempts(network)


INCIDENTS: dict[str, Incident] = {
    incident.key: incident
    for incident in (
        Incident(
            "2025-11-17",
            "the listener without a timeout",
            "The queue's own connection had no timeout anywhere. When the database answered slowly it went silent, "
            "requests that announced a change waited on it for ever, each with a database session in its hand, and "
            "five such requests were the whole pool. 4 minutes, 100 % of the API, until it was restarted by hand.",
            (20.0, 80.0),
            270.0,
            {
                "before": "stock SQLAlchemy + asyncpg, 5 + 0 connections; NOTIFY over a connection without a timeout",
                "documented": f"{_DOCUMENTED}; NOTIFY over a connection with heartbeat 5 s and connect timeout 15 s",
                "steadypool": f"{_STEADYPOOL}; NOTIFY in the transaction itself",
            },
            _listener_without_timeout,
        ),
        Incident(
            "2025-12-02",
            "the cold start after five idle minutes",
            "The database was suspended, and its connections went silent. Pre-ping did not help: the ping itself "
            "hung, on one connection after the other. Five hung requests were the whole pool, while the database "
            "would have been awake after 8 s.",
            (20.0, 38.0),
            300.0,
            {
                "before": "stock SQLAlchemy + asyncpg, 5 + 0 connections, pre-ping, no timeouts",
                "documented": _DOCUMENTED,
                "steadypool": _STEADYPOOL,
            },
            _cold_start,
        ),
        Incident(
            "2025-12-08",
            "twelve addresses",
            "The name had twelve addresses, and the timeout held for each of them in turn: one connect hung for "
            "18 to 24 minutes while others succeeded in 3 ms at the same moment.",
            (27.0, 200.0),
            270.0,
            {
                "before": "stock SQLAlchemy + psycopg, 5 + 0 connections, no timeouts (psycopg: 130 s an address)",
                "documented": _DOCUMENTED,
                "steadypool": _STEADYPOOL,
            },
            _twelve_addresses,
        ),
    )
}
"""By date."""
