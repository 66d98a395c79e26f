"""The journal: what a person would note down, a sentence each, of a bounded number."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from steadypool.monitor.recording import Note

TOGETHER = 10.0
"""Seconds within which what happens again is counted in the same entry."""

LONGEST = 400
"""Characters of an entry."""


class Journal:
    """The last entries.

    Args:
        most: how many are kept.

    Example:
        >>> journal = Journal(100)
        >>> for at in (1.0, 2.0, 3.0):
        ...     note = journal.note(at, "pool_timeouts", "no connection became free in time")
        >>> [(entry.at, entry.until, entry.count) for entry in journal]
        [(1.0, 3.0, 3)]
    """

    def __init__(self, most: int) -> None:
        self._notes: deque[Note] = deque(maxlen=most)
        self._open: dict[str, Note] = {}
        self._numbers = 0
        self._changed: dict[int, Note] = {}

    def note(self, at: float, kind: str, text: str, *, count: bool = True) -> Note:
        """Note something, in the entry of its kind that was begun a moment ago, if there is one and `count` is true."""
        begun = self._open.get(kind) if count else None
        if begun is not None and 0 <= at - begun.at < TOGETHER:
            begun.until, begun.count = at, begun.count + 1
            self._changed[begun.id] = begun
            return begun
        self._numbers += 1
        text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
        note = Note(self._numbers, at, at, kind, text)
        self._notes.append(note)
        self._changed[note.id] = note
        if count:
            self._open[kind] = note
        return note

    def __iter__(self) -> Iterator[Note]:
        return iter(tuple(self._notes))

    def between(self, since: float, until: float) -> list[Note]:
        """The entries of that time, oldest first."""
        return [note for note in self._notes if note.until >= since and note.at <= until]

    def changed(self) -> list[Note]:
        """What is new or different since this was last asked."""
        changed, self._changed = list(self._changed.values()), {}
        return changed

    def restore(self, notes: Iterable[Note]) -> None:
        """Take back what was written."""
        for note in notes:
            self._notes.append(note)
            self._numbers = max(self._numbers, note.id)
