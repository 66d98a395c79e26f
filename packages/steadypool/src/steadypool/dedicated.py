"""A connection of one's own: native `$1` placeholders, one round trip a statement, the driver's object in reach.

Statements run in autocommit unless `transaction()` says otherwise. All driver errors come through as they are;
what steadypool adds are the limits, and names for what the driver leaves nameless.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from steadypool import errors
from steadypool.clock import Clock
from steadypool.deadline import CLIENT_GRACE, TimeLimit, nearest_end
from steadypool.errors import Elapsed, Phase, Report
from steadypool.fingerprint import fingerprint


class Row(Protocol):
    """A row: values by position or by column name."""

    def __getitem__(self, key: Any) -> Any: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    def keys(self) -> Any: ...  # noqa: D102


class NamedRow(tuple[Any, ...]):
    """A row of psycopg that can be read by position and by column name, like asyncpg's."""

    _names: tuple[str, ...]

    def __new__(cls, names: tuple[str, ...], values: Sequence[Any]) -> NamedRow:
        """A row of `values` under `names`."""
        row = super().__new__(cls, values)
        row._names = names
        return row

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(self._names.index(key) if isinstance(key, str) else key)

    def keys(self) -> tuple[str, ...]:
        """The column names."""
        return self._names


class Dialogue(Protocol):
    """How to talk to one driver: what `Dedicated` needs of it."""

    async def fetch(self, sql: str, args: tuple[Any, ...]) -> Sequence[Row]:
        """Run one statement and return its rows."""
        ...

    async def execute(self, sql: str, args: tuple[Any, ...]) -> str:
        """Run one statement and return its command tag."""
        ...


class AsyncpgDialogue:
    """Over an `asyncpg.Connection`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def fetch(self, sql: str, args: tuple[Any, ...]) -> Sequence[Row]:
        """Run one statement and return its rows."""
        return await self._connection.fetch(sql, *args)

    async def execute(self, sql: str, args: tuple[Any, ...]) -> str:
        """Run one statement and return its command tag."""
        return await self._connection.execute(sql, *args)


class PsycopgDialogue:
    """Over a `psycopg.AsyncConnection`, with the server's own placeholders."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def _run(self, sql: str, args: tuple[Any, ...]) -> Any:
        import psycopg

        cursor = psycopg.AsyncRawCursor(self._connection)
        await cursor.execute(sql.encode(), args or None)
        return cursor

    async def fetch(self, sql: str, args: tuple[Any, ...]) -> Sequence[Row]:
        """Run one statement and return its rows."""
        cursor = await self._run(sql, args)
        if cursor.description is None:
            return []
        names = tuple(column.name for column in cursor.description)
        return [NamedRow(names, row) for row in await cursor.fetchall()]

    async def execute(self, sql: str, args: tuple[Any, ...]) -> str:
        """Run one statement and return its command tag."""
        return (await self._run(sql, args)).statusmessage or ""


class Dedicated:
    """What `Database.connection()` yields.

    `driver_connection` is the driver's own object, for everything that is not here (COPY, cursors, LISTEN).
    """

    def __init__(
        self,
        driver_connection: Any,
        dialogue: Dialogue,
        *,
        clock: Clock,
        statement_timeout: float | None,
        workload: str | None,
        snapshot: Callable[[], errors.PoolSnapshot],
        touch: Callable[[], None],
    ) -> None:
        self.driver_connection = driver_connection
        self._dialogue = dialogue
        self._clock = clock
        self._statement_timeout = statement_timeout
        self._workload = workload
        self._snapshot = snapshot
        self._touch = touch
        self._depth = 0

    async def fetch(self, sql: str, *args: Any) -> Sequence[Row]:
        """All rows of a statement with `$1` placeholders.

        Raises:
            errors.StatementTimeout: it ran longer than the limit and the server did not say so itself.
            errors.DeadlineExceeded: the caller's deadline passed.
        """
        return await self._bounded(sql, self._dialogue.fetch(sql, args))

    async def fetchrow(self, sql: str, *args: Any) -> Row | None:
        """The first row, or None."""
        rows = await self.fetch(sql, *args)
        return rows[0] if rows else None

    async def fetchval(self, sql: str, *args: Any) -> Any:
        """The first column of the first row, or None."""
        row = await self.fetchrow(sql, *args)
        return None if row is None else row[0]

    async def execute(self, sql: str, *args: Any) -> str:
        """Run a statement; returns its command tag, such as `INSERT 0 1`."""
        return await self._bounded(sql, self._dialogue.execute(sql, args))

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None]:
        """A transaction around the block; inside another one, a savepoint.

        Raises:
            errors.SteadypoolError: COMMIT was answered by a rollback, because a statement inside had failed.
        """
        depth, savepoint = self._depth, f"steadypool_{self._depth}"
        await self.execute(f"SAVEPOINT {savepoint}" if depth else "BEGIN")
        self._depth += 1
        try:
            yield
        except Exception:
            await self.execute(f"ROLLBACK TO SAVEPOINT {savepoint}" if depth else "ROLLBACK")
            raise
        else:
            tag = await self.execute(f"RELEASE SAVEPOINT {savepoint}" if depth else "COMMIT")
            if tag == "ROLLBACK":
                raise errors.TransactionRolledBack(
                    "COMMIT was answered by ROLLBACK: a statement in the transaction had failed, and its error "
                    "was not let through",
                    Report(Phase.EXECUTING),
                )
        finally:
            # A cancellation sends nothing: whoever yielded this connection cuts it off.
            self._depth = depth

    async def _bounded(self, sql: str, work: Coroutine[Any, Any, Any]) -> Any:
        own = None if self._statement_timeout is None else self._statement_timeout + CLIENT_GRACE
        started = self._clock.monotonic()
        seconds, deadline = nearest_end(own, started)
        limit = TimeLimit(seconds)
        try:
            with limit:
                result = await work
        except TimeoutError as error:
            if not limit.expired:
                raise
            elapsed = self._clock.monotonic() - started
            report = Report(Phase.EXECUTING, Elapsed(executing=elapsed), None, None, True, self._snapshot())
            name = fingerprint(sql)
            if deadline is not None:
                raise errors.DeadlineExceeded(
                    f"deadline of {deadline.seconds:.2f}s passed while executing, {elapsed:.2f}s into: {name}",
                    report,
                ).with_report(deadline=deadline.seconds) from error
            what = f" on workload {self._workload!r}" if self._workload else ""
            raise errors.StatementTimeout(
                f"no answer after {elapsed:.2f}s{what}: {name}; the connection was dropped", report
            ) from error
        self._touch()
        return result
