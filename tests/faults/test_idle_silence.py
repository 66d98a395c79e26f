"""Idle connections that have gone silent while new ones work: each use is served by another connection, and soon."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from steadypool import Database, deadline
from steadypool.pool.lease import EntryState
from steadypool.sqlalchemy import create_async_engine
from steadypool_lab.testing import Observer

from .conftest import MakeDatabase
from .kit import assert_served, at_once, nothing_strays, until

pytestmark = pytest.mark.anyio

PATIENT = 30.0
"""Seconds of every limit: a use that a silent connection held up until one of them would be far too late."""

SOON = 6.0
"""Seconds in which a caller is served on a busy machine; on a quiet one it is a third of a second."""

Use = Callable[[Database], Awaitable[Any]]


@asynccontextmanager
async def silent(pg: Observer) -> AsyncIterator[list[int]]:
    """Stop all backends of the database, as a suspended server or a lost network would; new ones run."""
    pids = [backend.pid for backend in await pg.backends()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def session(db: Database) -> Any:
    async with db.session() as s:
        return (await s.execute(text("select 1"))).scalar()


async def write(db: Database) -> Any:
    async with db.session() as s:
        result = (await s.execute(text("insert into seen values (1) returning 1"))).scalar()
        await s.commit()
        return result


async def autocommit(db: Database) -> Any:
    async with db.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        return (await connection.execute(text("select 1"))).scalar()


async def read_only_autocommit(db: Database) -> Any:
    engine = db.engine.execution_options(isolation_level="AUTOCOMMIT", postgresql_readonly=True)
    async with engine.connect() as connection:
        return (await connection.execute(text("select 1"))).scalar()


async def server_side_cursor(db: Database) -> Any:
    async with db.engine.connect() as connection:
        async with connection.stream(text("select 1")) as result:
            return (await result.one())[0]


async def connection(db: Database) -> Any:
    async with db.connection() as c:
        return await c.fetchval("select 1")


async def transaction(db: Database) -> Any:
    async with db.connection() as c, c.transaction():
        return await c.fetchval("select 1")


async def fetch(db: Database) -> Any:
    return await db.fetchval("select 1")


async def fetch_read_only(db: Database) -> Any:
    return await db.fetchval("select 1", read_only=True)


async def fetch_slow(db: Database) -> Any:
    """On a connection of its own, since it may take longer than statements that share one."""
    return await db.fetchval("select 1", timeout=PATIENT)


USES: list[Use] = [
    session,
    write,
    autocommit,
    read_only_autocommit,
    server_side_cursor,
    connection,
    transaction,
    fetch,
    fetch_read_only,
    fetch_slow,
]


@pytest.fixture
async def db(make_db: MakeDatabase, database_url: str) -> Database:
    made = make_db(
        database_url,
        statement_timeout=PATIENT,
        connection_timeout=PATIENT,
        pool_timeout=PATIENT,
        shared_statement_timeout=PATIENT,
    )
    async with made.engine.begin() as c:
        await c.execute(text("create table if not exists seen (n int)"))
    return made


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
async def test_each_use_is_served_by_another_connection(db: Database, pg: Observer, use: Use) -> None:
    assert await db.warm_up(3) == 3
    if use in (fetch, fetch_read_only):
        await use(db)
    # A connect that is cut off half way is another fault: one hedge goes out beside it, and no third.
    core = db.pool.core
    await until(lambda: not any(map(core.count, (EntryState.OPENING, EntryState.STUCK, EntryState.CLOSING))))
    async with silent(pg):
        outcomes = await at_once(3, lambda: use(db))
    assert_served(outcomes)
    assert [outcome.result for outcome in outcomes] == [1, 1, 1]
    assert max(outcome.seconds for outcome in outcomes) < SOON


async def test_a_write_takes_effect_once(db: Database, pg: Observer) -> None:
    """The silent backend wakes up with the first flight in its socket; it must not count."""
    assert await db.warm_up(1) == 1
    async with silent(pg):
        assert await write(db) == 1
    await nothing_strays(pg, db, seconds=5.0)
    async with db.session() as s:
        assert (await s.execute(text("select count(*) from seen"))).scalar() == 1


async def test_a_full_pool_of_silent_connections_makes_room(
    make_db: MakeDatabase, database_url: str, pg: Observer
) -> None:
    db = make_db(
        database_url,
        pool_size=3,
        max_overflow=0,
        statement_timeout=PATIENT,
        connection_timeout=3.0,
        pool_timeout=PATIENT,
    )
    assert await db.warm_up(3) == 3
    async with silent(pg):
        outcomes = await at_once(3, lambda: session(db))
    assert_served(outcomes)
    assert max(outcome.seconds for outcome in outcomes) < SOON


@pytest.mark.parametrize("statement_timeout", [None, PATIENT])
async def test_the_engine_by_itself(
    driver: str, database_url: str, pg: Observer, statement_timeout: float | None
) -> None:
    url = database_url.replace("postgresql://", f"postgresql+{driver}://")
    engine = create_async_engine(
        url, pool_pre_ping=True, ping_after_idle=0.0, statement_timeout=statement_timeout
    )

    async def ask() -> Any:
        async with engine.connect() as c:
            return (await c.execute(text("select 1"))).scalar()

    try:
        await hold(engine, 3)
        async with silent(pg):
            outcomes = await at_once(3, ask)
        assert_served(outcomes)
        assert max(outcome.seconds for outcome in outcomes) < SOON
        core = engine.pool.core
        await until(lambda: core.count() == core.count(EntryState.IDLE))
    finally:
        await engine.dispose()


async def test_a_deadline_is_kept(db: Database, pg: Observer) -> None:
    assert await db.warm_up(1) == 1

    async def ask() -> Any:
        with deadline(SOON):
            return await session(db)

    async with silent(pg):
        assert_served(await at_once(1, ask))


async def test_a_server_that_only_thinks_keeps_its_connection(db: Database, pg: Observer) -> None:
    """BEGIN is answered at once, the statement later: that is no silence."""
    assert await db.warm_up(1) == 1
    before = [backend.pid for backend in await pg.backends()]
    async with db.session() as s:
        await s.execute(text("select pg_sleep(0.6)"))
    assert [backend.pid for backend in await pg.backends()] == before


async def hold(engine: AsyncEngine, count: int) -> None:
    """Open that many connections."""
    opened = [await engine.connect() for _ in range(count)]
    for one in opened:
        await one.execute(text("select 1"))
    for one in opened:
        await one.close()
    await until(lambda: engine.pool.checkedin() == count)
