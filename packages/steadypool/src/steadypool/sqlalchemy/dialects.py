"""SQLAlchemy's own asyncpg and psycopg dialects with bounds: nothing they await outlives its limit.

A statement is ended at its limit or at the caller's deadline, whichever is first; rollback and commit likewise;
termination cuts the socket at once instead of talking to a server that may not answer.
"""

from __future__ import annotations

import contextlib
import functools
import select
import weakref
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from typing import Any, cast

from sqlalchemy import URL, exc, util
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg, PGExecutionContext_asyncpg
from sqlalchemy.dialects.postgresql.base import PGReadOnlyConnectionCharacteristic
from sqlalchemy.dialects.postgresql.psycopg import PGDialectAsync_psycopg, PGExecutionContext_psycopg

from steadypool import errors
from steadypool.connect.dsn import ConnectTarget, Host, parse_url
from steadypool.connect.leaving import abort_asyncpg, abort_psycopg
from steadypool.connect.options import (
    ASYNCPG,
    PSYCOPG,
    SQLALCHEMY_OPTIONS,
    asyncpg_arguments,
    psycopg_arguments,
    sqlalchemy_options,
)
from steadypool.connect.outcome import classify_connect_error
from steadypool.deadline import CLIENT_GRACE, TimeLimit, nearest_end
from steadypool.refusal import hook_failed
from steadypool.settings import Password
from steadypool.sqlalchemy.cursors import BoundedCursor, BoundedCursors
from steadypool.sqlalchemy.guards import TIMEOUT_OPTION, Guards, LimitReached
from steadypool.sqlalchemy.pooler import PoolerWatch
from steadypool.sqlalchemy.telling import COMMIT, fairy_of, mark_commit, tell_statement

_IN_HOT_STANDBY = "in_hot_standby"
"""Reported at the start and whenever it changes, since PostgreSQL 14 (manual: Asynchronous Operations)."""


class GuardedDialect:
    """What both dialects have in common. Mixed in before SQLAlchemy's class."""

    driver: str
    library: str
    """What opens the connections: asyncpg or psycopg."""
    loaded_dbapi: Any

    def __init__(self, steadypool_guards: Guards | None = None, **kw: Any) -> None:
        super().__init__(**kw)
        self.guards = steadypool_guards or Guards()
        self._proven: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
        self._limits: weakref.WeakKeyDictionary[Any, float | None] = weakref.WeakKeyDictionary()
        self.pooler_watch = PoolerWatch(
            self.guards.pooler, self.guards.server_settings, self.guards.on_guards_lost
        )

    # -- bounds ------------------------------------------------------------------------------------------------

    def bounded(self, own: float | None, call: Callable[..., Any], *args: Any) -> Any:
        """Call something that awaits in the greenlet, for at most `own` seconds and not beyond the deadline."""
        limit, deadline = nearest_end(own, self.guards.clock.monotonic())
        timer = TimeLimit(limit)
        try:
            with timer:
                return call(*args)
        except TimeoutError as error:
            if not timer.expired or limit is None:
                raise
            raise LimitReached(limit, None if deadline is None else deadline.seconds) from error

    def _execute_bounded(
        self, call: Callable[..., Any], cursor: Any, args: tuple[Any, ...], context: Any
    ) -> None:
        server, connection = self.statement_timeout(context), _connection_of(cursor)
        self._limits[connection] = server
        started = self.guards.clock.monotonic()
        if context is not None:
            context.steadypool_started, context.steadypool_told = started, False
        self.bounded_statement(server, connection, call, cursor, *args, context)
        seconds = self.guards.clock.monotonic() - started
        if isinstance(cursor, BoundedCursor):
            cursor.executed(seconds)
        elif context is not None:
            context.steadypool_told = True
            tell_statement(fairy_of(context), args[0], seconds=seconds, rows=cursor.rowcount)

    def bounded_statement(
        self, server: float | None, driver_connection: Any, call: Callable[..., Any], *args: Any
    ) -> Any:
        """Call something that the server may work on for `server` seconds: it is given a little longer here."""
        with self.driver_limit(driver_connection, server):
            result = self.bounded(None if server is None else server + CLIENT_GRACE, call, *args)
        self.spoke(driver_connection)
        return result

    def driver_limit(
        self, driver_connection: Any, seconds: float | None
    ) -> contextlib.AbstractContextManager[None]:
        """Inside, the driver's own limit of a statement, if it has one, fits a limit of `seconds` on the server."""
        return contextlib.nullcontext()

    def bounded_cursor(self, cursor: Any, context: Any) -> BoundedCursor:
        """A server-side cursor, bounded like what is executed here."""
        return BoundedCursor(cursor, self, context, _connection_of(cursor))

    def statement_timeout(self, context: Any) -> float | None:
        """Seconds that this statement may run on the server, or None."""
        options: Mapping[str, Any] = context.execution_options if context is not None else {}
        return options.get(TIMEOUT_OPTION, self.guards.statement_timeout)

    def do_execute(self, cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
        """As SQLAlchemy's, bounded."""
        self._execute_bounded(super().do_execute, cursor, (statement, parameters), context)  # type: ignore[misc]

    def do_execute_no_params(self, cursor: Any, statement: Any, context: Any = None) -> None:
        """As SQLAlchemy's, bounded."""
        self._execute_bounded(super().do_execute_no_params, cursor, (statement,), context)  # type: ignore[misc]

    def do_executemany(self, cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
        """As SQLAlchemy's, bounded."""
        self._execute_bounded(super().do_executemany, cursor, (statement, parameters), context)  # type: ignore[misc]

    def do_begin(self, dbapi_connection: Any) -> None:
        """As SQLAlchemy's; behind a pooler the guards travel with the BEGIN."""
        super().do_begin(dbapi_connection)  # type: ignore[misc]
        if self.pooler_watch.per_transaction:
            server = self.guards.statement_timeout
            adapter = getattr(dbapi_connection, "dbapi_connection", dbapi_connection)
            self.bounded(
                None if server is None else server + CLIENT_GRACE,
                self.pooler_watch.begin,
                self.driver,
                adapter,
            )
            self.spoke(adapter.driver_connection)

    def do_rollback(self, dbapi_connection: Any) -> None:
        """As SQLAlchemy's, bounded; where it takes too long, the connection is cut off.

        A connection that is gone, or is cut off here, is no error: the server undoes what was not committed, and
        that is what was asked for. An error here would replace the one that the caller has to see.
        """
        self._leave(super().do_rollback, dbapi_connection, self.guards.leave_timeout)  # type: ignore[misc]

    def do_commit(self, dbapi_connection: Any) -> None:
        """As SQLAlchemy's, within the limit of the transaction's statements and the deadline."""
        connection = _driver_connection(dbapi_connection)
        commit = cast(Callable[[Any], None], super().do_commit)  # type: ignore[misc]
        if not self.in_transaction(connection):
            commit(dbapi_connection)  # which sends nothing
            return
        server, clock = self._limits.get(connection, self.guards.statement_timeout), self.guards.clock
        started = clock.monotonic()
        try:
            self.bounded_statement(server, connection, commit, dbapi_connection)
        except BaseException as error:
            mark_commit(error, clock.monotonic() - started)
            raise
        tell_statement(dbapi_connection, COMMIT, seconds=clock.monotonic() - started)

    def do_close(self, dbapi_connection: Any) -> None:
        """As SQLAlchemy's, bounded; where it takes too long, the connection is cut off, which ends it as well."""
        # Earlier than the pool's own bound on closing: SQLAlchemy would log that cancellation as an error.
        limit = 0.8 * self.guards.leave_timeout
        self._leave(super().do_close, dbapi_connection, limit)  # type: ignore[misc]

    def _leave(self, call: Callable[[Any], None], dbapi_connection: Any, limit: float) -> None:
        driver_connection = _driver_connection(dbapi_connection)
        try:
            self.bounded(limit, call, dbapi_connection)
        except BaseException as error:
            # asyncpg's own limit, where it is the shorter one, is as good a reason as ours.
            lost = isinstance(error, TimeoutError) or not self.is_open(driver_connection)
            self.cut(driver_connection)
            if not (lost and isinstance(error, Exception)):
                raise
        else:
            self.spoke(driver_connection)

    def _reset_characteristics(self, characteristics: Any, dbapi_connection: Any) -> None:
        """As SQLAlchemy's, when a connection comes back that had an isolation level of its own.

        A connection that is gone has none; one on which this fails is not for the next user.
        """
        driver_connection = _driver_connection(dbapi_connection)
        if not self.is_open(driver_connection):
            return
        try:
            super()._reset_characteristics(characteristics, dbapi_connection)  # type: ignore[misc]
        except BaseException:
            self.cut(driver_connection)
            raise

    def do_terminate(self, dbapi_connection: Any) -> None:
        """Cut the socket off. Never waits, so it works in the garbage collector too."""
        self.cut(_driver_connection(dbapi_connection))

    def proven_at(self, driver_connection: Any) -> float | None:
        """When the server last answered on this connection, if it did."""
        return None if driver_connection is None else self._proven.get(driver_connection)

    def spoke(self, driver_connection: Any) -> None:
        """The server answered on this connection just now."""
        self._proven[driver_connection] = self.guards.clock.monotonic()

    # -- what differs between drivers --------------------------------------------------------------------------

    def connect_error(self, error: Exception) -> errors.SteadypoolError:
        """The name of an exception in a connect that is not steadypool's own: from an event handler or a creator."""
        outcome = classify_connect_error(error)
        report = errors.Report(phase=errors.Phase.CONNECTING)
        if isinstance(error, TimeoutError):
            limit = self.guards.connect_timeout
            return errors.ConnectTimeout(f"not connected within {limit:g} s: {outcome.summary}", report)
        if (
            isinstance(error, OSError | EOFError | exc.DBAPIError | self.loaded_dbapi.Error)
            or type(error).__module__.partition(".")[0] == self.driver
        ):
            return errors.ConnectFailed(f"cannot connect: {outcome.summary}", report, final=outcome.final)
        # What neither the network nor the driver says is a mistake in a handler: trying again would repeat it.
        return errors.HookFailed(hook_failed(error), report)

    def create_connect_args(self, url: URL) -> tuple[list[Any], dict[str, Any]]:
        """The driver's arguments for a URL. libpq's options in it are carried out, or refused, by either driver."""
        self._target = parse_url(url.set(drivername="postgresql").render_as_string(hide_password=False))
        self._adapter_arguments = self.adapter_arguments(self._target)
        self._url_arguments = self.driver_arguments(self._target)
        return [], self._url_arguments | self._adapter_arguments

    def connect(self, *cargs: Any, **cparams: Any) -> Any:
        """As SQLAlchemy's, bounded as a whole; what connect_args and `do_connect` handlers changed wins."""
        connect: Callable[..., Any] = super().connect  # type: ignore[misc]
        if not cargs and "async_creator_fn" not in cparams:
            adapter = {name: cparams.pop(name) for name in self.adapter_names if name in cparams}
            changed = {
                name: value
                for name, value in cparams.items()
                if name not in self._url_arguments or self._url_arguments[name] != value
            }
            cparams = {"async_creator_fn": functools.partial(self._open, changed), **adapter}
        return self.bounded(self.guards.connect_timeout, functools.partial(connect, *cargs, **cparams))

    async def _open(self, changed: dict[str, Any]) -> Any:
        target = self._target
        password: Password | None = changed.pop("password", self.guards.password)
        if "host" in changed or "port" in changed:
            known = target.hosts[0] if target.hosts else Host("localhost")
            place = Host(str(changed.pop("host", known.name)), int(changed.pop("port", known.port)))
            target = replace(target, hosts=(place,))
        if "user" in changed:
            target = replace(target, user=changed.pop("user"))
        prepares = changed["prepare_threshold"] is not None if "prepare_threshold" in changed else None
        own = [target.options.get("options"), changed.get("options"), changed.get("server_settings")]
        opened = await self.open_raw(target, password, changed)
        try:
            await self.pooler_watch.look(self.library, opened, str(own))
            return self.adopted(opened, prepares=prepares)
        except BaseException:  # also when cancelled: nobody else knows this connection
            self.cut(opened)
            raise

    def adopted(self, opened: Any, *, prepares: bool | None) -> Any:
        """The connection as this dialect uses it; `prepares` is what the caller says about prepared statements."""
        return opened

    adapter_names: frozenset[str]

    def adapter_arguments(self, target: ConnectTarget) -> dict[str, Any]:
        """What the URL says to SQLAlchemy's adapter of the driver."""
        raise NotImplementedError

    def driver_arguments(self, target: ConnectTarget) -> dict[str, Any]:
        """What the URL says to the driver. Raises ConfigurationError where it cannot do what is asked."""
        raise NotImplementedError

    async def open_raw(
        self, target: ConnectTarget, password: Password | None, changed: dict[str, Any]
    ) -> Any:
        """Open the driver's own connection."""
        raise NotImplementedError

    def cut(self, driver_connection: Any) -> None:
        """Close the socket now. Never waits."""
        raise NotImplementedError

    def is_confused(self, error: BaseException) -> bool:
        """Whether the driver says by this error that it has lost the thread of its talk with the server."""
        return False

    def on_standby(self, driver_connection: Any) -> bool:
        """Whether the server said last that it is a standby (PostgreSQL 14 and newer tell it unasked)."""
        raise NotImplementedError

    def is_open(self, driver_connection: Any) -> bool:
        """Whether the socket is open as far as can be told without asking the server."""
        raise NotImplementedError

    def when_lost(self, driver_connection: Any, tell: Callable[[], None]) -> None:
        """Call `tell` when the connection ends, if the driver notices that by itself."""

    def rest(self, driver_connection: Any, tell: Callable[[], None]) -> None:
        """From now on nobody uses the connection: call `tell` when it ends, where the driver would not notice."""

    def in_transaction(self, driver_connection: Any) -> bool:
        """Whether the server has a transaction open on it."""
        raise NotImplementedError

    async def prove(self, driver_connection: Any, *, select: bool) -> None:
        """One round trip, or an exception."""
        raise NotImplementedError

    async def roll_back(self, driver_connection: Any) -> None:
        """End whatever transaction there is."""
        raise NotImplementedError

    async def set_autocommit(self, driver_connection: Any, value: bool) -> None:
        """Let the driver begin no transactions of its own."""
        raise NotImplementedError


class AsyncpgContext(BoundedCursors, PGExecutionContext_asyncpg):
    """SQLAlchemy's, with bounds on what `stream()` fetches."""


class AsyncpgDialect(GuardedDialect, PGDialect_asyncpg):
    """SQLAlchemy's asyncpg dialect, with bounds."""

    supports_statement_cache = True
    execution_ctx_cls = AsyncpgContext
    library = ASYNCPG

    adapter_names = frozenset(SQLALCHEMY_OPTIONS[ASYNCPG])

    def adapter_arguments(self, target: ConnectTarget) -> dict[str, Any]:
        """The size of the adapter's statement cache."""
        arguments: dict[str, Any] = dict(sqlalchemy_options(target, ASYNCPG))
        util.coerce_kw_type(arguments, "prepared_statement_cache_size", int)
        return arguments

    def driver_arguments(self, target: ConnectTarget) -> dict[str, Any]:
        """What the URL says to asyncpg."""
        return asyncpg_arguments(target)

    async def open_raw(
        self, target: ConnectTarget, password: Password | None, changed: dict[str, Any]
    ) -> Any:
        """Open an `asyncpg.Connection`."""
        from steadypool.connect.asyncpg_driver import open_asyncpg  # asyncpg may not be installed

        changed.pop("timeout", None)  # create_async_engine made it the limit of the whole connect
        if self.guards.statement_timeout is not None:
            changed.setdefault("command_timeout", self.guards.statement_timeout + CLIENT_GRACE)
        return await open_asyncpg(
            target,
            timeout=self.guards.connect_timeout,
            guards=self.pooler_watch.at_start,
            socket_options=self.guards.socket_options,
            password=password,
            on_guards_refused=self.pooler_watch.refused,
            network=self.guards.network,
            **changed,
        )

    @contextlib.contextmanager
    def driver_limit(self, driver_connection: Any, seconds: float | None) -> Generator[None]:
        """asyncpg has a limit of its own, set once a connection; a workload's other limit replaces it for a while."""
        configuration = driver_connection._config
        if seconds is not None and seconds != self.guards.statement_timeout:
            driver_connection._config = configuration._replace(command_timeout=seconds + CLIENT_GRACE)
        try:
            yield
        finally:
            driver_connection._config = configuration

    def cut(self, driver_connection: Any) -> None:
        """Close the socket now. Never waits."""
        abort_asyncpg(driver_connection)

    def is_confused(self, error: BaseException) -> bool:
        """asyncpg's state does not fit any more, as after a last word of the server that it read while idle."""
        from asyncpg import InternalClientError  # pyright: ignore[reportMissingTypeStubs]

        return isinstance(error, InternalClientError)

    def on_standby(self, driver_connection: Any) -> bool:
        """Whether the server said last that it is a standby."""
        return getattr(driver_connection.get_settings(), _IN_HOT_STANDBY, None) == "on"

    def is_open(self, driver_connection: Any) -> bool:
        """asyncpg always reads, so it knows of an end of file as soon as the event loop does."""
        return not driver_connection.is_closed()

    def when_lost(self, driver_connection: Any, tell: Callable[[], None]) -> None:
        """asyncpg always reads, and tells."""

        def ended(_connection: Any) -> None:
            tell()

        driver_connection.add_termination_listener(ended)

    def in_transaction(self, driver_connection: Any) -> bool:
        """Whether the server has a transaction open on it, or asyncpg believes so: after a BEGIN that was cancelled."""
        return not driver_connection.is_closed() and (
            driver_connection.is_in_transaction() or driver_connection._top_xact is not None
        )

    async def prove(self, driver_connection: Any, *, select: bool) -> None:
        """One round trip by the simple protocol, which poolers in every mode let through.

        Never an empty statement: asyncpg 0.32 fails on the answer, since it has no command tag.
        """
        await driver_connection.execute("SELECT 1")
        self.spoke(driver_connection)

    async def roll_back(self, driver_connection: Any) -> None:
        """End whatever transaction there is."""
        await driver_connection.execute("ROLLBACK")
        # As asyncpg's own reset() does; otherwise the next BEGIN would be a SAVEPOINT.
        driver_connection._top_xact = None
        self.spoke(driver_connection)

    async def set_autocommit(self, driver_connection: Any, value: bool) -> None:
        """asyncpg begins no transactions of its own."""


class PsycopgContext(BoundedCursors, PGExecutionContext_psycopg):
    """SQLAlchemy's, with bounds on what `stream()` fetches."""


class _ReadOnly(PGReadOnlyConnectionCharacteristic):
    """After a READ ONLY transaction SQLAlchemy makes psycopg say BEGIN READ WRITE for ever, which a standby refuses."""

    def reset_characteristic(self, dialect: Any, dbapi_conn: Any) -> None:
        dialect.set_readonly(dbapi_conn, None)  # as the server has it


class PsycopgDialect(GuardedDialect, PGDialectAsync_psycopg):
    """SQLAlchemy's async psycopg dialect, with bounds, and with a termination that does not wait."""

    supports_statement_cache = True
    execution_ctx_cls = PsycopgContext
    has_terminate = True
    library = PSYCOPG
    connection_characteristics = PGDialectAsync_psycopg.connection_characteristics.union(
        {"postgresql_readonly": _ReadOnly()}  # pyright: ignore[reportArgumentType] - typed too narrowly
    )

    adapter_names = frozenset(SQLALCHEMY_OPTIONS[PSYCOPG])

    def adapter_arguments(self, target: ConnectTarget) -> dict[str, Any]:
        """The adapter of psycopg has none."""
        return dict(sqlalchemy_options(target, PSYCOPG))

    def driver_arguments(self, target: ConnectTarget) -> dict[str, Any]:
        """What the URL says to libpq, and the types that SQLAlchemy adapts."""
        arguments: dict[str, Any] = dict(psycopg_arguments(target))
        if self._psycopg_adapters_map:
            arguments["context"] = self._psycopg_adapters_map
        encoding: str | None = vars(self).get("client_encoding")
        if encoding is not None:
            arguments["client_encoding"] = encoding
        return arguments

    async def open_raw(
        self, target: ConnectTarget, password: Password | None, changed: dict[str, Any]
    ) -> Any:
        """Open a psycopg connection whose waits end at once."""
        from steadypool.connect.psycopg_driver import open_psycopg  # psycopg may not be installed

        changed.pop("connect_timeout", None)  # create_async_engine made it the limit of the whole connect
        for name in ("context", "client_encoding"):
            if name in self._url_arguments:
                changed.setdefault(name, self._url_arguments[name])
        return await open_psycopg(
            target,
            timeout=self.guards.connect_timeout,
            guards=self.pooler_watch.at_start,
            socket_options=self.guards.socket_options,
            password=password,
            on_guards_refused=self.pooler_watch.refused,
            network=self.guards.network,
            **changed,
        )

    def adopted(self, opened: Any, *, prepares: bool | None) -> Any:
        """Behind a pooler that may hand the next transaction to another backend nothing is prepared."""
        if prepares is None and not self.pooler_watch.keeps_statements:
            opened.prepare_threshold = None
        return opened

    @classmethod
    def get_async_dialect_cls(cls, url: Any) -> Any:
        """There is no other for async."""
        return cls

    def cut(self, driver_connection: Any) -> None:
        """Close the socket now. Never waits."""
        if hasattr(driver_connection, "abort"):
            abort_psycopg(driver_connection)
        else:  # a caller's own creator made it
            driver_connection.pgconn.finish()

    def on_standby(self, driver_connection: Any) -> bool:
        """Whether the server said last that it is a standby."""
        return driver_connection.info.parameter_status(_IN_HOT_STANDBY) == "on"

    def is_open(self, driver_connection: Any) -> bool:
        """libpq reads only when asked: something to read on an idle connection is an end of file or a last word."""
        return not (
            driver_connection.closed or getattr(driver_connection, "interrupted", False)
        ) and not _readable(driver_connection)

    def rest(self, driver_connection: Any, tell: Callable[[], None]) -> None:
        """libpq reads only when asked, so the event loop looks at the socket while nobody does."""
        if hasattr(driver_connection, "watch"):  # it is not one that a caller's own creator made
            driver_connection.watch(tell)

    def do_close(self, dbapi_connection: Any) -> None:
        """As SQLAlchemy's, bounded; the event loop must let go of the descriptor before its number is another's."""
        driver_connection = _driver_connection(dbapi_connection)
        if hasattr(driver_connection, "unwatch"):
            driver_connection.unwatch()
        super().do_close(dbapi_connection)

    def in_transaction(self, driver_connection: Any) -> bool:
        """Whether the server has a transaction open on it."""
        return driver_connection.pgconn.transaction_status in _IN_TRANSACTION

    async def prove(self, driver_connection: Any, *, select: bool) -> None:
        """One round trip: in autocommit, so that no transaction is begun around it."""
        before = driver_connection.autocommit
        await driver_connection.set_autocommit(True)
        await driver_connection.execute("SELECT 1" if select else "")
        await driver_connection.set_autocommit(before)
        self.spoke(driver_connection)

    async def roll_back(self, driver_connection: Any) -> None:
        """End whatever transaction there is."""
        await driver_connection.rollback()
        self.spoke(driver_connection)

    async def set_autocommit(self, driver_connection: Any, value: bool) -> None:
        """Let psycopg begin no transactions of its own."""
        await driver_connection.set_autocommit(value)


_IN_TRANSACTION = frozenset({1, 2, 3})
"""libpq's PQTRANS_ACTIVE, PQTRANS_INTRANS and PQTRANS_INERROR."""


def _connection_of(cursor: Any) -> Any:
    """The driver's connection under a cursor of SQLAlchemy's; that of 2.0 for psycopg does not know it itself."""
    known = getattr(cursor, "_connection", None)
    return cursor._cursor.connection if known is None else known


def _driver_connection(dbapi_connection: Any) -> Any:
    """The driver's own connection. SQLAlchemy passes its adapter, or a pool's proxy, which, detached, has lost it."""
    return getattr(dbapi_connection, "dbapi_connection", dbapi_connection).driver_connection


def _readable(driver_connection: Any) -> bool:
    poll = select.poll()
    poll.register(driver_connection.pgconn.socket, select.POLLIN)
    return bool(poll.poll(0))


PIPELINED = "postgresql+steadypool"
OURS = {
    "postgresql": "postgresql+steadypool_asyncpg",
    "postgresql+asyncpg": "postgresql+steadypool_asyncpg",
    "postgresql+psycopg": "postgresql+steadypool_psycopg",
    "postgresql+psycopg_async": "postgresql+steadypool_psycopg",
    PIPELINED: PIPELINED,
}
"""SQLAlchemy's names of the drivers, and ours for the same with bounds."""

registry.register("postgresql.steadypool_asyncpg", __name__, "AsyncpgDialect")
registry.register("postgresql.steadypool_psycopg", __name__, "PsycopgDialect")
registry.register("postgresql.steadypool", "steadypool.dialect", "SteadypoolDialect")
