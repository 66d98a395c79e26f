"""The dialect: SQLAlchemy's for psycopg in what it knows of types and SQL, ours in how it talks to the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

from psycopg.types import TypeInfo
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.util import await_only

from steadypool.connect.dsn import ConnectTarget
from steadypool.dialect.connection import Surroundings
from steadypool.dialect.dbapi import SteadypoolDBAPI
from steadypool.pipeline import PipelinedConnection, Segment, Statement
from steadypool.settings import Password
from steadypool.sqlalchemy.dialects import PsycopgDialect
from steadypool.sqlalchemy.guarded import TAKES_NO_WRITES

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
        self._surroundings = Surroundings(
            lambda: self.pooler_watch.settings_per_transaction,
            self.guards.leave_timeout,
            one_at_a_time=lambda: self.pooler_watch.one_at_a_time,
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

    # -- transactions ------------------------------------------------------------------------------------------

    def rolls_back_at_once(self, dbapi_connection: Any) -> bool:
        """Where everything has succeeded, ROLLBACK is sent and not waited for."""
        adapter = getattr(dbapi_connection, "dbapi_connection", dbapi_connection)
        return adapter is not None and adapter.rolls_back_at_once

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
        await_only(dbapi_connection.driver_connection.run(Segment([])))
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
        await driver_connection.run(Segment([Statement("SELECT 1")] if select else []))
        self.spoke(driver_connection)

    async def roll_back(self, driver_connection: Any) -> None:
        """End whatever transaction there is."""
        await driver_connection.run(Segment([Statement("ROLLBACK", prepare=False)]))
        self.spoke(driver_connection)
