"""Deadlines: nested, inherited by tasks, measured on the clock that is handed in."""

from __future__ import annotations

import asyncio
import math

import pytest

from steadypool.deadline import Deadline, current_deadline, deadline


class FixedClock:
    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_there_is_none_unless_it_is_set() -> None:
    assert current_deadline() is None
    with deadline(1.0) as end:
        assert current_deadline() is end
    assert current_deadline() is None


def test_it_is_a_moment_and_not_a_duration() -> None:
    clock = FixedClock()
    with deadline(2.0, clock=clock) as end:
        assert end == Deadline(102.0, 2.0)
        clock.now = 101.5
        assert end.remaining(clock.now) == 0.5
        clock.now = 110.0
        assert end.remaining(clock.now) == 0.0


def test_the_nearest_end_wins_whichever_is_outside() -> None:
    clock = FixedClock()
    with deadline(1.0, clock=clock) as near, deadline(9.0, clock=clock) as inner:
        assert inner is near
    with deadline(9.0, clock=clock) as far:
        with deadline(1.0, clock=clock) as inner:
            assert inner.at == 101.0
            assert current_deadline() is inner
        assert current_deadline() is far


def test_it_ends_with_its_block_also_by_an_exception() -> None:
    with pytest.raises(KeyError), deadline(1.0):
        raise KeyError
    assert current_deadline() is None


def test_tasks_that_are_started_inside_inherit_it_and_others_do_not() -> None:
    async def look() -> Deadline | None:
        await asyncio.sleep(0)
        return current_deadline()

    async def main() -> None:
        before = asyncio.create_task(look())
        with deadline(5.0) as end:
            inside = asyncio.create_task(look())
        assert await before is None
        assert await inside is end
        assert current_deadline() is None

    asyncio.run(main())


def test_a_task_can_shorten_its_own_without_touching_others() -> None:
    async def shorten() -> float:
        with deadline(1.0) as end:
            await asyncio.sleep(0)
            return end.seconds

    async def main() -> None:
        with deadline(5.0) as end:
            assert await asyncio.gather(shorten(), shorten()) == [1.0, 1.0]
            assert current_deadline() is end

    asyncio.run(main())


@pytest.mark.parametrize("seconds", [0, 0.0, 3, math.inf])
def test_what_a_deadline_may_be(seconds: float) -> None:
    with deadline(seconds) as end:
        assert end.seconds == seconds


@pytest.mark.parametrize("seconds", [-0.1, -math.inf, math.nan])
def test_what_a_deadline_may_not_be(seconds: float) -> None:
    with pytest.raises(ValueError, match="0 or more seconds"), deadline(seconds):
        raise AssertionError("the block must not begin")
