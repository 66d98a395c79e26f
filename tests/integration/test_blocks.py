"""Blocks that overlap on one connection or in one task, and streams that are left early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from steadypool import ConcurrentTransaction, Database, DatabaseSettings
from steadypool.database.checkout import holds_a_connection

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncpg", "psycopg", "steadypool"])
async def db(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[Database]:
    url = database_url.replace("postgresql://", f"postgresql+{request.param}://")
    async with Database(DatabaseSettings(url=url)) as database:
        await database.execute("create table t (a int)")
        yield database


async def test_blocks_that_end_in_any_order_leave_no_mark(db: Database) -> None:
    for make in (db.session, db.connection):
        first, second = make(), make()
        await first.__aenter__()
        await second.__aenter__()
        await first.__aexit__(None, None, None)
        assert holds_a_connection()
        await second.__aexit__(None, None, None)
        assert not holds_a_connection()


async def test_a_second_transaction_of_another_task_is_refused(db: Database) -> None:
    async with db.connection() as connection:
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def fails() -> None:
            async with connection.transaction():
                await connection.execute("insert into t values (1)")
                inside.set()
                await go_on.wait()
                raise LookupError

        async def other() -> None:
            await inside.wait()
            async with connection.transaction():
                await connection.execute("insert into t values (2)")

        failing, refused = asyncio.ensure_future(fails()), asyncio.ensure_future(other())
        with pytest.raises(ConcurrentTransaction, match="another task"):
            await refused
        go_on.set()
        with pytest.raises(LookupError):
            await failing
        async with connection.transaction():  # what that task began has ended
            await connection.execute("insert into t values (3)")
        assert await connection.fetchval("select array_agg(a) from t") == [3]


async def test_a_task_that_was_started_inside_may_nest_and_siblings_may_not(db: Database) -> None:
    async with db.connection() as connection, connection.transaction():

        async def nested(number: int) -> None:
            async with connection.transaction():
                await connection.execute("insert into t values ($1)", number)
                await asyncio.sleep(0)

        await asyncio.create_task(nested(1))
        await nested(2)
        ended = await asyncio.gather(nested(3), nested(4), return_exceptions=True)
        assert [type(end) for end in ended] == [type(None), ConcurrentTransaction]
    assert await db.fetchval("select array_agg(a order by a) from t") == [1, 2, 3]


@pytest.mark.parametrize("how", ["left", "failed", "kept"])
async def test_a_stream_that_is_left_early_leaves_no_cursor(database_url: str, how: str) -> None:
    url = database_url.replace("postgresql://", "postgresql+steadypool://")
    async with Database(DatabaseSettings(url=url, pool_size=1, max_overflow=0)) as db:
        autocommit = db.engine.execution_options(isolation_level="AUTOCOMMIT")
        kept = []
        for _ in range(3):
            try:
                async with autocommit.connect() as connection:
                    rows = await connection.stream(text("select generate_series(1, 1000)"))
                    async for _row in rows:
                        if how == "failed":
                            raise LookupError
                        break
                    if how == "kept":
                        kept.append(rows)
            except LookupError:
                pass
            async with autocommit.connect() as connection:
                held = await connection.scalar(text("select count(*) from pg_cursors where is_holdable"))
            assert held == 0
