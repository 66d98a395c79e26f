"""SQLAlchemy's own asyncpg and psycopg dialects with the bounds of `base`."""

from __future__ import annotations

import contextlib
import inspect
import select
from collections.abc import Callable, Generator
from typing import Any

from sqlalchemy import util
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg, PGExecutionContext_asyncpg
from sqlalchemy.dialects.postgresql.base import PGReadOnlyConnectionCharacteristic
from sqlalchemy.dialects.postgresql.psycopg import (
    AsyncAdapt_psycopg_connection,
    PGDialectAsync_psycopg,
    PGExecutionContext_psycopg,
)

from steadypool._sqlstate import THE_DRIVERS_OWN
from steadypool.connect.abort import abort_asyncpg, abort_psycopg
from steadypool.connect.dsn import ConnectTarget
from steadypool.connect.last_words import is_ready, last_words_of, listen_for_last_words
from steadypool.connect.options import (
    ASYNCPG,
    PSYCOPG,
    SQLALCHEMY_OPTIONS,
    asyncpg_arguments,
    psycopg_arguments,
    sqlalchemy_options,
)
from steadypool.deadline import CLIENT_GRACE
from steadypool.settings.database import Password
from steadypool.sqlalchemy.dialects.base import (
    TAKES_NO_WRITES,
    BoundedDialect,
    driver_connection_of,
)
from steadypool.sqlalchemy.dialects.bounded_cursor import BoundedCursors
from steadypool.sqlalchemy.errors import TransactionRolledBack, sqlstate_of


class AsyncpgContext(BoundedCursors, PGExecutionContext_asyncpg):
    """SQLAlchemy's, with bounds on what `stream()` fetches."""


class AsyncpgDialect(BoundedDialect, PGDialect_asyncpg):
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

    def driver_parameters(self) -> frozenset[str]:
        """The parameters of `asyncpg.connect`."""
        return frozenset(inspect.signature(self.loaded_dbapi.asyncpg.connect).parameters)

    async def open_raw(
        self, target: ConnectTarget, password: Password | None, changed: dict[str, Any]
    ) -> Any:
        """Open an `asyncpg.Connection`."""
        from steadypool.connect.asyncpg import open_asyncpg  # asyncpg may not be installed

        changed.pop("timeout", None)  # create_async_engine made it the limit of the whole connect
        if self.guards.statement_timeout is not None:
            changed.setdefault("command_timeout", self.guards.statement_timeout + CLIENT_GRACE)
        return await open_asyncpg(target, password=password, **self.opening, **changed)

    def connect(self, *cargs: Any, **cparams: Any) -> Any:
        """As every dialect of ours; behind a pooler the adapter keeps no statement either."""
        named_by_caller = "prepared_statement_name_func" in cparams
        adapter = super().connect(*cargs, **cparams)
        if not adapter.driver_connection._stmt_cache_enabled and not self.pooler_watch.keeps_statements:
            adapter._prepared_statement_cache = None
            if not named_by_caller:
                adapter._prepared_statement_name_func = _no_name
        return adapter

    def adopted(self, opened: Any, *, prepares: bool | None) -> Any:
        """Behind a pooler that may hand the next transaction to another backend nothing is kept.

        asyncpg then sends an unnamed statement once more together with its values, also in autocommit, where the
        backend may change between two flights.
        """
        if prepares is None and not self.pooler_watch.keeps_statements:
            opened._config = opened._config._replace(statement_cache_size=0)
            opened._stmt_cache_enabled = False
            opened._stmt_cache.set_max_size(0)
        return opened

    def bounded_statement(
        self, server: float | None, driver_connection: Any, call: Callable[..., Any], *args: Any
    ) -> Any:
        """As every dialect of ours, with asyncpg's own limit out of the way."""
        if server == self.guards.statement_timeout:
            return super().bounded_statement(server, driver_connection, call, *args)
        with self.driver_limit(driver_connection, server):
            return super().bounded_statement(server, driver_connection, call, *args)

    @contextlib.contextmanager
    def driver_limit(self, driver_connection: Any, seconds: float | None) -> Generator[None]:
        """asyncpg has a limit of its own, set once a connection; a workload's other limit replaces it for a while."""
        configuration = driver_connection._config
        if seconds != self.guards.statement_timeout:
            limit = seconds + CLIENT_GRACE if seconds else None
            driver_connection._config = configuration._replace(command_timeout=limit)
        try:
            yield
        finally:
            driver_connection._config = configuration

    def cut(self, driver_connection: Any) -> None:
        """Close the socket now. Never waits."""
        abort_asyncpg(driver_connection)

    def do_commit(self, dbapi_connection: Any) -> None:
        """As every dialect of ours; a transaction in which a statement has failed says so."""
        adapter = getattr(dbapi_connection, "dbapi_connection", dbapi_connection)
        transaction = adapter._transaction
        if transaction is None:
            super().do_commit(dbapi_connection)
            return
        answers = _Answers(adapter.driver_connection)
        transaction._connection = answers
        super().do_commit(dbapi_connection)
        if answers.tag == "ROLLBACK":
            raise TransactionRolledBack.at_commit()

    def do_rollback(self, dbapi_connection: Any) -> None:
        """As every dialect of ours; in autocommit a statement that was prepared and not executed holds its locks."""
        super().do_rollback(dbapi_connection)
        driver_connection = driver_connection_of(dbapi_connection)
        if self.is_open(driver_connection) and not is_ready(driver_connection):
            self._leave(self._roll_back_now, dbapi_connection, self.guards.leave_timeout, keeps=True)

    def _roll_back_now(self, dbapi_connection: Any) -> None:
        util.await_only(self.roll_back(driver_connection_of(dbapi_connection)))

    def is_confused(self, error: BaseException) -> bool:
        """asyncpg's state does not fit any more, as after a last word of the server that it read while idle."""
        from asyncpg import InternalClientError  # pyright: ignore[reportMissingTypeStubs]

        return isinstance(error, InternalClientError)

    def last_words(self, driver_connection: Any, error: BaseException) -> tuple[str | None, str]:
        """asyncpg forgets what the server said before it ended the connection, and calls that 08003."""
        state = sqlstate_of(error)
        if state is not None and state not in THE_DRIVERS_OWN:
            return state, str(error)
        heard = None if driver_connection is None else last_words_of(driver_connection)
        return (state, "") if heard is None else heard

    def takes_no_writes(self, driver_connection: Any) -> bool:
        """Whether the server said last that it is a standby, or read-only by default."""
        settings = driver_connection.get_settings()
        return any(getattr(settings, name, None) == "on" for name in TAKES_NO_WRITES)

    def is_open(self, driver_connection: Any) -> bool:
        """asyncpg always reads, so it knows of an end of file as soon as the event loop does."""
        return not driver_connection.is_closed()

    def when_lost(self, driver_connection: Any, tell: Callable[[], None]) -> None:
        """asyncpg always reads, and tells."""
        listen_for_last_words(driver_connection)  # also where the caller's own creator made it

        def ended(_connection: Any) -> None:
            tell()

        driver_connection.add_termination_listener(ended)

    def in_transaction(self, driver_connection: Any) -> bool:
        """Whether the server has a transaction open on it, or asyncpg believes so: after a BEGIN that was cancelled.

        A statement that was prepared and not executed is in one that the server does not report.
        """
        return not driver_connection.is_closed() and (
            driver_connection.is_in_transaction()
            or driver_connection._top_xact is not None
            or not is_ready(driver_connection)
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


def _no_name() -> str:
    return ""


class _Answers:
    """An asyncpg connection as its transaction sees it: the same, and the answer to a command is kept in `tag`.

    asyncpg throws away the answer to COMMIT, which alone says whether anything was committed.
    """

    tag: str = ""

    def __init__(self, connection: Any) -> None:
        self.__dict__["connection"] = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.connection, name, value)

    async def execute(self, query: str) -> None:
        """As the connection's."""
        self.__dict__["tag"] = await self.connection.execute(query)


class PsycopgContext(BoundedCursors, PGExecutionContext_psycopg):
    """SQLAlchemy's, with bounds on what `stream()` fetches."""


class _ReadOnly(PGReadOnlyConnectionCharacteristic):
    """After a READ ONLY transaction SQLAlchemy makes psycopg say BEGIN READ WRITE for ever, which a standby refuses."""

    def reset_characteristic(self, dialect: Any, dbapi_conn: Any) -> None:
        dialect.set_readonly(dbapi_conn, None)  # as the server has it


class PsycopgDialect(BoundedDialect, PGDialectAsync_psycopg):
    """SQLAlchemy's async psycopg dialect, with bounds, and with a termination that does not wait."""

    begins_by_itself = True

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

    def driver_parameters(self) -> frozenset[str]:
        """The parameters of psycopg's connect, and libpq's."""
        own: Any = self.loaded_dbapi.psycopg
        named = inspect.signature(own.AsyncConnection.connect).parameters.keys() - {"conninfo", "kwargs"}
        return frozenset(named) | {option.keyword.decode() for option in own.pq.Conninfo.get_defaults()}

    async def open_raw(
        self, target: ConnectTarget, password: Password | None, changed: dict[str, Any]
    ) -> Any:
        """Open a psycopg connection whose waits end at once."""
        from steadypool.connect.psycopg import open_psycopg  # psycopg may not be installed

        changed.pop("connect_timeout", None)  # create_async_engine made it the limit of the whole connect
        for name in ("context", "client_encoding"):
            if name in self._url_arguments:
                changed.setdefault(name, self._url_arguments[name])
        return await open_psycopg(target, password=password, **self.opening, **changed)

    def adopted(self, opened: Any, *, prepares: bool | None) -> Any:
        """Behind a pooler that may hand the next transaction to another backend nothing is prepared."""
        if prepares is None and not self.pooler_watch.keeps_statements:
            opened.prepare_threshold = None
        return opened

    @classmethod
    def get_async_dialect_cls(cls, url: Any) -> Any:
        """There is no other for async."""
        return cls

    @classmethod
    def import_dbapi(cls) -> Any:
        """As SQLAlchemy's, whose connections can be terminated."""
        dbapi: Any = super().import_dbapi()
        connect = dbapi.connect

        def terminable(*args: Any, **arguments: Any) -> Any:
            adapter = connect(*args, **arguments)
            adapter.__class__ = TerminableConnection
            return adapter

        dbapi.connect = terminable
        return dbapi

    def cut(self, driver_connection: Any) -> None:
        """Close the socket now. Never waits."""
        _cut_psycopg(driver_connection)

    def do_commit(self, dbapi_connection: Any) -> None:
        """As every dialect of ours; a transaction in which a statement has failed says so."""
        failed = driver_connection_of(dbapi_connection).pgconn.transaction_status == _IN_ERROR
        super().do_commit(dbapi_connection)
        if failed:
            raise TransactionRolledBack.at_commit()

    def takes_no_writes(self, driver_connection: Any) -> bool:
        """Whether the server said last that it is a standby, or read-only by default."""
        said = driver_connection.pgconn.parameter_status
        return any(said(name.encode()) == b"on" for name in TAKES_NO_WRITES)

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
        driver_connection = driver_connection_of(dbapi_connection)
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


class TerminableConnection(AsyncAdapt_psycopg_connection):
    """SQLAlchemy's adapter of a psycopg connection, and how to end it without waiting."""

    __slots__ = ()

    def terminate(self) -> None:
        """Close the socket now. Never waits."""
        _cut_psycopg(self._connection)


def _cut_psycopg(driver_connection: Any) -> None:
    if hasattr(driver_connection, "abort"):
        abort_psycopg(driver_connection)
    else:  # a caller's own creator made it
        driver_connection.pgconn.finish()


_IN_ERROR = 3
"""libpq's PQTRANS_INERROR: a statement has failed, so that COMMIT will be answered by ROLLBACK."""

_IN_TRANSACTION = frozenset({1, 2, _IN_ERROR})
"""libpq's PQTRANS_ACTIVE, PQTRANS_INTRANS and PQTRANS_INERROR."""


def _readable(driver_connection: Any) -> bool:
    poll = select.poll()
    poll.register(driver_connection.pgconn.socket, select.POLLIN)
    return bool(poll.poll(0))


PIPELINED = "postgresql+steadypool"
OURS = {
    "postgresql": PIPELINED,
    "postgresql+asyncpg": "postgresql+steadypool_asyncpg",
    "postgresql+psycopg": "postgresql+steadypool_psycopg",
    "postgresql+psycopg_async": "postgresql+steadypool_psycopg",
    PIPELINED: PIPELINED,
}
"""SQLAlchemy's names of the drivers, and ours for the same with bounds."""

registry.register("postgresql.steadypool_asyncpg", __name__, "AsyncpgDialect")
registry.register("postgresql.steadypool_psycopg", __name__, "PsycopgDialect")
registry.register("postgresql.steadypool", "steadypool.sqlalchemy.pipelined", "SteadypoolDialect")
