"""What happens to a peer in each row of the matrix.

Each scenario is one small function from a stage and a peer to figures; what is promised about them is in `rows`. Times
are multiples of T, the seconds of every timeout.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import psycopg

from steadypool.errors import ConnectionLost, SteadypoolError
from steadypool_lab.clients import Client, Limits
from steadypool_lab.load import Outcome, Requests, Tally, at_once, tally, timed
from steadypool_lab.matrix.environment import (
    LogNoise,
    MatrixEnvironment,
    Probe,
    counted,
    first_served_after,
    seconds_until,
)
from steadypool_lab.network.dns import resolving, silent_address
from steadypool_lab.network.link import Direction
from steadypool_lab.network.proxy import FaultProxy, Mode
from steadypool_lab.postgres.sql import APPLICATION_NAME

PeerType = type[Client]
LONG = "select pg_sleep(30)"


# -- silence -------------------------------------------------------------------------------------------------------


async def accepts_then_silence(stage: MatrixEnvironment, kind: PeerType) -> Tally:
    """A cold pool: connections are accepted, and nobody ever answers."""
    async with stage.network() as proxy:
        proxy.mode = Mode.SILENT
        async with stage.peer(kind, stage.through(proxy), stage.limits(), proxy) as peer:
            requests = await at_once(30, lambda: _ask(peer, stage.unit), stage.patience)
            return await _over(requests, proxy, attempts=proxy.accepted, at_once=proxy.most_open)


async def warm_then_silence(stage: MatrixEnvironment, kind: PeerType) -> Tally:
    """Ten open connections, and then silence on all of them and for new ones."""
    async with stage.network() as proxy:
        async with stage.peer(kind, stage.through(proxy), stage.limits(), proxy) as peer:
            await peer.warm(10)
            await asyncio.sleep(0.6)
            proxy.mode = Mode.SILENT
            requests = await at_once(30, lambda: _ask(peer, stage.unit), stage.patience)
            return await _over(requests, proxy)


async def silence_in_mid_query(stage: MatrixEnvironment, kind: PeerType) -> Tally:
    """Five statements run, and then silence; it heals when all callers have gone, or patience is over."""
    async with stage.network() as proxy:
        async with stage.peer(kind, stage.through(proxy), stage.limits(), proxy) as peer:
            await peer.warm(5)
            requests = Requests()
            for _ in range(5):
                requests.begin(lambda: _ask(peer, stage.unit, LONG))
            await stage.until_backends("query = 'select pg_sleep(30)' and state = 'active'", 5)
            proxy.mode = Mode.SILENT
            await requests.finish(stage.patience)
            proxy.mode = Mode.PASS
            healed = time.monotonic()
            back = await seconds_until(lambda: peer.held() == 0, 10.0)
            await asyncio.sleep(max(0.0, healed + 2.0 - time.monotonic()))
            running = await stage.backends("state = 'active'")
            after = await at_once(15, lambda: _ask(peer, stage.unit), stage.patience)
            return await _over(
                requests, proxy, slots_back=back, running_2s_later=running, served_after=_served(after)
            )


# -- connections and servers that go away ------------------------------------------------------------------------


async def idle_connections_reset(stage: MatrixEnvironment, kind: PeerType) -> Tally:
    """Ten idle connections are reset by a firewall, then 20 requests."""
    async with stage.network() as proxy:
        async with stage.peer(kind, stage.through(proxy), stage.limits(), proxy) as peer:
            await peer.warm(10)
            await asyncio.sleep(0.6)
            proxy.drop_all(reset=True)
            await asyncio.sleep(0.05)
            requests = await at_once(20, lambda: _ask(peer, stage.unit), stage.patience)
            return await _over(requests, proxy)


async def idle_connections_silent(stage: MatrixEnvironment, kind: PeerType) -> Tally:
    """Ten idle connections are forgotten by a firewall; new ones pass. Then 20 requests."""
    async with stage.network() as proxy:
        async with stage.peer(kind, stage.through(proxy), stage.limits(), proxy) as peer:
            await peer.warm(10)
            await asyncio.sleep(0.6)
            for link in proxy.links:
                link.up = link.down = Direction(silent=True)
            requests = await at_once(20, lambda: _ask(peer, stage.unit), stage.patience)
            return await _over(requests, proxy)


async def restarted_under_load(stage: MatrixEnvironment, kind: PeerType) -> Tally:
    """The server is restarted under 50 tasks that ask without a pause; each request has 5 T."""
    end = 5 * stage.unit
    limits = stage.limits(pool=end)
    async with stage.peer(kind, stage.server.url, limits) as peer:
        requests, going, running = Requests(), True, 0

        async def one() -> None:
            nonlocal running
            async with peer.within(end):
                running += 1
                try:
                    await peer.ask()
                finally:
                    running -= 1

        async def task() -> None:
            while going:
                outcome = await timed(one())
                requests.outcomes.append(outcome)
                await asyncio.sleep(0 if outcome.served else 0.01)

        tasks = [asyncio.create_task(task(), name="lab load") for _ in range(50)]
        await asyncio.sleep(0.5)
        probe = Probe(stage.server.url)
        probing = asyncio.create_task(probe.run(), name="lab probe")
        await stage.server.restart("fast")
        await asyncio.wait([probing], timeout=10.0)
        await asyncio.sleep(1.5 * stage.unit)
        going = False
        await asyncio.wait(tasks, timeout=stage.patience)
        hung = [left for left in tasks if not left.done()]
        for left in hung:
            left.cancel()
        await asyncio.wait(tasks, timeout=5.0)
        requests.outcomes += [Outcome(0.0, stage.patience, hung=True) for _ in hung]
        figures = await counted(requests, not_in_flight=_not_in_flight(requests.outcomes))
        if probe.up is not None and probe.down is not None:
            first = first_served_after(requests.outcomes, (probe.down + probe.up) / 2)
            figures.facts["first_after_prober"] = None if first is None else first - probe.up
        return figures


# -- a database that sleeps ----------------------------------------------------------------------------------------


async def asleep_held(stage: MatrixEnvironment, kind: PeerType) -> Tally:
    """200 requests, 5 T each, meet a database that holds connections and is awake after 3 T."""
    unit = stage.unit
    return await _asleep(stage, kind, stage.limits(pool=5 * unit), wake=3 * unit, mode="hold", end=5 * unit)


async def asleep_refused(stage: MatrixEnvironment, kind: PeerType) -> Tally:
    """The same, but connections are refused while it wakes."""
    unit = stage.unit
    return await _asleep(stage, kind, stage.limits(pool=5 * unit), wake=3 * unit, mode="refuse", end=5 * unit)


async def asleep_rejected(stage: MatrixEnvironment, kind: PeerType) -> Tally:
    """The same, but connections are answered by 57P03 while it wakes."""
    unit = stage.unit
    return await _asleep(stage, kind, stage.limits(pool=5 * unit), wake=3 * unit, mode="reject", end=5 * unit)


async def documented_held(stage: MatrixEnvironment, kind: PeerType) -> Tally:
    """Timeouts 5 T (the documented 10 s), requests of 15 T, awake after 6 T: longer than a connect may take."""
    unit = stage.unit
    limits = stage.limits(connect=5 * unit, pool=5 * unit, statement=5 * unit)
    return await _asleep(stage, kind, limits, wake=6 * unit, mode="hold", end=15 * unit)


async def documented_refused(stage: MatrixEnvironment, kind: PeerType) -> Tally:
    """Timeouts 5 T (the documented 10 s), requests of 15 T, refused until it is awake after 3 T."""
    unit = stage.unit
    limits = stage.limits(connect=5 * unit, pool=5 * unit, statement=5 * unit)
    return await _asleep(stage, kind, limits, wake=3 * unit, mode="refuse", end=15 * unit)


async def _asleep(
    stage: MatrixEnvironment, kind: PeerType, limits: Limits, *, wake: float, mode: str, end: float
) -> Tally:
    knocks = await stage.asleep(wake=wake, mode=mode)
    async with stage.peer(kind, stage.sleepy.url, limits) as peer:

        async def one() -> None:
            async with peer.within(end):
                await peer.ask()

        requests = await at_once(200, one, end + stage.patience)
        await requests.let_go()
        return await counted(requests, attempts=knocks.attempts, at_once=knocks.most_at_once)


# -- names and addresses -------------------------------------------------------------------------------------------


async def silent_addresses(stage: MatrixEnvironment, kind: PeerType) -> Tally:
    """A name with three addresses; packets to the first two are lost."""
    name, dead = "three-addresses.test", ("127.0.0.2", "127.0.0.3")
    async with stage.network() as proxy:
        with ExitStack() as stack:
            for address in dead:
                stack.enter_context(silent_address(address, proxy.port))
            stack.enter_context(resolving({name: [*dead, "127.0.0.1"]}))
            async with stage.peer(kind, stage.through(proxy, name), stage.limits(), proxy) as peer:
                requests = await at_once(1, lambda: _ask(peer, 3 * stage.unit), stage.patience)
                first = requests.outcomes[0].seconds
                proxy.drop_all(reset=True)
                await asyncio.sleep(0.05)
                again = await at_once(1, lambda: _ask(peer, 3 * stage.unit), stage.patience)
                next_time = again.outcomes[0].seconds if again.outcomes[0].served else None
                return await _over(requests, proxy, first=first, next_time=next_time)


# -- leaving -------------------------------------------------------------------------------------------------------


async def cancelled_anywhere(stage: MatrixEnvironment, kind: PeerType) -> Tally:
    """500 transactions begin at once, and each is cancelled at a moment of its own."""
    chance = random.Random(500)
    async with stage.network() as proxy:
        proxy.delay = 0.001
        limits = stage.limits(pool=5 * stage.unit)
        async with stage.peer(kind, stage.through(proxy), limits, proxy) as peer:
            ends = [chance.uniform(0.0, 1.0) for _ in range(500)]
            steps = ("insert into lab values (1)", "select pg_sleep(0.005)")
            left = await asyncio.gather(*(_cancel_after(end, peer.transact(steps)) for end in ends))
            connects = proxy.accepted
            await asyncio.sleep(1.0)
            open_work = await stage.backends("state <> 'idle'")
            held = peer.held()
            after = await at_once(15, lambda: _ask(peer, stage.unit), stage.patience)
            figures = await _over(Requests(), proxy, served_after=_served(after))
            figures.requests, figures.served = 500, sum(done for done, _ in left)
            cancels = sorted(seconds for done, seconds in left if not done) or [0.0]
            figures.slowest = cancels[-1]
            figures.facts |= {
                "connects": connects,
                "not_idle_1s_later": open_work,
                "held_1s_later": held,
                "cancel_median": cancels[len(cancels) // 2],
            }
            return figures


async def close_idle(stage: MatrixEnvironment, kind: PeerType) -> Tally:
    """Closing a pool with ten idle connections on a silent network."""
    return await _close(stage, kind, idle=10, busy=0)


async def close_busy(stage: MatrixEnvironment, kind: PeerType) -> Tally:
    """Closing a pool whose five connections run statements, on a silent network."""
    return await _close(stage, kind, idle=5, busy=5)


async def _close(stage: MatrixEnvironment, kind: PeerType, *, idle: int, busy: int) -> Tally:
    async with stage.network() as proxy:
        limits = stage.limits(statement=4 * stage.unit)
        async with stage.peer(kind, stage.through(proxy), limits, proxy) as peer:
            await peer.warm(idle)
            requests = Requests()
            for _ in range(busy):
                requests.begin(lambda: peer.ask(LONG))
            if busy:
                await stage.until_backends("query = 'select pg_sleep(30)' and state = 'active'", busy)
            proxy.mode = Mode.SILENT
            with LogNoise() as noise:
                closing = await at_once(1, peer.close, stage.patience)
            await requests.finish(1.0)
            figures = await _over(closing, proxy, errors_logged=noise.errors)
            figures.facts["statements_that_hang"] = sum(one.hung for one in requests.outcomes)
            await requests.let_go()
            return figures


# -- locks ---------------------------------------------------------------------------------------------------------

_ROW = "select a from lab_locks for update"
_LOCKS = (
    (_ROW, f"{_ROW} skip locked"),
    (_ROW, f"{_ROW} nowait"),
    (
        "select pg_advisory_xact_lock(1)",
        "select from (select pg_try_advisory_xact_lock(1) as got) as one where got",
    ),
)
"""What a transaction locks, and what returns a row to the next caller, if it is not locked any more."""

ROUNDS = 300
"""How often `locks_handed_over` does it."""


async def locks_handed_over(stage: MatrixEnvironment, kind: PeerType) -> Tally:
    """Transactions that hold a lock are rolled back; another caller, nearer to the server, asks for it at once."""
    async with stage.network() as proxy, _next_caller(stage) as other:
        proxy.delay = 0.001
        async with stage.peer(kind, stage.through(proxy), stage.limits(), proxy) as peer:
            outcomes: list[Outcome] = []
            for number in range(ROUNDS):
                lock, wanted = _LOCKS[number % len(_LOCKS)]
                await peer.undo([lock], by_block=number % 2 == 0)
                outcomes.append(await timed(_gets(other, wanted)))
            return tally(outcomes)


async def _gets(connection: psycopg.AsyncConnection[Any], sql: str) -> None:
    if not (await connection.execute(sql.encode())).rowcount:
        raise LookupError("still locked")


async def loop_blocked(stage: MatrixEnvironment, kind: PeerType) -> Tally:
    """The event loop is blocked as soon as a transaction is rolled back, by code that wants the same table."""
    async with stage.peer(kind, stage.server.url, stage.limits()) as peer, _next_caller(stage):
        outcomes: list[Outcome] = []
        with psycopg.connect(
            stage.server.url, autocommit=True, application_name=APPLICATION_NAME
        ) as blocking:
            blocking.execute(f"set lock_timeout = {int(stage.unit * 1000)}".encode())
            for number in range(20):
                statement = ("select a from lab_locks", "update lab_locks set a = a")[number % 2]
                await peer.undo([statement], by_block=number % 4 < 2)
                began, error = time.monotonic(), None
                try:
                    blocking.execute("alter table lab_locks alter a set default 0")
                except psycopg.Error as refused:
                    error = refused
                outcomes.append(Outcome(began, time.monotonic() - began, error))
                if error is not None:
                    break
        return tally(outcomes)


@asynccontextmanager
async def _next_caller(stage: MatrixEnvironment) -> AsyncGenerator[psycopg.AsyncConnection[Any]]:
    """A connection of somebody else's, and what it meets others about."""
    async with await psycopg.AsyncConnection[Any].connect(
        stage.server.url, autocommit=True, application_name=APPLICATION_NAME
    ) as connection:
        await connection.execute("create table if not exists lab_locks (a int)")
        await connection.execute("truncate lab_locks")
        await connection.execute("insert into lab_locks values (1)")
        yield connection


# -- what scenarios share ------------------------------------------------------------------------------------------


async def _ask(peer: Client, end: float, sql: str = "select 1") -> None:
    """One request; steadypool's users set an end of time, the others have their timeouts."""
    if peer.has_deadlines:
        async with peer.within(end):
            await peer.ask(sql)
    else:
        await peer.ask(sql)


async def _over(requests: Requests, proxy: FaultProxy, **facts: float | int | str | None) -> Tally:
    figures = await counted(requests, **facts)
    proxy.mode = Mode.RESET  # what hangs is let go of, so that the next row begins with nothing
    figures.facts["never_let_go"] = await requests.let_go() or None
    return figures


async def _cancel_after(seconds: float, work: Awaitable[None]) -> tuple[bool, float]:
    """Whether it was done by then; if not, how many seconds it took to be cancelled."""
    task = asyncio.ensure_future(work)
    await asyncio.wait([task], timeout=seconds)
    if task.done():
        return task.exception() is None, 0.0
    began = time.monotonic()
    task.cancel()
    await asyncio.wait([task], timeout=10.0)
    return False, time.monotonic() - began


def _served(requests: Requests) -> int:
    return sum(one.served for one in requests.outcomes)


def _not_in_flight(outcomes: list[Outcome]) -> int:
    """Of steadypool's errors, those that do not say that a statement was on its way. The others' do not tell."""
    ours = [one.error for one in outcomes if isinstance(one.error, SteadypoolError)]
    return sum(not isinstance(error, ConnectionLost) for error in ours)
