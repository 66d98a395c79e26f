"""Who holds which connection. Knows no SQL, no driver and no clock of its own.

The rules, and where they bind:

- Everything here runs on one event loop and nothing between two awaits can be interrupted. All changes of state
  happen in plain functions; each ends in `_serve`, the one place where callers and connections meet.
- Opening, proving, cleaning and closing are done by tasks that the pool owns (`connector`), never by a caller's
  task. So a cancelled caller can leave at once, and what it began goes to whoever is next.
- `release` never awaits: there is no moment at which giving back could be cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TypeVar

from steadypool import events
from steadypool._callsite import Place
from steadypool._clock import SYSTEM_CLOCK, Clock
from steadypool._printable import printable
from steadypool._sqlstate import Disposition
from steadypool.deadline import current_deadline
from steadypool.pool import rejections
from steadypool.pool.circuit_breaker import CircuitBreaker
from steadypool.pool.entries import CONNECTING, LIVE, SUPPLY
from steadypool.pool.leak_detector import LeakDetector
from steadypool.pool.lease import Driver, EntryState, Lease, PoolEntry, PoolOptions, Waiter
from steadypool.pool.operating import Operating

_log = logging.getLogger("steadypool.pool")

T = TypeVar("T")

_KEPT = (Disposition.KEEP, Disposition.BACK_OFF, Disposition.FORGET_STATEMENT)
"""What becomes of a connection that stays in the pool."""


class Pool(Operating[T]):
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
        breaker: CircuitBreaker | None = None,
        observers: events.Events | None = None,
        ceilings: dict[str, int] | None = None,
    ) -> None:
        super().__init__(
            driver,
            options or PoolOptions(),
            name=name,
            clock=clock,
            rng=rng or random.Random(),
            breaker=breaker or CircuitBreaker((options or PoolOptions()).max_connecting),
            observers=observers or events.Events(),
            ceilings=ceilings if ceilings is not None else {},
        )
        self._wake_timer: asyncio.TimerHandle | None = None
        self._leaks = LeakDetector(
            self.options.leak_after, self._slots, observers=self.events, name=self.name, clock=self.clock
        )

    # -- acquire and release -----------------------------------------------------------------------------------

    async def acquire(
        self,
        *,
        name: str | None = None,
        workload: str | None = None,
        timeout: float | None = None,
        places: tuple[Place, ...] = (),
        for_others: bool = False,
    ) -> Lease[T]:
        """Get a connection, first come, first served.

        Args:
            name: who asks, for errors and statistics; the current task's name by default.
            workload: the class of work, for its ceiling and for statistics.
            timeout: seconds to wait while all connections are in use; `PoolOptions.pool_timeout` by default.
                A `deadline()` that ends earlier wins.
            places: where in the program this is asked for (`_callsite`), for the report of a leak.
            for_others: whoever asks tells of each caller who goes without (`AcquireFailed`), so the pool does not.

        Raises:
            errors.DatabaseUnavailable: recent attempts to connect failed, and the next one would come too late.
            errors.PoolTimeout: none became free in time, or at once: none will.
            errors.PoolQueueFull: too many callers wait already.
            errors.ConnectFailed: none could be opened.
            errors.DeadlineExceeded: the caller's deadline passed, or cannot be met.
            errors.PoolClosed: the pool is closed.
            errors.WrongEventLoop: the pool belongs to another event loop or process.
        """
        lease = self.acquire_now(name=name, workload=workload, places=places)
        if lease is not None:
            return lease
        loop, now = self._loop(), self.clock.monotonic()
        waiter: Waiter[T] = Waiter(
            loop.create_future(),
            since=now,
            pool_timeout=self.options.pool_timeout if timeout is None else timeout,
            connect_wait=self.options.acquire_limit,
            deadline=current_deadline(),
            name=_caller(name, loop),
            workload=workload,
            places=places,
            for_others=for_others,
        )
        self.breaker.somebody_came()
        self._refuse_hopeless(waiter, now)
        if len(self._waiters) >= self.options.max_waiting and self._remaining() >= self.options.max_waiting:
            error = rejections.queue_full(self.options.max_waiting, waiter.deadline, self.snapshot())
            self._tell_without(waiter, error, now)
            raise error
        self._join(waiter, now)
        self._serve()
        try:
            return await waiter.future
        except (asyncio.CancelledError, GeneratorExit):
            self._leave(waiter)
            raise

    def acquire_now(
        self, *, name: str | None = None, workload: str | None = None, places: tuple[Place, ...] = ()
    ) -> Lease[T] | None:
        """A connection that is there and needs no proof, if nobody is before this caller; None if it has to wait.

        Args and what it raises are those of `acquire`, which begins with it.

        Raises:
            errors.PoolClosed: the pool is closed.
            errors.WrongEventLoop: the pool belongs to another event loop or process.
        """
        if self._closed:
            raise rejections.closed(self.name)
        loop = self._at_home()
        idle = self._idle
        if self._waiters or not idle or self._suspended:
            return None
        if workload is not None and self._at_ceiling(workload):
            return None
        lifo = self.options.use_lifo
        now, slot = self.clock.monotonic(), idle[-1 if lifo else 0]
        connection = slot.connection
        if connection is None or self._needs_proof(slot, now) or self._is_old(slot, now):
            return None
        if not self.driver.is_open(connection):
            return None
        idle.pop() if lifo else idle.popleft()
        return self._lease(slot, now, 0.0, _caller(name, loop), workload, places)

    def _leave(self, waiter: Waiter[T]) -> None:
        """The caller was cancelled; a lease that was handed over in the same moment goes to the next."""
        future = waiter.future
        if future.done() and not future.cancelled() and future.exception() is None:
            future.result().release()
            return
        self._forget(waiter)
        self._serve()

    def _lease(
        self,
        slot: PoolEntry[T],
        now: float,
        waited: float,
        name: str,
        workload: str | None,
        places: tuple[Place, ...],
    ) -> Lease[T]:
        lease = Lease(
            slot,
            self._released,
            self._serve,
            acquired_at=now,
            waited=waited,
            name=name,
            workload=workload,
            places=places,
        )
        slot.lease = lease
        slot.leases += 1
        self._slots.move(slot, EntryState.LEASED)
        if workload is not None:
            self._held[workload] += 1
        self.events.emit(events.Acquired(self.name, now, slot.number, waited, workload))
        if self._leaks.timer is None:
            self._leaks.watch(self._loop())
        return lease

    def forgotten(self, lease: Lease[T]) -> None:
        """Report a lease that the garbage collector found, and that is about to be released for its holder."""
        self._leaks.forgotten(lease)

    def _outdated(self, slot: PoolEntry[T]) -> bool:
        # A pool that was replaced keeps no idle connection, but serves those who wait already.
        return super()._outdated(slot) or (self.replaced and not self._waiters)

    def _released(self, lease: Lease[T], fate: Disposition) -> None:
        slot, now = lease.slot, self.clock.monotonic()
        if fate is Disposition.EVICT_AND_PROVE:
            self.suspect_all()
        connection = self._connection(slot)
        kept = fate in _KEPT and self.driver.is_open(connection)
        self._end_lease(lease, now, kept=kept)
        if not kept:
            self._retire(slot, "evicted", abrupt=True)
        else:
            self._keep(slot, now)
        self._serve(now)

    def _keep(self, slot: PoolEntry[T], now: float) -> None:
        """A connection came back in order. One of which the driver cannot say whether it is clean is not kept."""
        try:
            dirty = not self._outdated(slot) and self.driver.needs_reset(self._connection(slot))
        except Exception:  # noqa: BLE001 - whatever it raises, the place must come back
            _log.exception("pool %r: a connection that came back is closed", self.name)
            self._retire(slot, "not clean", abrupt=True)
            return
        if dirty:
            self._slots.move(slot, EntryState.RESETTING)
            self._start(slot, self._reset(slot))
        else:
            self._settle(slot, now)

    def _end_lease(self, lease: Lease[T], now: float, *, kept: bool) -> None:
        lease.slot.lease = None
        if lease.workload is not None:
            self._held[lease.workload] -= 1
        held = now - lease.acquired_at
        self._note_held(lease.workload, held)
        self.events.emit(events.Released(self.name, now, lease.slot.number, held, kept))

    def _settle(self, slot: PoolEntry[T], now: float) -> None:
        """A clean connection nobody holds: put it where it can be taken from, or let it go."""
        if self._outdated(slot):
            self._retire(slot, "disposed")
        elif self._is_old(slot, now):
            self._retire(slot, "recycled")
            self._wanted_idle += self._replaces_recycled
        elif len(self._idle) >= self.options.size and not self._someone_takes(slot, now):
            self._retire(slot, "overflow")
        else:
            self._slots.move(slot, EntryState.IDLE)
            slot.idle_since = now
            self._idle.append(slot)
            self.driver.rest(self._connection(slot), self.sweep)
            leaves_at = self._leaves_at(slot)
            if leaves_at < self._recycle_at:
                self._look_at(leaves_at)

    # -- where callers and connections meet --------------------------------------------------------------------

    def _serve(self, now: float | None = None) -> None:
        """Bring waiting callers and connections together. Called after every change, and only then.

        `now` is the moment of the change, where it matters: a connection proven at that moment needs no proof.
        """
        if self._waiters or self._wanted_idle:  # at most uses of a connection nobody waits
            now = self.clock.monotonic() if now is None else now
            self._hand_out(now)
            self._open_more(now)
        if self._proves_idle:
            self._ask_idle()
        if self._closed:
            self._tell_changed()

    def _hand_out(self, now: float) -> None:
        """Give idle connections to those who wait, in the order in which they came."""
        if not self._idle or self._suspended:
            return
        proofs = self._slots.counts[EntryState.PROVING]
        for waiter in self._in_line():
            if not self._idle:
                return
            if waiter.future.done():  # cancelled, and about to say so itself
                self._forget(waiter)
            elif not self._at_ceiling(waiter.workload):
                if self._cannot_finish(waiter, now):
                    self._turn_away_early(waiter, now, None)
                    continue
                slot = self._next_idle(now)
                if slot is None:
                    return
                if not self._needs_proof(slot, now):
                    self._forget(waiter)
                    waited, name = now - waiter.since, waiter.name
                    waiter.offer(self._lease(slot, now, waited, name, waiter.workload, waiter.places))
                elif proofs > 0:  # a proof that is under way will do for this caller
                    proofs -= 1
                    self._put_back(slot)
                else:
                    self._slots.move(slot, EntryState.PROVING)
                    self._start(slot, self._prove(slot))

    def _next_idle(self, now: float) -> PoolEntry[T] | None:
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

    def _put_back(self, slot: PoolEntry[T]) -> None:
        self._idle.append(slot) if self.options.use_lifo else self._idle.appendleft(slot)

    def _open_more(self, now: float) -> None:
        """Open as many connections as callers lack, as far as the limit and the breaker allow."""
        if self._closed or self._suspended:
            return
        if self._wanted_idle:
            spare = min(self._wanted_idle, self.options.size - self.count(*LIVE, *CONNECTING))
            self._wanted_idle = max(0, spare)
        room = self.options.limit - len(self._slots)
        if room <= 0:  # looked at first: a full pool is when there are many to count
            return
        wanted = self._wanted_idle
        if self._waiters:
            supply = self.count(*SUPPLY)
            wanted = max(0, self._takers(supply + room) - supply)
        opening, stuck = self.count(EntryState.OPENING), self.count(EntryState.STUCK)
        allowance = self.breaker.allowance(
            now=now, opening=opening, stuck=stuck, live=self._slots.trusted() if wanted > 0 else 0
        )
        for _ in range(int(min(wanted, room, allowance))):
            self._wanted_idle = max(0, self._wanted_idle - 1)
            slot = self._slots.add(self._generation)
            self._start(slot, self._open(slot))
        if wanted > 0 and allowance == 0 and now < self.breaker.not_before:
            self._wake_at(self.breaker.not_before)

    def _someone_takes(self, slot: PoolEntry[T], now: float) -> bool:
        """Whether this one, on top of the idle ones, would be handed out at once."""
        ready = sum(not self._needs_proof(other, now) for other in self._idle)
        return not self._needs_proof(slot, now) and self._takers(ready + 1) > ready

    def _needs_proof(self, slot: PoolEntry[T], now: float) -> bool:
        if slot.suspect:
            return True
        limit = self.options.ping_after_idle
        return limit is not None and now - slot.proven_at > limit

    # -- upkeep ------------------------------------------------------------------------------------------------

    def _wake_at(self, moment: float) -> None:
        if self._wake_timer is not None:
            self._wake_timer.cancel()
        delay = max(0.0, moment - self.clock.monotonic())
        self._wake_timer = self._loop().call_later(delay, self._woken)

    def _woken(self) -> None:
        self._wake_timer = None
        self._serve()

    def _stop_timers(self) -> None:
        for timer in (self._wake_timer, self._recycle_timer):
            if timer is not None:
                timer.cancel()
        self._wake_timer = self._recycle_timer = None
        self._leaks.stop()


def _caller(name: str | None, loop: asyncio.AbstractEventLoop) -> str:
    """The name of who asks, by default the task's: escaped once, since logs, errors and pages show it."""
    if not name:
        task = asyncio.current_task(loop)
        name = task.get_name() if task is not None else "no task"
    return printable(name)
