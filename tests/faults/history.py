"""Decides from what was seen whether an update was lost or a read was stale. Pure: knows no database and no clock.

Several instances keep copies of what is in a database, by key, and drop them when they hear of a change. Every change
raises its key's revision by one. What a test records:

- `Write`: somebody asked for a change at `began` and was told at `ended` that it has this revision; `ended` of None:
  he never learned whether it happened, and `revision` is what it would have;
- `Read`: an instance was asked at `began` and answered at `ended`;
- `Delivery`: an instance heard of a revision;
- `Deafness`: an instance said that it may have missed what was committed since a moment; `until` is when it said that
  it hears again and has caught up.

All moments are seconds on one clock (`time.monotonic` is one for all processes of a machine).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate, pairwise


@dataclass(frozen=True, slots=True)
class Write:
    key: str
    revision: int
    began: float
    ended: float | None
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Read:
    instance: str
    key: str
    revision: int
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Delivery:
    instance: str
    key: str
    revision: int
    at: float


@dataclass(frozen=True, slots=True)
class Deafness:
    instance: str
    since: float
    until: float = math.inf


class Kind(StrEnum):
    TWO_WON = "two writes got the same revision: one of them is lost"
    OUT_OF_ORDER = "a write that began after another had ended got an earlier revision"
    MISSING_REVISION = "a revision that nobody wrote lies below one that somebody did"
    FROM_NOWHERE = "a revision was read that nobody had begun to write"
    STALE = "a read missed a write that the instance should have known of"
    WENT_BACK = "a read showed less than an earlier one on the same instance"
    NOT_HEARD = "an instance neither heard of a write in time nor said that it may have missed it"


@dataclass(frozen=True, slots=True)
class Violation:
    kind: Kind
    key: str
    told: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.key}): {self.told}"


@dataclass
class History:
    """What was seen, in any order."""

    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    deafness: list[Deafness] = field(default_factory=list)
    listening: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Instances whose deliveries were recorded, and from when to when."""


class _Rising:
    """The greatest revision up to any moment."""

    def __init__(self, points: Iterable[tuple[float, int]]) -> None:
        ordered = sorted(points)
        self._moments = [moment for moment, _ in ordered]
        self._greatest = list(accumulate((revision for _, revision in ordered), max))

    def at(self, moment: float) -> int:
        """0 before the first; what happens exactly then counts."""
        index = bisect_right(self._moments, moment)
        return self._greatest[index - 1] if index else 0


def check(history: History, *, propagation: float) -> list[Violation]:
    """Everything that is wrong with a history, nothing if it is as it should be.

    Args:
        history: what was seen.
        propagation: seconds within which a change has to be known to every instance that hears.

    An instance that says it may have missed what came since a moment is held to what was committed before it; from
    the moment when it has caught up, to everything committed until then, at once. What was written through an
    instance it knows at once, deaf or not.
    """
    return [
        *_check_writes(history.writes),
        *_check_reads(history, propagation),
        *_check_deliveries(history, propagation),
    ]


def _by_key(things: Iterable[Write]) -> dict[str, list[Write]]:
    found: dict[str, list[Write]] = defaultdict(list)
    for thing in things:
        found[thing.key].append(thing)
    return found


def _check_writes(writes: Sequence[Write]) -> Iterator[Violation]:
    for key, all_of_key in _by_key(writes).items():
        done = sorted((w for w in all_of_key if w.ended is not None), key=lambda w: (w.revision, w.began))
        for one, other in pairwise(done):
            if one.revision == other.revision:
                yield Violation(Kind.TWO_WON, key, f"{one} and {other}")
        written = {w.revision for w in all_of_key}
        missing = set(range(1, max((w.revision for w in done), default=0))) - written
        if missing:
            yield Violation(Kind.MISSING_REVISION, key, str(sorted(missing)[:5]))
        finished = _Rising((w.ended, w.revision) for w in done if w.ended is not None)
        for write in done:
            if (before := finished.at(math.nextafter(write.began, -math.inf))) > write.revision:
                yield Violation(Kind.OUT_OF_ORDER, key, f"{write}, when {before} was done")


def _check_reads(history: History, propagation: float) -> Iterator[Violation]:
    writes = _by_key(history.writes)
    done = {
        key: _Rising((w.ended, w.revision) for w in ws if w.ended is not None) for key, ws in writes.items()
    }
    begun = {key: _Rising((w.began, w.revision) for w in ws) for key, ws in writes.items()}
    own: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
    for write in history.writes:
        if write.ended is not None:
            own[write.instance, write.key].append((write.ended, write.revision))
    known_at_once = {where: _Rising(points) for where, points in own.items()}
    deaf = _by_instance(history.deafness)
    nothing = _Rising(())
    for read in history.reads:
        must = done.get(read.key, nothing).at(_held_to(read.began, deaf.get(read.instance, ()), propagation))
        must = max(must, known_at_once.get((read.instance, read.key), nothing).at(read.began))
        if read.revision < must:
            yield Violation(Kind.STALE, read.key, f"{read}, when {must} had to be known")
        if read.revision > begun.get(read.key, nothing).at(read.ended):
            yield Violation(Kind.FROM_NOWHERE, read.key, str(read))
    yield from _check_monotonic(history.reads)


def _held_to(moment: float, deafness: Iterable[Deafness], propagation: float) -> float:
    """Up to which moment an instance has to know everything that was committed, at a given moment."""
    held_to = moment - propagation
    for deaf in deafness:
        if deaf.until <= moment:
            held_to = max(held_to, deaf.until)
    for deaf in deafness:
        if deaf.until > moment:
            held_to = min(held_to, deaf.since)
    return held_to


def _check_monotonic(reads: Iterable[Read]) -> Iterator[Violation]:
    groups: dict[tuple[str, str], list[Read]] = defaultdict(list)
    for read in reads:
        groups[read.instance, read.key].append(read)
    for (_, key), group in groups.items():
        ended = _Rising((read.ended, read.revision) for read in group)
        for read in group:
            if (before := ended.at(math.nextafter(read.began, -math.inf))) > read.revision:
                yield Violation(Kind.WENT_BACK, key, f"{read}, when {before} had been shown")


def _check_deliveries(history: History, propagation: float) -> Iterator[Violation]:
    heard: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
    for delivery in history.deliveries:
        heard[delivery.instance, delivery.key].append((delivery.at, delivery.revision))
    rising = {where: _Rising(points) for where, points in heard.items()}
    deaf = _by_instance(history.deafness)
    nothing = _Rising(())
    for instance, (begin, end) in history.listening.items():
        for write in history.writes:
            if write.ended is None or write.began < begin or write.ended + propagation > end:
                continue
            if rising.get((instance, write.key), nothing).at(write.ended + propagation) >= write.revision:
                continue
            if not any(d.since <= write.ended and write.began <= d.until for d in deaf.get(instance, ())):
                yield Violation(Kind.NOT_HEARD, write.key, f"{write} by {instance}")


def _by_instance(deafness: Iterable[Deafness]) -> dict[str, list[Deafness]]:
    found: dict[str, list[Deafness]] = defaultdict(list)
    for deaf in deafness:
        found[deaf.instance].append(deaf)
    return found
