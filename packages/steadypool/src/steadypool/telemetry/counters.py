"""Counts of what happened since the start, made from events alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields

from steadypool import errors, events


@dataclass(frozen=True, slots=True)
class Totals:
    """How often each thing happened; `*_seconds` are sums."""

    connects: int = 0
    connect_failures: int = 0
    connect_seconds: float = 0.0
    acquired: int = 0
    wait_seconds: float = 0.0
    released: int = 0
    use_seconds: float = 0.0
    evicted: int = 0
    closed: int = 0
    pool_timeouts: int = 0
    queue_full: int = 0
    connect_errors: int = 0
    deadlines: int = 0
    statement_timeouts: int = 0
    connections_lost: int = 0
    leaks: int = 0
    listener_gaps: int = 0
    listener_reconnects: int = 0


_PLAIN: dict[type[events.Event], str] = {
    events.ConnectAttemptFailed: "connect_failures",
    events.Closed: "closed",
    events.StatementTimedOut: "statement_timeouts",
    events.ConnectionLost: "connections_lost",
    events.LeakSuspected: "leaks",
    events.ListenerGap: "listener_gaps",
}
"""Events of which only the number counts."""

FOUND_DEAD = "found dead"
"""The reason of `Closed` for a connection whose end was noticed while nobody used it."""

COUNTED: tuple[type[events.Event], ...] = (
    *_PLAIN,
    events.ConnectSucceeded,
    events.Acquired,
    events.AcquireFailed,
    events.Released,
    events.ListenerStateChanged,
)
"""The events that `Counters` looks at."""


class Counters:
    """An observer that counts.

    Example:
        >>> counters = Counters()
        >>> counters(events.Acquired("main", at=1.0, connection=1, seconds=0.25, workload=None))
        >>> counters.totals().acquired, counters.totals().wait_seconds
        (1, 0.25)
    """

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()

    def __call__(self, event: events.Event) -> None:
        """Count one event."""
        match event:
            case events.ConnectSucceeded(seconds=seconds):
                self._add("connects", "connect_seconds", seconds)
            case events.Acquired(seconds=seconds):
                self._add("acquired", "wait_seconds", seconds)
            case events.Released(seconds=seconds, kept=kept):
                self._add("released", "use_seconds", seconds)
                if not kept:
                    self._add("evicted")
            case events.AcquireFailed(error=error):
                self._add(cause_of(error))
            case events.ListenerStateChanged(before="reconnecting" | "deaf", after="connected"):
                self._add("listener_reconnects")
            case _:
                if what := _PLAIN.get(type(event)):
                    self._add(what)

    def _add(self, what: str, time: str = "", seconds: float = 0.0) -> None:
        self._sums[what] += 1
        if time:
            self._seconds[time] += seconds  # pyright: ignore[reportArgumentType] - Counter is typed for whole numbers

    def totals(self) -> Totals:
        """The counts so far."""
        known = {field.name for field in fields(Totals)}
        return Totals(
            **{name: value for name, value in (self._sums | self._seconds).items() if name in known}
        )


def cause_of(error: BaseException) -> str:
    """Under which name it is counted that somebody went without a connection."""
    if isinstance(error, errors.PoolQueueFull):
        return "queue_full"
    if isinstance(error, errors.PoolTimeout):
        return "pool_timeouts"
    if isinstance(error, errors.DeadlineExceeded):
        return "deadlines"
    return "connect_errors" if isinstance(error, errors.ConnectFailed) else "refused_closed"
