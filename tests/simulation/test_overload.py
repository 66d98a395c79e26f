"""Whoever is turned away early would not have been served; and more get what they came for, not fewer."""

from __future__ import annotations

import asyncio

import pytest

from steadypool import errors
from steadypool.deadline import deadline
from steadypool.pool.admission import CERTAINTY, ENOUGH, WaitEstimator

from . import overload
from .stage import Stage
from .test_scenarios import ask, on_stage

SEEDS = range(16)


@pytest.mark.parametrize("pattern", overload.FORESEEABLE)
def test_who_is_turned_away_early_would_have_come_too_late(pattern: str) -> None:
    tally = overload.run(SEEDS, pattern)
    assert tally.early > 50
    assert tally.fault is None, tally.fault


def test_of_a_crowd_that_comes_at_once_all_but_a_few_know_at_once() -> None:
    tally = overload.run(SEEDS, "burst")
    without = tally.callers - tally.useful
    assert tally.early > 0.9 * without
    assert tally.regretted <= 0.01 * tally.early


async def busy(stage: Stage, uses: int = ENOUGH, seconds: float = 0.1) -> None:
    """The pool learns how long a connection is held."""
    for _ in range(uses):
        lease = await stage.pool.acquire()
        await asyncio.sleep(seconds)
        lease.release()


@on_stage(size=1, max_overflow=0, pool_timeout=1.0)
async def test_the_seed_s_words_come_first_with_utilization_and_the_expected_wait(stage: Stage) -> None:
    await busy(stage)
    lease = await stage.pool.acquire(name="GET /slow")
    waiting = [ask(stage) for _ in range(12)]
    await asyncio.sleep(0)
    began = stage.loop.now
    refused = [task for task in waiting if task.done()]
    assert [type(task.exception()) for task in refused] == [errors.PoolTimeout]
    error = refused[0].exception()
    assert isinstance(error, errors.PoolTimeout)
    assert error.report.early
    assert error.elapsed.total == 0
    assert stage.loop.now - began < 0.001
    assert error.message == (
        "QueuePool limit of size 1 overflow 0 reached, connection timed out, timeout 1.00; turned away early: the "
        "expected wait is 1.20s and 1.00s are left (1 in use, 0 idle, 0 opening, 0 closing, 11 waiting, limit 1+0, "
        "utilization 100%, expected wait 1.20s; held longest: GET /slow 0.0s). Find out what holds the connections, "
        "or raise DATABASE_POOL_SIZE or DATABASE_MAX_OVERFLOW"
    )
    assert error.retry_after == pytest.approx(1.2, abs=0.01)
    lease.release()
    for task in waiting[:11]:
        held = await task
        await asyncio.sleep(0.05)
        held.release()


@on_stage(size=1, max_overflow=0, pool_timeout=9.0)
async def test_a_deadline_that_cannot_be_met_says_so(stage: Stage) -> None:
    await busy(stage)
    lease = await stage.pool.acquire()
    waiting = [ask(stage) for _ in range(10)]
    await asyncio.sleep(0)
    with pytest.raises(errors.DeadlineExceeded, match=r"deadline of 0\.50s cannot be met") as caught:
        with deadline(0.5, clock=stage.clock):
            await stage.pool.acquire()
    assert (caught.value.report.early, caught.value.phase) == (True, errors.Phase.WAITING)
    assert not any(task.done() for task in waiting)
    lease.release()
    for task in waiting:
        (await task).release()


@on_stage(size=1, max_overflow=0, pool_timeout=9.0)
async def test_a_connection_goes_to_whoever_can_still_finish(stage: Stage) -> None:
    await busy(stage)
    lease = await stage.pool.acquire()
    with deadline(0.15, clock=stage.clock):
        short = ask(stage)
    patient = ask(stage)
    await asyncio.sleep(0.1)
    lease.release()
    (await patient).release()
    with pytest.raises(errors.DeadlineExceeded, match=r"0\.05s are left") as caught:
        await short
    assert caught.value.report.early
    with deadline(0.05, clock=stage.clock):
        (await stage.pool.acquire()).release()  # nobody else wants it


@on_stage(size=1, max_overflow=0, pool_timeout=0.2)
async def test_a_pool_that_knows_little_turns_nobody_away_early(stage: Stage) -> None:
    await busy(stage, uses=ENOUGH - 1)
    assert stage.pool.snapshot().expected_wait == 0.0
    lease = await stage.pool.acquire()
    assert stage.pool.snapshot().expected_wait is None
    waiting = [ask(stage) for _ in range(50)]
    await asyncio.sleep(0.1)
    assert not any(task.done() for task in waiting)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, errors.PoolTimeout) and not result.report.early for result in results)
    lease.release()


def test_an_optimist_is_surer_the_more_the_uses_are_alike() -> None:
    alike, varied = WaitEstimator(), WaitEstimator()
    for number in range(64):
        alike.held(0.1)
        varied.held(0.2 * (number % 2))
    assert alike.mean == pytest.approx(varied.mean)
    for forecast in (alike, varied):
        forecast.joins(0.0, 100.0, 1)
    assert alike.earliest(0.0, 100, 1) == pytest.approx(10.0, rel=0.01)
    error = 0.1 * (100 + 100 * 100 / 64) ** 0.5
    assert varied.earliest(0.0, 100, 1) == pytest.approx(10.0 - CERTAINTY * error, rel=0.01)


def test_what_was_fast_once_may_be_so_again() -> None:
    forecast = WaitEstimator()
    for seconds in [0.1] * 100 + [1.0] * 64:
        forecast.held(seconds)
    forecast.joins(0.0, 100.0, 1)
    assert forecast.expected(9, 1) == pytest.approx(10.0)
    assert forecast.earliest(0.0, 10, 1) < 5.0
