"""A pretended server and the driver to it. The server keeps its own books of who is connected: rules are checked
against those, not against what the pool believes."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from steadypool import errors
from steadypool._virtual_time import VirtualLoop

OPEN_KINDS = (
    "ok",
    "instant",
    "refuse",
    "final",
    "bug",
    "says timeout",
    "hang",
    "late",
    "gives up",
    "asleep",
    "stubborn",
)
PING_KINDS = ("ok", "instant", "fail", "hang", "late", "stubborn")
RESET_KINDS = PING_KINDS
CLOSE_KINDS = ("ok", "instant", "raise", "hang")
MOST_PINGS = 10
"""So many pings of one connection may be wasted on callers who have gone by the time of the answer."""


class RuleBroken(AssertionError):
    """The pool did what it must never do."""


logging.getLogger("steadypool.pool").addHandler(logging.NullHandler())
"""Aborts fail here on purpose; without a handler each pool would say so on the standard error."""


@dataclass(frozen=True, slots=True)
class Weather:
    """How the server behaves at the moment. `mixed` draws anew each time. Times are seconds."""

    open: str = "ok"
    ping: str = "ok"
    reset: str = "ok"
    close: str = "ok"
    latency: float = 0.01
    linger: float = 0.0
    """From the cut of a connection until the server has noticed."""


FAIR = Weather()


class Connection:
    """One connection, seen from both ends."""

    __slots__ = (
        "aborted_at", "answered_at", "asked", "dirty", "doubted", "drained", "end", "excused", "gone", "lost",
        "number", "open", "opened_at", "silent"
    )  # fmt: skip

    def __init__(self, number: int, now: float, gone: asyncio.Future[None]) -> None:
        self.number = number
        self.opened_at = self.answered_at = now
        self.open = True
        """The client's socket is open as far as the client can tell."""
        self.asked = 0
        """Pings since somebody last had it."""
        self.silent = False
        """The network swallows everything on it."""
        self.dirty = False
        self.drained = False
        self.doubted = False
        self.excused = True
        """The pool need not count it: not its own yet, or it has waited for its end as long as it has to."""
        self.lost: Callable[[], None] | None = None
        """Told by the pool whom to tell when an idle connection ends."""
        self.aborted_at: float | None = None
        self.end: asyncio.TimerHandle | None = None
        self.gone = gone

    def __repr__(self) -> str:
        return f"<connection {self.number}>"


class Server:
    """The books, the weather, and the driver (the protocol `steadypool.pool.lease.Driver`).

    Args:
        loop: where everything happens.
        rng: draws what `mixed` weather brings.
        limits: seconds after which the pool may give up: opening, pinging, leaving.
        closing: whether the pool is closed.
        report: called with the name of everything that happens.
        blame: called when the pool breaks a rule. Not an exception: the pool would take it for a driver's error.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        rng: random.Random,
        limits: tuple[float, float, float],
        closing: Callable[[], bool],
        report: Callable[[str], None],
        blame: Callable[[str], None],
    ) -> None:
        self.loop = loop
        self.rng = rng
        self.connect_timeout, self.ping_limit, self.leave_timeout = limits
        self.closing = closing
        self.report = report
        self.blame = blame
        self.weather = FAIR
        self.backends: dict[int, Connection] = {}
        self.connecting = 0
        self.counted = 0
        self.numbers = 0
        self.opened = 0
        self.last_open_failed = False
        self.last_open_final = False
        self.changes = 0
        self._parked: list[asyncio.Future[None]] = []

    # -- what the schedule does to it --------------------------------------------------------------------------

    def change(self, weather: Weather) -> None:
        """Let the weather change; what hangs goes on hanging unless it becomes fair."""
        self.weather = weather
        if weather.open in ("ok", "instant"):
            for future in self._parked:
                if not future.done():
                    future.set_result(None)
            self._parked.clear()

    def worsen(self, **changes: object) -> None:
        """Change part of the weather."""
        self.change(replace(self.weather, **changes))  # type: ignore[arg-type]

    def cut(self, connection: Connection) -> None:
        """The server ends a connection: the client's socket reads end of file."""
        connection.open = False
        if connection.lost is not None:
            self.loop.call_soon(connection.lost)
        self._let_go(connection)

    # -- the driver --------------------------------------------------------------------------------------------

    async def open(self) -> Connection:
        self.connecting += 1
        self.changes += 1
        started = self.loop.now
        kind = self._draw(self.weather.open, OPEN_KINDS)
        result: asyncio.Future[Connection] = self.loop.create_future()
        failed = final = True
        try:
            connection = await self._attempt(kind, result)
            failed = final = False
            connection.excused = False  # until now it was counted as connecting
            self.counted += connection.number in self.backends
            self.report(f"open {kind}")
            return connection
        except asyncio.CancelledError:
            self._open_cut_short(kind, started, result)
            failed, final = not self.closing(), False
            raise
        except errors.ConnectFailed as error:
            final = error.final
            self.report(f"open {kind}")
            raise
        except TimeoutError:
            final = False
            self.report(f"open {kind}")
            raise
        except OSError:
            self.report(f"open {kind}")
            raise
        finally:
            self.last_open_failed, self.last_open_final = failed, final
            self.connecting -= 1
            self.changes += 1

    async def _attempt(self, kind: str, result: asyncio.Future[Connection]) -> Connection:
        if kind == "instant":
            return self._accept()
        if kind in ("hang", "asleep", "stubborn"):
            parked: asyncio.Future[None] = self.loop.create_future()
            self._parked.append(parked)
            try:
                await parked
            except asyncio.CancelledError:
                if kind == "stubborn":  # some drivers take no notice of being cancelled
                    return self._accept()
                raise
            if kind == "hang":
                raise errors.ConnectFailed("gave up after a long silence")
            return self._accept()
        delay = self.connect_timeout if kind == "late" else self.weather.latency
        answer = self.loop.call_later(delay, self._answer, result, kind)
        try:
            return await result
        finally:
            answer.cancel()

    def _answer(self, result: asyncio.Future[Connection], kind: str) -> None:
        if result.done():
            return
        failures: dict[str, BaseException] = {
            "refuse": errors.ConnectFailed("connection refused"),
            "final": errors.ConnectFailed("password authentication failed", final=True),
            "bug": OSError(),
            "says timeout": TimeoutError(),
        }
        if kind in failures:
            result.set_exception(failures[kind])
        elif kind == "gives up":
            result.cancel()
        else:
            result.set_result(self._accept())

    def _open_cut_short(self, kind: str, started: float, result: asyncio.Future[Connection]) -> None:
        if result.done() and not result.cancelled() and result.exception() is None:
            # The server's answer and the end of our patience fell into one moment: it has a client that is gone.
            self._cut(result.result())
        if kind == "gives up" and result.cancelled() and not self.closing():
            self.report("open gives up")
        elif self.closing():
            self.report("open cancelled")
        elif self.loop.now < started + self.connect_timeout - 1e-3:
            self.blame("R3: a connect was cancelled before its time")
        else:
            self.report("open timeout")

    async def ping(self, connection: Connection) -> None:
        connection.asked += 1
        if connection.asked > MOST_PINGS:
            self.blame(f"R7: a connection was asked {connection.asked} times and nobody got it")
        await self._bounded("ping", self.weather.ping, PING_KINDS, connection, self.ping_limit)
        connection.answered_at = self.loop.now
        connection.doubted = False

    def needs_reset(self, connection: Connection) -> bool:
        return connection.dirty

    async def reset(self, connection: Connection) -> None:
        await self._bounded("reset", self.weather.reset, RESET_KINDS, connection, self.leave_timeout)
        connection.answered_at = self.loop.now
        connection.dirty = False

    async def _bounded(
        self, verb: str, wish: str, kinds: tuple[str, ...], connection: Connection, limit: float
    ) -> None:
        if connection.number not in self.backends and not connection.silent:
            connection.open = False
        kind = "hang" if connection.silent else self._draw(wish, kinds)
        started = self.loop.now
        try:
            if not connection.open:
                kind = "fail"
            elif kind in ("hang", "stubborn"):
                await self.loop.create_future()
            elif kind != "instant":
                await asyncio.sleep(limit if kind == "late" else self.weather.latency)
            if kind == "fail" or not connection.open:
                raise errors.ConnectionLost("server closed the connection unexpectedly")
        except asyncio.CancelledError:
            if kind == "stubborn":
                return
            if self.closing():
                self.report(f"{verb} cancelled")
            elif self.loop.now < started + limit - 1e-3:
                self.blame(f"R11: a {verb} was cut short before its limit")
            else:
                self.report(f"{verb} timeout")
            raise
        except errors.ConnectionLost:
            self.report(f"{verb} failed")
            raise
        if self.loop.now > started + limit + 1e-3:
            self.blame(f"R11: a {verb} took {self.loop.now - started:.3f}s, its limit is {limit}s")
        self.report(f"{verb} ok")

    def is_open(self, connection: Connection) -> bool:
        return connection.open

    def rest(self, connection: Connection, lost: Callable[[], None]) -> None:
        connection.lost = lost

    def abort(self, connection: Connection) -> None:
        known = connection.aborted_at is not None
        self._cut(connection)
        if not known and connection.number % 4 == 0:  # as asyncpg 0.31 did, although a driver must not
            raise OSError("the abort failed")

    def _cut(self, connection: Connection) -> None:
        if connection.aborted_at is not None:
            return
        connection.aborted_at = self.loop.now
        connection.open = False
        self.changes += 1
        linger = 30.0 if connection.silent else self.weather.linger
        if linger and connection.number in self.backends:
            connection.end = self.loop.call_later(linger, self._let_go, connection)
        else:
            self._let_go(connection)

    def hang_up(self, connection: Connection) -> None:
        self.cut(connection)

    def disown(self, connection: Connection) -> None:
        connection.open = False

    async def close(self, connection: Connection) -> None:
        started = self.loop.now
        kind = "hang" if connection.silent else self._draw(self.weather.close, CLOSE_KINDS)
        try:
            if connection.aborted_at is not None or connection.number not in self.backends:
                kind = "after abort"
            elif kind == "hang":
                await self.loop.create_future()
            elif kind == "raise":
                self.report("close raises")
                raise OSError("already closed")
            else:
                connection.open = False
                if kind == "ok":
                    await asyncio.sleep(self.weather.latency)
                self._let_go(connection)
            if not connection.gone.done():
                await asyncio.shield(connection.gone)  # others may wait for the same end
        except asyncio.CancelledError:
            if self.closing():
                self.report("close cancelled")
            elif self.loop.now < started + self.leave_timeout - 1e-3:
                self._judge_short_close(connection)
            else:
                self.report("close timeout")
            self.excuse(connection)
            raise
        self.report(f"close {kind}")

    def _judge_short_close(self, connection: Connection) -> None:
        # After a close that raised, the pool cuts the connection off and asks again within the same limit.
        since = connection.aborted_at
        if since is None or self.loop.now < since + self.leave_timeout - 1e-3:
            self.blame("R11: a close was cut short before its limit")
        self.report("close timeout")

    # -- the books ---------------------------------------------------------------------------------------------

    def _draw(self, wish: str, kinds: tuple[str, ...]) -> str:
        return self.rng.choice(kinds) if wish == "mixed" else wish

    def _accept(self) -> Connection:
        self.numbers += 1
        connection = Connection(self.numbers, self.loop.now, self.loop.create_future())
        self.backends[connection.number] = connection
        self.changes += 1
        return connection

    def _let_go(self, connection: Connection) -> None:
        if self.backends.pop(connection.number, None) is not None and not connection.excused:
            self.counted -= 1
        self.changes += 1
        if connection.end is not None:
            connection.end.cancel()
        if not connection.gone.done():
            connection.gone.set_result(None)

    def excuse(self, connection: Connection) -> None:
        """The pool need not count this connection any longer."""
        if not connection.excused:
            connection.excused = True
            self.counted -= connection.number in self.backends
            self.changes += 1
