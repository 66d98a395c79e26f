"""The life of each connection: opened, proven, cleaned and closed by tasks that the pool owns.

Nothing here knows who waits. Each step ends in `_settle`, which decides what becomes of a connection that nobody
holds, and in `_serve`, which brings callers and connections together; both belong to the pool.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import os
import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

from steadypool import errors, events
from steadypool._clock import Clock
from steadypool._owner_loop import Home
from steadypool.pool import rejections
from steadypool.pool.entries import CONNECTING, LIVE, SUPPLY, EntryTable
from steadypool.pool.lease import Driver, EntryState, PoolEntry, PoolOptions

T = TypeVar("T")

_log = logging.getLogger("steadypool.pool")

PATIENCE = 0.25
"""The least of `Lifecycle.ping_patience`, in seconds."""


_this_process = os.getpid()
"""Noted, since asking the system at every use of a connection is dear."""


def _note_process() -> None:
    global _this_process
    _this_process = os.getpid()


os.register_at_fork(after_in_child=_note_process)


class Lifecycle(ABC, Generic[T]):
    """What `Pool` is built on; the arguments are those of the pool."""

    def __init__(
        self,
        driver: Driver[T],
        options: PoolOptions,
        *,
        name: str,
        clock: Clock,
        rng: random.Random,
        observers: events.Events,
    ) -> None:
        self.driver = driver
        self.options = options
        self.name = name
        self.clock = clock
        self.events = observers
        self.last_connect_failure: BaseException | None = None
        self._rng = rng
        self._slots = EntryTable[T](clock)
        self._idle: deque[PoolEntry[T]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._generation: int = 0
        self._connect_seconds = 0.0
        self._closed: bool = False
        self.replaced = False
        """Whether another pool has taken its place: what comes back is closed, also what was opened since."""
        # Replacing in the background a connection that may only live for an instant would never end.
        self._replaces_recycled = options.recycle is not None and options.recycle >= 1.0
        self._recycle_timer: asyncio.TimerHandle | None = None
        self._recycle_at = math.inf
        self._wanted_idle = 0
        self._proves_idle = False
        self._said_abort_fails = False
        self._home: Home | None = None

    # -- what the pool adds ------------------------------------------------------------------------------------

    @abstractmethod
    def _settle(self, slot: PoolEntry[T], now: float) -> None:
        """A clean connection nobody holds: put it where it can be taken from, or let it go."""

    @abstractmethod
    def _serve(self, now: float | None = None) -> None:
        """Something has changed that may serve or fail somebody who waits."""

    @abstractmethod
    def _connected(self, seconds: float | None) -> None:
        """A connect succeeded, or the server was heard from in another way."""

    @property
    @abstractmethod
    def _hedge_after(self) -> float:
        """Seconds after which a connect without an answer is not counted on any more."""

    @abstractmethod
    def _connect_failed(self, failure: Exception, now: float, *, final: bool) -> None:
        """A connect failed and its slot is free."""

    # -- what there is -----------------------------------------------------------------------------------------

    def count(self, *states: EntryState) -> int:
        """How many connections are in one of these states; all there are if none is named."""
        return self._slots.count(*states) if states else len(self._slots)

    def by_state(self) -> dict[EntryState, int]:
        """How many connections are in each state. May be called from another thread."""
        return self._slots.by_state()

    def bind(self) -> None:
        """Belong to the running event loop from now on; otherwise the first use decides."""
        self._at_home()

    def suspect_all(self, since: float = math.inf) -> None:
        """Let every live connection prove itself before somebody gets it, unless it has answered since a moment."""
        now = self.clock.monotonic()
        for slot in self._slots:
            if slot.state in LIVE and slot.proven_at < since:
                slot.suspect, slot.suspected_at = True, now

    def prove_idle(self) -> None:
        """Ask every idle connection for a sign of life now, in the background; those that give none are closed.

        At most `PoolOptions.max_connecting` are asked at a time. Those in use prove themselves when they come back
        and somebody wants them. Whoever asks for a connection meanwhile gets the first that has answered.

        Example:
            >>> pool.prove_idle()  # the listener's heartbeat was not answered: the others may be dead, too
        """
        self.suspect_all()
        self._proves_idle = self._home is not None
        self._ask_idle()

    @property
    def ping_patience(self) -> float:
        """Seconds after which callers do not count on a ping any more: the time of the last connect, or `PATIENCE`."""
        return max(PATIENCE, self._connect_seconds)

    def doubt_idle(self, since: float) -> None:
        """A connection has gone silent: ask all idle ones now, and serve callers without counting on any of them.

        Where one connection has gone silent the others often have too, and meeting them one by one adds up.

        Args:
            since: the moment at which the silence began; a connection that has answered since is not asked.
        """
        self.suspect_all(since)
        for slot in [slot for slot in self._idle if slot.suspect]:
            self._idle.remove(slot)
            self._slots.move(slot, EntryState.SILENT)
            self._start(slot, self._prove(slot))
        self._serve()

    def _ask_idle(self) -> None:
        """Go on with `prove_idle` as far as it may."""
        if not self._proves_idle:
            return
        for slot in [slot for slot in self._idle if slot.suspect]:
            if self.count(EntryState.PROVING) >= self.options.max_connecting:
                return
            self._idle.remove(slot)
            self._slots.move(slot, EntryState.PROVING)
            self._start(slot, self._prove(slot))
        self._proves_idle = False

    def sweep(self) -> None:
        """Let go of idle connections whose end was noticed while nobody used them; their siblings become suspect."""
        dead = [slot for slot in self._idle if not self.driver.is_open(self._connection(slot))]
        for slot in dead:
            self._idle.remove(slot)
            self._retire(slot, "found dead", abrupt=True)
        if dead:
            self.suspect_all()
            self._serve()

    def _outdated(self, slot: PoolEntry[T]) -> bool:
        return self._closed or slot.generation != self._generation

    # -- what the pool's own tasks do --------------------------------------------------------------------------

    async def _open(self, slot: PoolEntry[T]) -> None:
        started = self.clock.monotonic()
        self.events.emit(events.ConnectStarted(self.name, started, slot.number))
        stuck = self._loop().call_later(self._hedge_after, self._stuck, slot)
        try:
            async with asyncio.timeout(self.options.connect_timeout):
                connection = await self.driver.open()
        except asyncio.CancelledError:
            if _being_cancelled():
                raise  # by `close`; `_ended` frees the slot
            error = errors.ConnectFailed("the driver gave up connecting without saying why")
            self._open_failed(slot, started, error)
            return
        except Exception as error:  # noqa: BLE001 - whatever the driver raises becomes the callers' named error
            self._open_failed(slot, started, error)
            return
        finally:
            stuck.cancel()
        if slot.state is EntryState.GONE:  # a driver that takes no notice of being cancelled
            self._abort(connection)
            return
        now = self.clock.monotonic()
        slot.connection = connection
        slot.opened_at = slot.proven_at = now
        if self.options.recycle is not None:
            jitter = self._rng.uniform(0.0, self.options.recycle_jitter)
            slot.expires_at = now + self.options.recycle * (1.0 - jitter)
        self._connect_seconds = slot.connect_seconds = now - started
        self.last_connect_failure = None
        self._connected(now - started)
        self.events.emit(events.ConnectSucceeded(self.name, now, slot.number, now - started))
        self._settle(slot, now)
        self._serve(now)

    def _stuck(self, slot: PoolEntry[T]) -> None:
        """A connect takes long. It is held open, but whoever waits is served without counting on it."""
        if slot.state is EntryState.OPENING:
            self._slots.move(slot, EntryState.STUCK)
            self._serve()

    def _open_failed(self, slot: PoolEntry[T], started: float, error: Exception) -> None:
        now = self.clock.monotonic()
        failure = error
        if isinstance(error, TimeoutError) and not isinstance(error, errors.SteadypoolError):
            failure = errors.ConnectTimeout(
                f"connecting took longer than {self.options.connect_timeout:.2f}s",
                errors.Report(errors.Phase.CONNECTING, errors.Elapsed(connecting=now - started)),
            )
        self.last_connect_failure = failure
        final = rejections.is_final(failure)
        self.events.emit(
            events.ConnectAttemptFailed(self.name, now, slot.number, now - started, failure, final)
        )
        self._free(slot, "connect failed")
        self._connect_failed(failure, now, final=final)

    async def _prove(self, slot: PoolEntry[T]) -> None:
        connection = self._connection(slot)
        began = self.clock.monotonic()
        doubt = self._loop().call_later(self.ping_patience, self._doubt, slot, began)
        try:
            # Half the time of a connect, so that whoever waits for this can still get a new one.
            async with asyncio.timeout(self.options.connect_timeout / 2):
                await self.driver.ping(connection)
        except Exception as error:  # noqa: BLE001 - whatever a ping raises means that it is not to be used
            # Silence says nothing of those who answered meanwhile; an end may be everybody's.
            self.suspect_all(began if isinstance(error, TimeoutError) else math.inf)
            self._retire(slot, "found dead", abrupt=True)
            self._serve()
            return
        finally:
            doubt.cancel()
        slot.suspect = False
        self._answered(slot)

    def _doubt(self, slot: PoolEntry[T], began: float) -> None:
        """A ping takes long: callers are served without counting on it."""
        if slot.state is EntryState.PROVING:
            self._slots.move(slot, EntryState.SILENT)
            self.doubt_idle(began)

    def _answered(self, slot: PoolEntry[T]) -> None:
        """The server has answered on a clean connection."""
        slot.proven_at = now = self.clock.monotonic()
        self._settle(slot, now)
        self._serve(now)

    async def _reset(self, slot: PoolEntry[T]) -> None:
        connection = self._connection(slot)
        try:
            async with asyncio.timeout(self.options.leave_timeout):
                await self.driver.reset(connection)
        except Exception:  # noqa: BLE001 - whatever went wrong, a connection that can't be cleaned is not used again
            self._retire(slot, "not clean", abrupt=True)
            self._serve()
            return
        self._answered(slot)

    async def _close(self, slot: PoolEntry[T], reason: str) -> None:
        connection = self._connection(slot)
        try:
            async with asyncio.timeout(self.options.leave_timeout):
                await self._part(connection)
        except asyncio.CancelledError:
            self._abort(connection)
            raise
        except Exception:  # noqa: BLE001 - a connection that can't be closed politely is cut off
            self._abort(connection)
        finally:
            self._free(slot, reason)
            self._serve()

    async def _part(self, connection: T) -> None:
        try:
            await self.driver.close(connection)
        except Exception:  # noqa: BLE001 - whatever a goodbye raises, the server may still have the connection
            self._abort(connection)
            await self.driver.close(connection)

    def _abort(self, connection: T) -> None:
        """Cut a connection off. A driver that fails in this, which it must not, costs no place in the pool."""
        try:
            self.driver.abort(connection)
        except Exception:  # noqa: BLE001 - whatever it raises, the connection is on its way out
            if not self._said_abort_fails:
                self._said_abort_fails = True
                _log.exception("pool %r: the driver failed to cut a connection off", self.name)

    def _retire(self, slot: PoolEntry[T], reason: str, *, abrupt: bool = False) -> None:
        """Close a connection that nobody holds; its place is free when the server has let go of it."""
        if slot.state is EntryState.GONE:
            return
        self._slots.move(slot, EntryState.CLOSING)
        if abrupt:
            self._abort(self._connection(slot))
        self._start(slot, self._close(slot, reason))

    def _free(self, slot: PoolEntry[T], reason: str) -> None:
        if slot.state is EntryState.GONE:
            return
        self._slots.move(slot, EntryState.GONE)
        slot.connection = None
        self.events.emit(events.Closed(self.name, self.clock.monotonic(), slot.number, reason))

    # -- age ---------------------------------------------------------------------------------------------------

    def _is_old(self, slot: PoolEntry[T], now: float) -> bool:
        return now >= slot.expires_at and now > slot.opened_at

    def _leaves_at(self, slot: PoolEntry[T]) -> float:
        """When an idle connection has to go: at the end of its lifetime, or when it was idle for long."""
        age = slot.expires_at if self._replaces_recycled else math.inf
        idle = self.options.idle_timeout
        return age if idle is None else min(age, slot.idle_since + idle)

    def _look_at(self, moment: float) -> None:
        """Look for idle connections that have to go at that moment, if nobody was going to look earlier."""
        if moment >= self._recycle_at:
            return
        if self._recycle_timer is not None:
            self._recycle_timer.cancel()
        self._recycle_at = moment
        delay = max(0.0, moment - self.clock.monotonic())
        self._recycle_timer = self._loop().call_later(delay, self._recycle)

    def _recycle(self) -> None:
        """Replace idle connections that are old enough, so that no caller has to wait for it; close unused ones."""
        self._recycle_timer, self._recycle_at = None, math.inf
        now = self.clock.monotonic()
        for slot in [slot for slot in self._idle if now >= self._leaves_at(slot)]:
            self._idle.remove(slot)
            old = now >= slot.expires_at
            self._retire(slot, "recycled" if old else "idle")
            self._wanted_idle += old
        self._look_at(min(map(self._leaves_at, self._idle), default=math.inf))
        self._serve()

    # -- small helpers -----------------------------------------------------------------------------------------

    def _connection(self, slot: PoolEntry[T]) -> T:
        assert slot.connection is not None, "a slot without a connection in use"
        return slot.connection

    def _start(self, slot: PoolEntry[T], work: Coroutine[Any, Any, None]) -> None:
        loop = self._loop()
        if loop.is_closed():  # nothing can be awaited there any more
            work.close()
            connection = slot.connection
            self._free(slot, "disposed")
            if connection is not None:
                self._abort(connection)
            return
        # An empty context: the pool's work must not inherit the deadline of the caller that happened to start it.
        task = loop.create_task(
            work, name=f"{self.name}-{slot.state.value}-{slot.number}", context=contextvars.Context()
        )
        slot.task = task
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._ended(slot, ended))

    def _ended(self, slot: PoolEntry[T], task: asyncio.Task[None]) -> None:
        """A task of the pool is done. One that was cancelled, maybe before its first step, left its slot as it was."""
        self._tasks.discard(task)
        if slot.task is not task or not task.cancelled():
            return
        if slot.state in CONNECTING:
            self._free(slot, "closed while opening")
        elif slot.state in SUPPLY or slot.state is EntryState.SILENT:
            self._retire(slot, "interrupted", abrupt=True)
        self._serve()

    def _loop(self) -> asyncio.AbstractEventLoop:
        assert self._home is not None, "the pool was never used"
        return self._home[0]

    @property
    def home(self) -> Home | None:
        """The event loop and the process that it belongs to; None before its first use."""
        return self._home

    @property
    def at_home(self) -> bool:
        """Whether this is the event loop and the process that it belongs to; false where it belongs to none yet."""
        try:
            return self._home == (asyncio.get_running_loop(), _this_process)
        except RuntimeError:  # no event loop runs
            return False

    def _at_home(self) -> asyncio.AbstractEventLoop:
        home, loop = self._home, asyncio.get_running_loop()
        if home is None:
            self._home = (loop, _this_process)
        elif home[0] is not loop or home[1] != _this_process:
            where = "process" if home[1] != _this_process else "event loop"
            raise errors.WrongEventLoop(
                f"the pool {self.name!r} belongs to another {where}; make one for each {where}, "
                "or dispose of it before you use it here: `await engine.dispose()`"
            )
        return loop


def _being_cancelled() -> bool:
    """Whether somebody cancelled this task, as opposed to a CancelledError that came from within."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
