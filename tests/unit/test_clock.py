"""Time and chance: the system's clock, and pauses that grow."""

from __future__ import annotations

import asyncio
import random

import pytest

from steadypool._clock import SYSTEM_CLOCK, Backoff


def test_the_system_clock_goes_on() -> None:
    before = SYSTEM_CLOCK.monotonic()
    asyncio.run(SYSTEM_CLOCK.sleep(0.01))
    # A loop's timer may be early by the resolution of its clock.
    assert SYSTEM_CLOCK.monotonic() - before > 0.009


def test_pauses_lie_between_nothing_and_a_ceiling_that_doubles() -> None:
    for number, ceiling in enumerate((0.05, 0.1, 0.2, 0.4, 0.5, 0.5)):
        pauses = []
        for seed in range(200):
            backoff = Backoff(first=0.05, ceiling=0.5, rng=random.Random(seed), attempts=number)
            pauses.append(backoff.next_pause())
        assert 0 <= min(pauses) < ceiling * 0.1
        assert ceiling * 0.9 < max(pauses) <= ceiling


def test_the_ceiling_can_be_another_this_once() -> None:
    backoff = Backoff(first=1.0, ceiling=0.5, rng=random.Random(1), attempts=10)
    assert max(backoff.next_pause(30.0) for _ in range(50)) > 20.0
    assert max(backoff.next_pause() for _ in range(50)) <= 0.5


def test_a_success_starts_over() -> None:
    backoff = Backoff(first=0.05, ceiling=0.5, rng=random.Random(1))
    for _ in range(10):
        backoff.next_pause()
    backoff.reset()
    assert backoff.next_pause() <= 0.05


def test_many_attempts_do_not_overflow() -> None:
    backoff = Backoff(rng=random.Random(1), attempts=100_000)
    assert backoff.next_pause() <= 0.5


def test_the_same_dice_give_the_same_pauses() -> None:
    first, second = (Backoff(rng=random.Random(3)) for _ in range(2))
    assert [first.next_pause() for _ in range(5)] == [second.next_pause() for _ in range(5)]


def test_two_pools_do_not_pause_in_step() -> None:
    first, second = Backoff(), Backoff()
    assert [first.next_pause() for _ in range(5)] != pytest.approx([second.next_pause() for _ in range(5)])
