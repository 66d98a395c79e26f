"""Counts of what happened in one pool since the start, made from events alone.

They are the one place where events are counted without attributes: `db.stats()`, the recorder's rows, the page and the
alerts read them, under the same names. `tally` counts by attributes, for those who collect elsewhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

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
"""The events that `Counters` looks at; also at `StatementFinished` and `StatementsFinished`, where somebody
else wants those anyway."""

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
        self._handlers: dict[type[events.Event], Callable[[Any], None]] = {
            events.Acquired: self._acquired,
            events.Released: self._released,
            events.StatementFinished: self.statement_finished,
            events.StatementsFinished: self.quick_statements,
            events.ConnectSucceeded: self._connect_succeeded,
            events.AcquireFailed: self._acquire_failed,
            events.ListenerStateChanged: self._listener_changed,
            **dict.fromkeys(_PLAIN, self._plain),
        }

    def __call__(self, event: events.Event) -> None:
        """Count one event."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def _acquired(self, event: events.Acquired) -> None:
        self.so_far["acquired"] += 1
        self.so_far["wait_seconds"] += event.seconds

    def _released(self, event: events.Released) -> None:
        self.so_far["released"] += 1
        self.so_far["use_seconds"] += event.seconds
        if not event.kept:
            self.so_far["evicted"] += 1

    def statement_finished(self, event: events.StatementFinished) -> None:
        """Count a statement."""
        self.so_far["statements"] += 1
        self.so_far["rows"] += event.rows or 0
        if event.error_type is not None and event.error_type not in _COUNTED_ELSEWHERE:
            self.so_far["statement_errors"] += 1

    def quick_statements(self, event: events.StatementsFinished) -> None:
        """Count statements that went well."""
        self.so_far["statements"] += len(event.statements)
        self.so_far["rows"] += sum([each.rows or 0 for each in event.statements])

    def _connect_succeeded(self, event: events.ConnectSucceeded) -> None:
        self.so_far["connects"] += 1
        self.so_far["connect_seconds"] += event.seconds
        if event.seconds >= SLOW_CONNECT:
            self.so_far["wake_ups"] += 1

    def _acquire_failed(self, event: events.AcquireFailed) -> None:
        self.so_far[cause_of(event.error)] += 1

    def _listener_changed(self, event: events.ListenerStateChanged) -> None:
        if event.before in ("reconnecting", "deaf") and event.after == "connected":
            self.so_far["listener_reconnects"] += 1

    def _plain(self, event: events.Event) -> None:
        self.so_far[_PLAIN[type(event)]] += 1

    def totals(self) -> Totals:
        """The counts so far."""
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
