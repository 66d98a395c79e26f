"""Which connections are shared: how they come from the pool, how many there are, and when they go back."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg

from steadypool._clock import Clock
from steadypool._owner_loop import bury
from steadypool._sqlstate import Disposition, cause_of_loss
from steadypool.events import ConnectionLost
from steadypool.multiplex.connection import SharedConnection
from steadypool.multiplex.eligibility import ATTEMPTS
from steadypool.multiplex.options import MultiplexOptions
from steadypool.multiplex.request import Request
from steadypool.pipeline import Batch, BatchTimeout, PipelinedConnection, Statement
from steadypool.pool.inspection import SHARED
from steadypool.pool.lease import EntryState, Lease
from steadypool.pool.pool import Pool, rejections

CANARY_LIMIT = 1.0
"""Seconds in which a pooler has to answer two statements that were sent at once."""


class SharedConnections(ABC):
    """What `Multiplexer` is built on; the arguments are its own."""

    def __init__(
        self,
        pool: Pool[Any],
        *,
        pipelined: Callable[[Any], PipelinedConnection],
        options: MultiplexOptions,
        pooled: Callable[[], bool],
        carries_two: Callable[[], None],
    ) -> None:
        self.pool = pool
        self.options = options
        self._pipelined = pipelined
        self._pooled = pooled
        self._carries_two = carries_two
        self._tried_pooler = False
        self._clock: Clock = pool.clock
        self._now = pool.clock.monotonic
        self._events = pool.events
        self._seats: list[SharedConnection] = []
        self._queue: deque[Request] = deque()
        self._queue_timer: asyncio.TimerHandle | None = None
        self._growing: asyncio.Task[None] | None = None
        self._asking = False
        self._empty: asyncio.Future[None] | None = None
        self._closed = self._retired = False

    # -- what the shared way adds ------------------------------------------------------------------------------

    @abstractmethod
    def _pump(self, freed: SharedConnection | None = None) -> None:
        """Send what waits, as far as there is room."""

    @abstractmethod
    def _fail_queue(self, failure: BaseException) -> None:
        """There is no connection for those who wait."""

    @abstractmethod
    def _after_answers(self, seat: SharedConnection) -> None:
        """All answers of one turn were taken."""

    @abstractmethod
    def _tell(self, seat: SharedConnection) -> None:
        """Tell of what was answered."""

    # -- connections -------------------------------------------------------------------------------------------

    def _grow(self) -> None:
        """Get one more connection, if that helps: as long as those that are there are all busy."""
        if self._growing is None and not self._closed and self._wants_more():
            loop = asyncio.get_running_loop()
            # A context of its own: the deadline of whoever happens to ask is not for those who come after.
            self._growing = loop.create_task(self._add_seat(), context=contextvars.Context())
            self._growing.add_done_callback(self._grown)

    def _wants_more(self) -> bool:
        seats = sum(not seat.leaving for seat in self._seats)
        if seats == 0:
            return True
        # A connection more takes one from the sessions: only where there is one to spare.
        pool = self.pool
        spare = pool.count() < pool.options.limit or pool.count(EntryState.IDLE) > 0
        return seats < self.options.connections and spare and not pool.waiting

    def _pool_is_short(self) -> bool:
        """Whether somebody waits there for a connection that others have, besides ourselves."""
        waiting = self.pool.waiting - (self._growing is not None)
        return waiting > 0 and self.pool.count() >= self.pool.options.limit

    async def _lease_alive(self, name: str | None = None) -> Lease[Any]:
        """A lease of a connection that has answered just now, if it had been idle for long.

        Raises what `Pool.acquire` raises.
        """
        while True:
            pool = self.pool
            lease = await pool.acquire(name=name, for_others=True)
            connection = self._pipelined(lease.connection)
            if not self._is_silent(connection, lease.slot.proven_at):
                return lease
            began = self._now()
            try:
                await connection.run(Batch([], limit=self._ping_limit))
            except psycopg.Error as error:
                if isinstance(error, BatchTimeout):
                    pool.doubt_idle(began)
                else:
                    pool.suspect_all()
                lease.release(Disposition.EVICT)
            except BaseException:  # cancelled: nobody else knows the lease
                lease.release(Disposition.EVICT)
                raise
            else:
                return lease

    @property
    def _ping_limit(self) -> float:
        """Seconds in which a connection that was idle for long has to answer; a pooler may have no server to spare."""
        return self.pool.options.connect_timeout / 2 if self._pooled() else self.pool.ping_patience

    def _is_silent(self, connection: PipelinedConnection, proven_at: float = 0.0) -> bool:
        limit = self.options.prove_after
        return limit is not None and self._now() - max(connection.last_answer, proven_at) > limit

    async def _add_seat(self) -> None:
        for attempt in range(ATTEMPTS):
            self._asking, pool = True, self.pool
            try:
                lease = await self._lease_alive(SHARED)
            finally:
                self._asking = False
            if pool is not self.pool or (self._retired and not self._queue):  # it was replaced meanwhile
                lease.release(Disposition.EVICT)
                if self._retired:
                    return
                continue
            try:
                if not self._tried_pooler and self._pooled():
                    await self._behind_pooler(self._pipelined(lease.connection))
                seat = SharedConnection(lease, self._pipelined(lease.connection), self.options)
                await seat.begin(self.pool.options.connect_timeout)
            except psycopg.Error:
                lease.release(Disposition.EVICT)
                if attempt == ATTEMPTS - 1:
                    raise
                continue
            except BaseException:  # cancelled: nobody else knows the lease
                lease.release(Disposition.EVICT)
                raise
            self._seats.append(seat)
            seat.connection.after_answers = functools.partial(self._after_answers, seat)
            seat.connection.when_ended(functools.partial(self._let_go, seat))
            seat.until(self._rotate_after, functools.partial(self._leave_soon, seat))
            return

    async def _behind_pooler(self, connection: PipelinedConnection) -> None:
        """One statement at a time from now on, unless two at once are answered; nothing for a session that is not kept.

        Raises:
            psycopg.Error: they were not: the connection is lost, and the next one gets one at a time.
        """
        self._tried_pooler = True
        window, local = self.options.window, not connection.statements.keeps
        self.options = replace(self.options, local=local, window=1)
        for call in self._queue:
            call.prepare(self.options)
        canaries = [Batch([Statement("select 1", prepare=False)], limit=CANARY_LIMIT) for _ in range(2)]
        ends = await asyncio.gather(*map(connection.send, canaries), return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end
        self.options = replace(self.options, window=window)
        self._carries_two()

    def _grown(self, task: asyncio.Task[None]) -> None:
        if self._growing is not task:
            return  # it was given up
        self._growing = None
        failure = None if task.cancelled() else task.exception()
        if failure is not None and not self._seats:
            self._fail_queue(failure)
        elif self._queue:
            self._pump()
        if self._pool_is_short():
            self.make_room()

    def _let_go(self, seat: SharedConnection) -> None:
        """The connection is not shared any more."""
        if seat.fresh:
            self._tell(seat)
        if seat in self._seats:
            self._seats.remove(seat)
            if seat.connection.closed and not self._closed:
                self._tell_lost(seat.lease.slot.number, seat.last_words)
        seat.leave(self._clock.monotonic())
        if self._empty is not None and not self._seats and not self._empty.done():
            self._empty.set_result(None)
        if self._queue and not self._seats and not self._closed and self.pool.at_home:
            self._grow()

    def _tell_lost(self, connection: int, sqlstate: str | None) -> None:
        """A connection died; told once, however many statements were on it."""
        now, cause = self._clock.monotonic(), cause_of_loss(sqlstate)
        self.pool.events.emit(ConnectionLost(self.pool.name, now, connection, cause, None))

    def make_room(self) -> None:
        """Somebody is about to wait in the pool: what is idle goes back at once, the rest when it has answered."""
        for seat in tuple(self._seats):
            self._leave_soon(seat)

    def move_to(self, pool: Pool[Any]) -> None:
        """Another pool has taken the place of the one where the connections came from: they go back, in time."""
        self.pool = pool
        self._clock, self._now, self._events = pool.clock, pool.clock.monotonic, pool.events
        self.make_room()

    def retire(self) -> None:
        """Another event loop has the pool from now on, with a way of its own; here those inside are served yet."""
        self._retired = True
        self.make_room()
        self._pump()

    def bury(self) -> None:
        """The event loop is closed, or has stopped for good: the connections are the pool's to cut off."""
        self._seats = []
        with contextlib.suppress(RuntimeError):  # where it is closed nothing waits
            self._fail_queue(rejections.closed(self.pool.name))
        self._queue = deque()
        self.interrupt()

    def interrupt(self) -> None:
        """The event loop does not run: give back what carries nothing, and ask for no more until it goes on."""
        self._retired = True
        growing, self._growing = self._growing, None
        if growing is not None:
            bury(growing)
        self.make_room()

    def resting(self) -> list[Any]:
        """The connections that carry nothing; may be called from another thread."""
        return [seat.connection for seat in tuple(self._seats) if not seat.load]

    def _leave_soon(self, seat: SharedConnection) -> None:
        seat.leaving = True
        if not seat.load:
            self._let_go(seat)

    @property
    def _rotate_after(self) -> float:
        """Well before somebody would take it for a leak."""
        return min(self.options.rotate_after, (self.pool.options.leak_after or math.inf) / 2)
