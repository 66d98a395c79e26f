"""Structured log lines: each event as one line of JSON, for whoever collects logs and nothing else.

Errors appear by their class and, for connects, by a word for their cause: what servers say may quote data.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import fields

from steadypool import events
from steadypool._callsite import as_text
from steadypool._clock import wall_time
from steadypool.telemetry.causes import connect_cause

_log = logging.getLogger("steadypool.events.lines")

NOTABLE: tuple[type[events.Event], ...] = (
    events.ConnectSucceeded,
    events.ConnectAttemptFailed,
    events.AcquireFailed,
    events.Closed,
    events.ConnectionLost,
    events.LeakSuspected,
    events.StatementTimedOut,
    events.BreakerChanged,
    events.SessionLimitsLost,
    events.PoolClosedEvent,
    events.ListenerStateChanged,
    events.ListenerGap,
    events.AlertRaised,
    events.AlertCleared,
)
"""What is worth a line; `Acquired`, `Released` and each statement are too many."""

_BAD = (
    events.ConnectAttemptFailed,
    events.AcquireFailed,
    events.ConnectionLost,
    events.LeakSuspected,
    events.StatementTimedOut,
    events.SessionLimitsLost,
    events.ListenerGap,
    events.AlertRaised,
)


def log_lines(source: events.Events, *kinds: type[events.Event]) -> Callable[[], None]:
    """Log events as JSON to `steadypool.events.lines`, until the function that this returns is called.

    Args:
        source: the pool's events.
        *kinds: which events; `NOTABLE` if none is named.

    Example:
        `{"event": "ConnectAttemptFailed", "time": 1763940000.1, "pool": "main", "connection": 3, "seconds": 0.01,
        "error": "ConnectFailed", "cause": "refused", "final": false}`
    """
    return source.subscribe(_write, *(kinds or NOTABLE))


def _write(event: events.Event) -> None:
    level = logging.WARNING if isinstance(event, _BAD) else logging.INFO
    if _log.isEnabledFor(level):
        _log.log(level, "%s", as_line(event))


def as_line(event: events.Event) -> str:
    """One event as JSON, without anything that could quote data.

    Example:
        >>> json.loads(as_line(events.Closed("main", 0.0, 7, "overflow")))["reason"]
        'overflow'
    """
    line: dict[str, object] = {"event": type(event).__name__, "time": round(wall_time(), 3)}
    for field in fields(event):
        value: object = getattr(event, field.name)
        if isinstance(value, BaseException):
            line["error"] = type(value).__name__
            if isinstance(event, events.ConnectAttemptFailed):
                line["cause"] = connect_cause(value)
        elif field.name == "reason" and isinstance(event, events.BreakerChanged):
            continue  # what the last connect said
        elif field.name == "places":
            line["acquired_at"] = as_text(event.places) if isinstance(event, events.LeakSuspected) else None
        elif field.name != "at":
            line[field.name] = round(value, 6) if isinstance(value, float) else value
    return json.dumps(line)
