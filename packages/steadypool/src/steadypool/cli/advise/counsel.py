"""From recorded load to settings, each with its reason. The numbers come from replays, not from rules of thumb."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from steadypool.cli.advise.replay import Outcome, Timing, percentile, replay
from steadypool.cli.advise.sources import Load
from steadypool.errors import ConfigurationError
from steadypool.monitor import Arrival
from steadypool.monitor.recording import SERVED
from steadypool.pool.lease import PoolOptions

HEADROOM = 2.0
"""A timeout is the 99th percentile times this, rounded up: a busy day is not an outage."""
SHORTEST_TIMEOUT = 1.0
SHORTEST_CONNECT = 5.0
SLEPT = 2.0
"""Seconds: a connect that took longer woke a database that slept."""
MOST_ARRIVALS = 10_000
"""Of more, the busiest part is replayed."""
FEW_CONNECTS = 6.0
"""Connects a minute that nobody notices; more of them make the overflow the wrong place for it."""
LONG_HOLD = 1.0
FEW_REQUESTS = 1_000
MEGABYTES_EACH = 5
"""What an idle connection costs the server, roughly."""

_ROUND = (1, 2, 3, 5, 8, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 900, 1800, 3600)


@dataclass(frozen=True, slots=True)
class Option:
    """One way to change the sizes: what it costs, and what the replay says it does."""

    name: str
    price: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Timeout:
    """A statement timeout for a workload (None: all that is declared as none), and why. Seconds."""

    workload: str | None
    seconds: float
    reason: str
    max_connections: int | None = None


@dataclass(frozen=True, slots=True)
class Recommendation:
    """All of the advice."""

    load: Load
    replayed: int
    now: Outcome
    options: tuple[Option, ...]
    chosen: Option
    reason: str
    timeouts: tuple[Timeout, ...]
    connection_timeout: float
    connection_reason: str
    remarks: tuple[str, ...] = field(default_factory=tuple[str, ...])


def advise(
    load: Load, *, wait: float, most: int, tell: Callable[[str], None] = lambda _said: None
) -> Recommendation:
    """Advice for this load.

    Args:
        load: what was recorded.
        wait: seconds that 99 % should not wait longer for a connection.
        most: the most connections that there may be.
        tell: told what is being tried.

    Raises:
        ConfigurationError: nothing in the load says how long connections are held.
    """
    arrivals = busiest(load.arrivals)
    if not any(arrival.held for arrival in arrivals):
        raise ConfigurationError(f"{load.source}: it does not say how long connections were held")
    trial = _Trial(load, arrivals, tell)
    now = trial.play(trial.base.size, trial.base.max_overflow or 0)
    need = trial.smallest(wait, most)
    options = tuple(_options(trial, now, need, wait, most))
    chosen, reason = _choice(now, options, wait)
    size = chosen.outcome.limit
    connection_timeout, connection_reason = _connection_timeout(load)
    return Recommendation(
        load,
        len(arrivals),
        now,
        options,
        chosen,
        reason,
        tuple(_timeouts(load, size)),
        connection_timeout,
        connection_reason,
        tuple(_remarks(load, arrivals, chosen, wait)),
    )


_SAME_NAMES = ("max_overflow", "pool_timeout", "max_waiting", "max_connecting", "ping_after_idle")


class _Trial:
    """Replays with sizes that differ and all else the same."""

    def __init__(self, load: Load, arrivals: Sequence[Arrival], tell: Callable[[str], None]) -> None:
        settings = load.settings
        names = {"size": "pool_size", "connect_timeout": "connection_timeout"} | {
            name: name for name in _SAME_NAMES
        }
        given = {name: settings[key] for name, key in names.items() if settings.get(key) is not None}
        self.base = PoolOptions(**given, recycle=None)
        workloads: dict[str, dict[str, int | None]] = settings.get("workloads") or {}
        self.ceilings: dict[str, int] = {}
        for name, each in workloads.items():
            ceiling = each.get("max_connections")
            if ceiling is not None:
                self.ceilings[name] = ceiling
        self.timing = Timing(connect=load.connecting.percentile(50) or Timing().connect)
        self.arrivals = arrivals
        self._tell = tell
        self._played: dict[tuple[int, int], Outcome] = {}

    def play(self, size: int, overflow: int) -> Outcome:
        """One replay; the same sizes are not played twice."""
        if (size, overflow) not in self._played:
            self._tell(f"{size} + {overflow} connections")
            options = replace(self.base, size=size, max_overflow=overflow)
            self._played[size, overflow] = replay(
                self.arrivals, options, ceilings=self.ceilings, timing=self.timing
            )
        return self._played[size, overflow]

    def smallest(self, wait: float, most: int) -> int:
        """The fewest connections, all kept open, with which nobody is refused and 99 % wait no longer."""
        low, high = 1, max(1, min(most, self.play(most, 0).peak))
        while low < high:
            middle = (low + high) // 2
            outcome = self.play(middle, 0)
            if outcome.refused == 0 and outcome.wait(99) <= wait:
                high = middle
            else:
                low = middle + 1
        return low


def busiest(arrivals: Sequence[Arrival], most: int = MOST_ARRIVALS) -> Sequence[Arrival]:
    """So many arrivals in a row that came in the shortest time."""
    if len(arrivals) <= most:
        return arrivals
    starts = range(len(arrivals) - most + 1)
    first = min(starts, key=lambda start: arrivals[start + most - 1].at - arrivals[start].at)
    return arrivals[first : first + most]


def _options(trial: _Trial, now: Outcome, need: int, wait: float, most: int) -> Iterator[Option]:
    """Option 1 and option 2 of the tuning chapter, with as many connections as are needed."""
    size = max(1, need - now.max_overflow)
    # What is opened on demand is waited for, so with a part of them as overflow it may take one or two more.
    while (
        size < need and size + now.max_overflow < most and trial.play(size, now.max_overflow).wait(99) > wait
    ):
        size += 1
    first = trial.play(size, now.max_overflow)
    more = size - now.size
    price = (
        f"{more:+d} connections are open all the time, about {abs(more) * MEGABYTES_EACH} MB of the server's memory "
        f"{'more' if more > 0 else 'less'}"
        if more
        else "nothing changes"
    )
    yield Option("option 1: pool_size", price, first)
    second = trial.play(min(now.size, need), max(0, need - now.size))
    yield Option(
        "option 2: max_overflow",
        f"the same baseline; {second.connects_per_minute:.1f} connects a minute under this load, peak {second.peak}",
        second,
    )


def _choice(now: Outcome, options: tuple[Option, ...], wait: float) -> tuple[Option, str]:
    if now.refused == 0 and now.wait(99) <= wait:
        keep = Option("as it is", "nothing changes", now)
        return (
            keep,
            f"99 % wait {_ms(now.wait(99))} at most, which is within {_ms(wait)}: the sizes need no change",
        )
    first, second = options
    bursts = second.outcome.connects_per_minute <= FEW_CONNECTS and second.outcome.wait(99) <= wait
    if bursts:
        share = second.outcome.overflow_share
        return (
            second,
            f"more than {now.size} are in use {share:.1%} of the time: overflow is for such bursts",
        )
    often = second.outcome.connects_per_minute
    return first, f"overflow would connect {often:.0f} times a minute: the load is there all the time"


def _timeouts(load: Load, limit: int) -> Iterator[Timeout]:
    """A statement timeout for each workload, by the 99th percentile, and a ceiling where one holds for long."""
    workloads: dict[str | None, list[float]] = {None: []}
    for arrival in load.arrivals:
        if arrival.held is not None and arrival.outcome == SERVED:
            workloads.setdefault(arrival.workload, []).append(arrival.held)
    for name, holds in workloads.items():
        if not holds:
            continue
        p99, of_what = (
            percentile(sorted(holds), 99),
            "of what a connection was held for (a statement takes no longer)",
        )
        executing = load.executing.percentile(99)
        if name is None and executing is not None and executing < p99:
            p99, of_what = executing, "of the statements"
        seconds = rounded(max(SHORTEST_TIMEOUT, HEADROOM * p99))
        ceiling = None
        if name is not None and p99 > LONG_HOLD and _overlap(load.arrivals, name) > limit // 2:
            ceiling = max(1, limit // 3)
        yield Timeout(
            name, seconds, f"the 99th percentile {of_what} is {_ms(p99)}; twice that, rounded up", ceiling
        )


def _overlap(arrivals: Sequence[Arrival], workload: str) -> int:
    """The most of a workload that wanted a connection at once."""
    spans = [(a.at, a.at + a.waited + (a.held or 0.0)) for a in arrivals if a.workload == workload]
    changes = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    most = number = 0
    for _, change in changes:
        number += change
        most = max(most, number)
    return most


def _connection_timeout(load: Load) -> tuple[float, str]:
    now = float(load.settings.get("connection_timeout") or 10.0)
    slowest = load.connecting.percentile(100)
    if slowest is None:
        return now, "nothing is known of connects: as it is"
    if slowest > SLEPT:
        seconds = rounded(max(SHORTEST_CONNECT, HEADROOM * slowest))
        return (
            seconds,
            f"the slowest connect took {_ms(slowest)}, as one does that wakes a database; twice that",
        )
    p99 = load.connecting.percentile(99) or 0.0
    seconds = rounded(max(SHORTEST_CONNECT, HEADROOM * p99))
    if seconds < now:
        return (
            now,
            f"the 99th percentile of connects is {_ms(p99)}; {now:g} s leaves room for a database that wakes up",
        )
    return seconds, f"the 99th percentile of connects is {_ms(p99)}; twice that, rounded up"


def _remarks(load: Load, arrivals: Sequence[Arrival], chosen: Option, wait: float) -> Iterator[str]:
    if not load.whole:
        yield (
            "a log has only what is above log_min_duration_statement (0: all, transactions too), no waits and no "
            "settings: the sizes as they are were taken to be the defaults, and what is advised is the least"
        )
    if len(load.arrivals) < FEW_REQUESTS:
        yield (
            f"of {len(load.arrivals):,} requests the 99th percentile is that of the slowest few; record a busy hour "
            "before settling on it"
        )
    if len(arrivals) < len(load.arrivals):
        yield f"of {len(load.arrivals):,} requests the busiest {len(arrivals):,} in a row were replayed"
    if chosen.outcome.refused or chosen.outcome.wait(99) > wait:
        yield "no size within --most reaches the goal: make what holds connections shorter (steadypool why exhaustion)"
    refused = sum(arrival.outcome != SERVED for arrival in load.arrivals)
    if refused:
        yield f"{refused:,} requests were not served when this was recorded; they are replayed with the hold of others"


def rounded(seconds: float) -> float:
    """Up to a number that people use.

    Example:
        >>> rounded(4.2), rounded(31)
        (5.0, 45.0)
    """
    return float(next((step for step in _ROUND if seconds <= step), math.ceil(seconds)))


def _ms(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
