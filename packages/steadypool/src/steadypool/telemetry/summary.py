"""What a statement does, in two or three words of few kinds: the name of its span and a label of its metrics."""

from __future__ import annotations

import re
from functools import lru_cache

OTHER = "other"
"""What stands for everything beyond the first `LIMIT` values of an attribute."""

LIMIT = 100
"""Values that one attribute may have in metrics: each makes a series for ever."""

_OPERATIONS = frozenset(
    """
    alter analyze begin call close comment commit copy create deallocate declare delete discard do drop execute
    explain fetch grant insert listen lock merge move notify prepare refresh reindex release reset revoke rollback
    savepoint select set show start table truncate unlisten update vacuum values with
    """.upper().split()
)
_TARGET = re.compile(
    r"""\b(?:from|into|update|truncate(?:\ table)?|(?:create|drop|alter)\ table(?:\ if(?:\ not)?\ exists)?)\ (?:only\ )?
        ((?:"[^"]+"|[\w$]+)(?:\.(?:"[^"]+"|[\w$]+))?)""",
    re.IGNORECASE | re.VERBOSE,
)


@lru_cache(maxsize=1024)
def summary(fingerprint: str) -> tuple[str, str]:
    """The operation of a fingerprinted statement, and the operation with its first table.

    Example:
        >>> summary("[96f69e8b] select * from tracks where id = ?")
        ('SELECT', 'SELECT tracks')
    """
    text = fingerprint.partition("] ")[2]
    first = re.match(r"[\s(]*(\w+)", text)
    operation = first[1].upper() if first is not None else OTHER
    if operation not in _OPERATIONS:
        return OTHER, OTHER
    target = _TARGET.search(text)
    return operation, operation if target is None else f"{operation} {target[1]}"


class Bounded:
    """Lets the first `LIMIT` values of each attribute through; what comes later is `other`.

    Example:
        >>> bounded = Bounded(limit=1)
        >>> bounded("name", "a"), bounded("name", "b"), bounded("name", "a")
        ('a', 'other', 'a')
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._known: dict[str, set[str]] = {}

    def __call__(self, attribute: str, value: str) -> str:
        """The value, or `other`."""
        known = self._known.setdefault(attribute, set())
        if value in known:
            return value
        if len(known) >= self._limit:
            return OTHER
        known.add(value)
        return value
