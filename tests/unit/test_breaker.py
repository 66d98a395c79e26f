"""The breaker: how many connects may start, from what is known about the server."""

from __future__ import annotations

import random

import pytest

from steadypool._clock import Backoff
from steadypool.pool.circuit_breaker import (
    PAUSE_WHEN_IDLE,
    PAUSE_WHILE_WAITED_FOR,
    BreakerState,
    CircuitBreaker,
)


def breaker(max_connecting: int = 4) -> CircuitBreaker:
    return CircuitBreaker(max_connecting, Backoff(first=0.05, ceiling=0.5, rng=random.Random(1)))


@pytest.mark.parametrize(("opening", "allowed"), [(0, 4), (1, 3), (4, 0), (9, 0)])
def test_a_server_that_answers_takes_several_at_once(opening: int, allowed: int) -> None:
    assert breaker().allowance(now=0.0, opening=opening, live=1) == allowed


@pytest.mark.parametrize(("opening", "allowed"), [(0, 1), (1, 0)])
def test_while_nothing_is_known_one_goes_first(opening: int, allowed: int) -> None:
    assert breaker().allowance(now=0.0, opening=opening, live=0) == allowed


def test_after_a_failure_one_at_a_time_and_not_before_the_pause_is_over() -> None:
    it = breaker()
    it.failed(now=10.0, someone_waits=True)
    assert it.state is BreakerState.OPEN
    assert 10.0 <= it.not_before <= 10.05
    assert it.allowance(now=it.not_before - 0.001, opening=0, live=3) == 0
    assert it.allowance(now=it.not_before, opening=0, live=3) == 1
    assert it.allowance(now=it.not_before, opening=1, live=3) == 0


def test_a_success_closes_it_and_starts_the_pauses_over() -> None:
    it = breaker()
    for _ in range(10):
        it.failed(now=0.0, someone_waits=True)
    it.connected()
    assert it.state is BreakerState.CLOSED
    assert it.allowance(now=0.0, opening=0, live=1) == 4
    it.failed(now=0.0, someone_waits=True)
    assert it.not_before <= 0.05


@pytest.mark.parametrize(
    ("someone_waits", "longest"), [(True, PAUSE_WHILE_WAITED_FOR), (False, PAUSE_WHEN_IDLE)]
)
def test_pauses_are_short_while_somebody_waits(someone_waits: bool, longest: float) -> None:
    it = breaker()
    pauses = []
    for _ in range(60):
        it.failed(now=100.0, someone_waits=someone_waits)
        pauses.append(it.not_before - 100.0)
    assert longest * 0.8 < max(pauses) <= longest


def test_a_caller_who_comes_cuts_a_long_pause_short() -> None:
    it = breaker()
    it.failed(now=0.0, someone_waits=False)
    it.not_before = 25.0
    it.somebody_came()
    assert (
        it.not_before == PAUSE_WHILE_WAITED_FOR
    )  # counted from the failure: whoever comes later waits for nothing


def test_a_caller_who_comes_changes_nothing_while_it_is_closed() -> None:
    it = breaker()
    it.somebody_came()
    assert it.allowance(now=3.0, opening=0, live=0) == 1
