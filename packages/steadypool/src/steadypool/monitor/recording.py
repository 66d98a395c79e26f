"""What was recorded, as a document: how it is written, how it is read, and what stands in it.

It has two forms with the same content. `Recording.load` and `Recording.parse` read both.

**The document** is what `/pool/export.json` gives: one JSON object.

- `format`, `version`: `"steadypool-recording"` and 1; `pool`: its name; `at`: when this was written.
- `settings`: `pool_size`, `max_overflow`, `pool_timeout`, `connection_timeout`, `statement_timeout`, `max_waiting`,
  `max_connecting`, `ping_after_idle` as they were, and `workloads`: name -> `statement_timeout`, `max_connections`.
- `columns`, `edges`: the names of a row's values (`COLUMNS`), and the upper ends of the histograms' buckets.
- `seconds`, `minutes`: rows `[at, values, waiting, connecting, executing]`, oldest first; the last three are
  histograms, `{bucket: count}`. A row of a minute has the sums of what is counted and the most of what is measured.
- `journal`: entries `{id, at, until, kind, text, count}`, oldest first.
- `moments`: who held and who waited, where that was worth noting: `{at, connections, waiters, more}`, how long the
  oldest connect had lasted (`opening`), which workloads were `at_ceiling`, how many were `queued` on the shared way.
- `tops`: of each minute the dearest statements, `{at, rows}` with rows `[fingerprint, count, total, max]`.
- `arrivals`: `{workloads, outcomes, rows}`; a row is `[arrived, waited, held, workload, outcome]`, the last two being
  places in these two lists (-1 for no workload).
- `statements`: the dearest ones, `{fingerprint, count, total, p50, p95, max, rows, errors, last, durations}`.

All moments are seconds since 1970 (UTC), all durations seconds. `held` is null for a caller who got no connection, and
for one who still had it.

**The file** (`DATABASE_RECORDER_FILE`) is JSON Lines, appended to while the service runs: an object a line, whose `k`
says what it is: `head` (format, version, pool, at, settings, columns, edges), `row` (span 1 or 60, and `row`), `note`
(an entry of the journal; the last one with an `id` counts), `moment`, `top`, `arrivals` (with its own lists),
`statements` (the last one counts). A last line that was torn by a crash is left out, and so is any line that is no
JSON. When it grows too long it is written anew, from what is still in memory.

Example:
    recording = Recording.load("recorder.jsonl")
    for arrival in recording.arrivals:
        print(arrival.at, arrival.workload, arrival.held)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from steadypool.errors import ConfigurationError
from steadypool.monitor.histogram import EDGES, Histogram

FORMAT = "steadypool-recording"
VERSION = 1

MEASURED = (
    "size",
    "overflow",
    "leased",
    "idle",
    "opening",
    "closing",
    "waiting",
    "breaker",
    "listener",
    "lag",
)
"""What is looked at once a second: the pool's limits, connections by state, callers who wait, whether the breaker is
open (0 or 1), the listener's state (its place in `LISTENER_STATES`, -1 for none), and by how many seconds the event
loop was late."""

PEAKS = ("peak",)
"""The most connections in use at once within the second."""

FAILURES = (
    "pool_timeouts",
    "queue_full",
    "deadlines",
    "connect_errors",
    "statement_timeouts",
    "connections_lost",
    "statement_errors",
)
"""Why callers went without what they came for; each failure is counted under one cause."""

COUNTED = (
    "acquired",
    "released",
    "statements",
    "rows",
    *FAILURES,
    "connects",
    "connect_failures",
    "leaks",
    "listener_gaps",
    "wake_ups",
)
"""What is counted in the second. `connect_failures` are attempts, `connect_errors` callers; `wake_ups` are connects
that were let in so late that the database must have slept, or has too much to do."""

COLUMNS = ("elapsed", *MEASURED, *PEAKS, *COUNTED)
"""The values of a row, in order; `elapsed` is how many seconds it covers."""

LISTENER_STATES = ("idle", "starting", "connected", "reconnecting", "deaf", "dormant", "closed")

DURATIONS = ("waiting", "connecting", "executing")
"""The histograms of a row."""

SERVED = "served"
OUTCOMES = (SERVED, "pool_timeouts", "queue_full", "deadlines", "connect_errors", "refused_closed")
"""How it ended for somebody who wanted a connection."""

_LEAST = frozenset({"idle"})
_LAST = frozenset({"size", "overflow"})


@dataclass(frozen=True, slots=True)
class RecordedSecond:
    """One second, or one minute: `at` is its beginning, `values` are by `COLUMNS`."""

    at: int
    values: Mapping[str, float]
    waiting: Histogram = field(default_factory=Histogram)
    connecting: Histogram = field(default_factory=Histogram)
    executing: Histogram = field(default_factory=Histogram)

    def __getitem__(self, column: str) -> float:
        return self.values.get(column, 0.0)

    @property
    def utilization(self) -> float:
        """The most connections in use at once over `pool_size`: above 1 the overflow was in use."""
        return max(self["peak"], self["leased"]) / max(1.0, self["size"])

    def as_json(self) -> list[Any]:
        """As it is written: whole numbers without a point."""
        values = [_short(self[column]) for column in COLUMNS]
        return [self.at, values, self.waiting.counts, self.connecting.counts, self.executing.counts]

    @classmethod
    def from_json(cls, written: list[Any], columns: tuple[str, ...] = COLUMNS) -> Self:
        """Read what `as_json` wrote."""
        at, values, *durations = written
        known = {name: float(value) for name, value in zip(columns, values, strict=True) if name in COLUMNS}
        histograms = [
            Histogram({int(bucket): int(count) for bucket, count in counts.items()}) for counts in durations
        ]
        return cls(int(at), known, *histograms)


def merged(rows: Iterable[RecordedSecond], at: int) -> RecordedSecond:
    """Many rows as one, beginning at `at`: sums of what is counted, the most of what is measured (of `idle` the least).

    Example:
        >>> seconds = [RecordedSecond(0, {"acquired": 2}), RecordedSecond(1, {"acquired": 3})]
        >>> merged(seconds, 0)["acquired"]
        5.0
    """
    rows = tuple(rows)
    values: dict[str, float] = {}
    for column in COLUMNS:
        each = [row[column] for row in rows]
        if not each:
            values[column] = 0.0
        elif column in _LAST:
            values[column] = each[-1]
        elif column in _LEAST:
            values[column] = min(each)
        else:
            values[column] = float(max(each) if column in (*MEASURED, *PEAKS) else sum(each))
    return RecordedSecond(
        at,
        values,
        Histogram().merge(row.waiting for row in rows),
        Histogram().merge(row.connecting for row in rows),
        Histogram().merge(row.executing for row in rows),
    )


@dataclass(frozen=True, slots=True)
class Arrival:
    """Somebody wanted a connection: when, how long they waited, how long they had it (None: never, or still)."""

    at: float
    waited: float
    held: float | None
    workload: str | None
    outcome: str


@dataclass(slots=True)
class Note:
    """An entry of the journal. What happens again within a few seconds is counted in the same entry."""

    id: int
    at: float
    until: float
    kind: str
    text: str
    count: int = 1

    def as_json(self) -> dict[str, Any]:
        """As it is written."""
        return {
            "id": self.id,
            "at": round(self.at, 3),
            "until": round(self.until, 3),
            "kind": self.kind,
            "text": self.text,
            "count": self.count,
        }


@dataclass(frozen=True, slots=True)
class Recording:
    """What is in a document or a file; see the module."""

    pool: str
    at: float
    settings: Mapping[str, Any]
    seconds: tuple[RecordedSecond, ...] = ()
    minutes: tuple[RecordedSecond, ...] = ()
    journal: tuple[Note, ...] = ()
    moments: tuple[Mapping[str, Any], ...] = ()
    tops: tuple[Mapping[str, Any], ...] = ()
    arrivals: tuple[Arrival, ...] = ()
    statements: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a document or a recorder's file.

        Raises:
            OSError: there is no such file.
            errors.ConfigurationError: it is neither.
        """
        return cls.parse(Path(path).read_text(encoding="utf-8", errors="replace"))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text of a document or a recorder's file.

        Raises:
            errors.ConfigurationError: it is neither, or of a later version.
        """
        try:
            return cls._parse(list(_objects(text)))
        except ConfigurationError:
            raise
        except _MALFORMED as error:
            raise ConfigurationError(f"this recording is damaged: {type(error).__name__} in it") from error

    @classmethod
    def _parse(cls, lines: list[dict[str, Any]]) -> Self:
        if not lines:
            raise ConfigurationError("this is no recording of steadypool: no JSON in it")
        if "k" not in lines[0]:
            lines = list(_lines_of(lines[0]))
        heads = [line for line in lines if line.get("k") == "head"]
        if not heads or heads[-1].get("format") != FORMAT:
            raise ConfigurationError(f"this is no recording of steadypool: its format is not {FORMAT!r}")
        if heads[-1].get("version") != VERSION:
            raise ConfigurationError(
                f"this recording has version {heads[-1].get('version')!r}; this steadypool reads {VERSION}"
            )
        return _Reader().read(cls, lines)

    def as_json(self) -> dict[str, Any]:
        """The document."""
        document: dict[str, Any] = {}
        for line in self.lines():
            kind = line.pop("k")
            if kind == "head":
                document |= line | {"seconds": [], "minutes": [], "journal": [], "moments": [], "tops": []}
            elif kind == "row":
                document["seconds" if line["span"] == 1 else "minutes"].append(line["row"])
            elif kind == "note":
                document["journal"].append(line)
            elif kind == "moment":
                document["moments"].append(line)
            elif kind == "top":
                document["tops"].append(line)
            elif kind == "statements":
                document["statements"] = line["rows"]
            else:
                document[kind] = line
        return document

    def lines(self) -> Iterator[dict[str, Any]]:
        """The lines of a file."""
        yield head(self.pool, self.at, self.settings)
        for span, rows in ((60, self.minutes), (1, self.seconds)):
            yield from ({"k": "row", "span": span, "row": row.as_json()} for row in rows)
        yield from ({"k": "note"} | note.as_json() for note in self.journal)
        yield from ({"k": "moment"} | dict(moment) for moment in self.moments)
        yield from ({"k": "top"} | dict(top) for top in self.tops)
        yield arrivals_line(self.arrivals)
        yield {"k": "statements", "rows": [dict(row) for row in self.statements]}


def head(pool: str, at: float, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The line with which a file, and what each process adds to it, begins."""
    return {
        "k": "head",
        "format": FORMAT,
        "version": VERSION,
        "pool": pool,
        "at": round(at, 3),
        "settings": dict(settings),
        "columns": list(COLUMNS),
        "edges": [float(f"{edge:.6g}") for edge in EDGES],
    }


def arrivals_line(arrivals: Iterable[Arrival]) -> dict[str, Any]:
    """Arrivals as a line, with the names that stand for numbers in it."""
    workloads: dict[str | None, int] = {None: -1}
    rows: list[list[Any]] = []
    for each in arrivals:
        place = workloads.setdefault(each.workload, len(workloads) - 1)
        held = None if each.held is None else round(each.held, 5)
        outcome = OUTCOMES.index(each.outcome)
        rows.append([round(each.at, 4), round(each.waited, 5), held, place, outcome])
    names = [name for name in workloads if name is not None]
    return {"k": "arrivals", "workloads": names, "outcomes": list(OUTCOMES), "rows": rows}


def _short(value: float) -> float:
    return int(value) if value == int(value) else round(value, 5)


_MALFORMED = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What reading raises where the JSON has another shape than a recording."""


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in it, one a line; what is none is left out."""
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            yield cast("dict[str, Any]", found)


def _lines_of(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A document as the lines of a file."""
    lists = ("seconds", "minutes", "journal", "moments", "tops", "arrivals", "statements")
    yield {"k": "head"} | {name: value for name, value in document.items() if name not in lists}
    for name, span in (("minutes", 60), ("seconds", 1)):
        yield from ({"k": "row", "span": span, "row": row} for row in document.get(name, ()))
    yield from ({"k": "note"} | note for note in document.get("journal", ()))
    yield from ({"k": "moment"} | moment for moment in document.get("moments", ()))
    yield from ({"k": "top"} | top for top in document.get("tops", ()))
    if "arrivals" in document:
        yield {"k": "arrivals"} | document["arrivals"]
    yield {"k": "statements", "rows": document.get("statements", [])}


R = TypeVar("R", bound=Recording)


class _Reader:
    """Puts lines together. A line with something missing or wrong in it is left out, as a torn one is."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._columns = COLUMNS
        self._rows: dict[tuple[int, int], RecordedSecond] = {}
        self._notes: dict[int, Note] = {}
        self._moments: dict[float, dict[str, Any]] = {}
        self._tops: dict[float, dict[str, Any]] = {}
        self._arrivals: list[Arrival] = []
        self._statements: list[dict[str, Any]] = []

    def read(self, kind: type[R], lines: Iterable[dict[str, Any]]) -> R:
        for line in lines:
            try:
                self._add(line)
            except (KeyError, ValueError, TypeError, IndexError, AttributeError):
                continue
        seconds, minutes = (
            tuple(row for (span, _), row in sorted(self._rows.items()) if span == wanted)
            for wanted in (1, 60)
        )
        return kind(
            pool=str(self._head["pool"]),
            at=float(self._head["at"]),
            settings=self._head["settings"],
            seconds=seconds,
            minutes=minutes,
            journal=tuple(sorted(self._notes.values(), key=lambda note: (note.at, note.id))),
            moments=tuple(self._moments[at] for at in sorted(self._moments)),
            tops=tuple(self._tops[at] for at in sorted(self._tops)),
            arrivals=tuple(self._arrivals),
            statements=tuple(self._statements),
        )

    def _add(self, line: dict[str, Any]) -> None:
        match line["k"]:
            case "head":
                self._head = line
                self._columns = tuple(line["columns"])
            case "row":
                row = RecordedSecond.from_json(line["row"], self._columns)
                self._rows[line["span"], row.at] = row
            case "note":
                note = Note(**{name: line[name] for name in ("id", "at", "until", "kind", "text", "count")})
                self._notes[note.id] = note
            case "moment":
                self._moments[float(line["at"])] = {
                    name: value for name, value in line.items() if name != "k"
                }
            case "top":
                self._tops[float(line["at"])] = {"at": line["at"], "rows": list(line["rows"])}
            case "arrivals":
                self._arrivals += _arrivals(line)
            case "statements":
                self._statements = [dict(row) for row in line["rows"]]
            case _:
                pass


def _arrivals(line: dict[str, Any]) -> list[Arrival]:
    workloads: list[str | None] = [*line["workloads"], None]
    outcomes: list[str] = line["outcomes"]
    return [
        Arrival(float(at), float(waited), held, workloads[workload], outcomes[outcome])
        for at, waited, held, workload, outcome in cast(
            "list[tuple[float, float, float | None, int, int]]", line["rows"]
        )
    ]
