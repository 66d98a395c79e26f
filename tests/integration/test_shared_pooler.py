"""The shared way behind poolers: PgBouncer in both modes, and one that stops at a second query."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text

from steadypool import Database, DatabaseSettings, errors
from steadypool_lab import StallingPooler

from .poolers import pgbouncer
from .test_shared_way import House, ends

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def behind(url: str, *, pooled: bool, keeps: bool, **options: float) -> AsyncIterator[House]:
    house = House(url, pooled=lambda: pooled, keeps_statements=keeps, **options)
    try:
        yield house
    finally:
        await house.close()


async def is_served(house: House) -> None:
    rows = await ends(*(house.ask("select $1::int, 'x'", number) for number in range(200)))
    assert rows == [[(number, "x")] for number in range(200)]


async def test_pgbouncer_in_transaction_mode(database_url: str) -> None:
    async with pgbouncer(database_url, "transaction") as url:
        async with behind(url, pooled=True, keeps=False, statement_timeout=0.5) as house:
            await is_served(house)
            assert (house.way.options.local, house.way.options.window) == (True, 8), "the canary lived"
            with pytest.raises(errors.StatementTimeout):
                await house.ask("select pg_sleep(5)")
            assert await house.ask("select current_setting('lock_timeout')") == [("1s",)]
            await is_served(house)
        async with behind(url, pooled=True, keeps=False) as later:
            connection = await later.driver.open()
            assert connection.parameter("server_version")
            (row,) = await later.ask("select current_setting('statement_timeout')")
            assert row == ("2s",)
            connection.abort()


async def test_nothing_is_left_on_the_servers_of_pgbouncer(database_url: str) -> None:
    async with pgbouncer(database_url, "transaction") as url:
        async with behind(url, pooled=True, keeps=False, statement_timeout=0.5) as house:
            await is_served(house)
            lease = await house.pool.acquire()
            from steadypool.pipeline import Batch, Statement

            shown = await lease.connection.run(Batch([Statement("show statement_timeout")]))
            prepared = await lease.connection.run(
                Batch([Statement("select count(*) from pg_prepared_statements")])
            )
            assert (shown[0].rows(), prepared[0].rows()) == ([("0",)], [(0,)])
            lease.release()


async def test_pgbouncer_in_session_mode(database_url: str) -> None:
    async with pgbouncer(database_url, "session") as url:
        async with behind(url, pooled=False, keeps=True, statement_timeout=0.5) as house:
            for _ in range(3):
                await is_served(house)
            with pytest.raises(errors.StatementTimeout):
                await house.ask("select pg_sleep(5)")


@asynccontextmanager
async def wedging(url: str) -> AsyncIterator[tuple[str, StallingPooler]]:
    """A pooler that stops at a second query, and the URL through it."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with StallingPooler(parts.hostname, parts.port) as pooler:
        yield url.replace(f":{parts.port}/", f":{pooler.port}/"), pooler


async def test_a_pooler_that_stops_at_a_second_query(database_url: str) -> None:
    async with wedging(database_url) as (url, pooler):
        async with behind(url, pooled=True, keeps=False) as house:
            await is_served(house)
            assert house.way.options.window == 1
            assert pooler.wedged == 1, "the canary, and nobody's statement"
            assert house.way.stats().collateral == 0


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_everything_behind_a_pooler_that_stops_at_a_second_query(database_url: str, mode: str) -> None:
    async with wedging(database_url) as (url, pooler):
        async with Database(settings_for(url, "steadypool", pooler=mode, pool_size=1, max_overflow=0)) as db:
            for number in range(5):
                async with db.session() as session:
                    assert await session.scalar(text("select cast(:n as int)"), {"n": number}) == number
                async with db.connection() as connection:
                    assert await connection.fetchval("select $1::int", number) == number
            assert pooler.wedged == 0, "a ROLLBACK is waited for"
            values = await ends(*(db.fetchval("select $1::int", number) for number in range(50)))
            assert values == list(range(50))
            assert pooler.wedged == 1, "the canary"


async def test_what_comes_after_shared_statements_waits_for_their_limits_to_be_taken_back(
    database_url: str,
) -> None:
    async with wedging(database_url) as (url, pooler):
        async with Database(
            settings_for(url, "steadypool", pooler="session", pool_size=1, max_overflow=0)
        ) as db:
            for number in range(5):
                assert await db.fetchval("select $1::int", number) == number
                async with db.session() as session:
                    assert await session.scalar(text("select cast(:n as int)"), {"n": number}) == number
                assert await db.fetchval("select $1::int", number) == number
                async with db.connection() as connection:
                    limits = "select current_setting('statement_timeout') || ' ' || current_setting('lock_timeout')"
                    assert await connection.fetchval(limits) == "10s 0"
            assert pooler.wedged == 1, "the canary"


def settings_for(url: str, driver: str, **more: Any) -> DatabaseSettings:
    url = url.replace("postgresql://", f"postgresql+{driver}://")
    return DatabaseSettings(url=url, shared_statement_timeout=2.0, **more)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "steadypool"])
async def test_a_database_finds_out_by_itself(database_url: str, driver: str) -> None:
    async with pgbouncer(database_url, "transaction") as url, Database(settings_for(url, driver)) as db:
        values = await ends(*(db.fetchval("select $1::int", number) for number in range(60)))
        assert values == list(range(60))
        limits = "select current_setting('statement_timeout') || ' ' || current_setting('lock_timeout')"
        assert await db.fetchval(limits) == "2s 1s"
        with pytest.raises(errors.StatementTimeout):
            await db.fetch("select pg_sleep(5)")
        async with db.session() as session:
            assert await session.scalar(text(limits)) == "10s 0"
        watch = db.pool.dialect.pooler_watch
        assert (watch.behind_pooler, watch.keeps_statements) == (True, False)
        assert watch.one_at_a_time is (driver != "steadypool"), "PgBouncer answered two at once"
