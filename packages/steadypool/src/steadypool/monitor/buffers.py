"""Bounded memories: rows, arrivals and moments, packed, because an hour of a busy service is many of them."""

from __future__ import annotations

import json
import struct
import zlib
from array import array
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

from steadypool.monitor.histogram import Histogram
from steadypool.monitor.recording import COLUMNS, OUTCOMES, Arrival, RecordedSecond

_BUCKET = struct.Struct("<BI")
_COUNTS = struct.Struct("<BBB")
_ARRIVAL = struct.Struct("<dffhB")
_NEVER = -1.0
_MOST_WORKLOADS = 1_000


class Rows:
    """The last rows, as bytes; a few hundred each.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int) -> None:
        self._rows: deque[tuple[int, bytes]] = deque(maxlen=most)

    def add(self, row: RecordedSecond) -> None:
        """Keep it; the oldest goes when there are too many."""
        self._rows.append((row.at, _pack(row)))

    def since(self, at: float, until: float = float("inf")) -> Iterator[RecordedSecond]:
        """The rows that begin in that time, oldest first."""
        newer: list[tuple[int, bytes]] = []
        for row in reversed(self._rows):  # what is asked for is mostly at the end
            if row[0] < at:
                break
            if row[0] < until:
                newer.append(row)
        for begins, packed in reversed(newer):
            yield _unpack(begins, packed)

    def copy(self) -> Rows:
        """The same rows, for another thread."""
        copied = Rows(self._rows.maxlen or 0)
        copied._rows.extend(self._rows)
        return copied

    @property
    def last(self) -> int | None:
        """When the newest one begins."""
        return self._rows[-1][0] if self._rows else None


def _pack(row: RecordedSecond) -> bytes:
    durations = [row.waiting.counts, row.connecting.counts, row.executing.counts]
    parts = [array("f", [row[column] for column in COLUMNS]).tobytes(), _COUNTS.pack(*map(len, durations))]
    parts += [_BUCKET.pack(bucket, count) for counts in durations for bucket, count in counts.items()]
    return b"".join(parts)


def _unpack(at: int, packed: bytes) -> RecordedSecond:
    values = array("f")
    size = values.itemsize * len(COLUMNS)
    values.frombytes(packed[:size])
    lengths = _COUNTS.unpack_from(packed, size)
    place = size + _COUNTS.size
    histograms: list[Histogram] = []
    for length in lengths:
        end = place + length * _BUCKET.size
        histograms.append(Histogram(dict(_BUCKET.iter_unpack(packed[place:end]))))
        place = end
    return RecordedSecond(at, dict(zip(COLUMNS, values, strict=True)), *histograms)


class Arrivals:
    """The last arrivals, 19 bytes each.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._memory = bytearray(_ARRIVAL.size * most)
        self._count = 0
        self._names: dict[str | None, int] = {None: -1}

    def add(self, arrival: Arrival) -> None:
        """Keep it; the oldest goes when there are too many."""
        if arrival.workload not in self._names and len(self._names) > _MOST_WORKLOADS:
            workload = -1
        else:
            workload = self._names.setdefault(arrival.workload, len(self._names) - 1)
        held = _NEVER if arrival.held is None else arrival.held
        place = self._count % self._most * _ARRIVAL.size
        outcome = OUTCOMES.index(arrival.outcome)
        _ARRIVAL.pack_into(self._memory, place, arrival.at, arrival.waited, held, workload, outcome)
        self._count += 1

    def copy(self) -> Arrivals:
        """The same arrivals, for another thread."""
        copied = Arrivals(0)
        copied._most, copied._count = self._most, self._count
        copied._memory, copied._names = bytearray(self._memory), dict(self._names)
        return copied

    def __len__(self) -> int:
        return min(self._count, self._most)

    def __iter__(self) -> Iterator[Arrival]:
        names = {number: name for name, number in self._names.items()}
        for index in range(max(0, self._count - self._most), self._count):
            packed = _ARRIVAL.unpack_from(self._memory, index % self._most * _ARRIVAL.size)
            at, waited, held, workload, outcome = cast("tuple[float, float, float, int, int]", packed)
            yield Arrival(at, waited, None if held < 0 else held, names[workload], OUTCOMES[outcome])


class Moments:
    """Who held and who waited, a moment a second and the worst moment of each minute; compressed.

    Args:
        most_seconds: how many are kept of the former.
        most_minutes: how many of the latter.
    """

    def __init__(self, most_seconds: int, most_minutes: int) -> None:
        self._seconds: deque[_Kept] = deque(maxlen=most_seconds)
        self._minutes: deque[_Kept] = deque(maxlen=most_minutes)
        self._worst: _Kept | None = None

    def add(self, moment: Mapping[str, Any]) -> None:
        """Keep it; the worst of each minute is kept for longer."""
        kept = _Kept(float(moment["at"]), badness_of(moment), _squeeze(moment))
        self._seconds.append(kept)
        if self._worst is not None and self._worst.at // 60 != kept.at // 60:
            self._minutes.append(self._worst)
            self._worst = None
        if self._worst is None or kept.badness > self._worst.badness:
            self._worst = kept

    def worst(self, since: float, until: float) -> dict[str, Any] | None:
        """The worst moment of that time: when those who waited had waited most, or else when most was held."""
        found = [kept for kept in (*self._minutes, *self._seconds) if since <= kept.at < until]
        return _expand(max(found, key=lambda kept: kept.badness).packed) if found else None

    def copy(self) -> Moments:
        """The same moments, for another thread."""
        copied = Moments(self._seconds.maxlen or 0, self._minutes.maxlen or 0)
        copied._seconds.extend(self._seconds)
        copied._minutes.extend(self._minutes)
        return copied

    def __iter__(self) -> Iterator[dict[str, Any]]:
        begin = self._seconds[0].at if self._seconds else float("inf")
        older = [kept for kept in self._minutes if kept.at < begin]
        for kept in (*older, *self._seconds):
            yield _expand(kept.packed)


class _Kept(NamedTuple):
    at: float
    badness: float
    packed: bytes


def badness_of(moment: Mapping[str, Any]) -> float:
    """How much a moment is worth remembering: the seconds that all who wait have waited, then how many wait, then who
    holds how many for how long. Each caller beyond those listed counts like the last of them."""
    more, listed = moment.get("more", {}), [each["seconds"] for each in moment["waiters"]]
    beyond = more.get("waiters", 0) + moment.get("queued", 0)
    waited = sum(listed) + beyond * min(listed, default=0.0)
    held = sum(each["seconds"] for each in moment["connections"])
    held_by = len(moment["connections"]) + more.get("connections", 0)
    return 1_000 * (waited + len(listed) + beyond) + held_by + held / (held + 1)


def _squeeze(moment: Mapping[str, Any]) -> bytes:
    return zlib.compress(json.dumps(moment, separators=(",", ":")).encode(), 1)


def _expand(packed: bytes) -> dict[str, Any]:
    return json.loads(zlib.decompress(packed))
