"""What the page shows, as JSON: now, over time, and of a time in the past. Nothing here touches the database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from steadypool.monitor import PoolView, RecordedSecond, Recorder, verdict
from steadypool.monitor.buffers import Rows
from steadypool.monitor.histogram import Histogram
from steadypool.monitor.monitor import Monitor
from steadypool.monitor.recorder import waiting
from steadypool.monitor.recording import DURATIONS, FAILURES, merged
from steadypool.pool.inspection import ConnectionInfo

RECENT = 60
"""Seconds that the figures of "now" are made from."""
SHOWN_STATEMENTS, SHOWN_NOTES, SHOWN_WAITERS = 15, 60, 50
SHOWN_FAILURES = (*FAILURES, "connect_failures")
MINUTE, HOUR, DAY = 60, 3_600, 86_400


def now_facts(watch: Monitor) -> dict[str, Any]:
    """Everything that is shown live."""
    recorder, view = watch.recorder, watch.view()
    at = recorder.now
    recent = tuple(recorder.seconds.since(at - RECENT))
    latest = recent[-5:]
    moment = recorder.moment_of(view, at)
    if not moment["waiters"]:
        moment = recorder.moments.worst(at - len(latest), at) or moment
    notes = recorder.notes(at - len(latest), at)
    return {
        "at": round(at, 2),
        "pool": recorder.pool,
        "closed": view.closed,
        "running": watch.running,
        "limits": {"utilization": watch.alerts.limits.utilization},
        "verdict": asdict(verdict(latest, moment, notes)),
        "counts": asdict(view.pool) | {"holders": None, "all_waiting": view.waiting},
        "connections": [_cell(connection, recorder, view) for connection in view.census.connections],
        "waiters": [waiting(each) for each in view.census.waiters[:SHOWN_WAITERS]],
        "breaker": view.breaker,
        "listener": view.listener,
        "shared": view.shared,
        "workloads": [asdict(each) for each in view.workloads],
        "latency": latency(recent),
        "failures": _failures(recorder, at, recent),
        "statements": [_without_durations(row) for row in recorder.statements.table(SHOWN_STATEMENTS)],
        "leaks": list(reversed(recorder.leaks)),
        "alerts": [
            {"name": each.rule.name, "message": each.message, "since": recorder.when(each.since)}
            for each in watch.alerts.raised
        ],
        "journal": [note.as_json() for note in recorder.notes(at - DAY, at)[-SHOWN_NOTES:]],
        "points": points(recent[-3:]),
    }


def _cell(connection: ConnectionInfo, recorder: Recorder, view: PoolView) -> dict[str, Any]:
    return recorder.holding(connection, view) | {
        "age": None if connection.age is None else round(connection.age, 1),
        "proven": None if connection.proven is None else round(connection.proven, 1),
        "suspect": connection.suspect,
        "leases": connection.leases,
    }


def _without_durations(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "durations"}


def latency(rows: Iterable[RecordedSecond]) -> dict[str, dict[str, float | None]]:
    """How long waiting, connecting and executing took, as percentiles in seconds."""
    rows = tuple(rows)
    table: dict[str, dict[str, float | None]] = {}
    for name in DURATIONS:
        durations = Histogram().merge(getattr(row, name) for row in rows)
        table[name] = {f"p{percent}": _rounded(durations.percentile(percent)) for percent in (50, 95, 99)}
        table[name]["count"] = durations.count
    return table


def _failures(recorder: Recorder, at: float, recent: Iterable[RecordedSecond]) -> list[dict[str, Any]]:
    last_minute = merged(recent, 0)
    minutes = tuple(recorder.minutes.since(at - HOUR))
    begun = minutes[-1].at + MINUTE if minutes else at - HOUR
    last_hour = merged((*minutes, *recorder.seconds.since(begun)), 0)
    return [
        {
            "cause": cause,
            "minute": int(last_minute[cause]),
            "hour": int(last_hour[cause]),
            "total": int(recorder.counters.so_far.get(cause, 0)),
        }
        for cause in SHOWN_FAILURES
    ]


# -- over time ---------------------------------------------------------------------------------------------------------


def _p95(name: str) -> Callable[[RecordedSecond], float | None]:
    return lambda row: _rounded(getattr(row, name).percentile(95))


def _column(name: str) -> Callable[[RecordedSecond], float]:
    return lambda row: round(row[name], 3)


PLOTTED: dict[str, Callable[[RecordedSecond], float | None]] = {
    "at": lambda row: row.at,
    "utilization": lambda row: round(row.utilization, 3),
    "waiting": _column("waiting"),
    "acquired": lambda row: round(row["acquired"] / max(row["elapsed"], 0.001), 1),
    "p95_waiting": _p95("waiting"),
    "p95_connecting": _p95("connecting"),
    "p95_executing": _p95("executing"),
    **{cause: _column(cause) for cause in SHOWN_FAILURES},
    "breaker": _column("breaker"),
    "lag": _column("lag"),
}
"""What the plots are made from."""


def points(rows: Iterable[RecordedSecond]) -> dict[str, Any]:
    """The rows as columns; a column in which everything is the same is that one value."""
    rows = tuple(rows)
    columns: dict[str, Any] = {}
    for name, value_of in PLOTTED.items():
        values = [value_of(row) for row in rows]
        same = name != "at" and len(set(values)) == 1
        columns[name] = values[0] if same else values
    return columns


def series(seconds: Rows, whole: Rows, span: int, since: float) -> dict[str, Any]:
    """The plots' data: by the second (`span` 1) or by whole minutes (60), from a moment on. An hour takes a while."""
    if span == 1:
        return points(seconds.since(since))
    minutes = tuple(whole.since(since))
    begun = minutes[-1].at + MINUTE if minutes else since
    begun_minute = tuple(seconds.since(begun))
    return points((*minutes, merged(begun_minute, int(begun // 60 * 60))) if begun_minute else minutes)


# -- a time in the past ------------------------------------------------------------------------------------------------


def past_facts(recorder: Recorder, since: float, until: float) -> dict[str, Any]:
    """What held, what waited, how long things took and what the journal says, of a time in the past."""
    rows = tuple(recorder.seconds.since(since, until)) or tuple(
        recorder.minutes.since(since // MINUTE * MINUTE, until)
    )
    moment = recorder.moments.worst(since, until)
    notes = recorder.notes(since - MINUTE, until + MINUTE)
    within = [note for note in notes if note.until >= since and note.at < until]
    row = merged(rows, int(since))
    return {
        "since": since,
        "until": until,
        "recorded": len(rows),
        "verdict": asdict(verdict(rows, moment, within)),
        "moment": moment,
        "figures": {
            name: row[name] for name in ("size", "overflow", "leased", "peak", "waiting", "acquired", "lag")
        },
        "latency": latency(rows),
        "failures": [{"cause": cause, "count": int(row[cause])} for cause in SHOWN_FAILURES],
        "breaker": "open" if row["breaker"] else "closed",
        "journal": [note.as_json() for note in notes],
        "statements": recorder.tops.between(since, until),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
