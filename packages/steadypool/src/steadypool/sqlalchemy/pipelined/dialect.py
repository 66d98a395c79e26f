"""The dialect: SQLAlchemy's for psycopg in what it knows of types and SQL, ours in how it talks to the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

from psycopg.types import TypeInfo
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.util import await_only

from steadypool.connect.dsn import ConnectTarget
from steadypool.deadline import CLIENT_GRACE, nearest_end
from steadypool.pipeline import Batch, BatchTimeout, PipelinedConnection, Statement
from steadypool.settings.database import Password
from steadypool.sqlalchemy.dialects.base import TAKES_NO_WRITES, TIMEOUT_OPTION, LimitReached
from steadypool.sqlalchemy.dialects.drivers import PsycopgDialect
from steadypool.sqlalchemy.instrumentation import tell_statement
from steadypool.sqlalchemy.pipelined.context import AdapterContext
from steadypool.sqlalchemy.pipelined.cursor import Cursor
from steadypool.sqlalchemy.pipelined.dbapi import SteadypoolDBAPI

_LEVELS = ("READ COMMITTED", "READ UNCOMMITTED", "REPEATABLE READ", "SERIALIZABLE")


class SteadypoolDialect(PsycopgDialect):
    """`postgresql+steadypool://`."""

    driver = "steadypool"
    begins_by_itself = False
    default_paramstyle = "numeric_dollar"
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> Any:
        """The module that stands in for a driver's."""
        return SteadypoolDBAPI()

    adapter_names = PsycopgDialect.adapter_names | {"surroundings"}

    def __init__(self, **kw: Any) -> None:
        super().__init__(**kw)
        self._surroundings = AdapterContext(
            lambda: self.pooler_watch.settings_per_transaction,
            self.guards.leave_timeout,
            one_at_a_time=lambda: self.pooler_watch.one_at_a_time,
            keeps_session=lambda: self.pooler_watch.keeps_statements,
            statement_timeout=self.guards.statement_timeout,
            clock=self.guards.clock,
        )

    def connect(self, *cargs: Any, **cparams: Any) -> Any:
        """As every dialect of ours."""
        return super().connect(*cargs, **cparams, surroundings=self._surroundings)

    async def open_raw(
        self, target: ConnectTarget, password: Password | None, changed: dict[str, Any]
    ) -> Any:
        """Open a psycopg connection; transactions are ours to begin."""
        return await super().open_raw(target, password, {**changed, "autocommit": True})

    def adopted(self, opened: Any, *, prepares: bool | None) -> PipelinedConnection:
        """Put it into pipeline mode; it leads where the connection led that it takes over."""
        keeps = self.pooler_watch.keeps_statements if prepares is None else prepares
        adopted = PipelinedConnection(opened, clock=self.guards.clock, keeps_statements=keeps)
        place = self.guards.network.place_of(opened)
        if place is not None:
            self.guards.network.leads_to(adopted, place)
        return adopted

    # -- statements --------------------------------------------------------------------------------------------

    def do_execute(self, cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
        """As every dialect of ours, in fewer steps, since this is what nearly all statements go through.

        The connection itself gives a statement up in time, by a timer that it has for all its statements.
        """
        if context is None or type(cursor) is not Cursor:
            super().do_execute(cursor, statement, parameters, context)
            return
        guards, adapter, fairy = self.guards, cursor.adapter, context.root_connection._dbapi_connection
        own = context.execution_options.get(TIMEOUT_OPTION, guards.statement_timeout)
        server = adapter.statement_timeout = own or None
        started = guards.clock.monotonic()
        context.steadypool_started, context.steadypool_told = started, False
        lease = getattr(getattr(fairy, "_connection_record", None), "lease", None)
        if lease is not None:
            lease.running = statement, started
        limit, deadline = nearest_end(None if server is None else server + CLIENT_GRACE, started)
        proves = adapter.ping_limit is not None and adapter.autocommit  # which has a limit of its own
        try:
            if proves:
                self.within(limit, deadline, cursor.execute, statement, parameters)
            else:
                cursor.execute_until(None if limit is None else started + limit, statement, parameters)
        except BatchTimeout as error:
            if proves or limit is None:
                raise
            raise LimitReached(limit, None if deadline is None else deadline.seconds) from error
        finally:
            if lease is not None:
                lease.running = None
        context.steadypool_told = True
        ended = guards.clock.monotonic()
        tell_statement(fairy, statement, seconds=ended - started, rows=cursor.rowcount, now=ended)

    def remember_limit(self, cursor: Any, server: float | None) -> None:
        """For the COMMIT."""
        cursor.adapter.statement_timeout = server

    # -- transactions ------------------------------------------------------------------------------------------

    def do_rollback(self, dbapi_connection: Any) -> None:
        """As every dialect of ours; where everything has succeeded, ROLLBACK is sent and not waited for."""
        adapter = getattr(dbapi_connection, "dbapi_connection", dbapi_connection)
        if adapter is not None and adapter.rolls_back_at_once():
            if adapter.held:  # also where SQLAlchemy skips the rest, since AUTOCOMMIT begins nothing
                adapter.close_held()
            cast(Any, PGDialect.do_rollback)(self, dbapi_connection)
        else:
            super().do_rollback(dbapi_connection)

    def commit_bounded(self, dbapi_connection: Any, started: float) -> None:
        """As every dialect of ours, by the connection's own timer."""
        adapter = getattr(dbapi_connection, "dbapi_connection", dbapi_connection)
        server = adapter.statement_timeout
        limit, deadline = nearest_end(None if server is None else server + CLIENT_GRACE, started)
        try:
            adapter.commit(None if limit is None else started + limit)
        except BatchTimeout as error:
            if limit is None:
                raise
            raise LimitReached(limit, None if deadline is None else deadline.seconds) from error

    def do_begin(self, dbapi_connection: Any) -> None:
        """Nothing: BEGIN travels with the first statement."""

    def _do_isolation_level(self, connection: Any, autocommit: bool, isolation_level: str | None) -> None:
        connection.set_autocommit(autocommit)
        connection.set_isolation_level(isolation_level)

    _isolation_lookup = {level: level for level in _LEVELS}  # type: ignore[assignment]  # noqa: RUF012 - SQLAlchemy's

    def get_isolation_level(self, dbapi_connection: Any) -> Any:
        """As SQLAlchemy's, without leaving a transaction behind."""
        began = dbapi_connection.in_transaction
        value = cast(Any, PGDialect.get_isolation_level)(self, dbapi_connection)
        if not began:
            dbapi_connection.rollback()
        return value

    def get_deferrable(self, connection: Any) -> Any:
        """As SQLAlchemy's."""
        return connection.deferrable

    def _twophase_idle_check(self, dbapi_conn: Any) -> bool:
        return not dbapi_conn.in_transaction

    def do_ping(self, dbapi_connection: Any) -> Literal[True]:
        """One round trip that touches no transaction; for pools that are not ours."""
        await_only(dbapi_connection.driver_connection.run(Batch([])))
        return True

    # -- types -------------------------------------------------------------------------------------------------

    def _type_info_fetch(self, connection: Any, name: str) -> Any:
        async def fetch() -> Any:
            async with connection.connection.driver_connection.plain() as plain:
                return await cast(Any, TypeInfo).fetch(plain, name)

        return await_only(fetch())

    # -- what the pool asks ------------------------------------------------------------------------------------

    def proven_at(self, driver_connection: Any) -> float | None:
        """When the server last answered, which the connection knows by itself."""
        return None if driver_connection is None else driver_connection.last_answer or None

    def spoke(self, driver_connection: Any) -> None:
        """It knows."""

    def cut(self, driver_connection: Any) -> None:
        """Close the socket now. Never waits."""
        driver_connection.abort()

    def is_open(self, driver_connection: Any) -> bool:
        """The event loop always looks at the socket, so an end is known as soon as it arrives."""
        return not driver_connection.closed

    def takes_no_writes(self, driver_connection: Any) -> bool:
        """Whether the server said last that it is a standby, or read-only by default."""
        return any(driver_connection.parameter(name) == "on" for name in TAKES_NO_WRITES)

    def when_lost(self, driver_connection: Any, tell: Callable[[], None]) -> None:
        """Tell when the connection ends."""
        driver_connection.when_ended(tell)

    def rest(self, driver_connection: Any, tell: Callable[[], None]) -> None:
        """The event loop looks at the socket anyway."""

    def in_transaction(self, driver_connection: Any) -> bool:
        """Whether the server has a transaction open on it; one whose ROLLBACK is on its way is over."""
        return driver_connection.in_transaction

    async def prove(self, driver_connection: Any, *, select: bool) -> None:
        """One round trip."""
        await driver_connection.run(Batch([Statement("SELECT 1")] if select else []))
        self.spoke(driver_connection)

    async def roll_back(self, driver_connection: Any) -> None:
        """End whatever transaction there is."""
        await driver_connection.run(Batch([Statement("ROLLBACK", prepare=False)]))
        self.spoke(driver_connection)
