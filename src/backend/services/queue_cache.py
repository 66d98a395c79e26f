"""Copies of queues in this process, none of which is older than what is known of it. Pure: knows no database."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

MAX_BYTES = 16 * 1024 * 1024
"""What all copies together may take, as JSON."""


class Queue(NamedTuple):
    """The state of one artist's queue, and its revision."""

    state: dict[str, Any]
    revision: int


class Reading:
    """A queue that is being read from the database; what is heard meanwhile decides whether the result is kept."""

    def __init__(self) -> None:
        self.at_least = 0
        self.spoiled = False


class QueueCache:
    """The queues that were used last.

    Args:
        max_bytes: what all copies together may take, as JSON.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        # As JSON: many small lists and numbers take twenty times as much once they are read.
        self._copies: OrderedDict[str, tuple[int, str]] = OrderedDict()
        self._readings: dict[str, set[Reading]] = {}

    def __len__(self) -> int:
        return len(self._copies)

    def get(self, did: str) -> Queue | None:
        """The copy of this queue, if there is one."""
        copy = self._copies.get(did)
        if copy is None:
            return None
        self._copies.move_to_end(did)
        revision, text = copy
        return Queue(json.loads(text), revision)

    @contextmanager
    def reading(self, did: str) -> Generator[Reading]:
        """Begin before the database is asked: a change that is heard of while it answers must not be overwritten."""
        reading = Reading()
        readings = self._readings.setdefault(did, set())
        readings.add(reading)
        try:
            yield reading
        finally:
            readings.discard(reading)
            if not readings and self._readings.get(did) is readings:
                del self._readings[did]

    def keep_read(self, did: str, queue: Queue, reading: Reading) -> None:
        """Keep what was read, unless it is known by now that there is something newer."""
        if not reading.spoiled and queue.revision >= reading.at_least:
            self.keep(did, queue)

    def keep(self, did: str, queue: Queue) -> None:
        """Keep this copy, unless a newer one is here."""
        known = self._copies.get(did)
        if known is not None and known[0] > queue.revision:
            return
        self._drop(did)
        text = json.dumps(queue.state)
        self._copies[did] = (queue.revision, text)
        self._bytes += len(text)
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._copies)))

    def changed(self, did: str, revision: int) -> None:
        """There is a revision as high as this: anything lower is old."""
        known = self._copies.get(did)
        if known is not None and known[0] < revision:
            self._drop(did)
        for reading in self._readings.get(did, ()):
            reading.at_least = max(reading.at_least, revision)

    def forget(self, did: str) -> None:
        """It is not known how this queue looks now."""
        self._drop(did)
        for reading in self._readings.get(did, ()):
            reading.spoiled = True

    def clear(self) -> None:
        """It is not known how any queue looks now."""
        self._copies.clear()
        self._bytes = 0
        for readings in self._readings.values():
            for reading in readings:
                reading.spoiled = True

    def _drop(self, did: str) -> None:
        dropped = self._copies.pop(did, None)
        if dropped is not None:
            self._bytes -= len(dropped[1])
