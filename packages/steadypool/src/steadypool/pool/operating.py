"""What an operator does with a pool: suspend, resize, warm up, evict, close."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from steadypool import events
from steadypool._owner_loop import bury
from steadypool.pool import rejections
from steadypool.pool.entries import ASKING, CONNECTING, LIVE
from steadypool.pool.lease import EntryState, Lease
from steadypool.pool.wait_queue import Waiting

T = TypeVar("T")

_inherited: list[object] = []
"""Pools of the parent process: what they had on their way must not be cleaned up by the garbage collector here."""

OF_NO_GENERATION = -1
"""Of a connection that is not to be used again, whichever others are."""


class Operating(Waiting[T]):
    """The controls of `Pool`; the arguments are those of the pool."""

    def __init__(self, *args: Any, **others: Any) -> None:
        super().__init__(*args, **others)
        self._changed: set[asyncio.Future[None]] = set()
        self._said_closed = False

    @abstractmethod
    def _end_lease(self, lease: Lease[T], now: float, *, kept: bool) -> None:
        """Somebody does not hold a connection any more."""

    @abstractmethod
    def _stop_timers(self) -> None:
        """Nothing is to happen by itself from now on."""

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def suspend(self) -> None:
        """Hand out nothing until `resume`: callers wait, for as long as they would wait for a busy pool."""
        self._suspended = True

    def resume(self) -> None:
        """Hand out connections again."""
        self._suspended = False
        if self._home is not None:
            self._serve()

    def resize(self, *, size: int | None = None, max_overflow: int | None = None) -> None:
        """Change the limits at run time. What is too many is closed when it comes back, or at once where idle.

        Args:
            size: connections that are kept open.
            max_overflow: connections beyond these.
        """
        options = self.options
        self.options = replace(
            options,
            size=options.size if size is None else size,
            max_overflow=options.max_overflow if max_overflow is None else max_overflow,
        )
        while len(self._idle) > self.options.size:
            self._retire(self._idle.popleft(), "overflow")
        if self._home is not None:
            self._serve()

    def warm_up(self, connections: int | None = None) -> None:
        """Begin to open connections, `PoolOptions.size` by default, without waiting for anybody to need them."""
        self._at_home()
        target = self.options.size if connections is None else min(connections, self.options.size)
        self._wanted_idle = max(0, target - self.count(*LIVE, *CONNECTING))
        self._serve()

    def drain(self, same: Callable[[T], bool]) -> None:
        """Replace some of the connections: idle ones at once, those in use when they come back.

        Args:
            same: whether a connection is one of them, such as one to a host that is a standby now.

        Example:
            >>> pool.drain(lambda connection: connection.host == "10.0.0.7")
        """
        for slot in self._slots:
            connection = slot.connection
            if connection is None or slot.state is EntryState.CLOSING or not same(connection):
                continue
            slot.generation = OF_NO_GENERATION
            if slot.state is EntryState.IDLE:
                self._idle.remove(slot)
                self._retire(slot, "drained")
        if self._home is not None:
            self._serve()

    async def evict(self) -> None:
        """Close all idle connections at once, and those in use when they come back.

        Raises:
            errors.WrongEventLoop: the pool belongs to another event loop or process.
        """
        self._at_home()
        self._generation += 1
        self._wanted_idle = 0
        idle, self._idle = list(self._idle), deque()
        for slot in idle:
            self._retire(slot, "disposed")
        self._serve()
        closing = [slot.task for slot in idle if slot.task is not None]
        if closing:
            await asyncio.wait(closing)

    def abort_idle(self) -> None:
        """Like `evict`, where nothing can be awaited: cut all idle connections off."""
        self._generation += 1
        self._wanted_idle = 0
        while self._idle:
            slot = self._idle.pop()
            connection = self._connection(slot)
            self._free(slot, "disposed")
            self._abort(connection)

    def refuse(self) -> None:
        """Refuse new callers from now on; may be called from another thread."""
        self._closed = True

    # -- from elsewhere ----------------------------------------------------------------------------------------

    def cut_off(self, *, leased: bool) -> int:
        """Let go of everything, where the pool's event loop does not run any more.

        Nothing of that loop is waited for or called. Slots are free and tasks are over when this returns.

        Args:
            leased: connections in use too, since nobody can use them again: the loop is closed. Otherwise they are
                closed when they come back.

        Returns:
            How many of the connections were neither idle nor being closed.
        """
        self._generation += 1
        self._wanted_idle = 0
        self._proves_idle = False
        self._idle.clear()
        now, busy, tasks = self.clock.monotonic(), 0, tuple(self._tasks)
        if leased:
            closed = self._loop().is_closed()
            for waiter in list(self._waiters):
                self._forget(waiter)
                if not closed:  # the loop may go on
                    self._fail(waiter, rejections.closed(self.name), now)
            self._stop_timers()
        for slot in self._slots:
            if slot.state is EntryState.LEASED and not leased:
                continue
            busy += slot.state not in (EntryState.IDLE, EntryState.CLOSING)
            if slot.lease is not None:
                self._end_lease(slot.lease, now, kept=False)
            connection = slot.connection
            self._free(slot, "disposed")
            if connection is not None:
                self._abort(connection)
        for task in tasks:
            bury(task)
        if not leased:  # who waits is served when the loop goes on
            self._loop().call_soon_threadsafe(self._serve)
        return busy

    def hang_up(self, *, leased: bool = False) -> int:
        """End idle connections for the server while the pool's loop, in another thread, does not answer.

        That loop finds them dead and buries them when it goes on.

        Args:
            leased: connections in use too.

        Returns:
            How many there were.
        """
        ended = 0
        for slot in self._slots:
            connection = slot.connection
            if connection is not None and (leased or slot.state is not EntryState.LEASED):
                self.driver.hang_up(connection)
                ended += 1
        return ended

    def disown(self) -> int:
        """In a forked child: close its descriptors of the parent's connections, and never touch them again.

        Returns:
            How many there were.
        """
        if self in _inherited:
            return 0
        _inherited.append(self)
        ended = 0
        for slot in self._slots:
            if slot.connection is not None:
                self.driver.disown(slot.connection)
                ended += 1
        return ended

    async def close(self, grace: float | None = None) -> None:
        """Refuse new callers, let those who hold a connection finish, then cut off what is left, all at once.

        Args:
            grace: seconds to wait for connections in use; `PoolOptions.close_grace` by default.
        """
        self._at_home()
        self.refuse()
        self._generation += 1
        now = self.clock.monotonic()
        for waiter in list(self._waiters):
            self._forget(waiter)
            self._fail(waiter, rejections.closed(self.name), now)
        self._stop_timers()
        self._proves_idle = False
        for slot in self._slots:
            if slot.state in ASKING and slot.task is not None:
                slot.task.cancel()
            elif slot.state is EntryState.IDLE:
                self._retire(slot, "pool closed")
        self._idle.clear()
        try:
            await self._wait_until_empty(self.options.close_grace if grace is None else grace)
        finally:
            self._abort_all()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.options.leave_timeout)

    async def _wait_until_empty(self, grace: float) -> None:
        until = self.clock.monotonic() + grace
        while self._slots and (left := until - self.clock.monotonic()) > 0:
            future: asyncio.Future[None] = self._loop().create_future()
            self._changed.add(future)
            try:
                await asyncio.wait({future}, timeout=left)
            finally:
                self._changed.discard(future)
                future.cancel()

    def _tell_changed(self) -> None:
        for future in self._changed:
            if not future.done():
                future.set_result(None)

    def _abort_all(self) -> None:
        now, aborted = self.clock.monotonic(), self.count(EntryState.LEASED)
        for slot in self._slots:
            if slot.lease is not None:
                self._end_lease(slot.lease, now, kept=False)
            if slot.connection is not None:
                self._abort(slot.connection)
            self._free(slot, "aborted at close")
        for task in self._tasks:
            task.cancel()
        self._tell_changed()
        if not self._said_closed:
            self._said_closed = True
            self.events.emit(events.PoolClosedEvent(self.name, now, aborted))
