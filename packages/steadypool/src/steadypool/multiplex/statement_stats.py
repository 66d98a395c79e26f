"""What is known of statements by their text: whether they may be shared, what they are called, and which are slow.

Slow are those of which more than one in twenty took too long of late.
"""

from __future__ import annotations

from steadypool._sql.fingerprint import name_of
from steadypool._sql.lexer import TextCache
from steadypool.multiplex.eligibility import refusal, runs_in_no_block
from steadypool.pool.rejections import not_for_sharing

FORGET_AT = 100
"""Executions after which the older half counts no more."""
REMEMBERED = 512
"""Statements whose pace is known."""


class StatementStats:
    """Of one statement: how many executions there were, and how many were slow."""

    __slots__ = ("in_no_block", "name", "runs", "slow")

    def __init__(self, sql: str) -> None:
        self.name = name_of(sql)
        self.in_no_block = runs_in_no_block(sql)
        """Whether no other statement, such as one that sets a limit, may be in one segment with it."""
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


class StatementStatsTable:
    """Of all statements that were seen of late, by their text.

    Example:
        >>> paces = StatementStatsTable()
        >>> paces.of("select 1").ran(slow=True)
        >>> paces.of("select 1").is_slow
        True
    """

    def __init__(self) -> None:
        self._paces = TextCache(_pace_of, entries=REMEMBERED)

    def of(self, sql: str) -> StatementStats:
        """The pace of a statement.

        Raises:
            errors.NotMultiplexable: it does not belong on a shared connection.
        """
        return self._paces(sql)


def _pace_of(sql: str) -> StatementStats:
    why = refusal(sql)
    if why is not None:
        raise not_for_sharing(sql, why)
    return StatementStats(sql)
