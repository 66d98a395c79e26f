"""What a heartbeat proves: hearing up to the moment when it was sent, not to the one when it came back."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from steadypool import errors
from steadypool._clock import SystemClock
from steadypool.listener.buffer import Notification, NotificationBuffer, Overflow
from steadypool.listener.heartbeat import Heartbeat
from steadypool.listener.subscription import Subscription

pytestmark = pytest.mark.anyio


class HandClock(SystemClock):
    now = 100.0

    def monotonic(self) -> float:
        return self.now


class FakeWire:
    """Answers a NOTIFY after so many seconds of the clock, or not at all."""

    def __init__(self, clock: HandClock, seconds: float | None, error: Exception | None = None) -> None:
        self.clock = clock
        self.seconds = seconds
        self.error = error
        self.heart: Heartbeat | None = None
        self.said: list[str] = []

    def submit(self, sql: str) -> asyncio.Future[None]:
        self.said.append(sql)
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.error is not None:
            answer.set_exception(self.error)
        return answer

    async def wait_for(self, future: asyncio.Future[None], seconds: float) -> bool:
        if self.seconds is None:
            self.clock.now += seconds
            return False
        self.clock.now += self.seconds
        assert self.heart is not None
        channel, beat = self.said[-1].removeprefix("NOTIFY ").rstrip("'").split(", '")
        self.heart.arrived(Notification(channel, "not ours", 1))
        assert not future.done()
        self.heart.arrived(Notification(channel, beat, 1))
        return future.done()


def heartbeat(seconds: float | None, error: Exception | None = None) -> tuple[Heartbeat, Any, HandClock]:
    clock = HandClock()
    wire = FakeWire(clock, seconds, error)
    wire.heart = Heartbeat(2.0, clock)
    return wire.heart, wire, clock


async def test_proves_hearing_up_to_its_sending() -> None:
    heart, wire, clock = heartbeat(1.9)
    clock.now = 200.0
    await heart.beat(wire)
    assert heart.proven_at == 200.0
    assert heart.lag == pytest.approx(1.9)


async def test_one_that_does_not_come_back_proves_nothing() -> None:
    heart, wire, clock = heartbeat(None)
    clock.now = 200.0
    with pytest.raises(errors.HeartbeatMissed, match="2 s"):
        await heart.beat(wire)
    assert heart.proven_at == 100.0
    assert heart.lag is None
    assert not heart._expected


async def test_one_that_was_refused_says_why() -> None:
    heart, wire, _ = heartbeat(None, RuntimeError("too many notifications in the NOTIFY queue"))
    with pytest.raises(RuntimeError, match="queue"):
        await heart.beat(wire)


async def test_the_lag_grows_while_one_is_on_its_way() -> None:
    heart, wire, clock = heartbeat(0.5)
    assert heart.lag_at(clock.now) is None
    await heart.beat(wire)
    assert heart.lag_at(clock.now + 100) == 0.5
    waiting = heart._one()
    with waiting:
        assert heart.lag_at(clock.now + 0.2) == 0.5
        assert heart.lag_at(clock.now + 3.0) == 3.0


def subscription(since: float) -> Subscription:
    return Subscription("c", NotificationBuffer(3, Overflow.DROP_OLDEST), None, since)


async def test_who_hears_in_time_misses_nothing() -> None:
    one = subscription(10.0)
    assert one.hears(10.5) is None
    await one.begin(1.0)
    assert one.is_live


async def test_who_went_on_without_hearing_is_told() -> None:
    one = subscription(10.0)
    await one.begin(0.01)
    gap = one.hears(15.0)
    assert gap is not None
    assert (gap.since, gap.until) == (10.0, 15.0)
    assert "late" in gap.reason


async def test_a_gap_begins_where_hearing_was_last_proven() -> None:
    one = subscription(10.0)
    one.heard_from = 11.0
    one.hears(11.5)
    one.deafen(20.0, "silence")
    one.deafen(25.0, "again, before it heard")
    gap = one.hears(30.0)
    assert gap is not None
    assert (gap.since, gap.until, gap.reason) == (20.0, 30.0, "silence")


async def test_a_gap_does_not_begin_before_the_subscription() -> None:
    one = subscription(10.0)
    one.heard_from = 12.0
    one.hears(12.0)
    one.deafen(5.0, "lost at once")
    gap = one.hears(20.0)
    assert gap is not None
    assert gap.since == 12.0


async def test_begin_does_not_wait_for_what_will_not_come() -> None:
    one = subscription(10.0)
    one.end(errors.NotificationsBlocked("deaf"))
    begun = time.monotonic()
    await one.begin(5.0)
    assert time.monotonic() - begun < 2.0
