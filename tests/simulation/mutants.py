"""Pools that are broken on purpose, one way each. A simulation that misses them would miss a real bug too.

Each is named after what it does wrong and carries the rule that it breaks. Several were real bugs, found here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from steadypool import errors, events
from steadypool._sqlstate import Disposition
from steadypool.pool import Pool
from steadypool.pool.admission import WaitEstimator
from steadypool.pool.lease import EntryState, Lease, PoolEntry, PoolOptions, Waiter

AnyPool = Pool[Any]
MUTANTS: dict[str, tuple[str, type[AnyPool]]] = {}


def breaks(rule: str) -> Any:
    """Register a mutant under the rule that it breaks."""

    def register(mutant: type[AnyPool]) -> type[AnyPool]:
        MUTANTS[mutant.__name__] = (rule, mutant)
        return mutant

    return register


class _WithOptions(Pool[Any]):
    """A pool that changes the options it was given."""

    def __init__(self, driver: Any, options: PoolOptions, **others: Any) -> None:
        super().__init__(driver, self.twist(options), **others)

    def twist(self, options: PoolOptions) -> PoolOptions:
        raise NotImplementedError


# -- rule 1: never more than the limit, none lost ----------------------------------------------------------------


@breaks("R1")
class OneTooMany(_WithOptions):
    def twist(self, options: PoolOptions) -> PoolOptions:
        return replace(options, max_overflow=(options.max_overflow or 0) + 1)


@breaks("R1")
class ForgetsThoseClosing(Pool[Any]):
    def _retire(self, slot: PoolEntry[Any], reason: str, *, abrupt: bool = False) -> None:
        super()._retire(slot, reason, abrupt=abrupt)
        if slot.state is EntryState.CLOSING:
            self._slots.move(slot, EntryState.GONE)


@breaks("R1")
class DropsWhatACancelledCallerGot(Pool[Any]):
    def _leave(self, waiter: Waiter[Any]) -> None:
        self._forget(waiter)
        self._serve()


@breaks("R1")
class FreesTheSlotWhenAGoodbyeFails(Pool[Any]):
    async def _part(self, connection: Any) -> None:
        await self.driver.close(connection)


@breaks("R1")
class LosesTheSlotWhenAnAbortFails(Pool[Any]):
    def _abort(self, connection: Any) -> None:
        self.driver.abort(connection)


@breaks("R1")
class KeepsTheSlotOfAFailedConnect(Pool[Any]):
    def _free(self, slot: PoolEntry[Any], reason: str) -> None:
        if reason != "connect failed":
            super()._free(slot, reason)


# -- rule 2: first come, first served ----------------------------------------------------------------------------


@breaks("R2")
class ServesTheLastFirst(Pool[Any]):
    def _hand_out(self, now: float) -> None:
        self._waiters = dict(reversed(self._waiters.items()))
        super()._hand_out(now)
        self._waiters = dict(reversed(self._waiters.items()))


@breaks("R2")
class LetsNewcomersOvertake(Pool[Any]):
    def acquire_now(self, **asked: Any) -> Lease[Any] | None:
        waiters, self._waiters = self._waiters, {}
        try:
            return super().acquire_now(**asked)
        finally:
            self._waiters = waiters

    def _released(self, lease: Lease[Any], fate: Disposition) -> None:
        """Those who wait are served a moment later: the gap in which a newcomer is faster."""
        serve, self._serve = self._serve, lambda now=None: None  # type: ignore[method-assign,misc]
        try:
            super()._released(lease, fate)
        finally:
            self._serve = serve  # type: ignore[method-assign]
        self._loop().call_soon(self._serve)


@breaks("R2")
class TakesFromTheWrongEnd(Pool[Any]):
    def acquire_now(self, **asked: Any) -> Lease[Any] | None:
        self._idle.reverse()
        try:
            return super().acquire_now(**asked)
        finally:
            self._idle.reverse()


@breaks("R2")
class GivesTheReadyOneToALaterCaller(Pool[Any]):
    def _next_idle(self, now: float) -> PoolEntry[Any] | None:
        if not self._idle:
            return None
        return self._idle.pop() if self.options.use_lifo else self._idle.popleft()


# -- rule 3: connecting is the pool's work -----------------------------------------------------------------------


@breaks("R3")
class CancelsTheConnectWithItsCaller(Pool[Any]):
    def _leave(self, waiter: Waiter[Any]) -> None:
        for slot in self._slots:
            if slot.state is EntryState.OPENING and slot.task is not None:
                slot.task.cancel()
        super()._leave(waiter)


# -- rule 4: woken by every change -------------------------------------------------------------------------------


class _Deaf(Pool[Any]):
    """A pool in which one kind of change wakes nobody."""

    def _in_silence(self, act: Any, *args: Any) -> Any:
        serve, self._serve = self._serve, lambda now=None: None  # type: ignore[method-assign,misc]
        try:
            return act(*args)
        finally:
            self._serve = serve  # type: ignore[method-assign]


@breaks("R4")
class WakesNobodyWhenAConnectFails(_Deaf):
    def _open_failed(self, slot: PoolEntry[Any], started: float, error: Exception) -> None:
        self._in_silence(super()._open_failed, slot, started, error)


@breaks("R4")
class WakesNobodyOnRelease(_Deaf):
    def _released(self, lease: Lease[Any], fate: Disposition) -> None:
        self._in_silence(super()._released, lease, fate)


@breaks("R4")
class WakesNobodyWhenAPingIsAnswered(_Deaf):
    def _answered(self, slot: PoolEntry[Any]) -> None:
        self._in_silence(super()._answered, slot)


@breaks("R4")
class KeepsCancelledWaiters(Pool[Any]):
    def _leave(self, waiter: Waiter[Any]) -> None:
        if waiter.future.cancelled():
            return
        super()._leave(waiter)

    def _forget(self, waiter: Waiter[Any]) -> None:
        if not waiter.future.cancelled():
            super()._forget(waiter)


@breaks("R4")
class NeverWakesForTheBreaker(Pool[Any]):
    def _wake_at(self, moment: float) -> None: ...


@breaks("R4")
class IgnoresADriverThatGivesUp(Pool[Any]):
    async def _open(self, slot: PoolEntry[Any]) -> None:
        open_, task = self.driver.open, asyncio.current_task()

        async def leaking() -> Any:
            try:
                return await open_()
            except asyncio.CancelledError:
                if task is not None and not task.cancelling() and not self._closed:
                    self._free(slot, "closed while opening")
                    await asyncio.Event().wait()
                raise

        self.driver.open = leaking  # type: ignore[method-assign]
        try:
            await super()._open(slot)
        finally:
            self.driver.open = open_  # type: ignore[method-assign]


# -- rule 5: every wait ends, by the right name ------------------------------------------------------------------


@breaks("R5")
class NeverTurnsAnybodyAway(Pool[Any]):
    def _arm(self, waiter: Waiter[Any], seconds: float) -> None: ...


@breaks("R5")
class AddsTimeoutsUp(Pool[Any]):
    def _time_is_up(self, waiter: Waiter[Any]) -> None:
        if self._waits_for_answer(waiter) and waiter.deadline is None:
            waiter.connect_until = max(waiter.connect_until, waiter.busy_until + self.options.connect_timeout)
        super()._time_is_up(waiter)


@breaks("R5")
class IgnoresTheDeadline(Pool[Any]):
    def _arm(self, waiter: Waiter[Any], seconds: float) -> None:
        if waiter.deadline is not None:
            waiter.busy_until = waiter.connect_until = waiter.since + self.options.acquire_limit
            seconds = self.options.acquire_limit
        super()._arm(waiter, seconds)


@breaks("R5")
class FailsAtPoolTimeoutWhileConnecting(Pool[Any]):
    def _waits_for_answer(self, waiter: Waiter[Any]) -> bool:
        return False

    def _connect_pending(self) -> bool:
        return False


@breaks("R5")
class WaitsThoughNothingIsOpened(Pool[Any]):
    def _time_is_up(self, waiter: Waiter[Any]) -> None:
        waiter.busy_until = max(waiter.busy_until, waiter.connect_until)
        super()._time_is_up(waiter)


@breaks("R5")
class RefusesAllWhenTheServerRefusesForGood(Pool[Any]):
    def _connect_failed(self, failure: Exception, now: float, *, final: bool) -> None:
        count, self.count = self.count, lambda *states: 0  # type: ignore[method-assign]
        try:
            super()._connect_failed(failure, now, final=final)
        finally:
            self.count = count  # type: ignore[method-assign]


@breaks("R5")
class BlamesThePoolForTheDatabase(Pool[Any]):
    def _fail(self, waiter: Waiter[Any], error: errors.SteadypoolError, now: float) -> None:
        if isinstance(error, errors.ConnectFailed) and not error.final:
            error = errors.PoolTimeout(error.message, error.report)
        super()._fail(waiter, error, now)


@breaks("R5")
class SaysNothing(Pool[Any]):
    def _fail(self, waiter: Waiter[Any], error: errors.SteadypoolError, now: float) -> None:
        super()._fail(waiter, type(error)("", error.report), now)


@breaks("R5")
class PingsWithoutLimit(Pool[Any]):
    async def _prove(self, slot: PoolEntry[Any]) -> None:
        await self.driver.ping(self._connection(slot))
        slot.suspect = False
        self._answered(slot)


# -- rule 7: proven before it is handed over ---------------------------------------------------------------------


@breaks("R7")
class NeverAsksForASignOfLife(Pool[Any]):
    def _needs_proof(self, slot: PoolEntry[Any], now: float) -> bool:
        return False


@breaks("R7")
class AsksForever(Pool[Any]):
    def _answered(self, slot: PoolEntry[Any]) -> None:
        slot.proven_at = self.clock.monotonic()
        self._settle(slot, self.clock.monotonic())
        self._serve()


@breaks("R7")
class HandsOutTheDead(Pool[Any]):
    def acquire_now(self, **asked: Any) -> Lease[Any] | None:
        is_open, self.driver.is_open = self.driver.is_open, lambda _: True  # type: ignore[method-assign]
        try:
            return super().acquire_now(**asked)
        finally:
            self.driver.is_open = is_open  # type: ignore[method-assign]


@breaks("R7")
class TrustsTheSiblingsOfTheDead(Pool[Any]):
    def suspect_all(self, since: float = 0.0) -> None: ...


@breaks("R7")
class TrustsTheSiblingsOfTheSilent(Pool[Any]):
    def doubt_idle(self, since: float) -> None: ...


@breaks("R7")
class AsksAllAtOnce(Pool[Any]):
    def _ask_idle(self) -> None:
        options, self.options = self.options, replace(self.options, max_connecting=1000)
        try:
            super()._ask_idle()
        finally:
            self.options = options


@breaks("R7")
class AsksOnlyTheFirst(Pool[Any]):
    def _ask_idle(self) -> None:
        super()._ask_idle()
        self._proves_idle = False


@breaks("R7")
class AsksOnlyWhenSomebodyCalls(Pool[Any]):
    def prove_idle(self) -> None:
        self.suspect_all()


# -- rule 8: returned means clean --------------------------------------------------------------------------------


@breaks("R8")
class HandsOnOpenTransactions(Pool[Any]):
    def _released(self, lease: Lease[Any], fate: Disposition) -> None:
        needs, self.driver.needs_reset = self.driver.needs_reset, lambda _: False  # type: ignore[method-assign]
        try:
            super()._released(lease, fate)
        finally:
            self.driver.needs_reset = needs  # type: ignore[method-assign]


@breaks("R8")
class KeepsMoreThanItsSize(Pool[Any]):
    def _someone_takes(self, slot: PoolEntry[Any], now: float) -> bool:
        return True


# -- rule 9: lifetime --------------------------------------------------------------------------------------------


@breaks("R9")
class EverythingAgesAtOnce(_WithOptions):
    def twist(self, options: PoolOptions) -> PoolOptions:
        return replace(options, recycle_jitter=0.0)


@breaks("R9")
class LivesLongerInsteadOfShorter(_WithOptions):
    def twist(self, options: PoolOptions) -> PoolOptions:
        return replace(options, recycle_jitter=-0.1)


@breaks("R9")
class NeverGetsOld(Pool[Any]):
    def _is_old(self, slot: PoolEntry[Any], now: float) -> bool:
        return False


@breaks("R9")
class LooksForTheOldTooLate(Pool[Any]):
    def _look_at(self, moment: float) -> None:
        if self._recycle_timer is None:
            super()._look_at(moment)


# -- rules 11 and 12: leaving ------------------------------------------------------------------------------------


@breaks("R11")
class CleansWithoutLimit(Pool[Any]):
    async def _reset(self, slot: PoolEntry[Any]) -> None:
        await self.driver.reset(self._connection(slot))
        self._answered(slot)


@breaks("R11")
class ClosesWithoutLimit(Pool[Any]):
    async def _close(self, slot: PoolEntry[Any], reason: str) -> None:
        try:
            await self.driver.close(self._connection(slot))
        finally:
            self._free(slot, reason)
            self._serve()


@breaks("R12")
class KeepsTheEvictedThatWereBeingProven(Pool[Any]):
    def _outdated(self, slot: PoolEntry[Any]) -> bool:
        return self._closed or (slot.generation != self._generation and slot.state is not EntryState.PROVING)


@breaks("R12")
class DrainsOnlyWhatIsIdle(Pool[Any]):
    def drain(self, same: Callable[[Any], bool]) -> None:
        in_use = [slot for slot in self._slots if slot.state is not EntryState.IDLE]
        generations = [slot.generation for slot in in_use]
        super().drain(same)
        for slot, generation in zip(in_use, generations, strict=True):
            slot.generation = generation


# -- rule 13: close ----------------------------------------------------------------------------------------------


@breaks("R13")
class NeverAborts(Pool[Any]):
    def _abort_all(self) -> None: ...


@breaks("R13")
class ClosesOneAfterTheOther(Pool[Any]):
    async def close(self, grace: float | None = None) -> None:
        self._closed = True
        for slot in list(self._idle):
            self._idle.remove(slot)
            self._retire(slot, "pool closed")
            assert slot.task is not None
            await asyncio.wait([slot.task])
        await super().close(grace)


@breaks("R13")
class DoesNotSeeItsOwnEnd(Pool[Any]):
    def _ended(self, slot: PoolEntry[Any], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if slot.task is task and task.cancelled() and slot.state is EntryState.OPENING:
            self._free(slot, "closed while opening")


@breaks("R13")
class LetsWaitersWaitForAClosedPool(Pool[Any]):
    async def close(self, grace: float | None = None) -> None:
        waiters, self._waiters = self._waiters, {}
        try:
            await super().close(grace)
        finally:
            self._waiters = waiters


@breaks("R13")
class SaysTwiceThatItIsClosed(Pool[Any]):
    def _abort_all(self) -> None:
        self._said_closed = False
        super()._abort_all()


# -- turning away early ------------------------------------------------------------------------------------------


class _Pessimist(WaitEstimator):
    """Believes that every use takes ten times as long."""

    def held(self, seconds: float) -> None:
        super().held(10.0 * seconds)


@breaks("S")
class TurnsAwayWhoWouldMakeIt(Pool[Any]):
    def __init__(self, *args: Any, **others: Any) -> None:
        super().__init__(*args, **others)
        self._forecast = _Pessimist()


@breaks("S")
class ForgetsThatThereIsMoreThanOnePlace(Pool[Any]):
    def _line_of(self, workload: str | None, waiting: int) -> tuple[WaitEstimator, int, float]:
        forecast, ahead, _ = super()._line_of(workload, waiting)
        return forecast, ahead, 1


@breaks("S")
class ForgetsHowManyPlacesAWorkloadHas(Pool[Any]):
    def _line_of(self, workload: str | None, waiting: int) -> tuple[WaitEstimator, int, float]:
        forecast, ahead, places = super()._line_of(workload, waiting)
        return forecast, ahead, places if workload is None else 1


@breaks("S")
class TurnsAwayByADeadlineThatIsFar(Pool[Any]):
    def _cannot_finish(self, waiter: Waiter[Any], now: float) -> bool:
        return waiter.deadline is not None and len(self._waiters) > 1


# -- ceilings and events -----------------------------------------------------------------------------------------


@breaks("ceiling")
class OneAboveTheCeiling(Pool[Any]):
    def _at_ceiling(self, workload: str | None) -> bool:
        ceiling = self.ceilings.get(workload) if workload is not None else None
        return ceiling is not None and self._held[workload or ""] > ceiling


@breaks("ceiling")
class NeverLowersWhatIsHeld(Pool[Any]):
    def _end_lease(self, lease: Lease[Any], now: float, *, kept: bool) -> None:
        super()._end_lease(lease, now, kept=kept)
        if lease.workload is not None:
            self._held[lease.workload] += 1


@breaks("events")
class SaysNothingOfWhatItAborts(Pool[Any]):
    def _end_lease(self, lease: Lease[Any], now: float, *, kept: bool) -> None:
        observers = self.events
        if self._closed and not kept:
            self.events = events.Events()
        try:
            super()._end_lease(lease, now, kept=kept)
        finally:
            self.events = observers
