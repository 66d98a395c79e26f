"""`Database`: the one place that sees all parts.

Three ways to run SQL are here: `fetch` and its kin for single statements (`statements`), `session()` for SQLAlchemy's
AsyncSession, and `connection()` for a connection of one's own with the server's placeholders.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from steadypool._clock import Backoff
from steadypool._owner_loop import Home, Standing, answer, done_elsewhere, standing_of
from steadypool._sqlstate import sqlstate_in
from steadypool.connect.session_settings import milliseconds, session_guards, socket_guards
from steadypool.database.checkout import Checkout, CheckoutConfig, ConnectionScope
from steadypool.database.connection import Connection
from steadypool.database.inspection import Workload, view_of
from steadypool.database.local_settings import set_local
from steadypool.database.notifications import Notifying
from steadypool.database.retry import ATTEMPTS, Result, repeat_transaction
from steadypool.database.statements import Sharing
from steadypool.errors import ConfigurationError, HookFailed, PoolSnapshot, SteadypoolError, words_of
from steadypool.events import Events
from steadypool.listener import Listener, ListenerOptions, ListenerState, ListenerStats
from steadypool.monitor import PoolView
from steadypool.monitor.monitor import Monitor
from steadypool.pool.circuit_breaker import BreakerState
from steadypool.pool.rejections import hook_failed
from steadypool.settings.database import DatabaseSettings
from steadypool.sqlalchemy import create_async_engine
from steadypool.sqlalchemy.elsewhere import tell_left
from steadypool.sqlalchemy.engine import engine_for_workload, sqlalchemy_url
from steadypool.sqlalchemy.errors import raise_as_sqlalchemy
from steadypool.sqlalchemy.metrics_source import source_of
from steadypool.sqlalchemy.pool import SteadyPool
from steadypool.telemetry.counters import Totals
from steadypool.telemetry.defaults import DefaultInstrumentation
from steadypool.telemetry.source import ListenerInfo, Source

if TYPE_CHECKING:  # what a driver without pipelines does not have to be able to import
    from steadypool.multiplex.options import MultiplexStats


CLOSE_ELSEWHERE = 10.0
"""Seconds beyond the grace time for which a loop in another thread may be closing what is its own."""

SAFE_BEHIND_POOLERS: dict[str, Any] = {
    "prepared_statement_name_func": lambda: f"__asyncpg_{uuid.uuid4()}__",
    "statement_cache_size": 0,
    "prepared_statement_cache_size": 0,
}
"""For asyncpg: a pooler may hand each transaction to another backend, where a statement that was prepared earlier
is unknown, or is somebody else's. A name is never used twice and no statement is kept."""

OnConnect = Callable[[Any], Awaitable[None]]
"""Called with the driver's own connection, asyncpg's or psycopg's, each time one was opened."""


@dataclass(frozen=True, slots=True)
class DatabaseStats:
    """What a person wants to know, at one moment.

    `utilization` is connections in use over `pool_size`: above 1 the overflow is in use. `loop_lag` is by how many
    seconds the event loop is late: where that is much, it is not the pool that is slow.
    """

    name: str
    closed: bool
    pool: PoolSnapshot
    utilization: float
    breaker: BreakerState
    last_connect_failure: str | None
    totals: Totals
    workloads: tuple[Workload, ...]
    listener: ListenerStats | None
    shared: MultiplexStats | None
    loop_lag: float = 0.0


class Database(Sharing, Notifying):
    """A Postgres database as a service uses it.

    Making one connects to nothing, and neither does `open()`: a service may start before its database.

    Args:
        settings: where it is and how it is used; read from the environment if not given.
        name: what errors, events and statistics call it.
        listener: times of the connection that `listen` uses; by DATABASE_IDLE_POLICY if not given.
        on_connect: awaited with the driver's connection after every connect (types, search_path).
        engine_arguments: anything else for SQLAlchemy's `create_async_engine` (echo, json_serializer, …).

    Raises:
        errors.ConfigurationError: DATABASE_URL is missing, or says what cannot work.

    Example:
        >>> async def main() -> None:
        ...     async with Database(DatabaseSettings()) as db:
        ...         async with db.session() as session:
        ...             session.add(Track(title="…"))
        ...             await session.commit()
    """

    def __init__(
        self,
        settings: DatabaseSettings | None = None,
        *,
        name: str = "main",
        listener: ListenerOptions | None = None,
        on_connect: OnConnect | None = None,
        engine_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = settings or DatabaseSettings()
        self.name = name
        self.events = Events()
        self._standard = DefaultInstrumentation(self.events, self.settings.slow_query_after)
        self._workloads: dict[str, Workload] = {}
        self._ceilings: dict[str, int] = {}
        self._engines: dict[tuple[str | None, bool], AsyncEngine] = {}
        self._terms: dict[str | None, CheckoutConfig] = {}
        self._listener_options = listener
        self._listener: Listener | None = None
        try:
            self.engine = self._make_engine(engine_arguments or {})
        except ConfigurationError as error:
            raise ConfigurationError(f"DATABASE_URL: {words_of(error)}") from None
        if on_connect is not None:
            self._listen_to_connects(on_connect)
        clock, lag = self.pool.core.clock, self._standard.lag
        self.watch = Monitor(
            name,
            self.settings,
            observers=self.events,
            look=self._look,
            lag=lag.take_most,
            clock=clock,
            counters=self._standard.counters,
        )
        self.recorder = self.watch.recorder

    def _look(self) -> PoolView:
        return view_of(self.pool, self._workloads.values(), self._listener, self._shared_facts())

    def _listen_to_connects(self, on_connect: OnConnect) -> None:
        dialect = self.pool.dialect

        async def with_drivers_own(connection: Any) -> None:
            if not hasattr(connection, "plain"):
                await on_connect(connection)
                return
            async with connection.plain() as psycopg_connection:
                await on_connect(psycopg_connection)

        def run_on_connect(dbapi_connection: Any, _record: Any) -> None:
            try:
                dbapi_connection.run_async(with_drivers_own)
            except Exception as error:
                if sqlstate_in(error) or not dialect.is_open(dbapi_connection.driver_connection):
                    raise  # what the server said is said by itself; the rest is the network's doing
                raise HookFailed(f"on_connect: {hook_failed(error)}") from error

        event.listen(self.engine.sync_engine, "connect", run_on_connect)
        if self.pool.session_reset is not None:
            self.pool.session_reset.on_connect = run_on_connect

    def _make_engine(self, arguments: Mapping[str, Any]) -> AsyncEngine:
        s = self.settings
        url = sqlalchemy_url(s.require_url())
        # What people typed in ends up in logs otherwise; `engine_arguments` may ask for it.
        arguments = {"hide_parameters": True, **arguments}
        if url.drivername == "postgresql+asyncpg":
            arguments = {
                **arguments,
                "connect_args": SAFE_BEHIND_POOLERS | dict(arguments.get("connect_args", {})),
            }
        return create_async_engine(
            url,
            pool_size=s.pool_size,
            max_overflow=s.max_overflow,
            pool_timeout=s.pool_timeout,
            pool_recycle=-1 if s.pool_recycle is None else s.pool_recycle,
            pool_pre_ping={"true": True, "false": False}.get(s.pool_pre_ping.value, s.pool_pre_ping.value),
            pool_use_lifo=True,
            connection_timeout=s.connection_timeout,
            connect_retry=s.connect_retry,
            statement_timeout=s.statement_timeout,
            server_settings=session_guards(s),
            socket_options=socket_guards(s),
            ping_after_idle=s.ping_after_idle,
            max_waiting=s.max_waiting,
            max_connecting=s.max_connecting,
            close_grace=s.close_grace,
            leak_after=s.leak_after,
            idle_timeout=s.idle_timeout,
            breaker=s.breaker,
            password=s.password,
            pooler=s.pooler,
            reset=s.reset,
            pool_name=self.name,
            events=self.events,
            ceilings=self._ceilings,
            **arguments,
        )

    @property
    def pool(self) -> SteadyPool:
        """The engine's pool."""
        return cast(SteadyPool, self.engine.pool)

    # -- lifecycle ---------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Bind to the running event loop. Connects to nothing."""
        self.pool.core.bind()
        self.watch.start()
        self._standard.start()
        return self

    async def close(self, grace: float | None = None) -> None:
        """Refuse new callers, let those inside finish for `grace` seconds (DATABASE_CLOSE_GRACE), cut off the rest."""
        home = self.pool.core.home or (None if self._listener is None else self._listener.home)
        standing = standing_of(home)
        if home is not None and standing is not Standing.HERE:
            await self._close_elsewhere(home, standing, grace)
            return
        if self._listener is not None:
            await self._listener.close()
        await self._close_shared(grace)
        try:
            await self.pool.close(grace)
        finally:
            await self.watch.close()
            self._standard.stop()

    async def _close_elsewhere(self, home: Home, standing: Standing, grace: float | None) -> None:
        """Close what belongs to another event loop, which does it itself if it runs and answers, or to the parent."""
        hears = self._listener is not None and self._listener.hears
        count = self.pool.core.count() + hears
        limit = CLOSE_ELSEWHERE + (self.settings.close_grace if grace is None else grace)
        answers = standing is Standing.ELSEWHERE and await done_elsewhere(home[0], answer)
        if answers and await done_elsewhere(home[0], lambda: self.close(grace), limit):
            tell_left(self.pool, standing, count, "that loop has closed it")
            return
        if self._listener is not None:
            self._listener.leave(standing)
        if self._way is not None and standing in (Standing.CLOSED, Standing.STOPPED):
            self._way.bury()
        if count and not self.pool.core.count():  # which says it for itself
            warns = standing is Standing.ELSEWHERE
            tell_left(self.pool, standing, count, "its listener was cut off", warns=warns)
        try:
            await self.pool.close(grace)
        finally:
            self._standard.stop()
            if standing is not Standing.FORKED:
                await self.watch.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def warm_up(self, connections: int | None = None) -> int:
        """Open connections before anybody needs them; returns how many are open.

        Args:
            connections: how many; `pool_size` by default, and never more.

        Raises:
            errors.ConnectFailed: none could be opened in time.
        """
        wanted = min(connections or self.settings.pool_size, self.settings.pool_size)
        leases = await asyncio.gather(
            *(self.pool.core.acquire(name="warm-up") for _ in range(wanted)), return_exceptions=True
        )
        opened = 0
        for lease in leases:
            if not isinstance(lease, BaseException):
                lease.release()
                opened += 1
        failures = [lease for lease in leases if isinstance(lease, BaseException)]
        for failure in failures if not opened else ():
            if isinstance(failure, SteadypoolError):
                raise_as_sqlalchemy(failure)
            raise failure
        return opened

    # -- workloads ---------------------------------------------------------------------------------------------

    def workload(
        self, name: str, *, statement_timeout: float | None = None, max_connections: int | None = None
    ) -> Workload:
        """Declare a class of work, before the first session of it.

        Args:
            name: what sessions and errors call it.
            statement_timeout: seconds that its statements may run, 0 for no limit; DATABASE_STATEMENT_TIMEOUT if not
                given.
            max_connections: the most connections it may hold at a time; no ceiling if not given.

        Raises:
            errors.ConfigurationError: a value is negative, or `max_connections` is 0.

        Example:
            >>> db.workload("uploads", statement_timeout=30, max_connections=3)
        """
        if statement_timeout is not None and not statement_timeout >= 0:
            raise ConfigurationError(
                f"workload {name!r}: statement_timeout={statement_timeout!r}: allowed: seconds, 0 for no limit"
            )
        if max_connections is not None and max_connections < 1:
            raise ConfigurationError(
                f"workload {name!r}: max_connections={max_connections!r}: allowed: 1 or more"
            )
        declared = Workload(name, statement_timeout, max_connections)
        self._workloads[name] = declared
        self._engines = {key: engine for key, engine in self._engines.items() if key[0] != name}
        self._terms.pop(name, None)
        self._ceilings.pop(name, None)
        if max_connections is not None:
            self._ceilings[name] = max_connections
        return declared

    def _declared(self, name: str | None) -> Workload | None:
        if name is None:
            return None
        if name not in self._workloads:
            known = ", ".join(sorted(self._workloads)) or "none"
            raise ConfigurationError(
                f"workload {name!r} was not declared; known: {known}; declare it with db.workload({name!r}, …)"
            )
        return self._workloads[name]

    def _engine(self, workload: Workload | None, read_only: bool) -> AsyncEngine:
        key = (None if workload is None else workload.name, read_only)
        if key == (None, False):
            return self.engine
        if key not in self._engines:
            self._engines[key] = engine_for_workload(
                self.engine,
                workload=key[0],
                statement_timeout=None if workload is None else workload.statement_timeout,
                read_only=read_only,
            )
        return self._engines[key]

    # -- ways to run SQL ---------------------------------------------------------------------------------------

    @asynccontextmanager
    async def session(
        self, *, workload: str | None = None, read_only: bool = False, local: Mapping[str, str] | None = None
    ) -> AsyncGenerator[AsyncSession]:
        """An AsyncSession; it holds a connection for each transaction, and what is not committed is rolled back.

        Args:
            workload: the class of work, declared with `workload()`.
            read_only: whether its transactions are READ ONLY.
            local: server settings for each of its transactions, as SET LOCAL would set them.

        Raises:
            errors.ConfigurationError: `local` in AUTOCOMMIT, from the first statement.

        Example:
            >>> async with db.session(local={"app.user": "did:plc:xyz"}) as session:
            ...     await session.execute(text("select current_setting('app.user')"))
        """
        declared = self._declared(workload)
        settings = dict(local or {})
        if declared is not None and declared.statement_timeout is not None:
            settings.setdefault("statement_timeout", milliseconds(declared.statement_timeout))
        session = AsyncSession(self._engine(declared, read_only), expire_on_commit=False)
        if settings:
            set_local(session, settings, required=bool(local))
        with ConnectionScope():
            try:
                yield session
            finally:
                # Not as AsyncSession's own exit does it: that cannot be cancelled.
                await session.close()

    async def transaction(
        self,
        work: Callable[[AsyncSession], Awaitable[Result]],
        *,
        workload: str | None = None,
        attempts: int = ATTEMPTS,
        idempotent: bool = False,
    ) -> Result:
        """Do `work` in a transaction and commit it; repeat all of it after 40001 and 40P01 (see `retry`).

        Args:
            work: gets a session, does not commit, and may be called more than once.
            workload: the class of work.
            attempts: tries in all.
            idempotent: whether doing it twice does no harm; then a lost COMMIT is repeated too.

        Raises:
            errors.CommitUnknown: the connection was lost after COMMIT was sent.

        Example:
            >>> async def transfer(session: AsyncSession) -> None:
            ...     await session.execute(text("update accounts set …"))
            >>> await db.transaction(transfer)
        """
        return await repeat_transaction(
            lambda: self.session(workload=workload),
            work,
            attempts=attempts,
            idempotent=idempotent,
            clock=self.pool.core.clock,
            backoff=Backoff(first=0.01, ceiling=1.0),
        )

    def connection(
        self, *, workload: str | None = None, statement_timeout: float | None = None
    ) -> AbstractAsyncContextManager[Connection]:
        """A connection of one's own until the block ends.

        A workload's statement timeout is told to the session, and taken back at the end. Behind a transaction
        pooler there is no session: there it travels with each transaction, and a statement outside of one gets one
        of its own, which statements such as VACUUM refuse.

        Args:
            workload: the class of work.
            statement_timeout: seconds that its statements may run; the workload's, or DATABASE_STATEMENT_TIMEOUT, if
                not given.

        Raises what `Pool.acquire` raises.

        Example:
            >>> async with db.connection() as connection, connection.transaction():
            ...     await connection.execute("insert into tags (name) values ($1)", "ambient")
        """
        terms = self._terms.get(workload)
        if statement_timeout or terms is None or terms.pool is not self.engine.pool:
            terms = self._terms_for(workload, statement_timeout)
        return Checkout(terms)

    def _terms_for(self, workload: str | None, statement_timeout: float | None) -> CheckoutConfig:
        declared = self._declared(workload)
        terms = CheckoutConfig(
            self.pool,
            workload=workload,
            limit=statement_timeout or (None if declared is None else declared.statement_timeout),
            default_limit=self.settings.statement_timeout,
        )
        if not statement_timeout:  # of which there may be any number
            self._terms[workload] = terms
        return terms

    def _limited(
        self, statement_timeout: float, lock_timeout: float
    ) -> AbstractAsyncContextManager[Connection]:
        return Checkout(
            CheckoutConfig(
                self.pool,
                workload=None,
                limit=statement_timeout,
                default_limit=None,
                lock_timeout=lock_timeout,
            )
        )

    def _used(self) -> None:
        if self._listener is not None:
            self._listener.activity()

    # -- what can be seen --------------------------------------------------------------------------------------

    @property
    def source(self) -> Source:
        """What `steadypool.telemetry` asks: `otel.instrument(database.source)`."""
        return source_of(
            self.engine,
            loop_lag=lambda: self._standard.lag.seconds,
            listener=self._hears,
            collateral=lambda: 0 if (stats := self._shared_stats()) is None else stats.collateral,
            also_waiting=lambda: 0 if (stats := self._shared_stats()) is None else stats.waiting,
        )

    def _hears(self) -> ListenerInfo | None:
        stats = None if self._listener is None else self._listener.stats()
        if stats is None:
            return None
        state = stats.state
        return ListenerInfo(state is ListenerState.CONNECTED, stats.gaps, state is ListenerState.DEAF)

    def stats(self) -> DatabaseStats:
        """What is going on, as frozen facts."""
        core = self.pool.core
        snapshot = core.snapshot()
        return DatabaseStats(
            name=self.name,
            closed=core.closed,
            pool=snapshot,
            utilization=snapshot.utilization,
            breaker=core.breaker.state,
            last_connect_failure=snapshot.last_connect_failure,
            totals=self._standard.totals(),
            loop_lag=self._standard.lag.seconds,
            workloads=tuple(self._workloads.values()),
            listener=None if self._listener is None else self._listener.stats(),
            shared=self._shared_stats(),
        )
