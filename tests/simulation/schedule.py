"""Schedules are data: a configuration and a list of steps, both drawn from a seed.

A step is `(gap, verb, a, b)`. A gap above zero is virtual seconds, zero means within the same callback as the step
before, and below zero so many turns of the loop. `a` and `b` choose among what is there when the step runs, so that
a schedule stays meaningful when steps are taken out of it.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass

from steadypool.pool.lease import PoolOptions

from .server import CLOSE_KINDS, OPEN_KINDS, PING_KINDS, RESET_KINDS

Step = tuple[float, str, int, int]

LEAST_STEPS = 50
GAPS = (0.0, 0.0, -1, -1, -2, -3, -5, 0.01, 0.01, 0.02, 0.06, 0.2, 0.5, 1.0, 2.2)
CALLER_TIMEOUTS: tuple[float | None, ...] = (None, None, None, 0.0, 0.1, 0.7, 3.0)
DEADLINES: tuple[float | None, ...] = (None, None, 0.0, 0.05, 0.4, 1.0, 4.0)
WORKLOADS: tuple[str | None, ...] = (None, "uploads", "reports", "free")
GRACES: tuple[float | None, ...] = (None, 0.0, 0.3, 3.0)
LATENCIES = (0.0, 0.01, 0.05, 0.3)
LINGERS = (0.0, 0.02, 0.25, 5.0)

WEATHERS: tuple[tuple[str, tuple[object, ...]], ...] = (
    ("open", (*OPEN_KINDS, "ok", "ok", "mixed", "mixed")),
    ("ping", (*PING_KINDS, "ok", "hang", "mixed")),
    ("reset", (*RESET_KINDS, "ok", "mixed")),
    ("close", (*CLOSE_KINDS, "mixed")),
    ("latency", LATENCIES),
    ("linger", LINGERS),
)

# How often each step comes, in three tempers: a busy pool, a bad server, an operator who fiddles.
_CALM = {"acquire": 30, "release": 24, "use": 10, "cancel": 8, "release twice": 2, "wait": 6}
_BAD = {
    "first use is silent": 2,
    "weather": 12,
    "fair": 4,
    "cut": 4,
    "cut all": 1,
    "silence": 3,
    "silence all": 3,
}
_FIDDLE = {
    "evict": 4,
    "drain": 2,
    "suspect all": 2,
    "prove idle": 2,
    "warm up": 3,
    "abort idle": 1,
    "cancel evict": 1,
}
_END = {"close": 4, "cancel close": 1}
_TEMPERS: tuple[dict[str, int], ...] = (
    {**_CALM, **dict.fromkeys(_FIDDLE, 1), "weather": 2, "fair": 1},
    {**_CALM, **_BAD, **_FIDDLE},
    {**_CALM, **_BAD},
    {**_CALM, **_FIDDLE, "weather": 3, "cut": 2},
    {**_CALM, **_BAD, **_FIDDLE, **_END},
)
_TABLES = tuple((tuple(temper), tuple(temper.values())) for temper in _TEMPERS)


@dataclass(frozen=True, slots=True)
class Config:
    """What the pool of a schedule is like."""

    options: PoolOptions
    ceilings: dict[str, int]


@dataclass(frozen=True, slots=True)
class Schedule:
    """All that a run depends on."""

    seed: int
    config: Config
    steps: tuple[Step, ...]

    def describe(self) -> str:
        """As text that can be pasted into a test."""
        options = asdict(self.config.options)
        lines = [f"seed {self.seed}", f"options {options}", f"ceilings {self.config.ceilings}"]
        lines += [f"  {number:3d} {step!r}" for number, step in enumerate(self.steps)]
        return "\n".join(lines)


def draw(seed: int) -> Schedule:
    """The schedule of a seed."""
    rng = random.Random(seed)
    return Schedule(seed, _draw_config(rng), _draw_steps(rng))


def _draw_config(rng: random.Random) -> Config:
    pick = rng.choice
    options = PoolOptions(
        size=pick((1, 1, 2, 2, 3)),
        max_overflow=pick((0, 0, 1, 1, 2)),
        pool_timeout=pick((0.3, 0.5, 1.0, 2.0)),
        connect_timeout=pick((0.4, 1.0, 2.0, 2.0)),
        recycle=pick((None, None, 0.0, 0.4, 1.0, 2.0, 5.0)),
        ping_after_idle=pick((None, 0.0, 0.05, 0.5, 0.5)),
        leave_timeout=pick((0.2, 0.5)),
        max_waiting=pick((1, 3, 1000, 1000)),
        max_connecting=pick((1, 2, 4)),
        close_grace=pick((0.0, 0.4, 2.0)),
        use_lifo=rng.random() < 0.7,
    )
    ceilings = {} if rng.random() < 0.5 else {"uploads": 1, "reports": pick((1, 2))}
    return Config(options, ceilings)


def _draw_steps(rng: random.Random) -> tuple[Step, ...]:
    verbs, weights = rng.choice(_TABLES)
    count = LEAST_STEPS + rng.randrange(15)
    chosen = rng.choices(verbs, weights, k=count)
    gaps = rng.choices(GAPS, k=count)
    numbers = rng.choices(range(1 << 16), k=2 * count)
    return tuple(zip(gaps, chosen, numbers[:count], numbers[count:], strict=True))
