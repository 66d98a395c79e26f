"""A limit on the values of an attribute: in metrics each of them makes a series for ever."""

from __future__ import annotations

OTHER = "other"
"""What stands for everything beyond the first `LIMIT` values of an attribute."""

LIMIT = 100
"""Values that one attribute may have."""


class CardinalityLimit:
    """Lets the first `LIMIT` values of each attribute through; what comes later is `other`.

    Example:
        >>> bounded = CardinalityLimit(limit=1)
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
