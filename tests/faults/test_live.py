"""The watch over the rules sees pools that are broken on purpose, and says nothing of one that is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from conditions import until
from steadypool import deadline, errors, events
from steadypool._sqlstate import Disposition
from steadypool.pool import Pool
from steadypool.pool.lease import EntryState, Lease, PoolEntry, PoolOptions, Waiter

from .live import LiveRules, rules_watched

pytestmark = pytest.mark.anyio


class Line:
    """A connection to nothing."""

    def __init__(self) -> None:
        self.open = True


class Driver:
    """Opens lines, as long as it may."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.answers.set()
        self.error: Exception | None = None

    async def open(self) -> Line:
        await self.answers.wait()
        if self.error is not None:
            raise self.error
        return Line()

    async def ping(self, connection: Line) -> None:
        await self.answers.wait()

    def needs_reset(self, connection: Line) -> bool:
        return False

    async def reset(self, connection: Line) -> None: ...

    def is_open(self, connection: Line) -> bool:
        return connection.open

    def rest(self, connection: Line, lost: Callable[[], None]) -> None: ...

    def abort(self, connection: Line) -> None:
        connection.open = False

    async def close(self, connection: Line) -> None:
        await asyncio.sleep(0)
        connection.open = False


@pytest.fixture(autouse=True)
def live_rules() -> None:
    """The pools here are broken on purpose, and watched by each test itself."""


AnyPool = Pool[Any]


class OneTooMany(AnyPool):
    def _open_more(self, now: float) -> None:
        super()._open_more(now)
        if self._waiters and len(self._slots) == self.options.limit:
            self._start(slot := self._slots.add(self._generation), self._open(slot))


class Storms(AnyPool):
    def _open_more(self, now: float) -> None:
        room = int(self.options.limit) - len(self._slots)
        for _ in range(min(self._takers() - self.count(EntryState.OPENING), room)):
            self._start(slot := self._slots.add(self._generation), self._open(slot))


class ServesTheLastFirst(AnyPool):
    def _hand_out(self, now: float) -> None:
        self._waiters = dict(reversed(self._waiters.items()))
        super()._hand_out(now)
        self._waiters = dict(reversed(self._waiters.items()))


class ForgetsTheTime(AnyPool):
    def _arm(self, waiter: Waiter[Any], seconds: float) -> None: ...


class HandsOverTheDead(AnyPool):
    def _lease(self, slot: PoolEntry[Any], *rest: Any) -> Lease[Any]:
        slot.connection.open = False
        assert not self.driver.is_open(slot.connection)  # it asks, and does it all the same
        return super()._lease(slot, *rest)


class ProvesNothing(AnyPool):
    def _needs_proof(self, slot: PoolEntry[Any], now: float) -> bool:
        return False


class KeepsItFromThoseWhoWait(AnyPool):
    def _released(self, lease: Lease[Any], fate: Disposition) -> None:
        serve, self._serve = self._serve, lambda now=None: None  # type: ignore[method-assign,misc]
        super()._released(lease, fate)
        self._serve = serve  # type: ignore[method-assign]


class SaysItTwice(AnyPool):
    def _fail(self, waiter: Waiter[Any], error: errors.SteadypoolError, now: float) -> None:
        super()._fail(waiter, error, now)
        self.events.emit(events.AcquireFailed(self.name, now, 0.0, error, None))


class SaysNothing(AnyPool):
    def _fail(self, waiter: Waiter[Any], error: errors.SteadypoolError, now: float) -> None:
        waiter.fail(error)


class MiscountsTheIdle(AnyPool):
    def _settle(self, slot: PoolEntry[Any], now: float) -> None:
        super()._settle(slot, now)
        self._idle.clear()


class LosesALease(AnyPool):
    def _released(self, lease: Lease[Any], fate: Disposition) -> None:
        lease.slot.lease = None
        self._slots.move(lease.slot, EntryState.CLOSING)
        self._free(lease.slot, "lost")


class HandsOverWhatWasEvicted(AnyPool):
    def _outdated(self, slot: PoolEntry[Any]) -> bool:
        return self._closed


class LeavesSomebodyBehind(AnyPool):
    async def close(self, grace: float | None = None) -> None: ...


async def story(pool: AnyPool, driver: Driver, begun: list[asyncio.Task[Any]]) -> None:
    """Something of everything, each in its turn, on a pool of two connections."""
    first, second = await pool.acquire(), await pool.acquire()
    waiting = [asyncio.create_task(pool.acquire()) for _ in range(3)]
    begun += waiting
    await until(lambda: pool.waiting == 3)
    first.release()
    second.release()
    _, pending = await asyncio.wait(waiting, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        if task in pending:
            task.cancel()
        else:
            task.result().release()
    await asyncio.gather(*waiting, return_exceptions=True)
    for task in waiting:
        if task.done() and not task.cancelled() and task.exception() is None:
            task.result().release()
    await pool.evict()
    held = await pool.acquire()
    await pool.evict()
    held.release()
    (await pool.acquire()).release()
    pool.suspect_all()
    (await pool.acquire()).release()
    await pool.evict()
    driver.answers.clear()
    unlucky = [asyncio.create_task(impatient(pool)) for _ in range(3)]
    begun += unlucky
    await asyncio.wait(unlucky, timeout=2.0)
    for task in unlucky:
        task.cancel()
    await asyncio.wait(unlucky)
    driver.answers.set()


async def impatient(pool: AnyPool) -> None:
    with deadline(0.2):
        (await pool.acquire()).release()


async def played(kind: type[AnyPool]) -> list[str]:
    """What the watch says about such a pool."""
    driver = Driver()
    pool = kind(driver, PoolOptions(size=2, max_overflow=0, pool_timeout=0.5, connect_timeout=0.5))
    rules = LiveRules(pool)
    begun: list[asyncio.Task[Any]] = []
    try:
        async with asyncio.timeout(3.0):
            await story(pool, driver, begun)
    except Exception as error:  # noqa: BLE001 - a broken pool may do anything; what counts is what was seen of it
        if kind is Pool:
            rules.blame(f"crash: {error!r}")
    for task in begun:
        task.cancel()
    await asyncio.gather(*begun, return_exceptions=True)
    await pool.close(0.0)
    broken = list(rules.broken)
    await Pool.close(pool, 0.0)
    return broken


async def test_a_pool_that_keeps_its_rules_is_not_blamed() -> None:
    assert await played(Pool) == []


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (OneTooMany, "R1: one more connection"),
        (LosesALease, "R1: "),
        (ServesTheLastFirst, "R2: "),
        (KeepsItFromThoseWhoWait, "R4: "),
        (ForgetsTheTime, "R5: "),
        (Storms, "R6: "),
        (HandsOverTheDead, "R7: connection 1 was handed over, and it is known to be dead"),
        (ProvesNothing, "R7: connection 4 was handed over unproven"),
        (MiscountsTheIdle, "R8: "),
        (HandsOverWhatWasEvicted, "R12: "),
        (LeavesSomebodyBehind, "R13: "),
        (SaysItTwice, "events: "),
        (SaysNothing, "events: "),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
async def test_a_broken_pool_is_blamed_for_what_it_does(kind: type[AnyPool], rule: str) -> None:
    broken = await played(kind)
    assert any(what.startswith(rule) for what in broken), broken


async def test_what_is_seen_fails_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="the pool broke its rules:\nR9: something"):
        with rules_watched(monkeypatch.setattr) as watched:
            Pool(Driver())
            watched[0].blame("R9: something")
