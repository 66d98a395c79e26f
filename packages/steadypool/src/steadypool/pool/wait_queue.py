"""Those who wait for a connection: how long, for whom, and what they are told who go without.

A caller waits for one of two things: for those who hold the connections, or for an answer of the server. Which of
them it is decides how long it may wait and by which name it is refused. Who gets which connection is decided in
`pool`; here nobody is served.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import TypeVar

from steadypool import errors, events
from steadypool._clock import Clock
from steadypool.pool import rejections
from steadypool.pool.admission import WaitEstimator
from steadypool.pool.circuit_breaker import BreakerState, CircuitBreaker
from steadypool.pool.connector import Lifecycle
from steadypool.pool.entries import CONNECTING, LIVE
from steadypool.pool.inspection import PoolInspection, WaiterInfo
from steadypool.pool.lease import Driver, EntryState, PoolOptions, Waiter

T = TypeVar("T")


class Waiting(Lifecycle[T]):
    """What `Pool` knows of its callers; the arguments are those of the pool."""

    def __init__(
        self,
        driver: Driver[T],
        options: PoolOptions,
        *,
        name: str,
        clock: Clock,
        rng: random.Random,
        breaker: CircuitBreaker,
        observers: events.Events,
        ceilings: dict[str, int],
    ) -> None:
        super().__init__(driver, options, name=name, clock=clock, rng=rng, observers=observers)
        self.breaker = breaker
        self.ceilings = ceilings
        self._waiters: dict[Waiter[T], None] = {}
        self._held: Counter[str] = Counter()
        self._queued: Counter[str | None] = Counter()
        self._forecast = WaitEstimator()
        self._forecasts: dict[str, WaitEstimator] = {}
        self._suspended = False

    @property
    def waiting(self) -> int:
        """How many callers wait for a connection."""
        return len(self._waiters)

    @property
    def waits_for(self) -> float:
        """Seconds for which the last of the callers that are waiting now goes on waiting; 0 if there is none."""
        now = self.clock.monotonic()
        return max((self._latest(waiter) - now for waiter in self._waiters), default=0.0)

    def snapshot(self) -> errors.PoolSnapshot:
        """The pool at this moment: counts, and who holds what for how long."""
        now = self.clock.monotonic()
        return self._slots.snapshot(
            self.options, now, self.waiting, self.last_connect_failure, self._expected_wait()
        )

    def _expected_wait(self) -> float | None:
        if self._connect_pending() or self._suspended:
            return None
        if not self._waiters and (self._idle or len(self._slots) < self.options.limit):
            return 0.0
        return self._forecast.expected(self.waiting, self.options.limit)

    def connections(self) -> PoolInspection:
        """Each connection and each waiting caller at this moment, for a status page. Costs something only here.

        Example:
            >>> for connection in pool.connections().connections:
            ...     print(connection.number, connection.state, connection.holder)
        """
        now = self.clock.monotonic()
        waiters = tuple(self._facts_of(waiter, now) for waiter in self._waiters if not waiter.future.done())
        return PoolInspection(self.name, self._slots.facts(now), waiters)

    def all_connections(self) -> Iterator[T]:
        """The connections that there are, whoever has them."""
        for slot in self._slots:
            if slot.connection is not None:
                yield slot.connection

    def leased(self) -> Iterator[tuple[int, T]]:
        """The connections that somebody has, with their numbers in the census."""
        for slot in self._slots:
            if slot.lease is not None and slot.connection is not None:
                yield slot.number, slot.connection

    def _facts_of(self, waiter: Waiter[T], now: float) -> WaiterInfo:
        until = self._latest(waiter)
        return WaiterInfo(
            holder=waiter.name,
            workload=waiter.workload,
            seconds=now - waiter.since,
            left=max(0.0, until - now),
        )

    # -- who could use a connection -------------------------------------------------------------------------------

    def _at_ceiling(self, workload: str | None) -> bool:
        if workload is None:
            return False
        ceiling = self.ceilings.get(workload)
        return ceiling is not None and self._held[workload] >= ceiling

    def _remaining(self) -> int:
        """How many waiting callers were not cancelled in this very moment."""
        return sum(not waiter.future.done() for waiter in self._waiters)

    def _in_line(self) -> Iterator[Waiter[T]]:
        """Those who wait, in the order in which they came; some may leave meanwhile.

        A few at first: there may be a thousand, and whoever asks has mostly something for one.
        """
        few = tuple(islice(self._waiters, 2))
        yield from few
        for waiter in tuple(self._waiters):
            if waiter not in few:
                yield waiter

    def _takers(self, enough: float = math.inf) -> int:
        """How many waiting callers could use a connection now; those at their workload's ceiling could not.

        Args:
            enough: more are not counted.
        """
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
            if takers >= enough:
                break
        return takers

    # -- how long a caller waits ----------------------------------------------------------------------------------

    def _connect_pending(self) -> bool:
        """Whether callers wait for the server to let somebody in.

        Where it has refused for good, or there is room for nobody, they wait for those who hold connections.
        """
        counts = self._slots.counts
        pending = counts[EntryState.OPENING] or counts[EntryState.STUCK]
        if not pending and self.breaker.state is BreakerState.OPEN:
            pending = counts[EntryState.LEASED] < self.options.limit
        return bool(pending) and not self._refused_for_good()

    def _refused_for_good(self) -> bool:
        failure = self.last_connect_failure
        return failure is not None and rejections.is_final(failure)

    def _waits_for_answer(self, waiter: Waiter[T]) -> bool:
        """Whether it is the server that keeps this caller waiting, and not those who hold the connections."""
        if self._at_ceiling(waiter.workload):
            return False
        counts = self._slots.counts
        asked = counts[EntryState.PROVING] + counts[EntryState.SILENT]
        return self._connect_pending() or (asked > 0 and waiter in islice(self._waiters, asked))

    def _latest(self, waiter: Waiter[T]) -> float:
        """Until when it waits if nothing changes."""
        if self._waits_for_answer(waiter):
            return max(waiter.busy_until, waiter.connect_until)
        return waiter.busy_until

    def _arm(self, waiter: Waiter[T], seconds: float) -> None:
        if waiter.timer is not None:
            waiter.timer.cancel()
        waiter.timer = None
        if seconds < math.inf:
            waiter.timer = self._loop().call_later(max(0.0, seconds), self._time_is_up, waiter)

    def _time_is_up(self, waiter: Waiter[T]) -> None:
        """The time for a busy pool is over, or all time.

        Whom the server has kept until now goes on waiting until `connect_until`, whatever happens next. When a
        database wakes a little later than `pool_timeout`, all of them but the first few would be turned away
        otherwise, just when there is something to serve them with. Both limits count from the same start, so
        nobody waits for one after the other.
        """
        waiter.timer = None
        now = self.clock.monotonic()
        if waiter.connect_until > waiter.busy_until and self._waits_for_answer(waiter):
            waiter.busy_until = waiter.connect_until
        if now < waiter.busy_until:
            self._arm(waiter, waiter.busy_until - now)
        else:
            self._turn_away(waiter, now)
            self._serve()

    # -- who goes without -----------------------------------------------------------------------------------------

    def _refuse_hopeless(self, waiter: Waiter[T], now: float) -> None:
        """Turn a caller away at once where the server is known not to let us in, and waiting would not help."""
        if self.breaker.state is BreakerState.CLOSED:  # by far the most common case: nothing is hopeless
            return
        if self.count(*LIVE, *CONNECTING, EntryState.SILENT) or self._suspended:
            return
        until = max(waiter.busy_until, waiter.connect_until)
        if self.breaker.hopeless(now=now, until=now if self._refused_for_good() else until):
            error = rejections.unavailable(
                self.last_connect_failure, self.breaker.not_before - now, waiter.deadline, self.snapshot()
            )
            self._tell_without(waiter, error, now)
            raise error

    def _join(self, waiter: Waiter[T], now: float) -> None:
        """Let a caller wait; or turn it away at once, where its turn would come too late even if all went well."""
        forecast, ahead, places = self._line_of(waiter.workload, len(self._waiters))
        turn = forecast.earliest(now, ahead, places)
        left = self._latest(waiter) - now
        if turn > 0 and self._is_too_late(turn, waiter, left):
            # Who was cancelled in this very moment still stands in line; they are counted only where it matters.
            forecast, ahead, places = self._line_of(waiter.workload, self._remaining())
            turn = forecast.earliest(now, ahead, places)
        if turn > 0 and self._is_too_late(turn, waiter, left):
            expected = forecast.expected(ahead, places)
            error = self._too_late(waiter, now, expected)
            self._tell_without(waiter, error, now)
            raise error
        forecast.joins(now, turn, places)
        self._waiters[waiter] = None
        self._queued[waiter.workload] += 1
        self._arm(waiter, waiter.busy_until - now)

    def _is_too_late(self, turn: float, waiter: Waiter[T], left: float) -> bool:
        """Whether a turn that comes in so many seconds is no use to a caller who has `left` seconds."""
        return self.options.shed and not self._suspended and turn + self._least(waiter) > left

    def _line_of(self, workload: str | None, waiting: int) -> tuple[WaitEstimator, int, float]:
        """What a caller waits for: how long that is held, how many come first, and how many places there are.

        Of the `waiting` those who are kept by the ceiling of their workload stand in nobody else's way.
        """
        if workload is not None and self._at_ceiling(workload):
            forecast = self._forecasts.setdefault(workload, WaitEstimator(self._forecast.enough))
            return forecast, self._waiting_now(workload), self.ceilings[workload]
        apart = 0
        for other in self.ceilings:
            if self._at_ceiling(other):
                apart += self._waiting_now(other)
        return self._forecast, waiting - apart, self.options.limit

    def _waiting_now(self, workload: str) -> int:
        if not self._queued[workload]:
            return 0
        return sum(x.workload == workload and not x.future.done() for x in self._waiters)

    def _least(self, waiter: Waiter[T]) -> float:
        """Seconds, at least, that the caller needs a connection for, where its time ends with its deadline."""
        if waiter.deadline is None or self._latest(waiter) < waiter.deadline.at:
            return 0.0
        own = self._forecasts.get(waiter.workload) if waiter.workload is not None else None
        return self._forecast.quick if own is None or own.mean is None else own.quick

    def _cannot_finish(self, waiter: Waiter[T], now: float) -> bool:
        """Whether its deadline is so near that the connection is better given to the next who waits."""
        if waiter.deadline is None or not self.options.shed or len(self._waiters) < 2:
            return False
        return waiter.deadline.at - now < self._least(waiter)

    def _note_held(self, workload: str | None, seconds: float) -> None:
        self._forecast.held(seconds)
        if workload is not None:
            if workload not in self._forecasts:
                self._forecasts[workload] = WaitEstimator(self._forecast.enough)
            self._forecasts[workload].held(seconds)

    def _turn_away_early(self, waiter: Waiter[T], now: float, expected: float | None) -> None:
        self._forget(waiter)
        self._fail(waiter, self._too_late(waiter, now, expected), now)

    def _too_late(self, waiter: Waiter[T], now: float, expected: float | None) -> errors.SteadypoolError:
        until, deadline = self._latest(waiter), waiter.deadline
        return rejections.too_late(
            left=until - now,
            limit=until - waiter.since,
            deadline=deadline if deadline is not None and deadline.at <= until else None,
            waited=now - waiter.since,
            pool=self.snapshot(),
            expected=expected,
            ceiling=waiter.workload if self._at_ceiling(waiter.workload) else None,
        )

    def _turn_away(self, waiter: Waiter[T], now: float) -> None:
        self._forget(waiter)
        error = rejections.out_of_time(
            now=now,
            since=waiter.since,
            limit=waiter.busy_until - waiter.since,
            deadline=waiter.deadline,
            pool=self.snapshot(),
            cause=self.last_connect_failure,
            ceiling=waiter.workload if self._at_ceiling(waiter.workload) else None,
        )
        self._fail(waiter, error, now)

    def _fail(self, waiter: Waiter[T], error: errors.SteadypoolError, now: float) -> None:
        if waiter.fail(error):
            self._tell_without(waiter, error, now)

    def _tell_without(self, waiter: Waiter[T], error: errors.SteadypoolError, now: float) -> None:
        """A caller goes without a connection."""
        if not waiter.for_others:
            self.events.emit(events.AcquireFailed(self.name, now, now - waiter.since, error, waiter.workload))

    def _forget(self, waiter: Waiter[T]) -> None:
        if waiter in self._waiters:
            del self._waiters[waiter]
            self._queued[waiter.workload] -= 1
        if waiter.timer is not None:
            waiter.timer.cancel()
            waiter.timer = None

    # -- what the server said -------------------------------------------------------------------------------------

    def server_answers(self) -> None:
        """Somebody heard from the server by another way than this pool's, such as the listener's heartbeat."""
        self._connected(None)
        if self._home is not None:
            self._serve()

    def server_fails(self, reason: str) -> None:
        """The server does not let us in, or asks for patience: new connects go out one at a time, after a pause.

        Args:
            reason: what was heard, for whoever looks at the breaker.
        """
        before = self.breaker.state
        self.breaker.failed(now=self.clock.monotonic(), someone_waits=bool(self._waiters))
        self._tell_breaker(before, reason)

    def _tell_breaker(self, before: BreakerState, reason: str | None) -> None:
        after = self.breaker.state
        if after is not before:
            now = self.clock.monotonic()
            self.events.emit(events.BreakerChanged(self.name, now, before.value, after.value, reason))

    def _connected(self, seconds: float | None) -> None:
        before = self.breaker.state
        self.breaker.connected(seconds)
        self._tell_breaker(before, None)

    @property
    def _hedge_after(self) -> float:
        return self.breaker.hedge_after

    def _connect_failed(self, failure: Exception, now: float, *, final: bool) -> None:
        """A connect failed and its slot is free.

        A failure that is final, such as a wrong password, is told at once to everybody who waits, unless a
        connection is in use or being cleaned or proven: it will be free again, so they wait for it, as they wait
        for a busy pool and no longer. Who goes without then is told the cause. Without `retry_connects` any failure
        is the answer to the caller that has waited longest.
        """
        bug = rejections.is_bug(failure)
        if not bug:
            self.server_fails(errors.words_of(failure))
        self._wanted_idle = 0
        others = self.count(EntryState.LEASED, EntryState.RESETTING, EntryState.PROVING)
        at_once = bug or not self.options.retry_connects
        if at_once or (final and not others):
            pool = self.snapshot()
            # A bug is told to the first, without a pause, so that attempts end with those who wait; the rest may
            # still get a connection that is there.
            waiters = [waiter for waiter in self._waiters if not self._at_ceiling(waiter.workload)]
            for waiter in waiters[:1] if others else list(self._waiters):
                self._forget(waiter)
                waited = now - waiter.since
                self._fail(waiter, rejections.connect_failed(failure, waited, waiter.deadline, pool), now)
        self._serve()
