"""Why it was slow: one sentence for people, and what it rests on, from what was recorded of a time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steadypool.monitor.locks import blocked, stalled
from steadypool.monitor.recording import FAILURES, LISTENER_STATES, Note, RecordedSecond, merged
from steadypool.pool.inspection import SHARED
from steadypool.telemetry.counters import SLOW_CONNECT

_IDENTITY = re.compile(r"/(?:\d+|[0-9a-f]{8,}|[0-9a-f-]{36})(?=/|$)", re.IGNORECASE)
"""The part of a path that names one of many things: requests of one kind are counted together."""

_DEAF = LISTENER_STATES.index("deaf")
SLOW_STATEMENT = 0.5
SLOW_WAIT = 0.1
BUSY_LOOP = 0.5
NAMED = 2
"""How many causes the headline names; the reasons name all."""
NEARLY_FULL = 0.8
IDLE = 1.0
"""Seconds without a statement after which a connection is held for nothing."""
FAILED = 5.0
"""Seconds of delay that a failed call counts for, where causes are put in order."""

Held = Mapping[str, Any]
"""A connection in use, as `Recorder.holding` describes it."""


@dataclass(frozen=True, slots=True)
class Reason:
    """What a verdict rests on, and the runbook (`steadypool why …`) that says what to do."""

    text: str
    runbook: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a time was: `level` is `good`, `strained` or `bad`; the headline names the two causes that cost callers most,
    the reasons say what each cause rests on, in the same order, and name the causes that the headline does not."""

    level: str
    headline: str
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class _Cause:
    """What made callers wait or fail. `cost` is in seconds, summed over the callers; `parts` are other causes that were
    found and that this headline says already, or that this cause led to."""

    headline: str
    text: str
    runbook: str
    cost: float = 0.0
    parts: tuple[_Cause | None, ...] = ()

    @property
    def total(self) -> float:
        """The cost of it and of its parts."""
        return self.cost + sum(part.total for part in self.parts if part is not None)


def verdict(
    rows: Iterable[RecordedSecond], moment: Mapping[str, Any] | None, notes: Sequence[Note]
) -> Verdict:
    """Judge a time by its rows, by who held and waited in it, and by what the journal says of it.

    The cause that cost callers most comes first: by the seconds that all of them lost to it, where a call that failed
    counts for `FAILED` seconds. A cause comes before what it led to: where the pool is full because statements wait
    for a lock, the headline names the lock.

    Example:
        >>> verdict([], None, []).headline
        'Nothing was recorded of this time.'
    """
    rows = tuple(rows)
    if not rows:
        return Verdict("good", "Nothing was recorded of this time.", ())
    row = merged(rows, rows[0].at)
    moment = moment or {"connections": (), "waiters": ()}
    causes = sorted(_causes(rows, row, moment, notes), key=lambda cause: -cause.total)
    if causes:
        parts = [part for cause in causes for part in cause.parts]
        named = [cause for cause in causes if cause not in parts][:NAMED]
        reasons = (
            Reason(each.text if each in named else f"{each.headline} {each.text}".rstrip(), each.runbook)
            for each in causes
        )
        return Verdict("bad", " ".join(cause.headline for cause in named), tuple(reasons))
    strained = [reason for reason in (_nearly_full(row, moment), _failures(row)) if reason]
    if strained:
        return Verdict("strained", strained[0].text, tuple(strained))
    return Verdict("good", _well(row), ())


def _causes(
    rows: Sequence[RecordedSecond], row: RecordedSecond, moment: Mapping[str, Any], notes: Sequence[Note]
) -> list[_Cause]:
    """Everything that went wrong. What cost the same stays in this order: causes before what they may lead to."""
    slow = _slow(row, moment)
    full = _full(row, moment, slow)
    found = (
        _loop(row),
        _unreachable(row, notes),
        _lost(row, notes),
        _connecting(row, moment, notes),
        _lock(moment, notes, full, slow),
        full,
        _ceiling(row, moment),
        slow,
        # The journal calls a long statement a leak too; and a pool that leaks exhausted is told as full.
        _leaked(moment, notes if slow is None and full is None else ())
        if full is None or full.runbook != "leaks"
        else None,
        _deaf(rows),
    )
    return [cause for cause in found if cause is not None]


def _well(row: RecordedSecond) -> str:
    if not row["acquired"]:
        return "The pool was well. Nobody asked for a connection in this time."
    waited, ran = row.waiting.percentile(95), row.executing.percentile(95)
    text = f"The pool was well: of 20 callers 19 waited at most {_time(waited)} for a connection"
    return text + (f", and 19 of 20 statements took at most {_time(ran)}." if ran is not None else ".")


# -- causes ------------------------------------------------------------------------------------------------------------


def _loop(row: RecordedSecond) -> _Cause | None:
    if row["lag"] < BUSY_LOOP:
        return None
    return _Cause(
        f"The event loop was busy: for {_time(row['lag'])} this process ran something that does not await, or got no "
        "processor.",
        "Everything in this process was late then, not only the database: times of statements and of waits have "
        "this in them.",
        "background-work",
        # What callers in line lost is counted where it is said why they were in line.
        row["lag"] * max(1.0, row["peak"], row["leased"]),
    )


def _unreachable(row: RecordedSecond, notes: Sequence[Note]) -> _Cause | None:
    if not (row["breaker"] or row["connect_failures"] or row["connect_errors"]):
        return None
    said = next((note.text for note in reversed(notes) if note.kind == "connect_failures"), None)
    turned_away = row["connect_errors"]
    callers = f", {_callers(turned_away)} turned away" if turned_away else ""
    return _Cause(
        "The database could not be reached.",
        f"{_many(row['connect_failures'], 'attempt')} to connect failed{callers}."
        + (f" It said: {said}" if said else ""),
        "connect-timeouts",
        FAILED * max(1.0, turned_away) + (0.0 if _is_full(row) else row.waiting.total_from(SLOW_WAIT)),
    )


def _lost(row: RecordedSecond, notes: Sequence[Note]) -> _Cause | None:
    if not row["connections_lost"]:
        return None
    said = next((note.text for note in reversed(notes) if note.kind == "connections_lost"), None)
    return _Cause(
        "Connections broke while they were used.",
        f"{_many(row['connections_lost'], 'connection')} broke." + (f" It said: {said}" if said else ""),
        "connection-lost",
        FAILED * row["connections_lost"],
    )


def _deaf(rows: Sequence[RecordedSecond]) -> _Cause | None:
    if not any(row["listener"] == _DEAF for row in rows):
        return None
    return _Cause(
        "Notifications did not arrive: the listener is deaf.",
        "It is connected to a transaction pooler, which swallows what it is sent.",
        "deaf-listener",
        FAILED,
    )


def _connecting(row: RecordedSecond, moment: Mapping[str, Any], notes: Sequence[Note]) -> _Cause | None:
    woke = [note for note in notes if note.kind == "wake_up"]
    slowest = max(row.connecting.percentile(100) or 0.0, moment.get("opening", 0.0))
    if not woke and slowest < SLOW_CONNECT:
        return None
    what = f"{woke[-1].text}." if woke else f"A connect took {_time(slowest)}."
    waiting = f" Up to {_callers(row['waiting'])} waiting meanwhile." if row["waiting"] else ""
    return _Cause(
        "Opening connections was slow: the database was asleep, or has too much to do.",
        what[0].upper() + what[1:] + waiting,
        "cold-start",
        slowest if _is_full(row) else max(slowest, row.waiting.total_from(SLOW_WAIT)) + _in_line(row, moment),
    )


def _lock(
    moment: Mapping[str, Any], notes: Sequence[Note], full: _Cause | None, slow: _Cause | None
) -> _Cause | None:
    pairs = list(blocked(moment))
    waits = [each for each, _ in pairs] or stalled(moment)
    gave_up = [note for note in notes if note.kind == "lock"]
    if not pairs and gave_up:
        parts = None if _running_slowly(moment) else slow
        text = f"{_sentence(gave_up[-1].text)}."
        cost = FAILED * sum(note.count for note in gave_up)
        return _Cause("Statements waited for a lock.", text, "statement-timeouts", cost, (parts,))
    if not waits:
        return None
    numbers = {each["number"] for each in waits}
    involved = numbers | {has["number"] for _, has in pairs}
    fills = 2 * len(involved) >= len(moment["connections"])
    others = [each for each in _running_slowly(moment) if each["number"] not in numbers]
    headline, text = _by_whom(pairs) if pairs else _elsewhere(waits)
    cost = sum(each["executing"] for each in waits)
    parts = (full if fills else None, None if others else slow)
    return _Cause(headline, text, "statement-timeouts", cost, parts)


def _by_whom(pairs: Sequence[tuple[Held, Held]]) -> tuple[str, str]:
    """Headline and text where a connection of this pool has the lock."""
    waits, has = pairs[0]
    doing = (
        f"still runs {_text(has['running'])}"
        if has.get("running")
        else f"has run nothing for {_time(has.get('quiet', has['seconds']))}"
    )
    return (
        f"Statements waited for a lock that {_name(has)} kept: {_statements(len(pairs))} for up to "
        f"{_time(max(each['executing'] for each, _ in pairs))}.",
        f"{_name(waits)} ran {_text(waits['running'])}; connection {has['number']}, held by {_name(has)}, ran "
        f"{_text(has['written'][-1])} in a transaction that is still open, and {doing}.",
    )


def _elsewhere(waits: Sequence[Held]) -> tuple[str, str]:
    """Headline and text where no connection of this pool has the lock."""
    slowest = max(waits, key=lambda each: each["executing"])
    return (
        "Statements that usually are quick did not end: most likely they waited for a lock of another process.",
        f"{_text(slowest['running'])} usually takes {_time(slowest['usually'])}, and had run for "
        f"{_time(slowest['executing'])}. No connection of this process has the lock: `steadypool doctor --only "
        "blocked` says which one has.",
    )


def _is_full(row: RecordedSecond) -> bool:
    """Whether all connections were in use at once. Who waits although there is room waits for the server, or at the
    ceiling of a workload."""
    return max(row["peak"], row["leased"]) >= row["size"] + max(0.0, row["overflow"])


def _in_line(row: RecordedSecond, moment: Mapping[str, Any]) -> float:
    """Seconds for which those in line had waited, without those at the ceiling of their workload; one second each
    where only their number is known."""
    if not moment["waiters"]:
        return row["waiting"]
    ceilings = moment.get("at_ceiling", ())
    return sum(each["seconds"] for each in moment["waiters"] if each.get("workload") not in ceilings)


def _full(row: RecordedSecond, moment: Mapping[str, Any], slow: _Cause | None) -> _Cause | None:
    turned_away = row["pool_timeouts"] + row["queue_full"]
    waited = row.waiting.percentile(95) or 0.0
    if not (turned_away or row["waiting"] or waited >= SLOW_WAIT) or not _is_full(row):
        return None
    in_use, limit = max(row["peak"], row["leased"]), row["size"] + max(0.0, row["overflow"])
    text = f"{in_use:.0f} of {limit:.0f} connections were in use"
    text += f", up to {_callers(row['waiting'])} waiting for one" if row["waiting"] else ""
    text += f" ({_time(waited)} at the 95th percentile)" if waited >= SLOW_WAIT else ""
    text += f", {turned_away:.0f} went without" if turned_away else ""
    headline, runbook, by_statements = _why_full(row, moment)
    return _Cause(
        headline,
        f"{text}. {_holders(moment)}".rstrip(),
        runbook,
        row.waiting.total_from(SLOW_WAIT) + _in_line(row, moment) + FAILED * turned_away,
        (slow,) if by_statements else (),
    )


def _why_full(row: RecordedSecond, moment: Mapping[str, Any]) -> tuple[str, str, bool]:
    """Headline, runbook, and whether slow statements are the reason."""
    held: Sequence[Held] = [each for each in moment["connections"] if each.get("holder") != SHARED]
    idle = [each for each in held if _is_idle(each)]
    leaks = [each for each in idle if each.get("leak") or row["leaks"]]
    if leaks and 2 * len(leaks) >= len(held):
        return (
            f"The pool was exhausted by a leak: {_of(leaks)} and did not give back what it had no use for.",
            "leaks",
            False,
        )
    if idle and 2 * len(idle) >= len(held):
        return (
            f"The pool was exhausted by connections held for nothing: {_of(idle)} and ran nothing.",
            "exhaustion",
            False,
        )
    running = Counter(each["running"] for each in _running_slowly({"connections": held}))
    if running and 2 * running.total() >= len(held):
        statement, connections = running.most_common(1)[0]
        longest = max(each["executing"] for each in held if each.get("running") == statement)
        return (
            f"The pool was exhausted by slow statements: {connections:.0f} of {len(held)} connections ran "
            f"{_text(statement)}, for up to {_time(longest)}.",
            "exhaustion",
            True,
        )
    ran = row.executing.percentile(95)
    quick = (
        f" (19 of 20 statements took at most {_time(ran)})"
        if ran is not None and ran < SLOW_STATEMENT
        else ""
    )
    return f"The pool was full: more was asked of it than it has connections for{quick}.", "exhaustion", False


def _ceiling(row: RecordedSecond, moment: Mapping[str, Any]) -> _Cause | None:
    ceilings: Mapping[str, int] = moment.get("at_ceiling", {})
    waiting = {each.get("workload") for each in moment["waiters"] if each["seconds"] >= SLOW_WAIT}
    name = next((name for name in ceilings if name in waiting), None)
    if name is None:
        return None
    waited = sum(each["seconds"] for each in moment["waiters"] if each.get("workload") == name)
    return _Cause(
        f"Workload {name} was at its ceiling of {ceilings[name]} connections; its callers waited"
        + ("." if _is_full(row) else ", others had room."),
        _holders({"connections": [each for each in moment["connections"] if each.get("workload") == name]}),
        "exhaustion",
        waited,
    )


def _slow(row: RecordedSecond, moment: Mapping[str, Any]) -> _Cause | None:
    slow, timed_out = row.executing.percentile(95) or 0.0, row["statement_timeouts"]
    if slow < SLOW_STATEMENT and not timed_out:
        return None
    text = f"{_time(slow)} at the 95th percentile"
    text += (
        f"; {_statements(timed_out)} reached the limit and {'was' if timed_out == 1 else 'were'} ended"
        if timed_out
        else ""
    )
    running = Counter(each.get("running") for each in moment["connections"])
    running.pop(None, None)
    if running:
        statement, connections = running.most_common(1)[0]
        text += f". On {_many(connections, 'connection')} in use it was {_text(statement)}"
    cost = row.executing.total_from(SLOW_STATEMENT) + FAILED * timed_out
    return _Cause("Statements were slow.", f"{text}.", "statement-timeouts", cost)


def _leaked(moment: Mapping[str, Any], notes: Sequence[Note]) -> _Cause | None:
    """Held for nothing while nobody waits: it takes locks and places from those who come later."""
    leaks = [each for each in moment["connections"] if each.get("leak") and not each.get("running")]
    if leaks:
        text = _holders({"connections": leaks})
        return _Cause(f"A connection was held for too long: {_of(leaks)}.", text, "leaks")
    told = [note for note in notes if note.kind == "leak"]
    if not told:
        return None
    return _Cause("A connection was held for too long.", f"{_sentence(told[-1].text)}.", "leaks")


def _nearly_full(row: RecordedSecond, moment: Mapping[str, Any]) -> Reason | None:
    if row.utilization <= NEARLY_FULL:
        return None
    text = f"The pool was at {row.utilization:.0%} of its size, but nobody waited long. {_holders(moment)}"
    return Reason(text.rstrip(), "exhaustion")


def _failures(row: RecordedSecond) -> Reason | None:
    failed = {name: row[name] for name in FAILURES if row[name]}
    if not failed:
        return None
    return Reason(
        "Some calls failed: "
        + ", ".join(f"{count:.0f} {words(name)}" for name, count in failed.items())
        + "."
    )


# -- in words ----------------------------------------------------------------------------------------------------------


def _running_slowly(moment: Mapping[str, Any]) -> list[Held]:
    """The connections whose statement has run for long."""
    return [each for each in moment["connections"] if each.get("executing", 0.0) >= SLOW_STATEMENT]


def _is_idle(each: Held) -> bool:
    """Whether somebody has it and runs nothing on it."""
    return not each.get("running") and each.get("quiet", each["seconds"]) >= IDLE


def _holders(moment: Mapping[str, Any]) -> str:
    """Who held how many, for how long."""
    if not moment["connections"]:
        return ""
    many: Counter[str] = Counter()
    longest: dict[str, float] = {}
    for each in moment["connections"]:
        name = _name(each)
        many[name] += 1
        longest[name] = max(longest.get(name, 0.0), each["seconds"])
    shown = sorted(many, key=lambda name: -many[name] * (1 + longest[name]))[:3]
    held = ", ".join(f"{many[name]} by {name} (up to {_time(longest[name])})" for name in shown)
    idle = sum(bool(each.get("in_transaction")) and _is_idle(each) for each in moment["connections"])
    return f"Held: {held}." + (f" {idle} of them {_was(idle)} idle in a transaction." if idle else "")


def _of(held: Sequence[Held]) -> str:
    """Who had them for how long, in a sentence's middle."""
    names = Counter(_name(each) for each in held)
    name, _ = names.most_common(1)[0]
    others = " and others" if len(names) > 1 else ""
    return f"{name}{others} held {_many(len(held), 'connection')} for up to {_time(max(e['seconds'] for e in held))}"


def _name(each: Held) -> str:
    return _IDENTITY.sub("/…", each.get("holder") or "?")


def _text(fingerprint: str) -> str:
    """A statement as it is read in a sentence: without the hash before it."""
    return f"`{fingerprint.partition('] ')[2] or fingerprint}`"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _many(count: float, noun: str) -> str:
    return f"{count:.0f} {noun}" + ("" if count == 1 else "s")


def _statements(count: float) -> str:
    return _many(count, "statement")


def _callers(count: float) -> str:
    return f"{_many(count, 'caller')} {_was(count)}"


def _was(count: float) -> str:
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
