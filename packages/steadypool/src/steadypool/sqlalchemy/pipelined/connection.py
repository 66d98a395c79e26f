"""SQLAlchemy's view of one pipelined connection: when a transaction begins, and what travels with what.

The server is told of a transaction when there is something to do in it. Until then BEGIN waits, with its isolation
level and what is to be set for the transaction, and all of it goes out in the flight of the first statement.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy.engine.interfaces import AdaptedConnection
from sqlalchemy.util import await_only

from steadypool._sql.reads import only_reads
from steadypool.deadline import TimeLimit
from steadypool.pipeline import (
    Batch,
    BatchTimeout,
    ConnectionClosed,
    PingTimeout,
    PipelinedConnection,
    Result,
    SessionModified,
    Statement,
)
from steadypool.sqlalchemy.errors import TransactionRolledBack
from steadypool.sqlalchemy.pipelined.context import CHANGES_SCHEMA, AdapterContext
from steadypool.sqlalchemy.pipelined.cursor import Cursor, ServerSideCursor

_CLOSES_ALL = frozenset({b"CLOSE CURSOR ALL", b"DISCARD ALL"})
_BEGIN = Statement("BEGIN", prepare=False)
_COMMIT = Statement("COMMIT", prepare=False)
_ROLLBACK = Statement("ROLLBACK", prepare=False)


def roll_back_soon(connection: PipelinedConnection, limit: float | None) -> None:
    """Send a ROLLBACK whose answer has no reader: it is on its way when this returns, before whatever is sent next.

    Args:
        connection: in a transaction in which everything has succeeded, with nothing on its way.
        limit: seconds after which the connection is aborted if there is no answer.
    """
    connection.post(Batch([_ROLLBACK], limit=limit))


Renew: TypeAlias = Callable[["Connection", float | None], Awaitable[bool]]
"""Puts another connection in the place of a dead one; takes the moment since which that has been silent."""


class Connection(AdaptedConnection):
    """One connection as SQLAlchemy's dialects expect it from a driver (PEP 249, and what psycopg has beyond it).

    Args:
        dbapi: the module it is made by.
        connection: the pipelined connection underneath.
        surroundings: what it shares with the engine's other connections.
    """

    __slots__ = (
        "__weakref__",
        "_awaited",
        "_begun",
        "_changes_schema",
        "_failed",
        "_local",
        "_may_hold_locks",
        "_prepared",
        "_renew",
        "_schema",
        "_sends_as",
        "_surroundings",
        "_timer",
        "_timer_at",
        "_until",
        "_uses",
        "_xid",
        "autocommit",
        "dbapi",
        "deferrable",
        "held",
        "isolation_level",
        "ping_limit",
        "read_only",
        "statement_timeout",
    )

    _connection: PipelinedConnection  # pyright: ignore[reportIncompatibleVariableOverride]
    # The slot itself, since it is looked at several times in every use; SQLAlchemy's is a property in Python.
    driver_connection: Any = vars(AdaptedConnection)["_connection"]

    def __init__(
        self,
        dbapi: Any,
        connection: PipelinedConnection,
        surroundings: AdapterContext,
    ) -> None:
        self.dbapi = dbapi
        self._connection = connection  # pyright: ignore[reportIncompatibleVariableOverride]
        self._surroundings = surroundings
        self._schema = surroundings.schema
        self._changes_schema = False
        self.autocommit = False
        self.isolation_level: str | None = None
        self.read_only: bool | None = None
        self.deferrable: bool | None = None
        self._renew: Renew | None = None
        self.ping_limit: float | None = None
        """Seconds in which the first use has to be answered, if the connection has been idle for long."""
        self.statement_timeout = surroundings.statement_timeout
        """Seconds that the last statement might run on the server: its COMMIT may take as long."""
        self._awaited: asyncio.Future[list[Result]] | None = None
        self._until = self._timer_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._local: dict[str, str] = {}
        self._begun = False
        self._failed = False
        self._may_hold_locks = False
        self._uses: int = 0
        self._xid: str | None = None
        self._prepared = False
        self.held: set[str] = set()
        """Cursors WITH HOLD that are open on the server: they would outlive this use of the connection."""
        self._sends_as = connection.sends_as

    # -- what can be seen --------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._connection.closed

    broken = closed

    @property
    def in_transaction(self) -> bool:
        """Whether the server has been told of a transaction that has not ended."""
        return self._begun

    @property
    def is_healthy(self) -> bool:
        """Whether it is in a transaction in which everything has succeeded."""
        return self._begun and not self._failed

    @property
    def info(self) -> Any:
        """psycopg's description of the connection."""
        return self._psycopg.info

    @property
    def adapters(self) -> Any:
        """psycopg's adapters, to register types with."""
        return self._psycopg.adapters

    @property
    def _psycopg(self) -> Any:
        return self._connection.psycopg_connection

    def add_notice_handler(self, handler: Callable[[Any], None]) -> None:
        """As psycopg's."""
        self._psycopg.add_notice_handler(handler)

    # -- statements --------------------------------------------------------------------------------------------

    def cursor(self, name: str | None = None) -> Cursor:
        """A cursor; with a name, one whose rows stay on the server until they are fetched."""
        return ServerSideCursor(self, name, self._surroundings.keeps_session) if name else Cursor(self)

    def execute(self, operation: str, parameters: Any = None) -> Cursor:
        """Run a statement with a cursor of its own, and return that: SQLAlchemy's recipe for `reset` events does so."""
        cursor = self.cursor()
        cursor.execute(operation, parameters)
        return cursor

    def set_local(self, settings: Mapping[str, str]) -> None:
        """Set these for the transaction that has begun for SQLAlchemy, but not yet for the server."""
        self._local.update(settings)

    async def run(
        self,
        statements: Sequence[Statement],
        *,
        until: float | None = None,
        repeatable: bool = True,
    ) -> list[Result]:
        """Send statements in one flight, with the beginning of the transaction where it has not begun.

        Where the connection turns out to be dead, or does not begin to answer within `ping_limit`, its first flight
        is sent again over another, once: unless the server began to answer, or the flight is not `repeatable`.
        It carries no COMMIT, so the server undoes what it did of the first one.

        Args:
            statements: in their order.
            until: the moment at which they are given up; not for what needs a proof before it. Nobody knows what the
                connection would answer next, so it is the caller's to end it.
            repeatable: whether they may be sent again.

        Raises:
            Overdue: they took longer.
            psycopg.Error: what the server said, or why the connection ended.
        """
        if self.ping_limit is not None and self.autocommit:
            await self._prove_autocommit()
        if self._schema != self._surroundings.schema:
            self._schema = self._surroundings.schema
            self._connection.statements.forget_all()
        begun = self._begun
        if begun or self.autocommit:
            segment = Batch(statements)
        else:
            prelude = self._prelude()
            segment = Batch([*prelude, *statements], prelude=len(prelude), ping=True)
            segment.ping_limit = self.ping_limit
        unseen = begun and self._connection.uses != self._uses
        answer = self._connection.send(segment)  # raises where nothing can be sent; then nothing has begun
        self._uses = self._connection.uses
        if segment.prelude:
            self._begun, self._failed = True, False
            self._sends_as = self._connection.sends_as
            self._may_hold_locks = self.isolation_level == "SERIALIZABLE"  # whose reads others can meet
        if self._begun and not self._may_hold_locks:
            self._may_hold_locks = unseen or not all(only_reads(statement.sql) for statement in statements)
        if until is not None:
            self._give_up_at(until, answer)
        try:
            results = await answer
        except ConnectionClosed as gone:
            self._failed = True
            if not repeatable or begun or (self.autocommit and not self.read_only):
                raise
            return await self._over_another(statements, gone, until)
        except BaseException:
            self._failed = True
            raise
        finally:
            self._awaited = None
        self.ping_limit = self._renew = None  # from here on it may know things that another does not
        self._look_at_tags(results)
        return results[segment.prelude :] if segment.prelude else results

    def _look_at_tags(self, results: Sequence[Result]) -> None:
        for result in results:
            if self.held and result.pgresult.command_status in _CLOSES_ALL:
                self.held.clear()
            if result.pgresult.command_status in CHANGES_SCHEMA:
                self._schema_changed()
                break

    async def run_script(self, sql: str, *, until: float | None = None) -> list[Result]:
        """Run several statements in one text, as psycopg does without parameters.

        Args:
            sql: the text; it may end the transaction that it began in.
            until: as for `run`.

        Raises:
            Overdue: they took longer.
            psycopg.Error: what the server said to one of them, or why the connection ended.
        """
        left = None if until is None else max(0.0, until - self._surroundings.clock.monotonic())
        timer = TimeLimit(left)
        try:
            with timer:
                if not self._begun and not self.autocommit:
                    await self.run([])
                await self.prove()
                results = await self._connection.run_script(sql)
        except BaseException as error:
            self._failed = True
            if timer.expired and isinstance(error, TimeoutError):
                raise BatchTimeout("no answer within the limit", sent=True) from error
            raise
        self._begun = self._may_hold_locks = self._connection.in_transaction
        self._schema_changed()
        return results

    def run_async(self, fn: Callable[[Any], Awaitable[Any]]) -> Any:
        """Run the awaitable that `fn` returns for psycopg's connection; a reset forgets what it registers.

        Example:
            >>> dbapi_connection.run_async(register_vector_async)
        """

        async def run() -> Any:
            await self.prove()
            self._renew = None  # what is done there, another connection would not know
            async with self._connection.plain() as raw:
                return await fn(raw)

        return await_only(run())

    # -- the limit of a statement ------------------------------------------------------------------------------

    def _give_up_at(self, until: float, answer: asyncio.Future[list[Result]]) -> None:
        """Nobody waits any longer than that for an answer.

        Nearly all come in time, so the timer is left to run for the statements after it, and armed anew only for
        one that ends earlier.
        """
        self._until, self._awaited = until, answer
        if until < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = until
            left = max(0.0, until - self._surroundings.clock.monotonic())
            # By a weak reference: a connection that has ended need not live until then.
            self._timer = asyncio.get_running_loop().call_later(left, _look_at_limit, weakref.ref(self))

    def look_at_limit(self) -> None:
        """The timer is up: give up what is waited for, if it is its time."""
        self._timer, self._timer_at = None, math.inf
        answer = self._awaited
        if answer is None or answer.done():
            return
        if self._until > self._surroundings.clock.monotonic():
            self._give_up_at(self._until, answer)
            return
        self._connection.read_now()
        if not answer.done():
            answer.set_exception(BatchTimeout("no answer within the limit", sent=True))

    # -- a connection that turns out to be dead ----------------------------------------------------------------

    def lease_begins(self, renew: Renew, *, ping_limit: float | None) -> None:
        """A lease begins.

        Args:
            renew: puts another connection in the place of a dead one by `adopt`; returns whether it could. Takes this
                connection, and the moment since which it has been silent, None where it has ended.
            ping_limit: seconds in which the first use has to be answered; None for a connection that has just proven
                that it lives.
        """
        self._renew = renew
        self.ping_limit = ping_limit

    def twin(self) -> Connection:
        """The same connection once more, for whoever buries it."""
        return Connection(self.dbapi, self._connection, self._surroundings)

    def adopt(self, other: Connection) -> None:
        """Go on with the connection of another, which nobody uses."""
        self._connection = other._connection  # pyright: ignore[reportIncompatibleVariableOverride]
        self._schema, self.held = other._schema, other.held
        self._begun = self._failed = False
        self.ping_limit = None  # the pool has had it proven

    async def prove(self) -> None:
        """Send a Sync before what cannot be sent twice, if the connection has been idle for long."""
        if self.ping_limit is None:
            return
        try:
            await self._connection.run(self._ping())
        except ConnectionClosed as gone:
            if not await self._renewed(gone):
                raise
        self.ping_limit = None

    async def _prove_autocommit(self) -> None:
        """What may be sent twice travels right behind the Sync; all else waits for its answer."""
        if self.read_only and not self._surroundings.one_at_a_time():
            self._connection.post(self._ping())
        else:
            await self.prove()

    def _ping(self) -> Batch:
        ping = Batch([])
        ping.ping_limit = self.ping_limit
        return ping

    async def _over_another(
        self, statements: Sequence[Statement], gone: ConnectionClosed, until: float | None
    ) -> list[Result]:
        """The first flight once more, if there is another connection, within the time that is left."""
        left = None if until is None else max(0.0, until - self._surroundings.clock.monotonic())
        timer = TimeLimit(left)
        try:
            with timer:
                if not await self._renewed(gone):
                    raise gone
                return await self.run(statements, repeatable=False)
        except TimeoutError as error:
            if not timer.expired:
                raise
            raise BatchTimeout("no answer within the limit, from another connection", sent=True) from error

    async def _renewed(self, gone: ConnectionClosed) -> bool:
        """Whether there is another connection now; at most once a lease."""
        if gone.answered or isinstance(gone, BatchTimeout | SessionModified):
            return False
        renew, self._renew = self._renew, None
        if renew is None:
            return False
        silent_since: float | None = None
        if self.ping_limit is not None and PingTimeout in (type(gone), type(gone.__cause__)):
            silent_since = self._surroundings.clock.monotonic() - self.ping_limit
        return await renew(self, silent_since)

    def _schema_changed(self) -> None:
        """Seen here at once, by others after the commit, and here again after a rollback."""
        self._surroundings.schema += 1
        self._changes_schema = self._begun

    def _prelude(self) -> list[Statement]:
        """What begins the transaction."""
        prelude = [_BEGIN]
        if not (self.isolation_level is self.read_only is self.deferrable is None):
            prelude = [self._begin_as_set()]
        # `_local` is kept until the transaction ends: where it has to begin twice, it begins the same way.
        if settings := {**self._surroundings.every_transaction(), **self._local}:
            calls = ", ".join(
                f"set_config(${2 * i + 1}::text, ${2 * i + 2}::text, true)" for i in range(len(settings))
            )
            pairs = [word for pair in settings.items() for word in pair]
            prelude.append(Statement(f"SELECT {calls}", pairs))
        return prelude

    def _begin_as_set(self) -> Statement:
        begin = "BEGIN"
        if self.isolation_level is not None:
            begin += f" ISOLATION LEVEL {self.isolation_level}"
        if self.read_only is not None:
            begin += " READ ONLY" if self.read_only else " READ WRITE"
        if self.deferrable is not None:
            begin += " DEFERRABLE" if self.deferrable else " NOT DEFERRABLE"
        return Statement(begin, prepare=False)

    # -- transactions ------------------------------------------------------------------------------------------

    def commit(self, until: float | None = None) -> None:
        """Commit what has begun.

        Args:
            until: the moment at which it is given up.

        Raises:
            errors.TransactionRolledBack: the server rolled back instead: a statement had failed.
            Overdue: it took longer.
        """
        self._local.clear()
        if self._is_open():
            tag = await_only(self._end(_COMMIT, until))
            if tag == "ROLLBACK":
                raise TransactionRolledBack.at_commit()

    def rollback(self) -> None:
        """Roll back what has begun; when this returns, others can have what the transaction had locked.

        The ROLLBACK of one that has only read, and succeeded in that, is sent and not waited for.
        """
        if self._local:
            self._local.clear()
        if self.held:
            self.close_held()
        if not self._is_open():
            return
        if not self.rolls_back_at_once():
            await_only(self._end(_ROLLBACK))
            return
        self._begun = False
        if self._changes_schema:
            self._schema_changed()
        roll_back_soon(self._connection, self._surroundings.leave_timeout)

    def close_held(self) -> None:
        """Close the cursors of streams that were left early."""
        names, self.held = self.held, set()
        if not self.closed:
            close = [Statement(f"CLOSE {name}", prepare=False) for name in names]
            segment = Batch(close, limit=self._surroundings.leave_timeout)
            if self._surroundings.one_at_a_time():
                await_only(self._connection.run(segment))
            else:
                self._connection.post(segment)

    def rolls_back_at_once(self) -> bool:
        """Whether `rollback` waits for nothing: there is no transaction, or it has only read, and succeeded in that."""
        if not self._is_open():
            return True
        connection = self._connection
        return (
            self._begun
            and not self._failed
            and not self._may_hold_locks
            and connection.uses == self._uses  # else something was sent that was not seen here
            and not connection.pending
            and connection.sends_as
            is self._sends_as  # else what follows would be sent as inside the transaction
            and connection.transaction_status is TransactionStatus.INTRANS
            and not self._surroundings.one_at_a_time()
        )

    def _is_open(self) -> bool:
        """Whether there is a transaction to end: one of ours, or one that was begun by hand."""
        return self._begun or self._connection.in_transaction

    async def _end(self, statement: Statement, until: float | None = None) -> str:
        self._begun = False
        if self._changes_schema:
            self._schema_changed()
        answer = self._connection.send(Batch([statement]))
        if until is not None:
            self._give_up_at(until, answer)
        try:
            return (await answer)[0].tag
        finally:
            self._awaited = None

    def _run_alone(self, sql: str) -> None:
        """Run a statement that cannot be in a transaction."""
        if self._begun:
            self.rollback()
        await_only(self._connection.run(Batch([Statement(sql, prepare=False)])))

    # -- settings of transactions ------------------------------------------------------------------------------

    def set_autocommit(self, value: bool) -> None:
        """Whether each statement is a transaction of its own."""
        self._refuse_inside("autocommit")
        self.autocommit = value

    def set_isolation_level(self, value: str | None) -> None:
        """The level of each transaction from now on, in SQL's words; None for the server's default."""
        self._refuse_inside("isolation_level")
        self.isolation_level = value

    def set_read_only(self, value: bool | None) -> None:
        """Whether each transaction from now on is READ ONLY; None for the server's default."""
        self._refuse_inside("read_only")
        self.read_only = value

    def set_deferrable(self, value: bool | None) -> None:
        """Whether each transaction from now on is DEFERRABLE; None for the server's default."""
        self._refuse_inside("deferrable")
        self.deferrable = value

    def _refuse_inside(self, what: str) -> None:
        if self._begun:
            raise psycopg.ProgrammingError(f"can't change {what!r} now: the connection is in a transaction")

    # -- transactions in two phases ----------------------------------------------------------------------------

    def tpc_begin(self, xid: str) -> None:
        """The transaction that comes will be prepared under this name."""
        self._refuse_inside("the transaction")
        self._xid, self._prepared = str(xid), False

    def tpc_prepare(self) -> None:
        """First phase: from now on the transaction survives its connection."""
        prepare = Statement(f"PREPARE TRANSACTION {_literal(self._xid or '')}", prepare=False)
        await_only(self.run([prepare], repeatable=False))
        self._begun, self._prepared = False, True

    def tpc_commit(self, xid: str | None = None) -> None:
        """Second phase, or the only one where nothing was prepared."""
        self._second_phase("COMMIT PREPARED", xid, self.commit)

    def tpc_rollback(self, xid: str | None = None) -> None:
        """Undo it, prepared or not."""
        self._second_phase("ROLLBACK PREPARED", xid, self.rollback)

    def _second_phase(self, command: str, xid: str | None, in_one: Callable[[], None]) -> None:
        own, self._xid = self._xid, None
        was_prepared, self._prepared = self._prepared, False
        if xid is None and not was_prepared:
            in_one()
        elif (name := xid or own) is not None:
            self._run_alone(f"{command} {_literal(str(name))}")

    def tpc_recover(self) -> list[str]:
        """The names of the transactions that wait for their second phase."""
        sql = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
        results = await_only(self._connection.run(Batch([Statement(sql)])))
        rows: list[tuple[str]] = results[0].rows(tuple)
        return [name for (name,) in rows]

    # -- the end -----------------------------------------------------------------------------------------------

    def terminate(self) -> None:
        """Close the socket now. Never waits."""
        self._connection.abort()

    def close(self) -> None:
        """Say goodbye."""
        await_only(self._connection.close())


def _look_at_limit(connection: weakref.ref[Any]) -> None:
    alive = connection()
    if alive is not None:
        alive.look_at_limit()


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
