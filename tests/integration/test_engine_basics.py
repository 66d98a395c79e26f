"""An engine of ours does what an engine of SQLAlchemy's does, on a real Postgres, with every driver."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as SQLAlchemyTimeout
from sqlalchemy.ext.asyncio import AsyncEngine

import steadypool
from steadypool.sqlalchemy import create_async_engine

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncpg", "psycopg", "steadypool"])
def driver_url(request: pytest.FixtureRequest, database_url: str) -> str:
    return database_url.replace("postgresql://", f"postgresql+{request.param}://")


@pytest.fixture
async def engine(driver_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(
        driver_url, pool_size=2, max_overflow=1, pool_timeout=1.0, statement_timeout=5
    )
    yield engine
    await engine.dispose()


async def test_select_and_counts(engine: AsyncEngine) -> None:
    assert engine.pool.status() == (
        "Pool size: 2  Connections in pool: 0 Current Overflow: -2 Current Checked out connections: 0"
    )
    async with engine.connect() as connection:
        assert (await connection.execute(text("select 1"))).scalar() == 1
        assert (engine.pool.checkedout(), engine.pool.checkedin(), engine.pool.overflow()) == (1, 0, -1)
    assert (engine.pool.checkedout(), engine.pool.checkedin(), engine.pool.overflow()) == (0, 1, -1)


async def test_exhaustion_says_what_queuepool_says(engine: AsyncEngine) -> None:
    held = [await engine.connect() for _ in range(3)]
    with pytest.raises(SQLAlchemyTimeout) as caught:
        await engine.connect()
    assert isinstance(caught.value, steadypool.PoolTimeout)
    assert str(caught.value).startswith(
        "QueuePool limit of size 2 overflow 1 reached, connection timed out, timeout 1.00"
    )
    for connection in held:
        await connection.close()
    assert engine.pool.checkedin() == 2


async def test_a_slow_statement_is_ended_and_named(driver_url: str) -> None:
    engine = create_async_engine(driver_url, statement_timeout=0.3)
    async with engine.connect() as connection:
        pid = (await connection.execute(text("select pg_backend_pid()"))).scalar()
        await connection.commit()
        with pytest.raises(OperationalError) as caught:
            await connection.execute(text("select pg_sleep(30), 'a secret'"))
        assert isinstance(caught.value, steadypool.StatementTimeout)
        assert "pg_sleep(?)" in str(caught.value)
        assert "a secret" not in str(caught.value)
        await connection.rollback()
        assert (await connection.execute(text("select pg_backend_pid()"))).scalar() == pid
    await engine.dispose()


async def test_a_cancelled_statement_costs_the_connection_and_nothing_else(engine: AsyncEngine) -> None:
    async def sleeper() -> None:
        async with engine.connect() as connection:
            await connection.execute(text("select pg_sleep(30)"))

    task = asyncio.create_task(sleeper())
    while engine.pool.checkedout() == 0:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.pool.checkedout() == 0
    async with engine.connect() as connection:
        assert (await connection.execute(text("select 1"))).scalar() == 1


async def test_nobody_there(driver_url: str) -> None:
    nobody = driver_url.rsplit("@", 1)[0] + "@127.0.0.1:9/nothing"
    engine = create_async_engine(nobody, connection_timeout=0.5, pool_timeout=0.5)
    with pytest.raises(OperationalError) as caught:
        await engine.connect()
    assert isinstance(caught.value, steadypool.ConnectFailed)
    assert not isinstance(caught.value, steadypool.PoolTimeout)
    await engine.dispose()


async def test_a_url_without_a_driver_means_ours(database_url: str) -> None:
    for url in (database_url, database_url.replace("postgresql://", "postgres://")):
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            assert (await connection.execute(text("select 1"))).scalar() == 1
        assert engine.dialect.driver == "steadypool"
        assert engine.url.drivername == "postgresql", "as it was written"
        await engine.dispose()


@pytest.mark.parametrize(
    ("url", "missing", "said"),
    [
        ("postgresql://h/d", "psycopg", "psycopg]'; with asyncpg installed, write postgresql+asyncpg://"),
        ("postgresql+psycopg://h/d", "psycopg", "pip install 'steadypool[sqlalchemy,psycopg]'"),
        ("postgresql+asyncpg://h/d", "asyncpg", "pip install 'steadypool[sqlalchemy,asyncpg]'"),
    ],
)
def test_a_driver_that_is_not_installed_is_named(url: str, missing: str, said: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"from steadypool.sqlalchemy import create_async_engine\ncreate_async_engine({url!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"ConfigurationError: {url.partition(':')[0]}:// needs {missing}: " in done.stderr
    assert said in done.stderr
