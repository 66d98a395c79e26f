"""What `postgresql+steadypool://` does that no other driver does; the rest is in the tests that all drivers share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy.ext.asyncio as stock
from sqlalchemy import Column, Integer, MetaData, Table, Text, event, exc, insert, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

import steadypool
from steadypool import Database, DatabaseSettings, deadline, errors
from steadypool.sqlalchemy import create_async_engine
from steadypool.sqlalchemy.pipelined import SteadypoolDialect
from steadypool_lab import FaultProxy
from steadypool_lab.network.link import Direction
from steadypool_lab.testing import Observer

pytestmark = pytest.mark.anyio

NUMBERS = Table("numbers", MetaData(), Column("id", Integer, primary_key=True), Column("name", Text))


def ours(url: str) -> str:
    return url.replace("postgresql://", "postgresql+steadypool://")


@pytest.fixture
async def engine(proxied_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(
        ours(proxied_url),
        pool_size=1,
        max_overflow=0,
        pool_pre_ping=True,
        ping_after_idle=0.0,
        pool_timeout=5,
    )
    yield engine
    await engine.dispose()


async def trips(proxy: FaultProxy, work: Any) -> int:
    for _ in range(3):
        await work()
    proxy.delay, before = 0.02, proxy.round_trips
    await work()
    proxy.delay = 0.0
    return proxy.round_trips - before


async def statements(engine: AsyncEngine) -> list[str]:
    """What is sent, segment by segment, from now on."""
    sent: list[str] = []
    async with engine.connect() as connection:
        driver_connection: Any = (await connection.get_raw_connection()).driver_connection
    put = driver_connection._put

    def record(segment: Any, **more: Any) -> None:
        sent.append("; ".join(statement.sql for statement in segment.statements))
        put(segment, **more)

    driver_connection._put = record
    return sent


# -- how long a statement may take ---------------------------------------------------------------------------------


async def test_one_timer_gives_each_statement_up_at_its_own_moment(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        with deadline(60):
            await connection.execute(text("select 1"))
        with deadline(0.2):
            await connection.execute(text("select 2"))
        with deadline(60):  # meanwhile the timer of the one before goes off
            assert await connection.scalar(text("select 3 from pg_sleep(0.5)")) == 3
        began = time.monotonic()
        with deadline(0.3), pytest.raises(errors.DeadlineExceeded):
            await connection.execute(text("select pg_sleep(20)"))
        assert 0.3 <= time.monotonic() - began < 10
    async with engine.connect() as connection:
        assert await connection.scalar(text("select 4")) == 4


# -- what travels with what ----------------------------------------------------------------------------------------


async def test_a_transaction_begins_with_its_first_statement(engine: AsyncEngine) -> None:
    sent = await statements(engine)
    async with engine.connect() as connection:
        await connection.execution_options(
            isolation_level="SERIALIZABLE", postgresql_readonly=True, postgresql_deferrable=True
        )
        assert sent == []
        assert (await connection.execute(text("select 1"))).scalar() == 1
        assert (await connection.scalar(text("show transaction_isolation"))) == "serializable"
    assert sent == [
        "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE; select 1",
        "show transaction_isolation",
        "ROLLBACK",
    ]
    async with engine.connect() as connection:  # SQLAlchemy has put the defaults back
        await connection.execute(text("select 2"))
        await connection.commit()
    assert sent[3:] == ["BEGIN ISOLATION LEVEL READ COMMITTED NOT DEFERRABLE; select 2", "COMMIT"]


async def test_what_is_set_locally_travels_with_the_begin(proxied_url: str, proxy: FaultProxy) -> None:
    settings = DatabaseSettings(url=ours(proxied_url), ping_after_idle=60)
    async with Database(settings) as db:
        db.workload("slow", statement_timeout=30)

        async def work() -> None:
            async with db.session(workload="slow", local={"app.user": "somebody"}) as session:
                found = await session.execute(
                    text("select current_setting('app.user'), current_setting('statement_timeout')")
                )
                assert tuple(found.one()) == ("somebody", "30s")

        assert await trips(proxy, work) == 1
        async with db.session() as session:
            assert await session.scalar(text("select current_setting('app.user', true)")) == ""


async def test_many_rows_are_written_in_one_flight(engine: AsyncEngine, proxy: FaultProxy) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(NUMBERS.metadata.create_all)
    rows = [{"name": str(number)} for number in range(100)]

    async def returning() -> None:
        async with engine.begin() as connection:
            found = await connection.execute(insert(NUMBERS).returning(NUMBERS.c.id), rows)
            assert len(found.all()) == 100

    async def many() -> None:
        async with engine.begin() as connection:
            done = await connection.execute(text("insert into numbers (name) values (:name)"), rows)
            assert done.rowcount == 100

    assert await trips(proxy, returning) == 2
    assert await trips(proxy, many) == 2


async def test_a_savepoint(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("create table t (a int primary key)"))
        await connection.execute(text("insert into t values (1)"))
        with pytest.raises(exc.IntegrityError):
            async with connection.begin_nested():
                await connection.execute(text("insert into t values (1)"))
        await connection.execute(text("insert into t values (2)"))
    async with engine.connect() as connection:
        assert await connection.scalar(text("select count(*) from t")) == 2


async def test_a_stream_holds_few_rows_at_a_time(engine: AsyncEngine, proxy: FaultProxy) -> None:
    query = text("select i, repeat('x', 1000) from generate_series(1, 100000) i")
    async with engine.connect() as connection:
        before, seen = proxy.bytes_down, 0
        async with connection.stream(query) as rows:
            async for _row in rows:
                seen += 1
                if seen == 500:
                    break
        assert proxy.bytes_down - before < 5_000_000  # of 100 MB
        assert await connection.scalar(text("select 1")) == 1


async def test_a_stream_in_autocommit(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        async with connection.stream(text("select generate_series(1, 1000)")) as rows:
            assert len([row async for row in rows]) == 1000
        assert await connection.scalar(text("select count(*) from pg_cursors where name <> ''")) == 0


async def test_cursors_of_a_connection_that_was_replaced_are_forgotten(
    proxied_url: str, proxy: FaultProxy
) -> None:
    options = {"pool_size": 1, "max_overflow": 0, "pool_pre_ping": True, "ping_after_idle": 0.0}
    engine = create_async_engine(ours(proxied_url), **options, pool_reset_on_return=None)
    raw: Any = await engine.raw_connection()

    def leave_one_open() -> None:
        raw.dbapi_connection.set_autocommit(True)
        raw.cursor("left_open").execute("select generate_series(1, 1000)")
        raw.dbapi_connection.set_autocommit(False)
        raw.close()

    await greenlet_spawn(leave_one_open)
    for link in proxy.links:
        link.up = link.down = Direction(silent=True)
    pids: list[int] = []
    for _ in range(2):
        async with engine.connect() as connection:
            pids.append(await connection.scalar(text("select pg_backend_pid()")))
            await connection.rollback()
    assert pids[0] == pids[1], "its successor has no such cursor to close"
    await engine.dispose()


# -- what is not silently lost ---------------------------------------------------------------------------------------


async def test_a_commit_answered_by_a_rollback_is_an_error(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        with pytest.raises(exc.DataError):
            await connection.execute(text("select 1/0"))
        with pytest.raises(errors.TransactionRolledBack):
            await connection.commit()
        await connection.rollback()
        assert await connection.scalar(text("select 1")) == 1


async def test_a_rollback_is_waited_for_where_something_failed(
    engine: AsyncEngine, proxy: FaultProxy
) -> None:
    async def work() -> None:
        async with engine.connect() as connection:
            with pytest.raises(exc.DataError):
                await connection.execute(text("select 1/0"))

    assert await trips(proxy, work) == 2


async def test_the_schema_changes_under_prepared_statements(engine: AsyncEngine, proxied_url: str) -> None:
    query = text("select * from t")
    async with engine.begin() as connection:
        await connection.execute(text("create table t (a int)"))
        await connection.execute(text("insert into t values (1)"))
        for _ in range(3):
            assert (await connection.execute(query)).all() == [(1,)]
        await connection.execute(text("alter table t add column b int default 2"))
        assert (await connection.execute(query)).all() == [(1, 2)]
    async with engine.connect() as connection:
        await connection.execute(text("alter table t add column c int default 3"))
        assert (await connection.execute(query)).all() == [(1, 2, 3)]
    async with engine.connect() as connection:  # that was rolled back
        await connection.execute(text("select 1"))
        assert (await connection.execute(query)).all() == [(1, 2)]


async def test_text_that_cannot_be_sent_leaves_the_connection_as_it_was(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        pid = await connection.scalar(text("select pg_backend_pid()"))
        await connection.rollback()
        for _ in range(2):
            with pytest.raises(errors.InvalidText):
                async with connection.stream(text("select '\ud800'")):
                    pass
            with pytest.raises((errors.InvalidText, exc.StatementError)):
                await connection.execute(text("select :a"), {"a": "\ud800"})
            await connection.rollback()
        assert await connection.scalar(text("select pg_backend_pid()")) == pid


async def test_a_procedure_in_autocommit_is_not_called_again(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("create table done (n int)"))
        await connection.execute(
            text(
                "create procedure half() language plpgsql as $$ begin insert into done values (1); commit;"
                " raise exception 'not supported' using errcode = '0A000'; end $$"
            )
        )
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        for times in range(1, 5):
            with pytest.raises(exc.DBAPIError):
                await connection.execute(text("call half()"))
            assert await connection.scalar(text("select count(*) from done")) == times


# -- a connection that is dead at its first use ------------------------------------------------------------------------


def connections(engine: AsyncEngine) -> int:
    """How many places of the pool are taken."""
    pool: Any = engine.pool
    return pool.core.count()


@pytest.mark.parametrize("way", ["transaction", "autocommit"])
async def test_it_is_exchanged_and_nobody_notices(engine: AsyncEngine, proxy: FaultProxy, way: str) -> None:
    chosen = engine.execution_options(isolation_level="AUTOCOMMIT") if way == "autocommit" else engine
    opened: list[Any] = []
    event.listen(engine.sync_engine, "connect", lambda connection, _record: opened.append(connection))
    async with chosen.connect() as connection:
        await connection.execute(text("select 1"))
    async with chosen.connect() as connection:
        proxy.drop_all(reset=True)
        await asyncio.sleep(0.05)  # it is leased, so the pool leaves it alone
        assert await connection.scalar(text("select 2")) == 2
        assert await connection.scalar(text("select 3")) == 3
        pool: Any = engine.pool
        assert (pool.checkedout(), pool.checkedin()) == (1, 0)
    assert len(opened) == 2
    assert (pool.checkedout(), pool.checkedin()) == (0, 1)
    assert connections(engine) == 1


async def test_it_is_exchanged_once_and_only_at_the_first_use(engine: AsyncEngine, proxy: FaultProxy) -> None:
    async with engine.connect() as connection:
        await connection.execute(text("select 1"))
        proxy.drop_all(reset=True)
        with pytest.raises(steadypool.ConnectionLost) as caught:
            await connection.execute(text("select 2"))
        assert caught.value.maybe_executed


async def test_all_die_at_once_while_all_are_leased(proxied_url: str, proxy: FaultProxy) -> None:
    """Nobody waits for a place that somebody else holds with a dead connection."""
    engine = create_async_engine(
        ours(proxied_url),
        pool_size=3,
        max_overflow=0,
        pool_pre_ping=True,
        ping_after_idle=0.0,
        pool_timeout=5,
    )
    held = [await engine.connect() for _ in range(3)]
    proxy.drop_all(reset=True)
    answers = await asyncio.gather(*(connection.scalar(text("select 1")) for connection in held))
    assert answers == [1, 1, 1]
    for connection in held:
        await connection.close()
    assert connections(engine) == 3
    await engine.dispose()


async def test_without_pre_ping_a_dead_connection_is_an_error(proxied_url: str, proxy: FaultProxy) -> None:
    engine = create_async_engine(ours(proxied_url))
    async with engine.connect() as connection:
        proxy.drop_all(reset=True)
        with pytest.raises(steadypool.ConnectionLost):
            await connection.execute(text("select 1"))
    await engine.dispose()


async def test_a_statement_that_kills_its_backend_is_not_sent_twice(
    engine: AsyncEngine, pg: Observer, database_url: str
) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("create sequence tries"))
    async with engine.connect() as connection:
        with pytest.raises(steadypool.ConnectionLost):
            await connection.execute(text("select nextval('tries'), pg_terminate_backend(pg_backend_pid())"))
    async with engine.connect() as connection:
        assert await connection.scalar(text("select last_value from tries")) == 1


# -- without our engine ------------------------------------------------------------------------------------------------


async def test_stock_create_async_engine_finds_it(database_url: str) -> None:
    assert make_url(ours(database_url)).get_dialect() is SteadypoolDialect
    engine = stock.create_async_engine(ours(database_url), pool_pre_ping=True)
    for _ in range(2):
        async with engine.connect() as connection:
            assert await connection.scalar(text("select cast(:number as int)"), {"number": 7}) == 7
    await engine.dispose()


def test_it_is_for_async_only() -> None:
    dialect = SteadypoolDialect()
    assert dialect.is_async
    assert SteadypoolDialect.get_async_dialect_cls(make_url("postgresql+steadypool://")) is SteadypoolDialect
