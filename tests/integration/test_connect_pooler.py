"""Behind PgBouncer: sessions start although it refuses or swallows the guards, and the server still enforces them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import exc, text
from sqlalchemy.ext.asyncio import AsyncEngine

from steadypool import Database, DatabaseSettings, errors
from steadypool.events import Event, SessionLimitsLost
from steadypool.pool.circuit_breaker import BreakerState
from steadypool.sqlalchemy import create_async_engine
from steadypool.sqlalchemy.pgbouncer import PoolerDetector, Seen
from steadypool_lab import FaultProxy

from .poolers import pgbouncer

pytestmark = pytest.mark.anyio

GUARDS = (
    "statement_timeout, idle_in_transaction_session_timeout, client_connection_check_interval, "
    "tcp_keepalives_idle, tcp_keepalives_interval, tcp_keepalives_count, tcp_user_timeout, options"
)


@pytest.fixture(params=["asyncpg", "psycopg"])
def driver(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["transaction", "session"])
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["", GUARDS], ids=["refused", "ignored"])
def behind(request: pytest.FixtureRequest, database_url: str, mode: str) -> Iterator[str]:
    """A URL through a PgBouncer that refuses the guards, or is told to ignore them."""
    with pgbouncer(database_url, mode, size=3, ignored=request.param) as url:
        yield url


@contextlib.asynccontextmanager
async def database(url: str, driver: str, **settings: Any) -> AsyncIterator[Database]:
    values = {"statement_timeout": 0.4, "pool_size": 5, "max_overflow": 0} | settings
    chosen = DatabaseSettings(url=url.replace("postgresql://", f"postgresql+{driver}://"), **values)
    async with Database(chosen) as db:
        yield db


async def ask(db: Database, sql: str, **session: Any) -> Any:
    async with db.session(**session) as own:
        return (await own.execute(text(sql))).scalar()


async def test_the_server_enforces_the_limits_in_every_transaction(
    behind: str, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Event] = []
    with caplog.at_level(logging.WARNING, "steadypool.connect"):
        async with database(behind, driver) as db:
            db.events.subscribe(
                lambda event: told.append(event) if isinstance(event, SessionLimitsLost) else None
            )
            for _ in range(3):
                assert await ask(db, "show statement_timeout") == "400ms"
                assert await ask(db, "show idle_in_transaction_session_timeout") == "1min"
                assert await ask(db, "show client_connection_check_interval") == "1s"
            started = time.monotonic()
            with pytest.raises(errors.StatementTimeout) as caught:
                await ask(db, "select pg_sleep(30)")
            assert time.monotonic() - started < 10
            assert "canceling statement" in "".join(
                str(part) for part in _chain(caught.value)
            )  # by the server
            db.workload("slow", statement_timeout=2)
            assert await ask(db, "show statement_timeout", workload="slow") == "2s"
            async with db.session() as session:
                for _ in range(2):  # each transaction of a session, after a rollback too
                    assert (await session.execute(text("show statement_timeout"))).scalar() == "400ms"
                    await session.rollback()
    said = [record.message for record in caplog.records if record.name == "steadypool.connect"]
    assert len(said) == len(told) == 1, (said, told)
    assert "beginning of each transaction" in said[0]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        yield from _chain(getattr(error, "orig", None))
        error = error.__cause__


async def test_a_workloads_limit_stays_with_its_dedicated_connection(
    driver: str, mode: str, database_url: str
) -> None:
    """The pooler has one connection to the server: what one client leaves there, the next one finds."""
    asked = "select current_setting('statement_timeout'), pg_backend_pid()"
    with pgbouncer(database_url, mode, ignored=GUARDS, size=1 if mode == "transaction" else 2) as url:
        async with database(url, driver) as db, database(url, driver) as other:
            db.workload("slow", statement_timeout=2)
            async with db.connection(workload="slow") as mine, other.connection() as theirs:
                for _ in range(2):
                    assert (await mine.fetch(asked))[0][0] == "2s"
                    assert (await theirs.fetch(asked))[0][0] == "0"
                async with mine.transaction():
                    assert await mine.fetchval("select current_setting($1)", "statement_timeout") == "2s"
                with pytest.raises(errors.StatementTimeout) as caught:
                    await mine.execute("select pg_sleep(30)")
                assert "canceling statement" in str(caught.value.__cause__)  # by the server
                assert await mine.execute("begin") == "BEGIN"  # by hand, and it stays open
                assert await mine.fetchval("select current_setting('statement_timeout')") == "2s"
                await mine.execute("create table kept (a int)")
                assert await mine.execute("commit") == "COMMIT"
                assert await mine.fetchval("select count(*) from kept") == 0
            async with db.connection() as unlimited:
                assert await unlimited.fetchval("select current_setting('statement_timeout')") == "0"


async def test_what_a_workloads_limit_costs_behind_a_pooler(driver: str, database_url: str) -> None:
    """Statements travel in a transaction of their own: BEGIN with the limit, the statement, COMMIT."""
    with pgbouncer(database_url, "transaction", ignored=GUARDS) as url:
        async with FaultProxy("127.0.0.1", int(urlsplit(url).port or 0)) as proxy:
            there = url.replace(f":{urlsplit(url).port}", f":{proxy.port}")
            async with database(there, driver, statement_timeout=20, ping_after_idle=60) as db:
                db.workload("slow", statement_timeout=30)
                async with db.connection(workload="slow") as connection:
                    await connection.execute("select 1")
                    proxy.delay = 0.01
                    before = proxy.round_trips
                    await connection.execute("select 1")
                    assert proxy.round_trips - before == 3
                    async with connection.transaction():
                        await connection.execute("select 1")
                        await connection.execute("select 1")
                    assert proxy.round_trips - before == 7
                    proxy.delay = 0.0


async def test_prepared_statements_do_not_collide(behind: str, driver: str) -> None:
    """More sessions than the pooler has connections, the same statements again and again."""

    async def work(db: Database, number: int) -> None:
        for turn in range(12):
            async with db.session() as session:
                asked = text("select cast(:n as int) + 1, cast(:t as text)")
                row = (await session.execute(asked, {"n": number, "t": str(turn)})).one()
                assert tuple(row) == (number + 1, str(turn))

    async with database(behind, driver, statement_timeout=5, pool_size=3) as db:
        await asyncio.gather(*(work(db, number) for number in range(6)))


@pytest.mark.parametrize("dialect", ["asyncpg", "psycopg", "steadypool"])
@pytest.mark.parametrize("told", [{}, {"pooler": "transaction"}], ids=["auto", "told"])
@pytest.mark.parametrize("autocommit", [False, True])
async def test_the_drop_in_engine_keeps_no_statement_behind_a_pooler(
    database_url: str, dialect: str, told: dict[str, Any], autocommit: bool
) -> None:
    """More connections than the pooler has, the same statements on each: none of them may be where it is not known."""
    options = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}

    async def work(engine: AsyncEngine, number: int) -> None:
        asked = text("select cast(:n as int) + 1, cast(:t as text), cast(:a as int[])")
        for turn in range(6):
            async with engine.connect() as connection:
                await connection.execution_options(**options)
                for _ in range(2):
                    row = await connection.execute(asked, {"n": number, "t": str(turn), "a": [turn]})
                    assert tuple(row.one()) == (number + 1, str(turn), [turn])

    with pgbouncer(database_url, "transaction", size=3) as behind:
        url = behind.replace("postgresql://", f"postgresql+{dialect}://")
        engine = create_async_engine(url, pool_size=6, max_overflow=0, **told)
        await asyncio.gather(*(work(engine, number) for number in range(6)))
        await engine.dispose()


@pytest.mark.parametrize("dialect", ["asyncpg", "psycopg", "steadypool"])
async def test_a_stream_in_autocommit_is_refused_behind_a_pooler_and_holds_none_of_its_servers(
    database_url: str, dialect: str
) -> None:
    """Its cursor would be in a session that the pooler lends to the next. asyncpg has prepared the statement then,
    without a Sync: as long as that is missing the pooler takes the server for busy."""

    async def stream(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            with pytest.raises(exc.DBAPIError, match="transaction"):
                await connection.stream(text("select generate_series(1, 500)"))

    with pgbouncer(database_url, "transaction", size=2) as behind:
        url = behind.replace("postgresql://", f"postgresql+{dialect}://")
        engine = create_async_engine(url, pool_size=6, max_overflow=0)
        async with asyncio.timeout(20):
            await asyncio.gather(*(stream(engine) for _ in range(6)))
            async with engine.connect() as connection:
                left = await connection.execute(text("select count(*) from pg_cursors where is_holdable"))
                assert left.scalar_one() == 0
        await engine.dispose()


@pytest.mark.parametrize("size", [0, 100])
async def test_what_the_caller_says_of_the_statement_cache_stays(database_url: str, size: int) -> None:
    url = database_url.replace("postgresql://", "postgresql+asyncpg://")
    arguments: dict[str, Any] = {"connect_args": {"statement_cache_size": size}, "pooler": "transaction"}
    engine = create_async_engine(url, **arguments)
    async with engine.connect() as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        assert raw._stmt_cache.get_max_size() == size
    await engine.dispose()


async def test_an_engine_without_a_database_has_it_too(behind: str, driver: str) -> None:
    arguments: dict[str, Any] = (
        {"connect_args": {"statement_cache_size": 0, "prepared_statement_cache_size": 0}}
        if driver == "asyncpg"
        else {}
    )
    engine = create_async_engine(
        behind.replace("postgresql://", f"postgresql+{driver}://"), statement_timeout=0.4, **arguments
    )
    try:
        async with engine.begin() as connection:
            assert (await connection.execute(text("show statement_timeout"))).scalar() == "400ms"
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            assert (await connection.execute(text("show statement_timeout"))).scalar() == "0"  # as documented
    finally:
        await engine.dispose()


async def test_without_a_pooler_the_session_has_its_guards_and_transactions_are_as_short_as_ever(
    driver: str, database_url: str
) -> None:
    async with database(database_url, driver) as db:
        assert await ask(db, "show statement_timeout") == "400ms"
        watch = db.pool.dialect.pooler_watch
        assert watch.looked
        assert not watch.behind_pooler
        assert watch.per_transaction is None
        assert watch.keeps_statements


async def test_a_pooler_is_noticed_by_who_answers(behind: str, driver: str, mode: str) -> None:
    async with database(behind, driver) as db:
        assert await ask(db, "select 1") == 1
        assert db.pool.dialect.pooler_watch.behind_pooler
        assert not db.pool.dialect.pooler_watch.keeps_statements  # not known to be safe
    async with database(behind, driver, pooler=mode) as db:
        assert await ask(db, "select 1") == 1
        assert db.pool.dialect.pooler_watch.keeps_statements == (mode == "session")


async def test_the_applications_own_settings_are_not_taken_for_swallowed_guards(
    driver: str, database_url: str
) -> None:
    async with database(database_url + "?options=-c%20statement_timeout%3D7s", driver) as db:
        assert await ask(db, "show statement_timeout") == "7s"
        assert db.pool.dialect.pooler_watch.per_transaction is None


def test_an_old_server_is_not_told_what_it_does_not_know() -> None:
    guards = {"statement_timeout": "400", "client_connection_check_interval": "1000"}
    told: list[str] = []
    watch = PoolerDetector(settings=guards, told=told.append)
    watch.saw(Seen(1, 1, 0, knows_check_interval=False))
    assert watch.per_transaction == "SET LOCAL statement_timeout = '400'"
    assert watch.at_start == {}
    assert len(told) == 1
    watch = PoolerDetector(settings=guards)
    watch.saw(Seen(1, 2, 0, knows_check_interval=True))
    assert "client_connection_check_interval = '1000'" in (watch.per_transaction or "")


async def test_a_pooler_without_a_free_server_is_given_time(database_url: str, driver: str) -> None:
    """PgBouncer's `query_wait_timeout`: it ends the client's connection, and the statement was never passed on."""
    with pgbouncer(database_url, "transaction", ignored=GUARDS, size=1, more="query_wait_timeout = 1") as url:
        async with database(url, driver, statement_timeout=5) as db:
            assert await db.warm_up(2) == 2
            async with db.session() as first:
                await first.execute(text("select 1"))  # its transaction has the only one
                with pytest.raises(errors.ConnectionLost, match="08P01") as caught:
                    await ask(db, "select 1")
                assert caught.value.maybe_executed is False
                assert db.stats().breaker is BreakerState.OPEN
            assert await ask(db, "select 1") == 1
