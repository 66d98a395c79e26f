"""Server-side cursors whose every crossing of the network ends, as a statement's does.

SQLAlchemy's dialects can be told how to execute, but not how to fetch: `stream()` fetches while it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Any

from steadypool.sqlalchemy.instrumentation import fairy_of, tell_statement


class BoundedCursor:
    """Stands before SQLAlchemy's adapter of a server-side cursor.

    Args:
        cursor: the adapter.
        dialect: one of ours, which bounds what it is given.
        context: SQLAlchemy's execution context, which knows how long the statement may take.
        driver_connection: what is cut off when a fetch is given up.
    """

    def __init__(self, cursor: Any, dialect: Any, context: Any, driver_connection: Any) -> None:
        self._adapter = cursor
        self._dialect = dialect
        self._context = context
        self._driver_connection = driver_connection
        self._spent = 0.0
        self._rows = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def fetchone(self) -> Any:
        """As the adapter's; a fetch may take as long as a statement."""
        return self._fetch(self._adapter.fetchone)

    def fetchmany(self, size: int | None = None) -> Any:
        """As the adapter's; a fetch may take as long as a statement."""
        return self._fetch(self._adapter.fetchmany, size)

    def fetchall(self) -> Any:
        """As the adapter's; it may take as long as a statement."""
        return self._fetch(self._adapter.fetchall)

    def __iter__(self) -> Iterator[Any]:
        while (row := self.fetchone()) is not None:
            yield row

    def _fetch(self, call: Callable[..., Any], *args: Any) -> Any:
        dialect, connection = self._dialect, self._driver_connection
        server: float | None = dialect.statement_timeout(self._context)
        began = dialect.guards.clock.monotonic()
        try:
            rows = dialect.bounded_statement(server, connection, call, *args)
        except BaseException as error:
            if isinstance(error, TimeoutError) or not isinstance(error, Exception):
                dialect.cut(connection)
            if not dialect.is_open(connection):
                self.close()  # SQLAlchemy closes no cursor of a connection that is lost
            raise
        self._spent += dialect.guards.clock.monotonic() - began
        self._rows += (
            len(rows) if isinstance(rows, Sized) and call != self._adapter.fetchone else rows is not None
        )
        return rows

    def close(self) -> None:
        """As the adapter's, within the time for leaving; where it takes longer, the connection is cut off."""
        self._tell()
        dialect, connection = self._dialect, self._driver_connection
        try:
            if dialect.is_open(connection):
                dialect.bounded(dialect.guards.leave_timeout, self._adapter.close)
                return
        except TimeoutError:
            pass  # the cursor ends with its connection
        except BaseException:
            self._forget()
            raise
        self._forget()

    def executed(self, seconds: float) -> None:
        """It was declared, which took so long; what it costs beyond that is known when it is closed."""
        self._spent += seconds

    def _tell(self) -> None:
        context = self._context
        if not getattr(context, "steadypool_told", True):
            context.steadypool_told = True
            tell_statement(fairy_of(context), context.statement, seconds=self._spent, rows=self._rows)

    def _forget(self) -> None:
        """Without a connection the driver has nothing to say to the server, only to forget."""
        self._dialect.cut(self._driver_connection)
        self._adapter.close()


class BoundedCursors:
    """Mixed in before SQLAlchemy's execution context."""

    dialect: Any

    def create_server_side_cursor(self) -> Any:
        """As SQLAlchemy's, bounded."""
        cursor: Any = super().create_server_side_cursor()  # type: ignore[misc]
        return self.dialect.bounded_cursor(cursor, self)
