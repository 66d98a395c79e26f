"""Where the scenarios of the matrix take place: one server, a network before it, and a database that sleeps."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import psycopg

from steadypool_lab.clients import Client, Limits
from steadypool_lab.load import Outcome, Requests, Tally, tally
from steadypool_lab.network.proxy import FaultProxy, Mode
from steadypool_lab.postgres.embedded import EmbeddedPostgres
from steadypool_lab.postgres.sql import APPLICATION_NAME, run_sql
from steadypool_lab.suspending import ConnectionCounts, SuspendingPostgres

MARGIN = 0.25
"""Seconds beyond a limit that count as keeping it."""


class MatrixEnvironment:
    """Everything that a scenario needs.

    Args:
        unit: seconds of every timeout, T.
        on_progress: is told what takes time.

    Attributes:
        server: the Postgres server of all rows without sleep; a scenario may restart it.
        sleepy: the database that sleeps, awake at first.
        left_behind: errors that nobody awaited, as the event loop found them.
    """

    def __init__(self, unit: float = 2.0, on_progress: Callable[[str], None] | None = None) -> None:
        self.unit = unit
        self.left_behind = 0
        self.server = EmbeddedPostgres.temporary(on_progress=on_progress)
        self.sleepy = SuspendingPostgres(sleep_after=None, wake=3 * unit)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.server)
            await stack.enter_async_context(self.sleepy)
            await self.execute("create table if not exists lab (a int)")
            loop = asyncio.get_running_loop()
            stack.callback(loop.set_exception_handler, loop.get_exception_handler())
            loop.set_exception_handler(self._found)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _found(self, _loop: asyncio.AbstractEventLoop, _context: dict[str, Any]) -> None:
        self.left_behind += 1

    @property
    def patience(self) -> float:
        """Seconds after which a request that has not ended counts as hung."""
        return 7.5 * self.unit

    def limits(self, **changes: Any) -> Limits:
        """Every timeout T, unless it is changed."""
        names = ("connect", "pool", "statement", "close_grace")
        every: dict[str, Any] = dict.fromkeys(names, self.unit)
        return Limits(**(every | changes))

    @asynccontextmanager
    async def network(self) -> AsyncGenerator[FaultProxy]:
        """A network before the server, which can fail."""
        async with FaultProxy("127.0.0.1", self.server.port) as proxy:
            yield proxy

    def through(self, proxy: FaultProxy, host: str = "127.0.0.1") -> str:
        """The server's URL by way of that network."""
        parts = urlsplit(self.server.url)
        user = parts.netloc.rpartition("@")[0]
        return urlunsplit(parts._replace(netloc=f"{user}@{host}:{proxy.port}"))

    @asynccontextmanager
    async def peer(
        self, kind: type[Client], url: str, limits: Limits, proxy: FaultProxy | None = None
    ) -> AsyncGenerator[Client]:
        """A peer, closed at the end whatever state it is in; the network is healed first by resetting everything."""
        peer = kind(url, limits)
        await peer.open()
        try:
            yield peer
        finally:
            if proxy is not None:
                proxy.mode = Mode.RESET
                await asyncio.sleep(0.05)  # the peer's sockets hear of it in the loop's next turns
            # What a peer raises when it is closed is no part of the row.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(10.0):
                    await peer.close()
            await self.clear()

    async def asleep(self, *, wake: float, mode: str) -> ConnectionCounts:
        """Put the database to sleep; returns the counts, which begin at zero."""
        await self.sleepy.wake_up()
        self.sleepy.wake, self.sleepy.mode = wake, type(self.sleepy.mode)(mode)
        await self.sleepy.fall_asleep()
        self.sleepy.knocks = ConnectionCounts()
        return self.sleepy.knocks

    of_peers = f"backend_type = 'client backend' and application_name <> '{APPLICATION_NAME}'"
    """Which rows of pg_stat_activity are connections of peers."""

    async def clear(self) -> None:
        """End what a peer leaves on the server: it would be counted against the next one."""
        await self.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where {self.of_peers}")

    # What the server knows

    async def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement on the server, past every network that fails."""
        return await run_sql(self.server.url, statement)

    async def backends(self, condition: str) -> int:
        """How many client connections the server has for which the condition over pg_stat_activity holds."""
        rows = await self.execute(
            f"select count(*) from pg_stat_activity where {self.of_peers} and {condition}"
        )
        return int(rows[0][0])

    async def until_backends(self, condition: str, count: int, seconds: float = 10.0) -> None:
        """Wait until there are that many."""
        await self._until(condition, lambda found: found >= count, seconds)

    async def backends_left(self, seconds: float) -> int:
        """How many connections of peers there are, once there are none, or after so many seconds."""
        return await self._until("true", lambda found: found == 0, seconds)

    async def _until(self, condition: str, enough: Callable[[int], bool], seconds: float) -> int:
        end = time.monotonic() + seconds
        while not enough(found := await self.backends(condition)):
            if time.monotonic() > end:
                break
            await asyncio.sleep(0.02)
        return found


class LogNoise(logging.Handler):
    """Counts what libraries write to the log as errors while the block runs.

    Example:
        >>> with LogNoise() as noise:
        ...     pass
        >>> noise.errors
        0
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count it."""
        self.errors += 1

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger().removeHandler(self)


class Probe:
    """Asks the server directly every few milliseconds, so that one knows when it was really there.

    Attributes:
        down: when it was first not there, on `time.monotonic()`.
        up: when it was there again.
    """

    def __init__(self, url: str, pause: float = 0.005) -> None:
        self._url = url
        self._pause = pause
        self.down: float | None = None
        self.up: float | None = None

    async def run(self) -> None:
        """Ask until it has been away and is back."""
        while self.up is None:
            try:
                async with await psycopg.AsyncConnection.connect(
                    self._url, connect_timeout=5, application_name=APPLICATION_NAME
                ) as connection:
                    await connection.execute("select 1")
            except psycopg.Error:
                self.down = self.down or time.monotonic()
            else:
                if self.down is not None:
                    self.up = time.monotonic()
            await asyncio.sleep(self._pause)


async def counted(requests: Requests, **facts: float | int | str | None) -> Tally:
    """The figures of requests that have been finished."""
    figures = tally(requests.outcomes)
    figures.facts.update(facts)
    return figures


def first_served_after(outcomes: list[Outcome], moment: float) -> float | None:
    """When the first request was served that ended after that moment."""
    return min((one.ended for one in outcomes if one.served and one.ended > moment), default=None)


def shown(seconds: float | int | str | None) -> str:
    """A time for people.

    Example:
        >>> shown(0.0312), shown(4.02), shown(None)
        ('31 ms', '4.0 s', 'never')
    """
    if seconds is None:
        return "never"
    value = max(0.0, float(seconds))  # a prober may be the slower one
    return f"{value:.1f} s" if value >= 0.95 else f"{value * 1000:.0f} ms"


async def seconds_until(condition: Callable[[], bool], patience: float) -> float | None:
    """How long until it holds; None if it did not in that time."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > patience:
            return None
        await asyncio.sleep(0.005)
    return time.monotonic() - began
