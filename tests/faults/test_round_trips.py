"""How often the network is crossed, counted on the socket; and how many statements the server sees."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from steadypool import Database
from steadypool.lab.proxy import FaultProxy
from steadypool.testing import Observer

from .conftest import MakeDatabase

pytestmark = pytest.mark.anyio

SETTLED = 0.02
"""Seconds of network delay: statements that leave together count as one round trip."""

SEED_ARGUMENTS = {"connect_args": {"statement_cache_size": 0, "prepared_statement_cache_size": 0}}


@pytest.fixture
async def db(make_db: MakeDatabase, proxied_url: str) -> Database:
    return make_db(proxied_url, ping_after_idle=60.0, statement_timeout=20, connection_timeout=20, pool_timeout=20)


async def trips(proxy: FaultProxy, work: Any, *, warm: int = 3) -> int:
    """Round trips of one call, after some that fill every cache."""
    for _ in range(warm):
        await work()
    proxy.delay = SETTLED
    before = proxy.round_trips
    await work()
    proxy.delay = 0.0
    return proxy.round_trips - before


async def test_print(db: Database, proxy: FaultProxy, driver: str, make_db: MakeDatabase, proxied_url: str) -> None:
    async def session() -> None:
        async with db.session() as s:
            await s.execute(text("select 1"))

    async def commit() -> None:
        async with db.session() as s:
            await s.execute(text("select 1"))
            await s.commit()

    async def auto() -> None:
        async with db.engine.connect() as c:
            c = await c.execution_options(isolation_level="AUTOCOMMIT")
            await c.execute(text("select 1"))

    async def dedicated() -> None:
        async with db.connection() as c:
            await c.fetch("select 1")

    async def dedicated_args() -> None:
        async with db.connection() as c:
            await c.fetch("select $1::int", 1)

    async def transaction() -> None:
        async with db.connection() as c, c.transaction():
            await c.fetch("select $1::int", 1)

    async def local() -> None:
        async with db.session(local={"app.user": "x"}) as s:
            await s.execute(text("select 1"))

    for f in (session, commit, auto, dedicated, dedicated_args, transaction, local):
        print("TRIPS", driver, f.__name__, await trips(proxy, f))
    pdb = make_db(proxied_url, ping_after_idle=0.0, statement_timeout=20, connection_timeout=20, pool_timeout=20)

    async def pinged() -> None:
        async with pdb.session() as s:
            await s.execute(text("select 1"))

    print("TRIPS", driver, "pinged", await trips(proxy, pinged))
    before = proxy.round_trips
    proxy.delay = SETTLED
    await db.pool.core.evict()
    await session()
    print("TRIPS", driver, "connect+session", proxy.round_trips - before)
    import steadypool
    from steadypool.sqlalchemy import create_async_engine
    if driver == "asyncpg":
        e = create_async_engine(proxied_url.replace("postgresql://", "postgresql+asyncpg://"), pool_pre_ping=True, connect_args={"statement_cache_size":0,"prepared_statement_cache_size":0,"command_timeout":10,"timeout":10})
        proxy.delay = 0
        async def seed() -> None:
            async with e.connect() as c:
                await c.execute(text("select 1"))
        print("TRIPS", driver, "seed args", await trips(proxy, seed))
        await e.dispose()
