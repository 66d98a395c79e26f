"""What the server says before it ends a connection is named in the error, whichever driver it is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from steadypool import ConnectionLost, Database, DatabaseSettings
from steadypool.connect.last_words import LastWords, last_words_in
from steadypool.events import ConnectionLost as LostEvent
from steadypool.sqlalchemy import create_async_engine
from steadypool_lab.testing import Observer

from .poolers import pgbouncer

pytestmark = pytest.mark.anyio

SHUTDOWN = "the server said 57P01: terminating connection due to administrator command"
IDLE = "the server said 25P03: terminating connection due to idle-in-transaction timeout"
QUERY_WAIT = "the server said 08P01: query_wait_timeout"


@pytest.fixture(params=["asyncpg", "psycopg", "steadypool"])
def driver(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def url(database_url: str, driver: str) -> str:
    return database_url.replace("postgresql://", f"postgresql+{driver}://")


async def pid_of(connection: Any) -> int:
    return await connection.scalar(text("select pg_backend_pid()"))


async def gone(pg: Observer, pid: int) -> None:
    async def has_gone() -> bool:
        return pid not in [backend.pid for backend in await pg.backends()]

    await pg.wait_until(has_gone)


async def lost(engine: AsyncEngine, sql: str, pg: Observer, pid: int, connection: Any) -> str:
    await pg.terminate(pid)
    await gone(pg, pid)
    with pytest.raises(ConnectionLost) as caught:
        await connection.execute(text(sql))
    return str(caught.value)


async def test_idle_and_ended_by_an_administrator(url: str, pg: Observer) -> None:
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        pid = await pid_of(connection)
        assert SHUTDOWN in await lost(engine, "select 1", pg, pid, connection)
    await engine.dispose()


async def test_ended_in_the_middle_of_a_statement(url: str, pg: Observer) -> None:
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        pid = await pid_of(connection)
        running = asyncio.create_task(connection.execute(text("select pg_sleep(30)")))

        async def runs() -> bool:
            return any(backend.pid == pid and backend.state == "active" for backend in await pg.backends())

        await pg.wait_until(runs)
        await pg.terminate(pid)
        with pytest.raises(ConnectionLost) as caught:
            await running
        assert SHUTDOWN in str(caught.value)
    await engine.dispose()


async def test_idle_for_too_long_in_a_transaction(url: str, pg: Observer) -> None:
    engine = create_async_engine(url, server_settings={"idle_in_transaction_session_timeout": "200"})
    async with engine.connect() as connection:
        await gone(pg, await pid_of(connection))
        with pytest.raises(ConnectionLost) as caught:
            await connection.execute(text("select 1"))
        assert IDLE in str(caught.value)
    await engine.dispose()


async def test_a_connection_of_ones_own_and_the_cause_in_the_event(url: str, pg: Observer) -> None:
    async with Database(DatabaseSettings(url=url)) as db:
        causes: list[str] = []
        db.events.subscribe(
            lambda event: causes.append(event.cause) if isinstance(event, LostEvent) else None
        )
        async with db.connection() as connection:
            pid = await connection.fetchval("select pg_backend_pid()")
            await pg.terminate(pid)
            await gone(pg, pid)
            with pytest.raises(ConnectionLost) as caught:
                await connection.fetchval("select 1")
            assert SHUTDOWN in str(caught.value)
        assert causes == ["57P01"]


async def test_a_pooler_that_has_no_connection_free(database_url: str, driver: str) -> None:
    with pgbouncer(database_url, "transaction", size=1, more="query_wait_timeout = 1") as behind:
        engine = create_async_engine(behind.replace("postgresql://", f"postgresql+{driver}://"))
        async with engine.connect() as first:
            await first.execute(text("select 1"))
            async with engine.connect() as second:
                with pytest.raises(ConnectionLost) as caught:
                    await second.execute(text("select 1"))
        assert QUERY_WAIT in str(caught.value)
        assert "was not passed on" in str(caught.value)
        assert not caught.value.maybe_executed
        await engine.dispose()


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", None),
        (b"SFATAL\0", None),
        (b"E....SFATAL\0VFATAL\0C57P01\0Mbye\0Fpostgres.c\0\0", LastWords("57P01", "bye")),
        (b"D\0\0rowsE....SFATAL\0C08P01\0Mquery_wait_timeout\0\0", LastWords("08P01", "query_wait_timeout")),
        (
            "E....SFATAL!\0VFATAL\0C57P01\0MAbbruch für\nimmer\0\0".encode(),
            LastWords("57P01", "Abbruch für immer"),
        ),
        (b"E....SERROR\0VERROR\0C22012\0Mdivision by zero\0\0", None),
        (b"VFATAL\0C57P01\0M\xff\xfe", LastWords("57P01", "��")),
        (b"VFATAL\0C57\0Mx\0\0", None),
    ],
)
def test_last_words_in_bytes(data: bytes, found: LastWords | None) -> None:
    assert last_words_in(data) == found
