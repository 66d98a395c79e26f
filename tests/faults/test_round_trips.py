"""How often the network is crossed, counted on the socket. These numbers are what a request costs; none may grow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import text

from steadypool import Database
from steadypool_lab.network.proxy import FaultProxy

from .conftest import MakeDatabase

pytestmark = pytest.mark.anyio

DELAY = 0.01
"""Seconds of network: statements that leave together are one round trip."""


@pytest.fixture
async def db(make_db: MakeDatabase, proxied_url: str) -> Database:
    return make_db(
        proxied_url, ping_after_idle=60.0, statement_timeout=20, connection_timeout=20, pool_timeout=20
    )


@pytest.fixture
async def pinging(make_db: MakeDatabase, proxied_url: str) -> Database:
    """Every use is long after the last one."""
    return make_db(
        proxied_url, ping_after_idle=0.0, statement_timeout=20, connection_timeout=20, pool_timeout=20
    )


async def trips(proxy: FaultProxy, work: Callable[[], Awaitable[object]], *, warm: int = 2) -> int:
    """Round trips of one call, after some that fill every cache."""
    for _ in range(warm):
        await work()
    proxy.delay = DELAY
    before = proxy.round_trips
    await work()
    proxy.delay = 0.0
    return proxy.round_trips - before


@pytest.mark.parametrize(("ping", "more"), [(False, 0), (True, 1)])
async def test_a_read_in_a_session(
    db: Database, pinging: Database, proxy: FaultProxy, driver: str, ping: bool, more: int
) -> None:
    chosen = pinging if ping else db

    async def work() -> None:
        async with chosen.session() as session:
            await session.execute(text("select 1"))

    # asyncpg with the seed's arguments: BEGIN, prepare, run, ROLLBACK, forget the statement. psycopg: BEGIN,
    # statement, ROLLBACK. A ping is exactly one more, and not SQLAlchemy's three. Ours: BEGIN travels with the
    # statement and is the ping, ROLLBACK is not waited for.
    needed = {"asyncpg": 5 + more, "psycopg": 3 + more, "steadypool": 1}
    assert await trips(proxy, work) == needed[driver]


async def test_a_write_in_a_session(db: Database, proxy: FaultProxy, driver: str) -> None:
    async def work() -> None:
        async with db.session() as session:
            await session.execute(text("set local work_mem = '4MB'"))
            await session.commit()

    assert await trips(proxy, work) == {"asyncpg": 5, "psycopg": 3, "steadypool": 2}[driver]


async def test_a_read_in_autocommit(db: Database, proxy: FaultProxy, driver: str) -> None:
    autocommit = db.engine.execution_options(isolation_level="AUTOCOMMIT")

    async def work() -> None:
        async with autocommit.connect() as connection:
            await connection.execute(text("select 1"))

    assert await trips(proxy, work) == {"asyncpg": 3, "psycopg": 1, "steadypool": 1}[driver]


@pytest.mark.parametrize(("ping", "more"), [(False, 0), (True, 1)])
async def test_a_read_on_a_dedicated_connection(
    db: Database, pinging: Database, proxy: FaultProxy, driver: str, ping: bool, more: int
) -> None:
    chosen = pinging if ping else db

    async def work() -> None:
        async with chosen.connection() as connection:
            await connection.fetch("select $1::int", 1)

    # Without a cache of statements asyncpg asks for the types first.
    assert await trips(proxy, work) == {"asyncpg": 2, "psycopg": 1, "steadypool": 1}[driver] + more


async def test_a_transaction_on_a_dedicated_connection(db: Database, proxy: FaultProxy, driver: str) -> None:
    async def work() -> None:
        async with db.connection() as connection, connection.transaction():
            await connection.fetch("select $1::int", 1)

    # Ours: BEGIN travels with the first statement.
    assert await trips(proxy, work) == {"asyncpg": 4, "psycopg": 3, "steadypool": 2}[driver]


async def test_a_reset_costs_the_next_holder_nothing_over_pipelines(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy, driver: str
) -> None:
    """SET LOCAL is no reason for one; SET is, and over the other drivers the pool waits for its answer."""
    db = make_db(
        proxied_url, pool_size=1, max_overflow=0, ping_after_idle=60.0, statement_timeout=20, pool_timeout=20
    )

    async def work(sql: str) -> None:
        async with db.connection() as connection:
            await connection.execute(sql)
        async with db.connection() as connection:
            await connection.execute(f"select 1 -- {len(sql)}")  # psycopg would prepare it the sixth time

    untouched = await trips(proxy, lambda: work("select set_config('app.tenant', '42', true)"))
    touched = await trips(proxy, lambda: work("select set_config('app.tenant', '42', false)"))
    assert (untouched, touched) == {"asyncpg": (2, 3), "psycopg": (2, 3), "steadypool": (2, 2)}[driver]


async def test_acquiring_and_giving_back_cost_nothing(db: Database, proxy: FaultProxy) -> None:
    async def work() -> None:
        async with db.connection():
            pass
        async with db.engine.connect():
            pass

    assert await trips(proxy, work) == 0


async def test_an_idle_pool_is_silent(db: Database, proxy: FaultProxy) -> None:
    assert await db.warm_up(3) == 3
    before = proxy.bytes_up
    async with db.connection():
        assert proxy.bytes_up == before
    assert proxy.bytes_up == before
