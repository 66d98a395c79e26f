"""SQLAlchemy's own asyncpg and psycopg dialects with bounds: nothing they await outlives its limit.

A statement is ended at its limit or at the caller's deadline, whichever is first; rollback and commit likewise;
termination cuts the socket at once instead of talking to a server that may not answer.
"""

from __future__ import annotations

import functools
import select
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import URL, util
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.dialects.postgresql.psycopg import PGDialectAsync_psycopg

from steadypool import errors
from steadypool.clock import SYSTEM_CLOCK, Clock
from steadypool.connect.dsn import parse_url
from steadypool.connect.leaving import abort_asyncpg, abort_psycopg
from steadypool.connect.options import (
    ASYNCPG,
    PSYCOPG,
    asyncpg_arguments,
    psycopg_arguments,
    sqlalchemy_options,
)
from steadypool.deadline import CLIENT_GRACE, TimeLimit, nearest_end
from steadypool.settings import Password

TIMEOUT_OPTION = "steadypool_statement_timeout"
"""Execution option: seconds that a statement may run; the engine's own limit if absent."""


@dataclass
class Guards:
    """What an engine's dialect enforces. Seconds; None for no limit.

    `server_settings` are what the server enforces itself, even when this process has gone; start-up options.
    """

    statement_timeout: float | None = None
    connect_timeout: float = 30.0
    leave_timeout: float = 2.0
    password: Password | None = None
    server_settings: Mapping[str, str] = field(default_factory=dict[str, str])
    clock: Clock = SYSTEM_CLOCK


class LimitReached(TimeoutError):
    """A statement was given up by the client. Becomes StatementTimeout or DeadlineExceeded."""

    def __init__(self, seconds: float, deadline: float | None) -> None:
        super().__init__(f"no answer within {seconds:.2f}s")
        self.seconds = seconds
        self.deadline = deadline


class GuardedDialect:
    """What both dialects have in common. Mixed in before SQLAlchemy's class."""

    driver: str

    def __init__(self, steadypool_guards: Guards | None = None, **kw: Any) -> None:
        super().__init__(**kw)
        self.guards = steadypool_guards or Guards()
        self._proven: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()

    # -- bounds ------------------------------------------------------------------------------------------------

    def _bounded(self, own: float | None, call: Callable[..., Any], *args: Any) -> Any:
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
        server = self.statement_timeout(context)
        if context is not None:
            context.steadypool_started = self.guards.clock.monotonic()
        self._bounded(None if server is None else server + CLIENT_GRACE, call, cursor, *args, context)
        self._proven[cursor._connection] = self.guards.clock.monotonic()

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

    def do_rollback(self, dbapi_connection: Any) -> None:
        """As SQLAlchemy's, bounded; where it takes too long, the connection is cut off."""
        self._leave(super().do_rollback, dbapi_connection)  # type: ignore[misc]

    def do_commit(self, dbapi_connection: Any) -> None:
        """As SQLAlchemy's, within the limit of a statement and the deadline."""
        server = self.guards.statement_timeout
        self._bounded(None if server is None else server + CLIENT_GRACE, super().do_commit, dbapi_connection)  # type: ignore[misc]
        self._proven[dbapi_connection.driver_connection] = self.guards.clock.monotonic()

    def do_close(self, dbapi_connection: Any) -> None:
        """As SQLAlchemy's, bounded; where it takes too long, the connection is cut off."""
        self._leave(super().do_close, dbapi_connection)  # type: ignore[misc]

    def _leave(self, call: Callable[[Any], None], dbapi_connection: Any) -> None:
        driver_connection = dbapi_connection.driver_connection
        try:
            self._bounded(self.guards.leave_timeout, call, dbapi_connection)
        except BaseException:
            self.cut(driver_connection)
            raise
        self._proven[driver_connection] = self.guards.clock.monotonic()

    def do_terminate(self, dbapi_connection: Any) -> None:
        """Cut the socket off. Never waits, so it works in the garbage collector too."""
        self.cut(dbapi_connection.driver_connection)

    def proven_at(self, driver_connection: Any) -> float | None:
        """When the server last answered on this connection, if it did."""
        return None if driver_connection is None else self._proven.get(driver_connection)

    def spoke(self, driver_connection: Any) -> None:
        """The server answered on this connection just now."""
        self._proven[driver_connection] = self.guards.clock.monotonic()

    # -- what differs between drivers --------------------------------------------------------------------------

    def connect_error(self, error: Exception) -> errors.ConnectFailed:
        """What an exception during connect means."""
        if isinstance(error, TimeoutError):
            return errors.ConnectTimeout(f"connecting took longer than {self.guards.connect_timeout}s")
        return errors.ConnectFailed(f"{type(error).__name__}: {error}")

    def connect(self, *cargs: Any, **cparams: Any) -> Any:
        """As SQLAlchemy's, bounded as a whole."""
        connect: Callable[..., Any] = super().connect  # type: ignore[misc]
        return self._bounded(self.guards.connect_timeout, functools.partial(connect, *cargs, **cparams))

    def cut(self, driver_connection: Any) -> None:
        """Close the socket now. Never waits."""
        raise NotImplementedError

    def is_open(self, driver_connection: Any) -> bool:
        """Whether the socket is open as far as can be told without asking the server."""
        raise NotImplementedError

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


class AsyncpgDialect(GuardedDialect, PGDialect_asyncpg):
    """SQLAlchemy's asyncpg dialect, with bounds."""

    supports_statement_cache = True

    def create_connect_args(self, url: URL) -> tuple[list[Any], dict[str, Any]]:
        """libpq's options in the URL are carried out too; one that asyncpg cannot honour is refused."""
        target = parse_url(url.render_as_string(hide_password=False))
        adapter: dict[str, Any] = dict(sqlalchemy_options(target, ASYNCPG))
        util.coerce_kw_type(adapter, "prepared_statement_cache_size", int)
        return [], asyncpg_arguments(target, guards=self.guards.server_settings) | adapter

    def cut(self, driver_connection: Any) -> None:
        """Close the socket now. Never waits."""
        abort_asyncpg(driver_connection)

    def is_open(self, driver_connection: Any) -> bool:
        """asyncpg always reads, so it knows of an end of file as soon as the event loop does."""
        return not driver_connection.is_closed()

    def in_transaction(self, driver_connection: Any) -> bool:
        """Whether the server has a transaction open on it."""
        return not driver_connection.is_closed() and driver_connection.is_in_transaction()

    async def prove(self, driver_connection: Any, *, select: bool) -> None:
        """One round trip by the simple protocol, which poolers in every mode let through."""
        await driver_connection.execute("SELECT 1" if select else "")
        self.spoke(driver_connection)

    async def roll_back(self, driver_connection: Any) -> None:
        """End whatever transaction there is."""
        await driver_connection.execute("ROLLBACK")
        self.spoke(driver_connection)

    async def set_autocommit(self, driver_connection: Any, value: bool) -> None:
        """asyncpg begins no transactions of its own."""


class PsycopgDialect(GuardedDialect, PGDialectAsync_psycopg):
    """SQLAlchemy's async psycopg dialect, with bounds, and with a termination that does not wait."""

    supports_statement_cache = True
    has_terminate = True

    def create_connect_args(self, url: URL) -> tuple[list[Any], dict[str, Any]]:
        """libpq knows its own options; a name that it does not know is refused."""
        target = parse_url(url.render_as_string(hide_password=False))
        arguments = psycopg_arguments(target, guards=self.guards.server_settings)
        return [], arguments | sqlalchemy_options(target, PSYCOPG)

    def connect(self, *cargs: Any, **cparams: Any) -> Any:
        """As SQLAlchemy's, with a connection class whose waits end at once."""
        from steadypool.connect.psycopg_connection import SteadyAsyncConnection

        cparams.setdefault("async_creator_fn", SteadyAsyncConnection.connect)
        return super().connect(*cargs, **cparams)

    @classmethod
    def get_async_dialect_cls(cls, url: Any) -> Any:
        """There is no other for async."""
        return cls

    def cut(self, driver_connection: Any) -> None:
        """Close the socket now. Never waits."""
        abort_psycopg(driver_connection)

    def is_open(self, driver_connection: Any) -> bool:
        """libpq reads only when asked: something to read on an idle connection is an end of file or a last word."""
        return not (driver_connection.closed or driver_connection.interrupted) and not _readable(
            driver_connection
        )

    def in_transaction(self, driver_connection: Any) -> bool:
        """Whether the server has a transaction open on it."""
        return driver_connection.pgconn.transaction_status in _IN_TRANSACTION

    async def prove(self, driver_connection: Any, *, select: bool) -> None:
        """One round trip: in autocommit, so that no transaction is begun around it."""
        await driver_connection.set_autocommit(True)
        await driver_connection.execute("SELECT 1" if select else "")
        await driver_connection.set_autocommit(False)
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


def _readable(driver_connection: Any) -> bool:
    poll = select.poll()
    poll.register(driver_connection.pgconn.socket, select.POLLIN)
    return bool(poll.poll(0))


OURS = {
    "postgresql": "postgresql+steadypool_asyncpg",
    "postgresql+asyncpg": "postgresql+steadypool_asyncpg",
    "postgresql+psycopg": "postgresql+steadypool_psycopg",
    "postgresql+psycopg_async": "postgresql+steadypool_psycopg",
}
"""SQLAlchemy's names of the drivers, and ours for the same with bounds."""

registry.register("postgresql.steadypool_asyncpg", __name__, "AsyncpgDialect")
registry.register("postgresql.steadypool_psycopg", __name__, "PsycopgDialect")
