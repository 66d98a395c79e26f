"""What travels over a pipelined connection: statements that end in one Sync, and what became of each.

Outside a transaction a segment is one transaction of its own: all of it takes effect, or nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from psycopg.abc import Transformer
from psycopg.pq import abc

from steadypool._sql.texts import decoded
from steadypool.pipeline.unread import Flooded

Row = TypeVar("Row")


class ConnectionClosed(psycopg.OperationalError):
    """The connection ended, or was ended, before the segment was answered.

    `sent` is whether any of it may have reached the server, `answered` whether the server had answered the first
    statement of it, `sqlstate` and `words` what the server said last, None where it ended without a word.
    """

    sent: bool
    answered: bool

    def __init__(
        self,
        message: str,
        *,
        sent: bool,
        answered: bool = False,
        sqlstate: str | None = None,
        words: str | None = None,
    ) -> None:
        super().__init__(message)
        self.words = words
        self.sent = sent
        self.answered = answered
        self.sqlstate = sqlstate


class BatchTimeout(ConnectionClosed):
    """The server did not answer the segment within its limit; the connection was ended because of it."""


class PingTimeout(ConnectionClosed):
    """The server did not begin to answer within the segment's `ping_limit`; the connection was ended because of it."""


class SessionModified(ConnectionClosed):
    """The segment left something behind that would have reached strangers; the connection was ended because of it."""


class ResultTooLarge(psycopg.errors.ProgramLimitExceeded):
    """The result had more bytes than its segment allows; what came was thrown away, the connection is fine."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a result: its name, the type's OID, its modifier, and the bytes of a value (-1: they vary)."""

    name: str
    type: int
    modifier: int
    size: int


class Statement:
    """One statement of a segment.

    Args:
        sql: with `$1` placeholders.
        parameters: Python values, adapted as psycopg does it.
        prepare: whether it may become a prepared statement on the server; BEGIN and its like need not.
    """

    __slots__ = ("parameters", "prepare", "sql")

    def __init__(self, sql: str, parameters: Sequence[Any] = (), *, prepare: bool = True) -> None:
        self.sql = sql
        self.parameters = parameters
        self.prepare = prepare


class Batch:
    """Statements that are sent together and end in one Sync; none of them is a bare Sync.

    Args:
        statements: in their order; after one that fails the rest is not run.
        prelude: how many statements at the beginning only prepare the ground (BEGIN, SET LOCAL): a segment in which
            the first statement after them meets a stale prepared statement is sent once more, from the beginning.
        ping: ask for the answer to the first statement at once: `answered` tells that the server lives, although
            the segment takes long.
        limit: seconds that it may take from when it is the next to be answered; none by default. Then the
            connection is aborted.
        byte_limit: bytes that its rows may have; none by default.

    Example:
        >>> Batch([Statement("begin", prepare=False), Statement("select $1::int", (7,))], prelude=1, ping=True)
    """

    # What most segments never change stays with the class: several are made in every use of a connection.
    ping = False
    must_succeed = False
    """Whether the connection is aborted where it fails, since nobody waits for it."""
    lingers = False
    """Whether it need not go out at once."""
    sent = False
    """Whether any of it may have reached the server."""
    answered = False
    """Whether the server has answered the first statement."""
    ping_limit: float | None = None
    """Seconds in which the server has to begin to answer; then the connection is ended by PingTimeout."""
    error: psycopg.Error | None = None
    failed_at: int | None = None
    """The index of the statement that failed; None where it was the commit that the Sync is."""
    repeated = False
    took = 0.0
    """Seconds from when it was the next to be answered until it was."""
    future: asyncio.Future[list[Result]] | None = None
    """Made by `send`, unless somebody waits for it already."""
    on_settled: Callable[[Any], None] | None = None
    """Called with it when its future was settled."""
    on_repeated: Callable[[Any], None] | None = None
    """Called with it when it was sent once more, behind all that had been sent after it."""

    def __init__(
        self,
        statements: Sequence[Statement],
        prelude: int = 0,
        *,
        ping: bool = False,
        limit: float | None = None,
        byte_limit: int | None = None,
    ) -> None:
        self.statements = statements
        self.prelude = prelude
        self.limit = limit
        self.byte_limit = byte_limit
        self.results: list[Result] = []
        if ping:
            self.ping = True

    @property
    def due_within(self) -> float | None:
        """Seconds from when it is the next to be answered until its next answer is due; None for no limit."""
        ping = None if self.answered else self.ping_limit
        if ping is None or self.limit is None:
            return self.limit if ping is None else ping
        return min(ping, self.limit)


class Names(tuple[str, ...]):
    """The names of a result's columns, and what else was made of its columns once.

    Those of a prepared statement stay the same, so what is made of them is made once for all its results.
    """

    columns: list[Column] | None = None
    description: tuple[tuple[Any, ...], ...] | None = None


def names_in(result: abc.PGresult, encoding: str) -> Names:
    """The names of the columns of a result."""
    return Names([decoded(result.fname(i) or b"", encoding) for i in range(result.nfields)])


class Result:
    """What one statement gave. Rows are made when they are asked for, in the task that asks.

    `pgresult` is libpq's own object: the whole result, or the last, empty chunk of it. `transformer` makes the values.
    """

    __slots__ = ("_chunks", "_names", "pgresult", "transformer")

    def __init__(
        self,
        last: abc.PGresult,
        transformer: Transformer,
        chunks: list[abc.PGresult] | None = None,
        names: Names | None = None,
    ) -> None:
        self.pgresult = last
        self.transformer = transformer
        self._chunks = chunks
        self._names = names

    @property
    def tag(self) -> str:
        """The command tag, such as `INSERT 0 1`."""
        return (self._tagged.command_status or b"").decode()

    @property
    def affected(self) -> int | None:
        """Rows that were affected or returned; None where the command counts none."""
        chunks = self._chunks
        if chunks:
            return self.pgresult.ntuples + sum([chunk.ntuples for chunk in chunks])
        return self.pgresult.command_tuples

    @property
    def _tagged(self) -> abc.PGresult:
        """Where libpq put the tag: of rows in chunks, into the last chunk, unless that was a full one."""
        chunks = self._chunks
        return chunks[-1] if chunks and chunks[-1].command_status else self.pgresult

    @property
    def has_rows(self) -> bool:
        """Whether it is a result of rows, if only of none."""
        return self.pgresult.nfields > 0 or self.tag.startswith("SELECT")

    @property
    def names(self) -> Names:
        """The names of the columns."""
        if self._names is None:
            self._names = names_in(self.pgresult, self.transformer.encoding)
        return self._names

    @property
    def columns(self) -> list[Column]:
        """The columns."""
        names = self.names
        if names.columns is None:
            last = self.pgresult
            names.columns = [
                Column(name, last.ftype(i), last.fmod(i), last.fsize(i)) for i, name in enumerate(names)
            ]
        return names.columns

    @property
    def description(self) -> tuple[tuple[Any, ...], ...]:
        """The columns as PEP 249 describes them."""
        names = self._names or self.names
        if names.description is None:
            names.description = tuple(
                [(column.name, column.type, None, column.size, None, None, None) for column in self.columns]
            )
        return names.description

    def rows(self, make: Callable[[Sequence[Any]], Row] = tuple) -> list[Row]:
        """All rows, each made by `make` from its values.

        Raises:
            psycopg.DataError: a value is one that Python cannot hold.
        """
        transformer = self.transformer
        rows: list[Row] = []
        try:
            for part in self._chunks or (self.pgresult,):
                if count := part.ntuples:
                    transformer.set_pgresult(part)
                    rows += transformer.load_rows(0, count, make)
        finally:
            transformer.set_pgresult(None)
        return rows


def said_in(error: BaseException | None) -> tuple[str, str] | None:
    """What the server said, in an error that was made of its answer."""
    if not isinstance(error, psycopg.Error) or not error.sqlstate:
        return None
    return error.sqlstate, error.diag.message_primary or ""


def gone(
    reason: BaseException | None,
    segment: Batch,
    last_words: tuple[str, str] | None,
    otherwise: str = "the connection ended: it was aborted",
) -> ConnectionClosed:
    """The error of a segment whose connection ended, by `reason` and with these last words of the server."""
    code, words = last_words or (None, None)
    if words is None and isinstance(reason, Flooded):
        words = reason.words
    said = "" if reason is None else " ".join(str(reason).split()) or type(reason).__name__
    error = ConnectionClosed(
        f"the connection ended: {words or said}" if words or said else otherwise,
        sent=segment.sent,
        answered=segment.answered,
        sqlstate=code,
        words=words,
    )
    error.__cause__ = reason
    return error
