"""Which statements are slow: those of which more than one in twenty took too long of late."""

from __future__ import annotations

from collections import OrderedDict

FORGET_AT = 100
"""Executions after which the older half counts no more."""
REMEMBERED = 512
"""Statements whose pace is known."""


class Pace:
    """Of one statement: how many executions there were, and how many were slow."""

    __slots__ = ("runs", "slow")

    def __init__(self) -> None:
        self.runs = 0
        self.slow = 0

    def ran(self, *, slow: bool) -> None:
        """It ran once more."""
        if self.runs >= FORGET_AT:
            self.runs //= 2
            self.slow //= 2
        self.runs += 1
        self.slow += slow

    @property
    def is_slow(self) -> bool:
        """Whether its 95th percentile is above what was called slow."""
        return self.slow * 20 > self.runs


class Paces:
    """Of all statements that were seen of late, by their text.

    Example:
        >>> paces = Paces()
        >>> paces.of("select 1").ran(slow=True)
        >>> paces.of("select 1").is_slow
        True
    """

    def __init__(self) -> None:
        self._paces: OrderedDict[str, Pace] = OrderedDict()

    def of(self, sql: str) -> Pace:
        """The pace of a statement."""
        pace = self._paces.get(sql)
        if pace is None:
            pace = self._paces[sql] = Pace()
            if len(self._paces) > REMEMBERED:
                self._paces.popitem(last=False)
        return pace
