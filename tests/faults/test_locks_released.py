"""When `rollback()` or the end of a block has returned, others can have what the transaction had locked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import exc, text
from sqlalchemy.ext.asyncio import AsyncSession

from steadypool import ConnectionLost, Database, DatabaseSettings
from steadypool.sqlalchemy import create_async_engine
from steadypool_lab.network.proxy import FaultProxy

from .conftest import MakeDatabase
from .test_round_trips import trips

pytestmark = pytest.mark.anyio

ROUNDS = 10
"""An unwaited ROLLBACK loses nearly every one."""


@pytest.fixture
async def db(make_db: MakeDatabase, proxied_url: str) -> AsyncIterator[Database]:
    made = make_db(
        proxied_url, ping_after_idle=60.0, statement_timeout=20, connection_timeout=20, pool_timeout=20
    )
    async with made.engine.begin() as connection:
        await connection.execute(text("create table jobs (id int primary key)"))
        await connection.execute(text("insert into jobs values (1)"))
    yield made
    async with made.engine.begin() as connection:
        await connection.execute(text("drop table jobs"))


LOCKING = [
    ("select id from jobs where id = 1 for update", "select id from jobs where id = 1 for update skip locked"),
    ("select id from jobs for no key update", "select id from jobs for update nowait"),
    ("select pg_advisory_xact_lock(7)", "select case when pg_try_advisory_xact_lock(7) then 1 end"),
    ("update jobs set id = 1", "select id from jobs for update skip locked"),
    ("select set_config('my.lock', pg_advisory_xact_lock(7)::text, true)",
     "select case when pg_try_advisory_xact_lock(7) then 1 end"),
    ("with one as (select id from jobs for update) select * from one",
     "select id from jobs for update skip locked"),
    ("lock table jobs in share mode", "select id from jobs for update nowait"),
]  # fmt: skip


@pytest.mark.parametrize(("locking", "wanting"), LOCKING)
async def test_after_rollback(db: Database, locking: str, wanting: str) -> None:
    async with db.engine.connect() as one, db.engine.connect() as other:
        for _ in range(ROUNDS):
            await one.execute(text(locking))
            await one.rollback()
            assert (await other.execute(text(wanting))).scalar() == 1
            await other.rollback()


@pytest.mark.parametrize(("locking", "wanting"), LOCKING)
async def test_after_the_end_of_a_block(db: Database, locking: str, wanting: str) -> None:
    async with db.engine.connect() as other:
        for _ in range(ROUNDS):
            async with db.session() as session:
                await session.execute(text(locking))
            assert (await other.execute(text(wanting))).scalar() == 1
            await other.rollback()


async def test_after_a_stream_that_was_left_early(db: Database) -> None:
    async with db.engine.connect() as other:
        for _ in range(ROUNDS):
            async with db.engine.connect() as one:
                async with one.stream(text("select id from jobs for update")) as result:
                    await result.fetchone()
            assert (await other.execute(text("select id from jobs for update nowait"))).scalar() == 1
            await other.rollback()


WRONG = [
    ("select id from jobs where id = :id", "select id from jobs where id = $1"),
    ("update jobs set id = :id", "update jobs set id = $1"),
]
"""With a value that the driver refuses to send, after asyncpg has prepared the statement."""


@pytest.mark.parametrize(("named", "numbered"), WRONG)
async def test_after_a_value_that_cannot_be_sent_in_autocommit(
    db: Database, named: str, numbered: str
) -> None:
    exclusive = text("lock table jobs in access exclusive mode nowait")
    async with db.engine.connect() as other:
        await other.execute(text("select 1"))  # so that it is another connection
        async with db.engine.connect() as one:
            await one.execution_options(isolation_level="AUTOCOMMIT")
            with pytest.raises(exc.DBAPIError):
                await one.execute(text(named), {"id": "one"})
        await other.execute(exclusive)
        await other.rollback()
        async with db.connection() as connection:
            with pytest.raises(Exception, match="invalid input"):
                await connection.fetch(numbered, "one")
        await other.execute(exclusive)
        await other.rollback()
        with pytest.raises(Exception, match="invalid input"):
            await db.fetch(numbered, "one")
        await other.execute(exclusive)


async def test_after_a_stream_in_autocommit(db: Database, driver: str) -> None:
    async with db.engine.connect() as other:
        await other.execute(text("select 1"))
        async with db.engine.connect() as one:
            await one.execution_options(isolation_level="AUTOCOMMIT")
            stream = text("select id from jobs")
            if driver == "steadypool":
                await (await one.stream(stream)).fetchone()
            else:
                with pytest.raises(exc.DBAPIError, match="transaction"):
                    await one.stream(stream)
        await other.execute(text("lock table jobs in access exclusive mode nowait"))


async def test_after_a_statement_that_was_prepared_only(database_url: str) -> None:
    """By asyncpg's own `prepare`, which sends no Sync."""
    settings = DatabaseSettings(url=database_url.replace("postgresql://", "postgresql+asyncpg://"))
    async with Database(settings) as db:
        with psycopg.connect(database_url, autocommit=True) as blocking:
            blocking.execute("set lock_timeout = '5s'")
            blocking.execute("create table jobs (id int)")
            async with db.connection() as connection:
                await connection.driver_connection.prepare("select id from jobs")
            blocking.execute("drop table jobs")


async def test_after_a_value_that_cannot_be_sent_over_what_a_creator_made(database_url: str) -> None:
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: asyncpg.connect(database_url),
        isolation_level="AUTOCOMMIT",
        pool_size=1,
    )
    with psycopg.connect(database_url, autocommit=True) as blocking:
        blocking.execute("set lock_timeout = '5s'")
        blocking.execute("create table jobs (id int)")
        async with engine.connect() as connection:
            with pytest.raises(exc.DBAPIError):
                await connection.execute(text("select id from jobs where id = :id"), {"id": "one"})
        blocking.execute("drop table jobs")
        async with engine.connect() as connection:
            pid = (await connection.execute(text("select pg_backend_pid()"))).scalar_one()
            blocking.execute("select pg_terminate_backend(%s, 5000)", (pid,))
            with pytest.raises(ConnectionLost, match="57P01"):
                await connection.execute(text("select 1"))
    await engine.dispose()


async def test_a_blocked_event_loop_does_not_keep_a_reader_in_its_transaction(
    make_db: MakeDatabase, database_url: str
) -> None:
    """Synchronous code right behind the block needs the table for itself."""
    db = make_db(database_url)
    with psycopg.connect(database_url, autocommit=True) as blocking:
        blocking.execute("set lock_timeout = '5s'")
        blocking.execute("create table jobs (id int)")
        async with db.session() as session:
            await session.execute(text("select id from jobs"))
        blocking.execute("drop table jobs")  # in the way of the event loop


def test_a_stopped_event_loop_does_not_keep_a_reader_in_its_transaction(
    driver: str, database_url: str
) -> None:
    """An asynchronous test, then a synchronous fixture that empties its tables."""
    engine = create_async_engine(database_url.replace("postgresql://", f"postgresql+{driver}://"))

    async def read() -> Any:
        async with AsyncSession(engine) as session:
            return (await session.execute(text("select count(*) from jobs"))).scalar()

    with psycopg.connect(database_url, autocommit=True) as blocking:
        blocking.execute("set lock_timeout = '5s'")
        blocking.execute("create table jobs (id int)")
        loop = asyncio.new_event_loop()
        try:
            assert loop.run_until_complete(read()) == 0
            blocking.execute("drop table jobs")
            loop.run_until_complete(engine.dispose())
        finally:
            loop.close()


@pytest.mark.parametrize(
    ("sql", "needed"),
    [
        ("select id from jobs", 1),
        ("select count(*) from jobs", 1),
        ("select id from jobs for update", 2),
        ("select pg_advisory_xact_lock(7)", 2),
    ],
)
async def test_what_the_wait_costs(
    db: Database, proxy: FaultProxy, driver: str, sql: str, needed: int
) -> None:
    """Over the pipelined connection, one round trip for a transaction that may hold locks, and none for a reader."""

    async def work() -> None:
        async with db.session() as session:
            await session.execute(text(sql))

    counted = await trips(proxy, work)
    if driver == "steadypool":
        assert counted == needed
    else:
        assert counted == {"asyncpg": 5, "psycopg": 3}[driver]
