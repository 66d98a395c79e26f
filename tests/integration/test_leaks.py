"""A connection that is not given back is reported, once, with who has it and where it was acquired."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.types import ASGIApp, Receive, Scope, Send

from steadypool import Database, DatabaseSettings, events
from steadypool.fastapi import install
from steadypool.sqlalchemy import SteadyPool, create_async_engine

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncpg", "psycopg", "steadypool"])
async def db(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[Database]:
    url = database_url.replace("postgresql://", f"postgresql+{request.param}://")
    async with Database(DatabaseSettings(url=url, leak_after=0.2)) as database:
        yield database


def reported(db: Database) -> asyncio.Event:
    seen = asyncio.Event()
    db.events.subscribe(lambda event: seen.set() if isinstance(event, events.LeakSuspected) else None)
    return seen


async def forgets_to_leave(db: Database, until: asyncio.Event) -> None:
    async with db.session() as session:
        await session.execute(text("select 1"))
        await until.wait()


async def test_a_long_lease_is_told_with_its_stack(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "steadypool"):
        await forgets_to_leave(db, reported(db))
    lines = [record.getMessage() for record in caplog.records if "has been held" in record.getMessage()]
    assert len(lines) == 1
    assert "in forgets_to_leave" in lines[0]
    assert "test_leaks.py" in lines[0]
    assert "site-packages" not in lines[0]
    assert db.stats().totals.leaks == 1


async def test_a_request_is_named_by_its_route(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    app, seen = FastAPI(), reported(db)
    install(app, db)

    @app.get("/tracks/{number}")
    async def track(number: int) -> str:
        await forgets_to_leave(db, seen)
        return "done"

    transport = httpx.ASGITransport(app=app)
    with caplog.at_level(logging.WARNING, "steadypool"):
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            asking = asyncio.create_task(client.get("/tracks/7"))
            await seen.wait()
            await asking
    assert any("by GET /tracks/{number}" in record.getMessage() for record in caplog.records)


async def test_a_path_forges_no_line_and_its_secrets_stay_out(
    db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    app, seen = FastAPI(), reported(db)
    said: list[str] = []

    class BeforeRouting:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async with db.session() as session:
                await session.execute(text("select 1"))
                said.append(str(db.stats().pool))
            await self.app(scope, receive, send)

    app.add_middleware(BeforeRouting)
    install(app, db)

    @app.get("/hold/{name}")
    async def hold(name: str) -> str:
        await forgets_to_leave(db, seen)
        return "done"

    hostile = "/hold/x%0A2026-12-01%2000:00:00,000%20CRITICAL%20root:%20FORGED%1b%5d0;pwned%07"
    transport = httpx.ASGITransport(app=app)
    with caplog.at_level(logging.WARNING, "steadypool"):
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get(hostile)).json() == "done"
    [line] = [record.getMessage() for record in caplog.records if "has been held" in record.getMessage()]
    assert "by GET /hold/{name}: is it" in line
    assert "FORGED" not in line
    assert "await session.execute" not in line  # the source may have values in it
    assert all(each.isprintable() for each in line.split("\n"))
    assert len(said) == 1
    assert "GET /hold/x\\n2026-12-01" in said[0]
    assert said[0].isprintable()


async def hold_until(engine: AsyncEngine, told: asyncio.Event) -> None:
    async with engine.connect() as connection:
        await connection.execute(text("select 1"))
        await told.wait()


def leaks_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "has been held" in record.getMessage()]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "steadypool"])
async def test_the_drop_in_engine_tells_of_leaks_too(
    driver: str, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = database_url.replace("postgresql://", f"postgresql+{driver}://")
    seen, told = events.Events(), asyncio.Event()
    with caplog.at_level(logging.WARNING, "steadypool"):
        engine = create_async_engine(url, leak_after=0.1, events=seen)
        other = create_async_engine(url, events=seen)  # a pool more, and not a line more
        seen.subscribe(lambda _event: told.set(), events.LeakSuspected)
        await hold_until(engine, told)
    await engine.dispose()
    await other.dispose()
    [line] = leaks_in(caplog)
    assert "in hold_until" in line
    assert "test_leaks.py" in line
    assert "site-packages" not in line


def test_leaks_are_told_after_a_minute_unless_that_is_turned_off(database_url: str) -> None:
    def limit(**arguments: Any) -> float | None:
        pool = create_async_engine(database_url, **arguments).pool
        assert isinstance(pool, SteadyPool)
        return pool.options.leak_after

    assert limit() == DatabaseSettings(url=database_url).leak_after == 60.0
    assert limit(leak_after=None) is limit(leak_after=0) is None


async def test_what_watches_for_leaks_keeps_no_engine_alive(database_url: str) -> None:
    engine = create_async_engine(database_url)
    async with engine.connect() as connection:
        await connection.execute(text("select 1"))
    forgotten = weakref.ref(engine.pool)
    del engine, connection
    async with asyncio.timeout(30):
        while forgotten() is not None:
            await asyncio.sleep(0)
            gc.collect()
