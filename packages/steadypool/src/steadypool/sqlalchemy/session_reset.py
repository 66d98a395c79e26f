"""Making a session clean before its connection goes to the next holder.

What a holder changed is known from the text of its statements (`session_state.touches`), and from the settings that
the server reports. The reset is one flight. Over the pipelined driver it is sent when the connection comes back and
nothing waits for it: whatever the next holder sends comes behind it, and where it fails the connection ends. The pool
waits for the answer before it hands the connection out where the reset changes a reported setting, on which depends how
the next holder's texts and values are sent, after PREPARE and LISTEN, and over the other drivers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy.util import greenlet_spawn

from steadypool._sql.session_state import DEALLOCATE, REPORTED, RESET, Changes
from steadypool.settings.database import Reset
from steadypool.sqlalchemy.client_state import CLIENT_STATES

if TYPE_CHECKING:
    from steadypool.sqlalchemy.pool import SteadyPool
    from steadypool.sqlalchemy.record import Record

Reported: TypeAlias = tuple[tuple[Any, Any], ...]
"""Settings as the server reported them: names, as the driver takes them, and values."""

_REPORTED_BY_ASYNCPG = ("search_path", "TimeZone", "session_authorization", "is_superuser", "client_encoding")
"""asyncpg takes more than a microsecond for each."""
_NO_SESSION_STATE = ("sqlalchemy.", "steadypool.", "opentelemetry.")
"""Modules whose handlers of `connect` change nothing in the session on the server."""
_WRAPS_ANOTHER = "sqlalchemy.event."
"""Modules with what SQLAlchemy puts around a handler of the application (`named=True`)."""


class SessionReset:
    """When and how the connections of an engine are made clean.

    Args:
        mode: `touched`: after a use that changed the session; `always`: after every use.
        own_creator: whether a function of the application opens the connections, and may set something.
    """

    def __init__(self, mode: Reset, *, own_creator: bool = False) -> None:
        self._always = mode is Reset.ALWAYS
        self._own_creator = own_creator
        self.on_connect: Callable[[Any, Any], None] | None = None
        """What `Database(on_connect=…)` does to a new session; done again after a reset. It gets the DBAPI connection
        and its record, in a greenlet."""

    def opened(self, pool: SteadyPool, record: Record) -> None:
        """Remember how the server reports a clean session: a new one, or one just reset.

        A server whose configuration is reloaded reports other values in sessions that nothing has changed.
        """
        reported = _REPORTED[pool.dialect.driver](record.driver_connection)
        record.reported = tuple((name, value) for name, value in reported if value is not None)
        record.client_state = CLIENT_STATES[pool.dialect.driver](record.driver_connection)
        self.forget(record)

    def is_touched(self, record: Record) -> bool:
        """Whether a statement since the last reset may have changed the session."""
        return any(changes.any for changes in _changes_of(record))

    def forget(self, record: Record) -> None:
        """Take the session for clean."""
        for changes in _changes_of(record):
            changes.forget()

    def begin(self, pool: SteadyPool, record: Record) -> bool:
        """Send the reset if one is due; True where the pool has to wait for `clean`.

        It is due in an open transaction too, which ends by it: what was set in there would come into force later.
        """
        _restore_client(record)
        changed = self._is_changed(pool, record)
        if not (self._always or changed or self.is_touched(record)):
            return False
        if not pool.dialect.pooler_watch.keeps_statements:
            # The server's session is not ours: the pooler lends it to others in the middle of anything.
            self.forget(record)
            return False
        in_transaction = pool.dialect.in_transaction(record.driver_connection)
        if in_transaction or changed or _is_thorough(record) or not self.can_post(pool):
            return True
        self._post(pool, record)
        return False

    async def clean(self, pool: SteadyPool, record: Record) -> None:
        """Make the session clean if it is not, and wait for that.

        A reported setting may be one of the transaction whose ROLLBACK is on its way: its answer comes first.
        """
        connection: Any = record.driver_connection
        if getattr(connection, "pending", 0):
            await pool.dialect.prove(connection, select=False)
        _restore_client(record)
        due = self._always or self.is_touched(record) or self._is_changed(pool, record)
        if due and pool.dialect.pooler_watch.keeps_statements:
            await self._run(pool, record)

    async def _run(self, pool: SteadyPool, record: Record) -> None:
        """Make the session as it was after `connect`.

        Raises:
            RuntimeError: the application may have set something when it was opened, which cannot be done again.
        """
        if self._is_set_up_by_application(pool):
            raise RuntimeError(
                "a connection that the application opens, or sets up in event handlers, is replaced, not reset"
            )
        statements = (*RESET, DEALLOCATE) if _is_thorough(record) else RESET
        await _RESETS[pool.dialect.driver](record.driver_connection, statements)
        if self.on_connect is not None:
            await greenlet_spawn(self.on_connect, record.dbapi_connection, record)
        self.opened(pool, record)

    def can_post(self, pool: SteadyPool) -> bool:
        """Whether the reset needs no answer before what follows it."""
        return (
            pool.dialect.driver == "steadypool"
            and self.on_connect is None
            and not pool.dialect.pooler_watch.one_at_a_time
            and not self._is_set_up_by_application(pool)
        )

    def _is_set_up_by_application(self, pool: SteadyPool) -> bool:
        """Whether a connection is opened, or set up, by what cannot be called again for an open one."""
        handlers: Any = pool.dispatch.connect
        dialect: Any = pool.dialect
        return self._own_creator or bool(dialect.dispatch.do_connect) or any(map(_may_set, handlers))

    def _post(self, pool: SteadyPool, record: Record) -> None:
        from steadypool.pipeline import Batch, Statement

        connection: Any = record.driver_connection
        statements = [Statement(sql, prepare=False) for sql in RESET]
        connection.post(Batch(statements, limit=pool.options.leave_timeout))
        self.forget(record)

    def _is_changed(self, pool: SteadyPool, record: Record) -> bool:
        return _REPORTS[pool.dialect.driver](record.driver_connection, record.reported)


def _restore_client(record: Record) -> None:
    if record.client_state is not None:
        record.client_state.restore(record.driver_connection)


def _may_set(handler: Any) -> bool:
    module = str(handler.__module__)
    return module.startswith(_WRAPS_ANOTHER) or not module.startswith(_NO_SESSION_STATE)


def _changes_of(record: Record) -> list[Changes]:
    """Of the statements that were run by way of the library, and by way of the connection itself, if that sees them."""
    statements = getattr(record.driver_connection, "statements", None)
    return [record.changes] if statements is None else [record.changes, statements.changes]


def _is_thorough(record: Record) -> bool:
    return any(changes.thorough for changes in _changes_of(record))


def _reported_libpq(connection: Any) -> Reported:
    return tuple((name, connection.pgconn.parameter_status(name)) for name in map(str.encode, REPORTED))


def _reported_asyncpg(connection: Any) -> Reported:
    settings = connection.get_settings()
    return tuple((name, getattr(settings, name, None)) for name in _REPORTED_BY_ASYNCPG)


def _differs_libpq(connection: Any, reported: Reported) -> bool:
    status = connection.pgconn.parameter_status
    return any(status(name) != value for name, value in reported)


def _differs_asyncpg(connection: Any, reported: Reported) -> bool:
    settings = connection.get_settings()
    return bool(connection._listeners) or any(getattr(settings, name) != value for name, value in reported)


async def _reset_asyncpg(connection: Any, statements: Sequence[str]) -> None:
    """By the simple protocol, in one round trip."""
    await connection.execute("; ".join(statements))
    connection._listeners.clear()  # as asyncpg's own reset() does: it would not LISTEN again


async def _reset_psycopg(connection: Any, statements: Sequence[str]) -> None:
    """In one round trip, in autocommit so that no transaction is begun around it."""
    before = connection.autocommit
    await connection.set_autocommit(True)
    await connection.execute("; ".join(statements), prepare=False)
    await connection.set_autocommit(before)
    _forget_notifications(connection)


async def _reset_steadypool(connection: Any, statements: Sequence[str]) -> None:
    from steadypool.pipeline import Batch, Statement

    await connection.run(Batch([Statement(sql, prepare=False) for sql in statements]))
    _forget_notifications(connection.psycopg_connection)


def _forget_notifications(connection: Any) -> None:
    """Those that the last holder listened for, which psycopg keeps for the next `notifies()`."""
    backlog = getattr(connection, "_notifies_backlog", None)
    if backlog is not None:
        backlog.clear()


_REPORTED: Mapping[str, Callable[[Any], Reported]] = {
    "asyncpg": _reported_asyncpg,
    "psycopg": _reported_libpq,
    "steadypool": _reported_libpq,
}
_REPORTS: Mapping[str, Callable[[Any, Reported], bool]] = {
    "asyncpg": _differs_asyncpg,
    "psycopg": _differs_libpq,
    "steadypool": _differs_libpq,
}
_RESETS: Mapping[str, Callable[[Any, Sequence[str]], Awaitable[None]]] = {
    "asyncpg": _reset_asyncpg,
    "psycopg": _reset_psycopg,
    "steadypool": _reset_steadypool,
}
