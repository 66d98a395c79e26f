"""A connect that is refused: who waits for another attempt, for how long, and what is said about it."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine

from steadypool import ConnectFailed, Database, DatabaseSettings, deadline
from steadypool.errors import ConfigurationError, SteadypoolError
from steadypool.events import ConnectStarted
from steadypool.sqlalchemy import create_async_engine
from steadypool_lab import FaultProxy

pytestmark = pytest.mark.anyio

LATE = 1.5
"""Seconds that a busy machine may add."""


@pytest.fixture(params=["asyncpg", "psycopg", "steadypool"])
def driver(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def wrong_port() -> int:
    """A port of this machine where no server listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def url_of(database_url: str, driver: str, port: int, host: str = "127.0.0.1") -> str:
    url = make_url(database_url).set(drivername=f"postgresql+{driver}", host=host, port=port)
    return url.render_as_string(hide_password=False)


async def refused(engine: AsyncEngine) -> tuple[float, ConnectFailed]:
    began = time.monotonic()
    with pytest.raises(ConnectFailed) as caught:
        await engine.connect()
    await engine.dispose()
    return time.monotonic() - began, caught.value


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
async def test_a_wrong_port_on_this_machine_fails_at_once(
    database_url: str, driver: str, wrong_port: int, host: str
) -> None:
    engine = create_async_engine(url_of(database_url, driver, wrong_port, host))
    seconds, error = await refused(engine)
    assert seconds < LATE
    assert error.final
    assert str(wrong_port) in str(error)
    assert "Connection refused" in str(error)
    assert "connect_retry='wake'" in str(error)


async def test_a_socket_that_is_not_there_fails_at_once(driver: str, tmp_path: Any) -> None:
    seconds, error = await refused(create_async_engine(f"postgresql+{driver}:///db?host={tmp_path}"))
    assert seconds < LATE
    assert error.final


async def test_after_the_first_success_a_refused_connect_waits(
    proxied_url: str, driver: str, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_async_engine(url_of(proxied_url, driver, proxy.port), pool_pre_ping=True)
    async with engine.connect() as connection:
        await connection.execute(text("select 1"))
    proxy.mode = "refuse"
    proxy.drop_all(reset=True)
    async with asyncio.timeout(5):
        while engine.pool.checkedin():
            await asyncio.sleep(0.01)
    waiting = asyncio.create_task(refused_or_scalar(engine))
    async with asyncio.timeout(5):
        while not caplog.records:
            await asyncio.sleep(0.01)
    proxy.mode = "pass"
    assert await waiting == 1
    await engine.dispose()


async def refused_or_scalar(engine: AsyncEngine) -> Any:
    async with engine.connect() as connection:
        return await connection.scalar(text("select 1"))


async def test_the_first_failure_is_logged_with_the_end_of_the_wait(
    database_url: str, driver: str, wrong_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_async_engine(
        url_of(database_url, driver, wrong_port), pool_timeout=1.2, connect_retry="wake"
    )
    seconds, error = await refused(engine)
    assert not error.final
    lines = [record for record in caplog.records if record.name == "steadypool.connect"]
    assert [record.levelno for record in lines] == [logging.WARNING]
    said = lines[0].getMessage()
    assert f"127.0.0.1:{wrong_port}: Connection refused" in said
    assert " until " in said
    assert "connect_retry='never'" in said
    assert 1.2 <= seconds < 1.2 + LATE  # and not the 30 s of a connect


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        ({"pool_timeout": 2}, 2.0),
        ({"pool_timeout": 0.01}, 1.0),
        ({"pool_timeout": 2, "connection_timeout": 7}, 7.0),
        ({"pool_timeout": 2, "connect_args": {"timeout": 7}}, 7.0),
        ({"connection_timeout": 7}, 30.0),
        ({}, 30.0),
        ({"pool_timeout": None}, float("inf")),
    ],
)
async def test_how_long_a_caller_waits_for_a_connect(arguments: dict[str, Any], limit: float) -> None:
    pool: Any = create_async_engine("postgresql+asyncpg://app@db.example/d", **arguments).pool
    assert pool.options.acquire_limit == limit


async def test_never_fails_at_once_also_beside_connections_in_use(
    proxied_url: str, driver: str, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_async_engine(url_of(proxied_url, driver, proxy.port), connect_retry="never")
    async with engine.connect() as connection:
        await connection.execute(text("select 1"))
        proxy.mode = "refuse"
        seconds, _ = await refused(engine)
        assert seconds < LATE
        assert not caplog.records
        proxy.mode = "pass"
        assert await refused_or_scalar(engine) == 1
    await engine.dispose()


async def test_the_setting(database_url: str, driver: str, wrong_port: int) -> None:
    """A service may start before its database, so `Database` waits unless it is told otherwise."""
    url = url_of(database_url, driver, wrong_port)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DATABASE_CONNECT_RETRY", "never")
        never = DatabaseSettings(url=url)
    connects: list[ConnectStarted] = []
    for settings, once in ((never, True), (DatabaseSettings(url=url), False)):
        connects.clear()
        async with Database(settings) as db:
            db.events.subscribe(
                lambda event: connects.append(event) if isinstance(event, ConnectStarted) else None
            )
            with deadline(2.0), pytest.raises(SteadypoolError):
                await db.fetchval("select 1")
            assert (len(connects) == 1) is once


def test_a_word_that_means_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="connect_retry='later': allowed: wake, never"):
        create_async_engine("postgresql+asyncpg://app@db.example/d", connect_retry="later")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="DATABASE_CONNECT_RETRY"):
        DatabaseSettings(connect_retry="later")
