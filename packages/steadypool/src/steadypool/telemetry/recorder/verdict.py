"""Why it was slow: one sentence for people, and what it rests on, from what was recorded of a time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steadypool.telemetry.recorder.recording import FAILURES, LISTENER_STATES, Note, Row, merged

_IDENTITY = re.compile(r"/(?:\d+|[0-9a-f]{8,}|[0-9a-f-]{36})(?=/|$)", re.IGNORECASE)
"""The part of a path that names one of many things: requests of one kind are counted together."""

_DEAF = LISTENER_STATES.index("deaf")
SLOW_STATEMENT = 0.5
SLOW_WAIT = 0.1
SLOW_CONNECT = 1.0
BUSY_LOOP = 1.0
NEARLY_FULL = 0.8
IDLE = 1.0
"""Seconds without a statement after which an open transaction is called idle."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that made requests slow or fail, and the runbook (`steadypool why …`) that says what to do."""

    text: str
    runbook: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a time was: `level` is `good`, `strained` or `bad`; the reasons, the weightiest first."""

    level: str
    headline: str
    reasons: tuple[Reason, ...]


def verdict(rows: Iterable[Row], moment: Mapping[str, Any] | None, notes: Sequence[Note]) -> Verdict:
    """Judge a time by its rows, by who held and waited in it, and by what the journal says of it.

    Example:
        >>> verdict([], None, []).headline
        'Nothing was recorded of this time.'
    """
    rows = tuple(rows)
    if not rows:
        return Verdict("good", "Nothing was recorded of this time.", ())
    row = merged(rows, rows[0].at)
    found = (
        _loop(row),
        _unreachable(row, notes),
        _lost(row, notes),
        _leaked(notes),
        _full(row, moment),
        _woke(row, notes),
        _slow(row, moment),
        _deaf(rows),
    )
    bad = [reason for reason in found if reason]
    if bad:
        return Verdict("bad", bad[0].text, tuple(bad))
    strained = [reason for reason in (_nearly_full(row, moment), _failures(row)) if reason]
    if strained:
        return Verdict("strained", strained[0].text, tuple(strained))
    if not row["acquired"]:
        return Verdict("good", "The pool was well. Nobody asked for a connection in this time.", ())
    waited, ran = row.waiting.percentile(95), row.executing.percentile(95)
    return Verdict(
        "good",
        f"The pool was well: of 20 callers 19 waited at most {_time(waited)} for a connection"
        + (f", and 19 of 20 statements took at most {_time(ran)}." if ran is not None else "."),
        (),
    )


def _loop(row: Row) -> Reason | None:
    if row["lag"] < BUSY_LOOP:
        return None
    return Reason(
        f"The event loop was busy for {row['lag']:.1f} s with something that does not await: everything in this "
        "process was late then, not only the database.",
        "background-work",
    )


def _unreachable(row: Row, notes: Sequence[Note]) -> Reason | None:
    if not (row["breaker"] or row["connect_failures"] or row["connect_errors"]):
        return None
    said = next((note.text for note in reversed(notes) if note.kind == "connect_failures"), None)
    failed = f"{row['connect_failures']:.0f} attempts to connect failed"
    turned_away = f", {row['connect_errors']:.0f} callers were turned away" if row["connect_errors"] else ""
    return Reason(
        f"The database could not be reached: {failed}{turned_away}." + (f" It said: {said}" if said else ""),
        "connect-timeouts",
    )


def _lost(row: Row, notes: Sequence[Note]) -> Reason | None:
    if not row["connections_lost"]:
        return None
    said = next((note.text for note in reversed(notes) if note.kind == "connections_lost"), None)
    return Reason(
        f"Connections broke while they were used: {row['connections_lost']:.0f}."
        + (f" It said: {said}" if said else ""),
        "connection-lost",
    )


def _leaked(notes: Sequence[Note]) -> Reason | None:
    leaks = [note for note in notes if note.kind == "leak"]
    if not leaks:
        return None
    others = f" ({len(leaks)} such connections)" if len(leaks) > 1 else ""
    return Reason(f"A connection was not given back: {leaks[-1].text}{others}.", "leaks")


def _deaf(rows: Sequence[Row]) -> Reason | None:
    if not any(row["listener"] == _DEAF for row in rows):
        return None
    return Reason(
        "Notifications did not arrive: the listener is deaf, since a transaction pooler swallows what it is sent.",
        "deaf-listener",
    )


def _full(row: Row, moment: Mapping[str, Any] | None) -> Reason | None:
    turned_away = row["pool_timeouts"] + row["queue_full"]
    waited = row.waiting.percentile(95) or 0.0
    if not turned_away and not row["waiting"] and waited < SLOW_WAIT:
        return None
    in_use, limit = max(row["peak"], row["leased"]), row["size"] + max(0.0, row["overflow"])
    if in_use < row["size"] and not turned_away and not moment_waits(moment):
        return None  # they waited for the server, which the other reasons tell
    waiting = f"up to {row['waiting']:.0f} callers" if row["waiting"] else "callers"
    text = f"{in_use:.0f} of {limit:.0f} connections were in use, {waiting} waited for one"
    text += f" ({_time(waited)} at the 95th percentile)" if waited >= SLOW_WAIT else ""
    text += f", {turned_away:.0f} went without" if turned_away else ""
    return Reason(f"{text}. {_holders(moment)}".rstrip(), "exhaustion")


def _woke(row: Row, notes: Sequence[Note]) -> Reason | None:
    woke = [note for note in notes if note.kind == "wake_up"]
    slowest = row.connecting.percentile(100) or 0.0
    if not woke and slowest < SLOW_CONNECT:
        return None
    what = woke[-1].text if woke else f"a connect took {_time(slowest)}"
    return Reason(f"Connecting was slow: {what}.", "cold-start")


def _slow(row: Row, moment: Mapping[str, Any] | None) -> Reason | None:
    slow, timed_out = row.executing.percentile(95) or 0.0, row["statement_timeouts"]
    if slow < SLOW_STATEMENT and not timed_out:
        return None
    text = f"Statements were slow: {_time(slow)} at the 95th percentile"
    text += f", {timed_out:.0f} reached their limit and were ended" if timed_out else ""
    running = Counter(each.get("running") for each in (moment or {}).get("connections", ()))
    running.pop(None, None)
    if running:
        statement, connections = running.most_common(1)[0]
        text += f". On {connections} of the connections in use it was {statement}"
    return Reason(text + ".", "statement-timeouts")


def _nearly_full(row: Row, moment: Mapping[str, Any] | None) -> Reason | None:
    if row.utilization <= NEARLY_FULL:
        return None
    return Reason(
        f"The pool was at {row.utilization:.0%} of its size, but nobody waited long. {_holders(moment)}",
        "exhaustion",
    )


def _failures(row: Row) -> Reason | None:
    failed = {name: row[name] for name in FAILURES if row[name]}
    if not failed:
        return None
    return Reason(
        "Some calls failed: " + ", ".join(f"{count:.0f} {words(name)}" for name, count in failed.items())
    )


def moment_waits(moment: Mapping[str, Any] | None) -> bool:
    """Whether somebody waited in this moment while others held connections."""
    return bool(moment and moment["waiters"] and moment["connections"])


def _holders(moment: Mapping[str, Any] | None) -> str:
    """Who held how many, for how long."""
    if not moment or not moment["connections"]:
        return ""
    many: Counter[str] = Counter()
    longest: dict[str, float] = {}
    for each in moment["connections"]:
        name = _IDENTITY.sub("/…", each.get("holder") or "?")
        many[name] += 1
        longest[name] = max(longest.get(name, 0.0), each["seconds"])
    shown = sorted(many, key=lambda name: -many[name] * (1 + longest[name]))[:3]
    held = ", ".join(f"{many[name]} by {name} (up to {_time(longest[name])})" for name in shown)
    idle = sum(
        bool(each.get("in_transaction")) and each.get("quiet", 0.0) >= IDLE and not each.get("running")
        for each in moment["connections"]
    )
    return f"Held: {held}." + (f" {idle} of them {_was(idle)} idle in a transaction." if idle else "")


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def words(name: str) -> str:
    """A column's name as people say it."""
    return name.replace("_", " ")


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "no time"
    if seconds < 0.001:
        return "1 ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
