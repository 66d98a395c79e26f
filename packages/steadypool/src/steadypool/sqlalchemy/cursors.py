"""Server-side cursors whose every crossing of the network ends, as a statement's does.

SQLAlchemy's dialects can be told how to execute, but not how to fetch: `stream()` fetches while it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Bounded = Callable[..., Any]
"""Calls its first argument with the others, for a limited time."""


class BoundedCursor:
    """Stands before SQLAlchemy's adapter of a server-side cursor.

    Args:
        cursor: the adapter.
        fetching: bounds what reads rows.
        leaving: bounds its end.
    """

    def __init__(self, cursor: Any, fetching: Bounded, leaving: Bounded) -> None:
        self._cursor_itself = cursor
        self._fetching = fetching
        self._leaving = leaving

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor_itself, name)

    def fetchone(self) -> Any:
        """As the adapter's, bounded."""
        return self._fetching(self._cursor_itself.fetchone)

    def fetchmany(self, size: int | None = None) -> Any:
        """As the adapter's, bounded."""
        return self._fetching(self._cursor_itself.fetchmany, size)

    def fetchall(self) -> Any:
        """As the adapter's, bounded."""
        return self._fetching(self._cursor_itself.fetchall)

    def __iter__(self) -> Iterator[Any]:
        while (row := self.fetchone()) is not None:
            yield row

    def close(self) -> None:
        """As the adapter's, bounded."""
        self._leaving(self._cursor_itself.close)


class BoundedCursors:
    """Mixed in before SQLAlchemy's execution context."""

    dialect: Any

    def create_server_side_cursor(self) -> BoundedCursor:
        """As SQLAlchemy's, bounded."""
        cursor: Any = super().create_server_side_cursor()  # type: ignore[misc]
        return self.dialect.bounded_cursor(cursor, self)
