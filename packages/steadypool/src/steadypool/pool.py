"""Who holds which connection. Knows no SQL, no driver and no clock of its own.

The rules, and where they bind:

- Everything here runs on one event loop and nothing between two awaits can be interrupted. All changes of state
  happen in plain functions; each ends in `_serve`, the one place where callers and connections meet.
- Opening, proving, cleaning and closing are done by tasks that the pool owns (`lifecycle`), never by a caller's
  task. So a cancelled caller can leave at once, and what it began goes to whoever is next.
- `release` never awaits: there is no moment at which giving back could be cancelled.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, deque
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from steadypool import errors, events, refusal
from steadypool.breaker import Breaker, BreakerState
from steadypool.clock import SYSTEM_CLOCK, Clock
from steadypool.deadline import current_deadline
from steadypool.leaks import LeakWatch
from steadypool.lease import Driver, Lease, PoolOptions, Slot, SlotState, Waiter
from steadypool.lifecycle import Lifecycle
from steadypool.roster import ASKING, CONNECTING, LIVE, SUPPLY
from steadypool.sqlstate import Fate
from steadypool.whereabouts import Place

T = TypeVar("T")


class Pool(Lifecycle[T]):
    """A pool of connections of any kind.

    It belongs to the event loop, and the process, in which it is first used.

    Args:
        driver: how to open, ping, clean, abort and close a connection.
        options: sizes and times.
        name: what events and errors call this pool.
        clock: where the time comes from.
        rng: where the lifetime jitter comes from.
        breaker: whether a new connection is worth trying.
        observers: where events go.
        ceilings: for a workload, the most connections it may hold at a time.

    Example:
        >>> async def use(driver: Driver[T]) -> None:
        ...     pool = Pool(driver, PoolOptions(size=2, max_overflow=0))
        ...     with await pool.acquire() as connection:
        ...         ...
        ...     await pool.close()
    """

    def __init__(
        self,
        driver: Driver[T],
        options: PoolOptions | None = None,
        *,
        name: str = "main",
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        breaker: Breaker | None = None,
        observers: events.Events | None = None,
        ceilings: dict[str, int] | None = None,
    ) -> None:
        super().__init__(
            driver,
            options or PoolOptions(),
            name=name,
            clock=clock,
            rng=rng or random.Random(),
            observers=observers or events.Events(),
        )
        self.breaker = breaker or Breaker(self.options.max_connecting)
        self.ceilings = ceilings if ceilings is not None else {}
        self._waiters: dict[Waiter[T], None] = {}
        self._overtime: dict[Waiter[T], None] = {}  # those who wait beyond `busy_until`, for the server
        self._held: Counter[str] = Counter()
        self._changed: set[asyncio.Future[None]] = set()
        self._said_closed = False
        self._wake_timer: asyncio.TimerHandle | None = None
        self._leaks = LeakWatch(
            self.options.leak_after, self._slots, observers=self.events, name=self.name, clock=self.clock
        )
        self._suspended = False

    # -- what a person can see ---------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def waiting(self) -> int:
        """How many callers wait for a connection."""
        return len(self._waiters)

    def snapshot(self) -> errors.PoolSnapshot:
        """The pool at this moment: counts, and who holds what for how long."""
        now = self.clock.monotonic()
        return self._slots.snapshot(self.options, now, self.waiting, self.last_connect_failure)

    # -- acquire and release -----------------------------------------------------------------------------------

    async def acquire(
        self,
        *,
        name: str | None = None,
        workload: str | None = None,
        timeout: float | None = None,
        places: tuple[Place, ...] = (),
    ) -> Lease[T]:
        """Get a connection, first come, first served.

        Args:
            name: who asks, for errors and statistics; the current task's name by default.
            workload: the class of work, for its ceiling and for statistics.
            timeout: seconds to wait while all connections are in use; `PoolOptions.pool_timeout` by default.
                A `deadline()` that ends earlier wins.
            places: where in the program this is asked for (`whereabouts`), for the report of a leak.

        Raises:
            errors.DatabaseUnavailable: recent attempts to connect failed, and the next one would come too late.
            errors.PoolTimeout: none became free in time.
            errors.PoolQueueFull: too many callers wait already.
            errors.ConnectFailed: none could be opened.
            errors.DeadlineExceeded: the caller's deadline passed.
            errors.PoolClosed: the pool is closed.
            errors.WrongEventLoop: the pool belongs to another event loop or process.
        """
        loop = self._at_home()
        if self._closed:
            raise refusal.closed(self.name)
        now = self.clock.monotonic()
        waiter = Waiter[T](
            loop.create_future(),
            since=now,
            pool_timeout=self.options.pool_timeout if timeout is None else timeout,
            connect_wait=self.options.acquire_limit,
            deadline=current_deadline(),
            name=name or _task_name(),
            workload=workload,
            places=places,
        )
        lease = self._take_idle(waiter, now)
        if lease is not None:
            return lease
        self.breaker.somebody_came()
        self._refuse_hopeless(waiter, now)
        if len(self._waiters) >= self.options.max_waiting and self._remaining() >= self.options.max_waiting:
            error = refusal.queue_full(self.options.max_waiting, waiter.deadline, self.snapshot())
            self.events.emit(events.AcquireFailed(self.name, now, 0.0, error, workload))
            raise error
        self._waiters[waiter] = None
        self._arm(waiter, waiter.busy_until - now)
        self._serve()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            self._leave(waiter)
            raise

    def _refuse_hopeless(self, waiter: Waiter[T], now: float) -> None:
        """Turn a caller away at once where the server is known not to let us in, and waiting would not help."""
        if self.count(*LIVE, *CONNECTING, SlotState.SILENT) or self._suspended:
            return
        until = max(waiter.busy_until, waiter.connect_until)
        failure = self.last_connect_failure
        final = failure is not None and refusal.is_final(failure)
        if self.breaker.hopeless(now=now, until=now if final else until):
            error = refusal.unavailable(
                failure, self.breaker.not_before - now, waiter.deadline, self.snapshot()
            )
            self.events.emit(events.AcquireFailed(self.name, now, 0.0, error, waiter.workload))
            raise error

    def _leave(self, waiter: Waiter[T]) -> None:
        """The caller was cancelled; a lease that was handed over in the same moment goes to the next."""
        future = waiter.future
        if future.done() and not future.cancelled() and future.exception() is None:
            future.result().release()
            return
        self._forget(waiter)
        self._serve()

    def _take_idle(self, waiter: Waiter[T], now: float) -> Lease[T] | None:
        """The fast path: a connection that is there and needs no proof, if nobody is before this caller."""
        if self._waiters or not self._idle or self._suspended or self._at_ceiling(waiter.workload):
            return None
        slot = self._idle[-1 if self.options.use_lifo else 0]
        if self._needs_proof(slot, now) or self._is_old(slot, now):
            return None
        if not self.driver.is_open(self._connection(slot)):
            return None
        self._idle.pop() if self.options.use_lifo else self._idle.popleft()
        return self._lease(slot, waiter, now)

    def _lease(self, slot: Slot[T], waiter: Waiter[T], now: float) -> Lease[T]:
        lease = Lease(
            slot,
            self._released,
            self._serve,
            acquired_at=now,
            waited=now - waiter.since,
            name=waiter.name,
            workload=waiter.workload,
            places=waiter.places,
        )
        slot.lease = lease
        self._slots.move(slot, SlotState.LEASED)
        if waiter.workload is not None:
            self._held[waiter.workload] += 1
        self.events.emit(events.Acquired(self.name, now, slot.number, lease.waited, waiter.workload))
        self._leaks.watch(self._loop())
        return lease

    def _released(self, lease: Lease[T], fate: Fate) -> None:
        slot, now = lease.slot, self.clock.monotonic()
        if fate is Fate.EVICT_AND_PROVE:
            self.suspect_all()
        kept = fate in (Fate.KEEP, Fate.BACK_OFF, Fate.FORGET_STATEMENT)
        kept = kept and self.driver.is_open(self._connection(slot))
        self._end_lease(lease, now, kept=kept)
        if not kept:
            self._retire(slot, "evicted", abrupt=True)
        elif not self._outdated(slot) and self.driver.needs_reset(self._connection(slot)):
            self._slots.move(slot, SlotState.RESETTING)
            self._start(slot, self._reset(slot))
        else:
            self._settle(slot, now)
        self._serve(now)

    def _end_lease(self, lease: Lease[T], now: float, *, kept: bool) -> None:
        lease.slot.lease = None
        if lease.workload is not None:
            self._held[lease.workload] -= 1
        held = now - lease.acquired_at
        self.events.emit(events.Released(self.name, now, lease.slot.number, held, kept))

    def _settle(self, slot: Slot[T], now: float) -> None:
        """A clean connection nobody holds: put it where it can be taken from, or let it go."""
        if self._outdated(slot):
            self._retire(slot, "disposed")
        elif self._is_old(slot, now):
            self._retire(slot, "recycled")
            self._wanted_idle += self._replaces_recycled
        elif len(self._idle) >= self.options.size and not self._someone_takes(slot, now):
            self._retire(slot, "overflow")
        else:
            self._slots.move(slot, SlotState.IDLE)
            slot.idle_since = now
            self._idle.append(slot)
            self.driver.rest(self._connection(slot), self.sweep)
            self._look_at(self._leaves_at(slot))

    # -- where callers and connections meet --------------------------------------------------------------------

    def _serve(self, now: float | None = None) -> None:
        """Bring waiting callers and connections together. Called after every change, and only then.

        `now` is the moment of the change, where it matters: a connection proven at that moment needs no proof.
        """
        now = self.clock.monotonic() if now is None else now
        self._hand_out(now)
        self._open_more(now)
        if self._overtime and not self._connect_pending():
            self._count_anew(now)
        if self._closed:
            self._tell_changed()

    def _hand_out(self, now: float) -> None:
        """Give idle connections to those who wait, in the order in which they came."""
        proofs = self.count(SlotState.PROVING)
        for waiter in tuple(self._waiters) if self._idle and not self._suspended else ():
            if waiter.future.done():  # cancelled, and about to say so itself
                self._forget(waiter)
            elif not self._at_ceiling(waiter.workload):
                slot = self._next_idle(now)
                if slot is None:
                    return
                if not self._needs_proof(slot, now):
                    self._forget(waiter)
                    waiter.offer(self._lease(slot, waiter, now))
                elif proofs > 0:  # a proof that is under way will do for this caller
                    proofs -= 1
                    self._put_back(slot)
                else:
                    self._slots.move(slot, SlotState.PROVING)
                    self._start(slot, self._prove(slot))

    def _next_idle(self, now: float) -> Slot[T] | None:
        """The next idle connection that needs no proof, or the next that does.

        Those that need none go first, so that they reach the callers who came first: a proof takes time, and
        whoever came later must not get a ready connection meanwhile. Those found dead or old are retired.
        """
        first = None
        for slot in tuple(reversed(self._idle) if self.options.use_lifo else self._idle):
            dead = not self.driver.is_open(self._connection(slot))
            if dead or self._is_old(slot, now):
                self._idle.remove(slot)
                self._retire(slot, "found dead" if dead else "recycled", abrupt=dead)
            elif not self._needs_proof(slot, now):
                self._idle.remove(slot)
                return slot
            else:
                first = first or slot
        if first is not None:
            self._idle.remove(first)
        return first

    def _put_back(self, slot: Slot[T]) -> None:
        self._idle.append(slot) if self.options.use_lifo else self._idle.appendleft(slot)

    def _open_more(self, now: float) -> None:
        """Open as many connections as callers lack, as far as the limit and the breaker allow."""
        if self._closed or self._suspended:
            return
        spare = min(self._wanted_idle, self.options.size - self.count(*LIVE, *CONNECTING))
        self._wanted_idle = max(0, spare)
        room = self.options.limit - len(self._slots)
        if room <= 0:  # looked at first: a full pool is when there are many to count
            return
        lacking = self._takers() - self.count(*SUPPLY)
        wanted = max(lacking, self._wanted_idle if not self._waiters else 0)
        opening, stuck = self.count(SlotState.OPENING), self.count(SlotState.STUCK)
        allowance = self.breaker.allowance(
            now=now, opening=opening, stuck=stuck, live=self._slots.trusted() if wanted > 0 else 0
        )
        for _ in range(int(min(wanted, room, allowance))):
            self._wanted_idle = max(0, self._wanted_idle - 1)
            slot = self._slots.add(self._generation)
            self._start(slot, self._open(slot))
        if wanted > 0 and allowance == 0 and now < self.breaker.not_before:
            self._wake_at(self.breaker.not_before)

    def _remaining(self) -> int:
        """How many waiting callers were not cancelled in this very moment."""
        return sum(not waiter.future.done() for waiter in self._waiters)

    def _takers(self) -> int:
        """How many waiting callers could use a connection now; those at their workload's ceiling could not."""
        if not self.ceilings:
            return self._remaining()
        left = {workload: top - self._held[workload] for workload, top in self.ceilings.items()}
        takers = 0
        for waiter in self._waiters:
            if waiter.future.done():
                continue
            if waiter.workload in left:
                if left[waiter.workload] <= 0:
                    continue
                left[waiter.workload] -= 1
            takers += 1
        return takers

    def _someone_takes(self, slot: Slot[T], now: float) -> bool:
        """Whether this one, on top of the idle ones, would be handed out at once."""
        ready = sum(not self._needs_proof(other, now) for other in self._idle)
        return not self._needs_proof(slot, now) and self._takers() > ready

    def _at_ceiling(self, workload: str | None) -> bool:
        ceiling = self.ceilings.get(workload) if workload is not None else None
        return ceiling is not None and self._held[workload or ""] >= ceiling

    def _needs_proof(self, slot: Slot[T], now: float) -> bool:
        if slot.suspect:
            return True
        limit = self.options.ping_after_idle
        return limit is not None and now - slot.proven_at > limit

    # -- how long a caller waits -------------------------------------------------------------------------------

    def _connect_pending(self) -> bool:
        return self.count(*CONNECTING) > 0 or self.breaker.state is BreakerState.OPEN

    def _waits_for_answer(self, waiter: Waiter[T]) -> bool:
        """Whether it is the server that keeps this caller waiting, and not those who hold the connections."""
        if self._at_ceiling(waiter.workload):
            return False
        asked = self.count(SlotState.PROVING, SlotState.SILENT)
        return self._connect_pending() or waiter in islice(self._waiters, asked)

    def _arm(self, waiter: Waiter[T], seconds: float) -> None:
        if waiter.timer is not None:
            waiter.timer.cancel()
        waiter.timer = None
        if seconds < math.inf:
            waiter.timer = self._loop().call_later(max(0.0, seconds), self._time_is_up, waiter)

    def _time_is_up(self, waiter: Waiter[T]) -> None:
        waiter.timer = None
        now = self.clock.monotonic()
        until = waiter.busy_until
        if waiter.connect_until > until and self._waits_for_answer(waiter):
            until = waiter.connect_until
            self._overtime[waiter] = None
        if now < until:
            self._arm(waiter, until - now)
        else:
            self._turn_away(waiter, now)
            self._serve()

    def _count_anew(self, now: float) -> None:
        """The server has answered: those whom it kept beyond `pool_timeout` wait for busy connections from now on.

        Turned away at this moment they would all fail because a database slept a little longer, just when it woke.
        """
        for waiter in tuple(self._overtime):
            if not self._waits_for_answer(waiter):
                del self._overtime[waiter]
                waiter.busy_until = min(now + waiter.limit, waiter.connect_until)
                self._arm(waiter, waiter.busy_until - now)

    def _turn_away(self, waiter: Waiter[T], now: float) -> None:
        self._forget(waiter)
        error = refusal.out_of_time(
            now=now,
            since=waiter.since,
            limit=waiter.limit,
            deadline=waiter.deadline,
            pool=self.snapshot(),
            cause=self.last_connect_failure,
            ceiling=waiter.workload if self._at_ceiling(waiter.workload) else None,
        )
        self._fail(waiter, error, now)

    def _fail(self, waiter: Waiter[T], error: errors.SteadypoolError, now: float) -> None:
        if waiter.fail(error):
            self.events.emit(events.AcquireFailed(self.name, now, now - waiter.since, error, waiter.workload))

    def _connected(self, seconds: float) -> None:
        self.breaker.connected(seconds)

    @property
    def _hedge_after(self) -> float:
        return self.breaker.hedge_after

    def _connect_failed(self, failure: Exception, now: float, *, final: bool) -> None:
        self.breaker.failed(now=now, someone_waits=bool(self._waiters))
        self._wanted_idle = 0
        if final and not self.count(SlotState.LEASED, SlotState.RESETTING, SlotState.PROVING):
            pool = self.snapshot()
            for waiter in list(self._waiters):
                self._forget(waiter)
                waited = now - waiter.since
                self._fail(waiter, refusal.connect_failed(failure, waited, waiter.deadline, pool), now)
        self._serve()

    def _forget(self, waiter: Waiter[T]) -> None:
        self._waiters.pop(waiter, None)
        self._overtime.pop(waiter, None)
        if waiter.timer is not None:
            waiter.timer.cancel()
            waiter.timer = None

    # -- upkeep ------------------------------------------------------------------------------------------------

    def _wake_at(self, moment: float) -> None:
        if self._wake_timer is not None:
            self._wake_timer.cancel()
        delay = max(0.0, moment - self.clock.monotonic())
        self._wake_timer = self._loop().call_later(delay, self._woken)

    def _woken(self) -> None:
        self._wake_timer = None
        self._serve()

    # -- what an operator does ---------------------------------------------------------------------------------

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

    async def evict(self) -> None:
        """Close all idle connections at once, and those in use when they come back."""
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
            self.driver.abort(self._connection(slot))
            self._free(slot, "disposed")

    async def close(self, grace: float | None = None) -> None:
        """Refuse new callers, let those who hold a connection finish, then cut off what is left, all at once.

        Args:
            grace: seconds to wait for connections in use; `PoolOptions.close_grace` by default.
        """
        self._at_home()
        self._closed = True
        self._generation += 1
        now = self.clock.monotonic()
        for waiter in list(self._waiters):
            self._forget(waiter)
            self._fail(waiter, refusal.closed(self.name), now)
        for timer in (self._wake_timer, self._recycle_timer):
            if timer is not None:
                timer.cancel()
        self._wake_timer = self._recycle_timer = None
        self._leaks.stop()
        for slot in self._slots:
            if slot.state in ASKING and slot.task is not None:
                slot.task.cancel()
            elif slot.state is SlotState.IDLE:
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
        now, aborted = self.clock.monotonic(), self.count(SlotState.LEASED)
        for slot in self._slots:
            if slot.lease is not None:
                self._end_lease(slot.lease, now, kept=False)
            if slot.connection is not None:
                self.driver.abort(slot.connection)
            self._free(slot, "aborted at close")
        for task in self._tasks:
            task.cancel()
        self._tell_changed()
        if not self._said_closed:
            self._said_closed = True
            self.events.emit(events.PoolClosedEvent(self.name, now, aborted))


def _task_name() -> str:
    task = asyncio.current_task()
    return task.get_name() if task is not None else "no task"
