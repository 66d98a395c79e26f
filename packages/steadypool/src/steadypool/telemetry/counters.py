"""Counts of what happened in one pool since the start, made from events alone.

They are the one place where events are counted without attributes: `db.stats()`, the recorder's rows, the page and the
alerts read them, under the same names. `tally` counts by attributes, for those who collect elsewhere.
"""

from __future__ import annotations

from collections import defaultdict
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


_NAMES = tuple(field.name for field in fields(Totals))

_PLAIN: dict[type[events.Event], str] = {
    events.ConnectAttemptFailed: "connect_failures",
    events.Closed: "closed",
    events.StatementTimedOut: "statement_timeouts",
    events.ConnectionLost: "connections_lost",
    events.LeakSuspected: "leaks",
    events.ListenerGap: "listener_gaps",
}
"""Events of which only the number counts."""

SLOW_CONNECT = 1.0
"""Seconds after which a connect that succeeds is called a wake-up."""

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
"""The events that `Counters` looks at; also at `StatementFinished`, where somebody else wants those anyway."""

_COUNTED_ELSEWHERE = frozenset(("StatementTimeout", "ConnectionLost", "CommitUnknown", "CancelledError"))
"""Ends of a statement that have an event of their own, or are nobody's failure."""


class Counters:
    """An observer that counts. `so_far` are the counts and the sums of seconds, by name.

    Example:
        >>> counters = Counters()
        >>> counters(events.Acquired("main", at=1.0, connection=1, seconds=0.25, workload=None))
        >>> counters.totals().acquired, counters.totals().wait_seconds
        (1, 0.25)
    """

    def __init__(self) -> None:
        self.so_far: defaultdict[str, float] = defaultdict(float)

    def __call__(self, event: events.Event) -> None:
        """Count one event."""
        add = self._add
        match event:
            case events.Acquired(seconds=seconds):
                add("acquired")
                add("wait_seconds", seconds)
            case events.Released(seconds=seconds, kept=kept):
                add("released")
                add("use_seconds", seconds)
                if not kept:
                    add("evicted")
            case events.StatementFinished(rows=rows, error_type=error_type):
                add("statements")
                add("rows", rows or 0)
                if error_type is not None and error_type not in _COUNTED_ELSEWHERE:
                    add("statement_errors")
            case events.ConnectSucceeded(seconds=seconds):
                add("connects")
                add("connect_seconds", seconds)
                if seconds >= SLOW_CONNECT:
                    add("wake_ups")
            case events.AcquireFailed(error=error):
                add(cause_of(error))
            case events.ListenerStateChanged(before="reconnecting" | "deaf", after="connected"):
                add("listener_reconnects")
            case _:
                if what := _PLAIN.get(type(event)):
                    add(what)

    def _add(self, what: str, amount: float = 1) -> None:
        self.so_far[what] += amount

    def totals(self) -> Totals:
        """The counts so far."""
        counts = {name: int(self.so_far[name]) for name in _NAMES if name in self.so_far}
        sums = {name: self.so_far[name] for name in counts if name.endswith("_seconds")}
        counts = {name: int(self.so_far[name]) for name in _NAMES if name in self.so_far}
        sums = {name: self.so_far[name] for name in counts if name.endswith("_seconds")}
        return Totals(**(counts | sums))  # pyright: ignore[reportArgumentType] - each has its kind by its name


def cause_of(error: BaseException) -> str:
    """Under which name it is counted that somebody went without a connection."""
    if isinstance(error, errors.PoolQueueFull):
        return "queue_full"
    if isinstance(error, errors.PoolTimeout):
        return "pool_timeouts"
    if isinstance(error, errors.DeadlineExceeded):
        return "deadlines"
    return "connect_errors" if isinstance(error, errors.ConnectFailed) else "refused_closed"
