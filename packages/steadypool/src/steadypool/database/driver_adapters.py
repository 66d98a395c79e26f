"""How a dedicated connection talks to each driver; one object serves all connections of a pool."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from steadypool._rows import Row, named_rows, row_type
from steadypool._sql.lexer import TextCache, first_word, split, statements
from steadypool._sql.texts import check_nul, encoded, has_several_statements, not_encodable
from steadypool.deadline import TimeLimit

_is_several = TextCache(lambda sql: len(statements(sql)) > 1)
"""Whether a text holds more than one statement."""


async def _nothing() -> str:
    return ""


class DriverTimeout(TimeoutError):
    """A driver that bounds its statements by itself gave one up."""


class DriverAdapter(Protocol):
    """How to talk to one driver: what `Connection` needs of it.

    `bounds` is whether it keeps to a limit by itself; then it gets one, in seconds, and raises `DriverTimeout`.
    """

    bounds: bool
    sees_all: bool
    """Whether statements are seen that are run with the driver's connection itself."""

    def fetch(
        self, connection: Any, sql: str, args: tuple[Any, ...], limit: float | None = None
    ) -> Awaitable[Sequence[Row]]:
        """Run one statement and return its rows; a text with several is a syntax error, as the server says."""
        ...

    def execute(
        self, connection: Any, sql: str, args: tuple[Any, ...], limit: float | None = None
    ) -> Awaitable[str]:
        """Run one statement, or without arguments any number of them, and return the last one's command tag."""
        ...

    def post(self, connection: Any, sql: str, limit: float | None) -> asyncio.Future[Any] | None:
        """Send, without waiting for the answer, what comes before all that follows; None where the driver cannot.

        Where it fails the connection ends, and with it what follows.
        """
        ...


class AsyncpgAdapter:
    """Over an `asyncpg.Connection`."""

    bounds = False
    sees_all = False

    def fetch(
        self, connection: Any, sql: str, args: tuple[Any, ...], limit: float | None = None
    ) -> Awaitable[Sequence[Row]]:
        """Run one statement and return its rows."""
        check_nul(sql)
        return connection.fetch(sql, *args)

    def execute(
        self, connection: Any, sql: str, args: tuple[Any, ...], limit: float | None = None
    ) -> Awaitable[str]:
        """Run one statement and return its command tag."""
        check_nul(sql)
        if not args and not first_word(sql) and not statements(sql):
            return _nothing()  # asyncpg fails to read the answer to an empty text
        return connection.execute(sql, *args)

    def post(self, connection: Any, sql: str, limit: float | None) -> None:
        """It waits for each answer."""


class PsycopgAdapter:
    """Over a `psycopg.AsyncConnection`, with the server's own placeholders."""

    bounds = False
    sees_all = False

    def __init__(self) -> None:
        import psycopg

        self._cursor = psycopg.AsyncRawCursor

    async def _run(self, connection: Any, sql: str, args: tuple[Any, ...]) -> Any:
        cursor: Any = self._cursor(connection)
        try:
            await cursor.execute(encoded(sql, connection.info.encoding), args or None)
        except UnicodeEncodeError as error:
            raise not_encodable(error, what="parameter") from None
        return cursor

    async def fetch(
        self, connection: Any, sql: str, args: tuple[Any, ...], limit: float | None = None
    ) -> Sequence[Row]:
        """Run one statement and return its rows."""
        if not args and ";" in sql and _is_several(sql):
            from psycopg.errors import SyntaxError as Refused

            raise Refused("cannot insert multiple commands into a prepared statement")
        cursor = await self._run(connection, sql, args)
        if cursor.description is None:
            return []
        names = [column.name for column in cursor.description]
        return named_rows(names, await cursor.fetchall())

    async def execute(
        self, connection: Any, sql: str, args: tuple[Any, ...], limit: float | None = None
    ) -> str:
        """Run statements and return the last one's command tag."""
        cursor = await self._run(connection, sql, args)
        while cursor.nextset():
            pass
        return cursor.statusmessage or ""

    def post(self, connection: Any, sql: str, limit: float | None) -> None:
        """It waits for each answer."""


class PipelinedAdapter:
    """Over a `pipeline.PipelinedConnection`: one flight a statement."""

    bounds = True
    sees_all = True

    def __init__(self) -> None:
        from steadypool import pipeline

        self._pipeline = pipeline

    async def _run(self, connection: Any, sql: str, args: tuple[Any, ...], limit: float | None) -> Any:
        try:
            results = await connection.send(self._segment(sql, args, limit))
        except self._pipeline.ConnectionClosed as error:
            if not self._is_overdue(error):
                raise
            raise DriverTimeout(str(error)) from error
        return results[-1]

    async def _run_script(self, connection: Any, sql: str, limit: float | None) -> Any:
        """Run several statements in one text, and return the last one's result."""
        timer = TimeLimit(limit)
        try:
            with timer:
                return (await connection.run_script(sql))[-1]
        except TimeoutError as error:
            if not timer.expired:
                raise
            raise DriverTimeout(f"no answer within {limit:.2f}s") from error

    async def fetch(
        self, connection: Any, sql: str, args: tuple[Any, ...], limit: float | None = None
    ) -> Sequence[Row]:
        """Run one statement and return its rows."""
        result = await self._run(connection, sql, args, limit)
        return result.rows(row_type(result.names))

    async def execute(
        self, connection: Any, sql: str, args: tuple[Any, ...], limit: float | None = None
    ) -> str:
        """Run statements and return the last one's command tag."""
        if not args and ";" in sql and not sql.startswith("BEGIN; ") and has_several_statements(sql):
            return (await self._run_script(connection, sql, limit)).tag
        return (await self._run(connection, sql, args, limit)).tag

    def post(self, connection: Any, sql: str, limit: float | None) -> asyncio.Future[Any]:
        """Send it with the first statement that follows, if that comes soon."""
        segment = self._segment(sql, (), limit)
        connection.post(segment, lingers=True)
        return segment.future

    def _is_overdue(self, gone: Any) -> bool:
        """Whether the connection ended because this statement, or what was posted before it, took too long."""
        overdue = self._pipeline.BatchTimeout
        return isinstance(gone, overdue) or (gone.sent and isinstance(gone.__cause__, overdue))

    def _segment(self, sql: str, args: tuple[Any, ...], limit: float | None) -> Any:
        made = self._pipeline.Statement
        # What begins a transaction may bring along its limits: a segment of several statements.
        statements = (
            [made(part, args) for part in split(sql)] if sql.startswith("BEGIN; ") else [made(sql, args)]
        )
        return self._pipeline.Batch(statements, limit=limit)


DIALOGUES: Mapping[str, Callable[[], DriverAdapter]] = {
    "asyncpg": AsyncpgAdapter,
    "psycopg": PsycopgAdapter,
    "steadypool": PipelinedAdapter,
}
"""By the names of drivers. Making one imports the driver."""
