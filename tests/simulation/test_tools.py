"""The simulator's own tools: virtual time, schedules from seeds, shrinking, repeating."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from steadypool._virtual_time import Deadlock, Livelock, VirtualLoop

from .campaign import attempt, run_seeds, shrink
from .mutants import WakesNobodyWhenAConnectFails
from .schedule import LEAST_STEPS, draw

TESTS = Path(__file__).resolve().parents[1]


def test_virtual_time_passes_without_waiting() -> None:
    began = time.monotonic()
    loop = VirtualLoop()
    start = loop.now
    loop.run(asyncio.sleep(100_000.0))
    assert loop.now - start == pytest.approx(100_000.0)
    assert time.monotonic() - began < 5.0


def test_ready_callbacks_run_in_the_order_that_asyncio_promises() -> None:
    seen: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for number in range(20):
            loop.call_soon(seen.append, number)
        await asyncio.sleep(1.0)

    VirtualLoop(random.Random(1)).run(main())
    assert seen == list(range(20))


def test_timers_of_one_moment_run_in_an_order_that_depends_on_the_seed() -> None:
    def order(seed: int) -> tuple[int, ...]:
        seen: list[int] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            moment = loop.time() + 1.0
            for number in range(5):
                loop.call_at(moment, seen.append, number)
            await asyncio.sleep(2.0)

        VirtualLoop(random.Random(seed)).run(main())
        return tuple(seen)

    assert len({order(seed) for seed in range(20)}) > 5
    assert order(3) == order(3)


def test_no_timer_runs_before_its_time() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        rng = random.Random(7)
        for _ in range(500):
            due = loop.time() + rng.choice((0.0, 1e-6, 5e-6, 0.01, rng.random()))
            late = loop.create_future()
            loop.call_at(due, lambda late=late: late.set_result(loop.time()))
            assert await late >= due

    VirtualLoop(random.Random(1)).run(main())


def test_a_deadlock_is_noticed() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock):
        VirtualLoop().run(main())


def test_turning_without_end_is_noticed() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        def again() -> None:
            loop.call_soon(again)

        again()
        await loop.create_future()

    with pytest.raises(Livelock):
        VirtualLoop().run(main())


def test_a_seed_says_everything() -> None:
    assert draw(11) == draw(11) != draw(12)
    first, second = attempt(draw(11))[0], attempt(draw(11))[0]
    assert first.loop.now == second.loop.now
    assert first.rules.connects == second.rules.connects
    assert first.server.numbers == second.server.numbers > 0


def test_schedules_are_long_enough() -> None:
    assert min(len(draw(seed).steps) for seed in range(300)) >= LEAST_STEPS


def test_a_failure_shrinks_to_what_matters() -> None:
    failure = run_seeds(range(100), WakesNobodyWhenAConnectFails).failure
    assert failure is not None
    shrunk = failure.shrunk
    assert 0 < len(shrunk.steps) < len(failure.schedule.steps) / 2
    assert attempt(shrunk, WakesNobodyWhenAConnectFails)[1] == failure.shrunk_error
    for number in range(len(shrunk.steps)):  # nothing is left that could go
        fewer = replace(shrunk, steps=shrunk.steps[:number] + shrunk.steps[number + 1 :])
        assert attempt(fewer, WakesNobodyWhenAConnectFails)[1] is None
    text = str(failure)
    assert f"--seed {failure.schedule.seed}" in text
    assert "acquire" in text


def test_shrinking_takes_out_every_step_that_can_go() -> None:
    schedule = draw(5)
    needed = {schedule.steps[3], schedule.steps[20], schedule.steps[-1]}
    shrunk = shrink(schedule, lambda candidate: needed <= set(candidate.steps))
    assert set(shrunk.steps) == needed


def test_one_seed_can_be_repeated_by_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "simulation", "--seed", "5"],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "seed 5" in done.stdout
    assert "all rules held" in done.stdout
