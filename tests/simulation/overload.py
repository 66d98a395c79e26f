"""More callers than a pool can serve: whom it turns away early, and what that is good for.

Each case is drawn from its seed and played twice, once by a pool that turns nobody away early. A caller's work is
useful if it is done before the caller's time is over. `python -m simulation.overload 300` prints the table.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from steadypool import errors
from steadypool.deadline import deadline
from steadypool.pool import Pool

from .stage import Stage

PATTERNS = ("burst", "steady", "mixed deadlines", "slow for a while", "turns slow", "turns fast", "ceiling")
SLOWER = 5.0
FORESEEABLE = tuple(pattern for pattern in PATTERNS if pattern != "turns fast")
"""In "turns fast" the pool knows the database only as it is when it is slow, and cannot know that it will get fast:
who is turned away until it has learned that might have been served."""
KNOWN = 40
"""Uses before it begins: the pool knows how long connections are held."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One caller: when it comes, how long it needs a connection, how long it has in all (None: pool_timeout)."""

    at: float
    hold: float
    limit: float | None


@dataclass(frozen=True, slots=True)
class Case:
    """A pool of so many connections, and who comes."""

    seed: int
    pattern: str
    places: int
    pool_timeout: float
    visits: tuple[Visit, ...]
    slow: tuple[float, float]
    """From when until when everything takes SLOWER times as long."""

    @property
    def workload(self) -> str | None:
        """Under a ceiling, where the pool itself has room."""
        return "uploads" if self.pattern == "ceiling" else None


@dataclass(slots=True)
class Outcome:
    """How one caller ended."""

    useful: bool = False
    early: bool = False


def draw(seed: int, pattern: str | None = None) -> Case:
    """The case of a seed."""
    rng = random.Random(seed)
    pattern = pattern or PATTERNS[seed % len(PATTERNS)]
    places, mean = rng.choice((1, 3, 5, 15)), rng.choice((0.02, 0.05, 0.2))
    shape: Callable[[], float] = rng.choice(
        (lambda: 1.0, lambda: rng.uniform(0.5, 1.5), lambda: rng.expovariate(1.0))
    )
    patience = rng.choice((8, 20, 60)) * mean  # a wait of so many uses is the longest
    load, count = rng.choice((0.8, 1.2, 2.0, 4.0)), 300
    now, visits = 0.0, list[Visit]()
    for _ in range(count):
        limit: float | None = patience
        if pattern == "mixed deadlines":
            limit = rng.choice((0.2 * patience, patience, None))
        elif seed % 2:
            limit = None
        visits.append(Visit(now, mean * shape(), limit))
        now += 0.0 if pattern == "burst" else rng.expovariate(load * places / mean)
    middle = now / 2
    slow = {
        "slow for a while": (0.0, middle),
        "turns slow": (middle, math.inf),
        "turns fast": (-math.inf, middle),
    }.get(pattern, (0.0, 0.0))
    return Case(seed, pattern, places, patience, tuple(visits), slow)


def play(case: Case, *, shed: bool, pool_class: type[Pool[Any]] = Pool) -> list[Outcome]:
    """Let them come, and note how each of them ends."""
    outcomes = [Outcome() for _ in case.visits]
    ceiling = case.workload is not None
    stage = Stage(
        ceilings={"uploads": case.places} if ceiling else None,
        pool_class=pool_class,
        size=case.places + ceiling * 5,
        max_overflow=0,
        pool_timeout=case.pool_timeout,
        connect_timeout=case.pool_timeout,
        ping_after_idle=None,
        shed=shed,
    )

    opened = math.inf  # before it begins everything is as it was at first

    async def use(hold: float, limit: float | None) -> bool:
        with nullcontext() if limit is None else deadline(limit, clock=stage.clock) as end:
            lease = await stage.pool.acquire(workload=case.workload)
            began, ended = case.slow
            if began <= stage.loop.now - opened < ended:
                hold *= SLOWER
            left = hold if end is None else end.remaining(stage.loop.now)
            await asyncio.sleep(min(hold, left))
            lease.release()
            return hold <= left

    async def visit(number: int, one: Visit) -> None:
        await asyncio.sleep(one.at)
        try:
            outcomes[number].useful = await use(one.hold, one.limit)
        except errors.SteadypoolError as error:
            outcomes[number].early = error.report.early

    async def scenario(stage: Stage) -> None:
        for one in case.visits[:KNOWN]:
            await use(one.hold, None)
        await asyncio.gather(*(use(case.visits[0].hold, None) for _ in range(case.places)))
        nonlocal opened
        opened = stage.loop.now
        await asyncio.gather(*(visit(number, one) for number, one in enumerate(case.visits)))

    stage.play(scenario)
    return outcomes


@dataclass
class Tally:
    """What a number of cases came to, in callers."""

    callers: int = 0
    early: int = 0
    regretted: int = 0
    """Turned away early, and would have done useful work in the pool that turns nobody away early."""
    useful: int = 0
    useful_without: int = 0

    def add(self, case: Case, pool_class: type[Pool[Any]] = Pool) -> None:
        """Play a case both ways."""
        pairs = list(zip(play(case, shed=True, pool_class=pool_class), play(case, shed=False), strict=True))
        self.callers += len(pairs)
        self.early += sum(one.early for one, _ in pairs)
        self.regretted += sum(one.early and other.useful for one, other in pairs)
        self.useful += sum(one.useful for one, _ in pairs)
        self.useful_without += sum(other.useful for _, other in pairs)

    @property
    def fault(self) -> str | None:
        """What is wrong with whom it turned away, or None."""
        if self.regretted > max(0.1 * self.early, 5):
            return f"{self.regretted} of {self.early} who were turned away early would have been served"
        if self.useful < 0.99 * self.useful_without:
            return (
                f"{self.useful} were served in time, {self.useful_without} where nobody is turned away early"
            )
        return None

    def __str__(self) -> str:
        return (
            f"{self.callers:7d} {self.early:9d} {self.regretted:9d} {self.useful:8d} {self.useful_without:8d}"
        )


def run(seeds: Iterable[int], pattern: str, pool_class: type[Pool[Any]] = Pool) -> Tally:
    """Play the cases of these seeds."""
    tally = Tally()
    for seed in seeds:
        tally.add(draw(seed, pattern), pool_class)
    return tally


def main() -> None:
    """Print the table."""
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    print(f"{'pattern':16s} callers     early regretted   useful  without")
    for pattern in PATTERNS:
        print(f"{pattern:16s} {run(range(cases), pattern)}", flush=True)


if __name__ == "__main__":
    main()
