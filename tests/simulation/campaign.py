"""Runs many schedules, and makes a failing one small."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from steadypool.pool import Pool
from steadypool.pool.lease import EntryState

from .schedule import Schedule, Step, draw
from .world import World

PoolClass = type[Pool[Any]]


@dataclass
class Failure:
    """A schedule that broke a rule, and the smallest one found that breaks one too."""

    schedule: Schedule
    error: str
    shrunk: Schedule
    shrunk_error: str

    def __str__(self) -> str:
        return (
            f"{self.error}\n\nrepeat it: python -m simulation --seed {self.schedule.seed}   (in the folder tests)\n\n"
            f"the shortest schedule found, {len(self.shrunk.steps)} of {len(self.schedule.steps)} steps: "
            f"{self.shrunk_error}\n{self.shrunk.describe()}"
        )


@dataclass
class Tally:
    """What a number of schedules reached."""

    schedules: int = 0
    steps: int = 0
    seconds: float = 0.0
    pairs: set[tuple[EntryState, str]] = field(default_factory=set)
    transitions: set[tuple[EntryState, EntryState]] = field(default_factory=set)
    failure: Failure | None = None

    def add(self, world: World) -> None:
        """Count a schedule that ran."""
        self.schedules += 1
        self.steps += len(world.schedule.steps)
        self.pairs |= world.rules.pairs
        self.transitions |= world.rules.transitions


def attempt(schedule: Schedule, pool_class: PoolClass = Pool) -> tuple[World, str | None]:
    """Run a schedule; the message of the rule that it broke, or None."""
    world = World(schedule, pool_class)
    try:
        world.run()
    except AssertionError as error:
        return world, str(error) or type(error).__name__
    except Exception as error:  # noqa: BLE001 - a crash of the pool is a finding like any other
        return world, f"{type(error).__name__}: {error}"
    return world, None


def run_seeds(seeds: Iterable[int], pool_class: PoolClass = Pool) -> Tally:
    """Run the schedules of these seeds, up to the first that breaks a rule."""
    tally = Tally()
    began = time.perf_counter()
    for seed in seeds:
        schedule = draw(seed)
        world, error = attempt(schedule, pool_class)
        tally.add(world)
        if error is not None:
            shrunk = shrink(schedule, lambda s: attempt(s, pool_class)[1] is not None)
            tally.failure = Failure(schedule, error, shrunk, attempt(shrunk, pool_class)[1] or "")
            break
    tally.seconds = time.perf_counter() - began
    return tally


def shrink(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """Take steps out for as long as it still fails: halves first, then ever smaller pieces, then one by one."""
    steps: tuple[Step, ...] = schedule.steps
    size = max(1, len(steps) // 2)
    while size:
        start, shorter = 0, False
        while start < len(steps):
            candidate = steps[:start] + steps[start + size :]
            if fails(replace(schedule, steps=candidate)):
                steps, shorter = candidate, True
            else:
                start += size
        if size > 1 or not shorter:
            size //= 2
    return replace(schedule, steps=steps)
