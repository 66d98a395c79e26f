"""Statements and their rows, as SQLAlchemy asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from psycopg.pq import ExecStatus
from sqlalchemy.util import await_only

from steadypool._sql.texts import has_several_statements
from steadypool.pipeline import Batch, Result, Statement

if TYPE_CHECKING:
    from steadypool.sqlalchemy.pipelined.connection import Connection

_FIRST_ROWS = 100
"""Rows that come with the declaration of a server-side cursor."""

_ROWS = int(ExecStatus.TUPLES_OK)

Description = tuple[tuple[Any, ...], ...]


class Cursor:
    """PEP 249's, over a connection of this package. Rows are here when `execute` returns."""

    __slots__ = ("_position", "_rows", "adapter", "arraysize", "description", "lastrowid", "rowcount")

    server_side = False

    def __init__(self, adapter: Connection) -> None:
        self.adapter = adapter
        self._rows: Sequence[tuple[Any, ...]] = ()
        self._position = 0
        self.arraysize = 1
        self.description: Description | None = None
        self.lastrowid: int | None = None
        self.rowcount = -1

    @property
    def _connection(self) -> Any:
        """The driver's connection; what bounds a statement needs to know it."""
        return self.adapter.driver_connection

    def execute(self, operation: str, parameters: Sequence[Any] | None = None) -> None:
        """Run one statement, with `$1` placeholders."""
        self.execute_until(None, operation, parameters)

    def execute_until(self, until: float | None, operation: str, parameters: Sequence[Any] | None) -> None:
        """As `execute`, given up at a moment as by `Connection.run`."""
        if not parameters and ";" in operation and has_several_statements(operation):
            # As with psycopg, what can be fetched is the first one's.
            self._take(await_only(self.adapter.run_script(operation, until=until))[0])
            return
        statement = Statement(operation, parameters or ())
        self._take(await_only(self.adapter.run([statement], until=until))[0])

    def executemany(self, operation: str, seq_of_parameters: Sequence[Sequence[Any]]) -> None:
        """Run one statement with each of these parameters, all of them in one flight."""
        results = await_only(
            self.adapter.run([Statement(operation, parameters) for parameters in seq_of_parameters])
        )
        self.description, self._rows, self._position = None, (), 0
        counted = [count for result in results if (count := result.affected) is not None]
        self.rowcount = sum(counted) if counted else -1

    def _take(self, result: Result) -> None:
        affected = result.affected
        self.rowcount = -1 if affected is None else affected
        if result.pgresult.status == _ROWS:
            self.description, self._rows = result.description, result.rows()
        else:
            self.description, self._rows = None, ()
        self._position = 0

    def fetchone(self) -> Any:
        """The next row, or None."""
        if self._position >= len(self._rows):
            return None
        self._position += 1
        return self._rows[self._position - 1]

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """The next rows."""
        start = self._position
        self._position = min(len(self._rows), start + (self.arraysize if size is None else size))
        return list(self._rows[start : self._position])

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        start, self._position = self._position, len(self._rows)
        return list(self._rows[start:]) if start else list(self._rows)

    def __iter__(self) -> Iterator[Any]:
        while (row := self.fetchone()) is not None:
            yield row

    def setinputsizes(self, *_sizes: Any) -> None:
        """Not needed: SQLAlchemy writes types into the statement."""

    def close(self) -> None:
        """Let go of the rows."""
        self._rows, self._position = (), 0

    async def _async_soft_close(self) -> None:
        """Nothing is open on the server, and the rows stay."""


class ServerSideCursor(Cursor):
    """Its rows stay on the server until they are fetched; the first ones come with the declaration.

    Args:
        adapter: the connection.
        name: of the cursor.
        keeps_session: whether the session is still the same after a transaction. Where it is not, the server refuses
            a cursor in autocommit.
    """

    __slots__ = ("_ended", "_held", "_keeps_session", "_name", "_open")

    server_side = True

    def __init__(self, adapter: Connection, name: str, keeps_session: Callable[[], bool]) -> None:
        super().__init__(adapter)
        self._keeps_session = keeps_session
        self._name = '"' + name.replace('"', '""') + '"'
        self._open = False
        self._held = False
        self._ended = False

    def execute(self, operation: str, parameters: Sequence[Any] | None = None) -> None:
        """Declare the cursor and fetch the first rows, in one flight."""
        # Without a transaction it lives as long as the session, which a pooler would lend to somebody else.
        self._held = self.adapter.autocommit and self._keeps_session()
        hold = " WITH HOLD" if self._held else ""
        declare = f"DECLARE {self._name} NO SCROLL CURSOR{hold} FOR {operation}"
        results = await_only(
            self.adapter.run([Statement(declare, parameters or (), prepare=False), self._fetch(_FIRST_ROWS)])
        )
        self._open = True
        if self._held:
            self.adapter.held.add(self._name)
        self._take(results[-1])
        self._ended = len(self._rows) < _FIRST_ROWS
        self.rowcount = -1

    def _fetch(self, rows: int | None) -> Statement:
        how_many = "ALL" if rows is None else str(rows)
        return Statement(f"FETCH FORWARD {how_many} FROM {self._name}", prepare=False)

    def _more(self, rows: int | None) -> None:
        """Get rows from the server until there are this many that were not fetched, or all."""
        left = self._rows[self._position :]
        missing = None if rows is None else rows - len(left)
        if not self._ended and (missing is None or missing > 0):
            results = await_only(self.adapter.run([self._fetch(missing)]))
            new: list[tuple[Any, ...]] = results[0].rows(tuple)
            self._ended = missing is None or len(new) < missing
            self._rows, self._position = [*left, *new], 0

    def fetchone(self) -> Any:
        """The next row, or None."""
        if self._position >= len(self._rows):
            self._more(_FIRST_ROWS)
        return super().fetchone()

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """The next rows."""
        size = self.arraysize if size is None else size
        self._more(size)
        return super().fetchmany(size)

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        self._more(None)
        return super().fetchall()

    def close(self) -> None:
        """Close it on the server, unless its transaction has ended, which did that."""
        super().close()
        opened, self._open = self._open, False
        if self._held:
            opened = opened and self._name in self.adapter.held
            self.adapter.held.discard(self._name)
        if opened and not self.adapter.closed and (self._held or self.adapter.is_healthy):
            await_only(self._connection.run(Batch([Statement(f"CLOSE {self._name}", prepare=False)])))
