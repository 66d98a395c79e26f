"""`Database`: sessions, dedicated connections, workloads and its end, with every driver."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, MissingGreenlet

import steadypool
from conditions import until
from steadypool import Database, DatabaseSettings

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncpg", "psycopg", "steadypool"])
def settings(request: pytest.FixtureRequest, database_url: str) -> DatabaseSettings:
    url = database_url.replace("postgresql://", f"postgresql+{request.param}://")
    return DatabaseSettings(url=url, pool_size=2, max_overflow=1, pool_timeout=1.0, statement_timeout=2)


@pytest.fixture
async def db(settings: DatabaseSettings) -> AsyncIterator[Database]:
    async with Database(settings) as database:
        yield database


async def setting(session: Any, name: str) -> str:
    return (await session.execute(text("select current_setting(:name, true)"), {"name": name})).scalar()


async def test_what_is_not_committed_is_rolled_back(db: Database) -> None:
    async with db.session() as session:
        await session.execute(text("create table t (a int)"))
        await session.commit()
        await session.execute(text("insert into t values (1)"))
    async with db.session() as session:
        assert (await session.execute(text("select count(*) from t"))).scalar() == 0
    assert db.stats().pool.leased == 0


async def test_server_knows_the_limits(db: Database) -> None:
    async with db.session() as session:
        assert await setting(session, "statement_timeout") == "2s"
        assert await setting(session, "idle_in_transaction_session_timeout") == "1min"
        assert await setting(session, "client_connection_check_interval") == "1s"


async def test_a_workload_has_its_own_limit_for_its_own_time(db: Database) -> None:
    db.workload("uploads", statement_timeout=30)
    db.workload("strict", statement_timeout=0.2)
    async with db.session(workload="uploads") as session:
        assert await setting(session, "statement_timeout") == "30s"
        await session.execute(text("select pg_sleep(2.7)"))  # beyond the default of server and client
    async with db.session() as session:
        assert await setting(session, "statement_timeout") == "2s"
    with pytest.raises(steadypool.StatementTimeout) as caught:
        async with db.session(workload="strict") as session:
            await session.execute(text("select pg_sleep(1)"))
    assert "'strict'" in str(caught.value)
    assert "0.20" in str(caught.value)
    assert db.stats().totals.statement_timeouts == 1


async def test_a_ceiling_leaves_room_for_others(db: Database) -> None:
    db.workload("uploads", max_connections=1)
    async with db.connection(workload="uploads"):
        with pytest.raises(steadypool.PoolTimeout):
            async with db.connection(workload="uploads"):
                pass
        async with db.connection() as other:
            assert await other.fetchval("select 1") == 1


async def test_an_unknown_workload_is_named(db: Database) -> None:
    with pytest.raises(steadypool.ConfigurationError, match="'upload' was not declared"):
        async with db.session(workload="upload"):
            pass


async def test_read_only_and_local_settings(db: Database) -> None:
    async with db.session(read_only=True, local={"app.user": "did:plc:1"}) as session:
        assert await setting(session, "app.user") == "did:plc:1"
        with pytest.raises(DBAPIError, match="read-only transaction"):
            await session.execute(text("create table nowhere (a int)"))
    async with db.session() as session:
        assert not await setting(session, "app.user")
        await session.execute(text("create table somewhere (a int)"))


async def test_dedicated_connection(db: Database) -> None:
    async with db.connection() as connection:
        assert await connection.execute("create table t (id int primary key, name text)") == "CREATE TABLE"
        async with connection.transaction():
            assert await connection.execute("insert into t values ($1, $2)", 1, "a") == "INSERT 0 1"
            with pytest.raises(ZeroDivisionError):
                async with connection.transaction():
                    await connection.execute("insert into t values ($1, $2)", 2, "b")
                    raise ZeroDivisionError
        row = await connection.fetchrow("select id, name from t")
        assert row is not None
        assert (row["id"], row["name"], row[0]) == (1, "a", 1)
        assert await connection.fetchval("select count(*) from t where id > $1", 0) == 1
        assert await connection.fetchrow("select 1 where false") is None
    assert db.engine.pool.checkedin() == 1


async def test_dedicated_connection_is_cleaned_after_the_user(db: Database, pg: Any) -> None:
    async with db.connection() as connection:
        await connection.execute("BEGIN")
        pid = await connection.fetchval("select pg_backend_pid()")
    async with db.connection() as connection:
        assert await connection.fetchval("select pg_backend_pid()") == pid
        assert [backend.state for backend in await pg.backends()] == ["idle"]


async def test_what_another_task_has_on_its_way_does_not_reach_the_next_user(db: Database) -> None:
    await db.execute("create table t (id int)")
    async with db.connection() as connection:
        others = [
            asyncio.create_task(connection.execute(sql))
            for sql in ("select pg_sleep(0.1)", "begin", "select 1")
        ]
        await asyncio.sleep(0)
    async with db.connection() as connection:
        await connection.execute("insert into t values (1)")
        assert [
            end for end in await asyncio.gather(*others, return_exceptions=True) if isinstance(end, Exception)
        ]
    assert await db.fetchval("select count(*) from t") == 1


async def test_who_is_not_in_a_greenlet_gets_no_idle_connection_either(db: Database) -> None:
    assert await db.warm_up(1) == 1
    with pytest.raises(MissingGreenlet):
        db.engine.pool.connect()
    with pytest.raises(MissingGreenlet):
        await asyncio.to_thread(db.engine.sync_engine.connect)
    assert db.engine.pool.checkedout() == 0


async def test_a_deadline_ends_statements_that_are_behind_others(settings: DatabaseSettings) -> None:
    async with Database(settings.replace(statement_timeout=0.6)) as db, db.connection() as connection:
        with steadypool.deadline(1.2):
            statements = [connection.execute("select pg_sleep(0.5)") for _ in range(4)]
            ends = await asyncio.gather(*statements, return_exceptions=True)
    assert isinstance(ends[-1], Exception)  # asyncpg has one at a time, the others a queue


async def test_an_engine_in_autocommit_stays_that(settings: DatabaseSettings) -> None:
    async with Database(settings, engine_arguments={"isolation_level": "AUTOCOMMIT"}) as db:
        async with db.connection() as connection:
            await connection.execute("create table t (id int)")
        async with db.engine.connect() as session:
            await session.execute(text("insert into t values (1)"))
        assert await db.fetchval("select count(*) from t") == 1


async def test_a_connection_is_for_one_block(db: Database) -> None:
    block = db.connection()
    async with block as connection:
        with pytest.raises(RuntimeError, match="anew for each"):
            await block.__aenter__()
        assert await connection.fetchval("select 1") == 1
    assert db.stats().pool.leased == 0


async def test_a_task_that_is_forgotten_in_its_block_ends_in_any_thread(db: Database) -> None:
    """The garbage collector ends it in the thread in which it happens to run."""
    loop = asyncio.get_running_loop()
    loop.set_debug(True)  # which makes asyncio refuse calls from other threads
    entered = asyncio.Event()

    async def forget() -> None:
        async with db.connection() as connection:
            await connection.execute("begin")
            entered.set()
            await loop.create_future()

    gc.disable()
    try:
        task: Any = asyncio.create_task(forget())
        await entered.wait()
        task._log_destroy_pending = False
        del task
        await asyncio.to_thread(gc.collect)
    finally:
        gc.enable()
    await until(lambda: db.pool.core.count() == 0)


async def test_dedicated_commit_that_is_a_rollback_is_told(db: Database) -> None:
    async with db.connection() as connection:
        with pytest.raises(steadypool.TransactionRolledBack):
            async with connection.transaction():
                with pytest.raises(Exception, match="division by zero"):
                    await connection.execute("select 1/0")


async def test_deadline_ends_a_statement(db: Database) -> None:
    await db.warm_up(1)  # connecting is not what is to take too long
    with pytest.raises(steadypool.DeadlineExceeded) as caught, steadypool.deadline(0.2):
        async with db.session() as session:
            await session.execute(text("select pg_sleep(1.5)"))
    assert caught.value.phase == "executing"
    assert caught.value.deadline == 0.2
    with pytest.raises(steadypool.DeadlineExceeded), steadypool.deadline(0.2):
        async with db.connection() as connection:
            await connection.execute("select pg_sleep(1.5)")
    async with db.session() as session:
        assert (await session.execute(text("select 1"))).scalar() == 1
    assert db.stats().pool.leased == 0


async def test_deadline_ends_a_wait(db: Database) -> None:
    async with db.connection(), db.connection(), db.connection():
        with pytest.raises(steadypool.DeadlineExceeded) as caught, steadypool.deadline(0.1):
            async with db.connection():
                pass
    assert caught.value.phase == "waiting"


async def test_on_connect_and_password_function(settings: DatabaseSettings) -> None:
    asked: list[str] = []
    url = settings.require_url()
    userinfo, _, rest = url.partition("@")
    scheme, _, secret = userinfo.rpartition(":")

    async def password() -> str:
        asked.append("password")
        return secret

    async def on_connect(connection: Any) -> None:
        await connection.execute("set search_path to pg_catalog")
        if hasattr(connection, "commit"):
            await connection.commit()

    async with Database(
        DatabaseSettings(url=f"{scheme}@{rest}", password=password), on_connect=on_connect
    ) as db:
        async with db.connection() as connection:
            assert await connection.fetchval("show search_path") == "pg_catalog"
    assert asked == ["password"]


async def test_warm_up(db: Database) -> None:
    assert await db.warm_up() == 2
    assert db.engine.pool.checkedin() == 2


async def test_close_lets_the_busy_finish_and_refuses_the_new(settings: DatabaseSettings) -> None:
    db = await Database(settings).open()
    started = asyncio.Event()

    async def busy() -> Any:
        async with db.session() as session:
            started.set()
            return (await session.execute(text("select 42 from pg_sleep(0.3)"))).scalar()

    task = asyncio.create_task(busy())
    await started.wait()
    while db.engine.pool.checkedout() == 0:
        await asyncio.sleep(0)
    closing = asyncio.create_task(db.close())
    await asyncio.sleep(0)
    with pytest.raises(steadypool.PoolClosed):
        async with db.session() as session:
            await session.execute(text("select 1"))
    assert await task == 42
    await closing
    assert db.stats().closed
    assert db.stats().pool.leased == 0


async def test_close_cuts_off_what_is_left(settings: DatabaseSettings, pg: Any) -> None:
    db = await Database(settings).open()

    async def busy() -> None:
        async with db.connection() as connection:
            await connection.execute("select pg_sleep(1.9)")

    task = asyncio.create_task(busy())
    while db.engine.pool.checkedout() == 0:
        await asyncio.sleep(0)
    await db.close(grace=0.2)
    with pytest.raises(Exception, match=r"."):
        await task


async def test_stats(db: Database) -> None:
    async with db.session() as session:
        await session.execute(text("select 1"))
        stats = db.stats()
        assert stats.pool.leased == 1
        assert stats.utilization == 0.5
        assert stats.pool.holders[0].name
    assert db.stats().totals.connects == 1
    assert db.stats().totals.acquired == db.stats().totals.released == 1
