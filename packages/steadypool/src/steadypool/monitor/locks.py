"""Who waits for whose lock, told from this side alone: by who wrote to a table and keeps its transaction open.

The database knows for certain (`steadypool doctor --only blocked`), but it is not asked: the page has to work where it
does not answer. What is said here is therefore "most likely".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from steadypool.events import StatementFinished

GAVE_UP = {
    "55P03": "a statement gave up waiting for a lock",
    "40P01": "a deadlock: the server ended one of the statements in it",
}
"""SQLSTATEs that say themselves that it was a lock."""

WAITS_FOR = 0.5
"""Seconds that a statement has to run before it is asked whether it waits."""
SLOWER = 10.0
"""How many times its usual duration a statement has to take."""
MOST_WRITTEN = 8

_WRITES = frozenset(("INSERT", "UPDATE", "DELETE", "MERGE", "COPY"))
_EXCLUDES_READERS = frozenset(("ALTER", "DROP", "TRUNCATE", "LOCK", "REINDEX", "VACUUM", "CREATE", "REFRESH"))
_EDGES = frozenset(("BEGIN", "COMMIT", "ROLLBACK"))
_FIRST = re.compile(r"\w+")
_TABLE = re.compile(
    r"""\b(?: from | into | update | truncate(?:\ table)? | lock(?:\ table)? | copy | vacuum
          | (?:alter|drop)\ table(?:\ if\ exists)? | create\ (?:unique\ )?index\ .{0,99}?\ on )\ (?:only\ )?
        ((?:"[^"]+"|[\w$]+)(?:\.(?:"[^"]+"|[\w$]+))?)""",
    re.IGNORECASE | re.VERBOSE,
)
_LOCKS_ROWS = re.compile(r"\bfor (?:no key )?(?:update|share|key share)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Lock:
    """What a statement needs: a table, to write to it, or to have it alone."""

    table: str
    writes: bool
    alone: bool

    def conflicts(self, other: Lock) -> bool:
        """Whether two transactions may have to wait for each other; whether it is the same row is not known."""
        if self.table != other.table:
            return False
        return self.alone or other.alone or (self.writes and other.writes)


@lru_cache(maxsize=1024)
def lock_of(fingerprint: str) -> Lock | None:
    """What a statement needs; None where that cannot be told.

    Example:
        >>> lock_of("[1] update tracks set plays = plays + ? where id = ?")
        Lock(table='tracks', writes=True, alone=False)
    """
    text = fingerprint.partition("] ")[2] or fingerprint
    first, table = _FIRST.search(text), _TABLE.search(text)
    if first is None or table is None:
        return None
    operation = first[0].upper()
    writes = operation in _WRITES or _LOCKS_ROWS.search(text) is not None
    return Lock(table[1].strip('"'), writes, operation in _EXCLUDES_READERS)


class Written:
    """Of each connection in use the statements that took locks in its transaction; a few of them."""

    def __init__(self) -> None:
        self._by: dict[int, list[str]] = {}

    def add(self, event: StatementFinished) -> None:
        """A statement ended on a connection in use."""
        number = event.connection
        if number is None or event.way == "shared":
            return
        if event.summary in _EDGES:
            self._by.pop(number, None)
            return
        lock = lock_of(event.fingerprint) if event.error_type is None else None
        if lock is not None and (lock.writes or lock.alone):
            known = self._by.setdefault(number, [])
            if event.fingerprint not in known and len(known) < MOST_WRITTEN:
                known.append(event.fingerprint)

    def by(self, number: int) -> list[str]:
        """What that connection's transaction wrote."""
        return list(self._by.get(number, ()))

    def forget(self, number: int) -> None:
        """Nobody has it any more."""
        self._by.pop(number, None)


def waits(each: Mapping[str, Any]) -> bool:
    """Whether what runs on a connection in use takes much longer than it usually does, as far as that is known."""
    limit = max(WAITS_FOR, SLOWER * each.get("usually", 0.0))
    return bool(each.get("running")) and each.get("executing", 0.0) >= limit


def blocked(moment: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Pairs of a connection that most likely waits for a lock, and one in use that most likely has it."""
    connections = moment["connections"]
    for each in connections:
        wanted = lock_of(each["running"]) if waits(each) else None
        if wanted is None:
            continue
        for other in connections:
            if other is each or not other.get("in_transaction"):
                continue
            has = (lock_of(written) for written in other.get("written", ()))
            if any(lock is not None and lock.conflicts(wanted) for lock in has):
                yield each, other
                break


def stalled(moment: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Statements on one table that usually are quick and do not end: somebody elsewhere may have it locked."""
    running = [each for each in moment["connections"] if waits(each) and "usually" in each]
    tables = {lock.table for each in running if (lock := lock_of(each["running"])) is not None}
    return running if len(tables) == 1 else []
