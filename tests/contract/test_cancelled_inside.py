"""A cancellation comes out as one, whatever of the driver's own stands between it and the caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from psycopg.types import TypeInfo
from sqlalchemy import AsyncAdaptedQueuePool, text

from steadypool import Database, DatabaseSettings, deadline, errors
from steadypool.sqlalchemy import create_async_engine
from steadypool_lab.testing import Observer

pytestmark = pytest.mark.anyio

SLEEP = "select pg_sleep(30)"
BUSY = (SLEEP, "select pg_sleep", "copy", "FETCH")


async def in_a_transaction(raw: Any) -> None:
    async with raw.transaction():
        await raw.execute(SLEEP)


async def in_a_savepoint(raw: Any) -> None:
    async with raw.transaction(), raw.transaction():
        await raw.execute(SLEEP)


async def before_a_statement_of_clean_up(raw: Any) -> None:
    await raw.execute("set application_name = 'other'")
    try:
        await raw.execute(SLEEP)
    finally:
        await raw.execute("reset application_name")


async def in_a_named_cursor(raw: Any) -> None:
    async with raw.transaction():
        if hasattr(raw, "cursor") and hasattr(raw, "pgconn"):
            async with raw.cursor(name="c") as cursor:
                await cursor.execute("select pg_sleep(30) from generate_series(1, 2)")
                await cursor.fetchone()
        else:
            async for _ in raw.cursor(SLEEP):
                pass


async def in_a_pipeline(raw: Any) -> None:
    async with raw.transaction(), raw.pipeline():
        await (await raw.execute(SLEEP)).fetchone()


async def in_a_copy(raw: Any) -> None:
    async with raw.transaction(), raw.cursor() as cursor, cursor.copy(f"copy ({SLEEP}) to stdout") as copy:
        async for _ in copy:
            pass


async def in_a_stream(raw: Any) -> None:
    async with raw.transaction(), aclosing(raw.cursor().stream(SLEEP)) as rows:
        async for _ in rows:
            pass


async def in_executemany(raw: Any) -> None:
    async with raw.transaction(), raw.cursor() as cursor:
        await cursor.executemany("select pg_sleep(%s)", [(30,), (30,)])


BOTH = [in_a_transaction, in_a_savepoint, before_a_statement_of_clean_up, in_a_named_cursor]
PSYCOPG = [in_a_pipeline, in_a_copy, in_a_stream, in_executemany]
Use = Callable[[Any], Awaitable[None]]


@asynccontextmanager
async def raw_connection(driver: str, url: str) -> AsyncGenerator[Any]:
    """The driver's own connection, by the engine."""
    engine = create_async_engine(url.replace("postgresql://", f"postgresql+{driver}://"))
    try:
        async with engine.connect() as connection:
            raw: Any = (await connection.get_raw_connection()).driver_connection
            if driver == "steadypool":
                async with raw.plain() as plain:
                    yield plain
            else:
                yield raw
    finally:
        await engine.dispose()


async def asleep(pg: Observer) -> None:
    async def is_sleeping() -> bool:
        return any(b.state == "active" and b.query.startswith(BUSY) for b in await pg.backends())

    await pg.wait_until(is_sleeping)


@pytest.mark.parametrize("use", [*BOTH, *PSYCOPG], ids=lambda use: use.__name__)
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "steadypool"])
async def test_a_cancellation_comes_out_of_the_drivers_own_blocks(
    driver: str, database_url: str, pg: Observer, use: Use
) -> None:
    if driver == "asyncpg" and use in PSYCOPG:
        use = in_a_transaction

    async def work() -> None:
        async with raw_connection(driver, database_url) as raw:
            await use(raw)

    task = asyncio.ensure_future(work())
    await asleep(pg)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("use", [*BOTH, *PSYCOPG], ids=lambda use: use.__name__)
@pytest.mark.parametrize("driver", ["psycopg", "steadypool"])
async def test_a_timeout_around_or_inside_the_drivers_own_blocks_stays_one(
    driver: str, database_url: str, pg: Observer, use: Use
) -> None:
    with pytest.raises(TimeoutError):
        async with raw_connection(driver, database_url) as raw, asyncio.timeout(0.2):
            await use(raw)
    with pytest.raises(TimeoutError):
        async with raw_connection(driver, database_url) as raw, raw.transaction():
            async with asyncio.timeout(0.2):
                await raw.execute(SLEEP)


async def test_what_a_caller_makes_of_a_timeout_comes_out_of_the_transaction(database_url: str) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with raw_connection("psycopg", database_url) as raw, raw.transaction():
            try:
                async with asyncio.timeout(0.2):
                    await raw.execute(SLEEP)
            except TimeoutError:
                raise LookupError("mine") from None


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_cancelled_statement_of_db_connection_inside_the_drivers_transaction(
    driver: str, database_url: str, pg: Observer
) -> None:
    url = database_url.replace("postgresql://", f"postgresql+{driver}://")
    async with Database(DatabaseSettings(url=url)) as db:

        async def work() -> None:
            async with db.connection() as connection, connection.driver_connection.transaction():
                await connection.execute(SLEEP)

        task = asyncio.ensure_future(work())
        await asleep(pg)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with deadline(0.2), pytest.raises(errors.DeadlineExceeded):
            await work()
        assert await db.fetchval("select 1") == 1


@pytest.mark.parametrize("driver", ["psycopg", "steadypool"])
async def test_cancelled_in_the_first_connect_of_a_callers_own_pool(
    driver: str, database_url: str, pg: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy looks for hstore in the caller's own task, in a transaction of psycopg's."""

    def asleep_for_long(_connection: Any) -> str:
        return f"{SLEEP}, %(name)s"

    monkeypatch.setattr(TypeInfo, "_get_info_query", asleep_for_long)
    url = database_url.replace("postgresql://", f"postgresql+{driver}://")
    engine = create_async_engine(url, poolclass=AsyncAdaptedQueuePool)

    async def connect() -> None:
        async with engine.connect() as connection:
            await connection.execute(text("select 1"))

    task = asyncio.ensure_future(connect())
    await asleep(pg)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await engine.dispose()
