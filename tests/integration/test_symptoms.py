"""Each symptom of the seed's troubleshooting chapter, produced on purpose, and found with its true cause.

`why` finds the page from the error's own message; `doctor` finds the cause from outside, as a role without rights.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psycopg
import pytest
from sqlalchemy import text

from steadypool import Database, DatabaseSettings, errors
from steadypool.cli.doctor.examination import Examination
from steadypool.cli.doctor.finding import WORTH_ATTENTION, Finding
from steadypool.cli.doctor.run import chosen_checks, examine
from steadypool.cli.why.topics import find
from steadypool.lab import FaultProxy, Mode
from steadypool.testing import Observer

pytestmark = pytest.mark.anyio


async def doctor(url: str, *names: str, **settings: Any) -> dict[str, list[Finding]]:
    """What the doctor finds worth attention, by check."""
    examination = Examination(DatabaseSettings(url=url, **settings))
    found: dict[str, list[Finding]] = {}
    for result in await examine(examination, chosen_checks(names)):
        if result.finding.level in WORTH_ATTENTION:
            found.setdefault(result.check.name, []).append(result.finding)
    return found


def symptom_of(error: BaseException) -> str:
    """Which page `steadypool why` opens for what stands in the log."""
    found = find(f"ERROR plyr GET '/tracks/' -> {type(error).__name__}: {error}")
    assert found is not None
    return found.topic.key


@pytest.fixture
def service_url(database_url: str) -> Iterator[str]:
    """The database as the service's own role, which may not look at other roles' sessions."""
    role = f"service_{urlsplit(database_url).path.lstrip('/')}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
        connection.execute(f"GRANT ALL ON SCHEMA public TO {role}")
    parts = urlsplit(database_url)
    yield urlunsplit(parts._replace(netloc=f"{role}:secret@{parts.hostname}:{parts.port}"))
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"DROP OWNED BY {role}")
        connection.execute(f"DROP ROLE {role}")


SMALL = {"pool_size": 2, "max_overflow": 0, "pool_timeout": 0.3, "connection_timeout": 5}


@asynccontextmanager
async def exhausted(url: str, sql: str, *, forget: bool) -> AsyncIterator[BaseException]:
    """Both connections taken, by statements that run or by transactions that rest; what the third caller got."""
    async with Database(DatabaseSettings(url=url, **SMALL, statement_timeout=60, close_grace=0)) as db:
        busy, rest = asyncio.Semaphore(0), asyncio.Event()

        async def hold() -> None:
            async with db.session() as session:
                await session.execute(text("SELECT 1"))
                busy.release()
                if forget:
                    await rest.wait()
                else:
                    await session.execute(text(sql))

        holders = [asyncio.create_task(hold()) for _ in range(2)]
        await busy.acquire()
        await busy.acquire()
        with pytest.raises(errors.PoolTimeout) as refused:
            async with db.session() as session:
                await session.execute(text("SELECT 1"))
        yield refused.value
        for holder in holders:
            holder.cancel()
        await asyncio.gather(*holders, return_exceptions=True)


async def test_a_pool_exhausted_by_slow_statements(service_url: str, pg: Observer) -> None:
    async with exhausted(service_url, "SELECT pg_sleep(60)", forget=False) as error:
        assert symptom_of(error) == "exhaustion"

        async def running_for_long() -> bool:
            rows = await pg.fetch(
                "select 1 from pg_stat_activity where query like '%%pg_sleep(60)%%' and state = 'active'"
                " and datname = %s and now() - query_start > interval '0.3 s'",
                pg.database,
            )
            return len(rows) == 2

        await pg.wait_until(running_for_long)
        found = await doctor(service_url, "pool-use", "sessions", **SMALL, statement_timeout=0.3)
    assert found["pool-use"][0].symptom == "exhaustion"
    assert [each.symptom for each in found["long-statements"]] == ["statement-timeouts"] * 2
    assert "pg_sleep(?)" in found["long-statements"][0].evidence
    assert "idle-in-transaction" not in found


async def test_a_pool_exhausted_by_connections_that_are_not_returned(service_url: str, pg: Observer) -> None:
    async with exhausted(service_url, "", forget=True) as error:
        assert symptom_of(error) == "exhaustion"

        async def resting_for_long() -> bool:
            rows = await pg.fetch(
                "select 1 from pg_stat_activity where state = 'idle in transaction' and datname = %s"
                " and now() - state_change > interval '1 s'",
                pg.database,
            )
            return len(rows) == 2

        await pg.wait_until(resting_for_long)
        found = await doctor(service_url, "pool-use", "sessions", **SMALL)
    assert found["pool-use"][0].symptom == "exhaustion"
    assert [each.symptom for each in found["idle-in-transaction"]] == ["leaks"] * 2
    assert "long-statements" not in found


async def test_a_transaction_that_holds_up_others(service_url: str, pg: Observer) -> None:
    async with Database(DatabaseSettings(url=service_url, **SMALL, close_grace=0)) as db:
        async with db.session() as session:
            await session.execute(text("CREATE TABLE counters (n int)"))
            await session.commit()
        async with db.session() as holder, db.session() as other:
            await holder.execute(text("LOCK TABLE counters"))
            waiting = asyncio.create_task(other.execute(text("SELECT n FROM counters WHERE n = 4711")))

            async def waits() -> bool:
                return bool(
                    await pg.fetch(
                        "select 1 from pg_stat_activity where datname = %s and wait_event_type = 'Lock'",
                        pg.database,
                    )
                )

            await pg.wait_until(waits)
            found = await doctor(service_url, "blocked", **SMALL)
            await holder.rollback()
            await waiting
    (blocked,) = found["blocked"]
    assert "SELECT n FROM counters WHERE n = ?" in blocked.evidence
    assert "LOCK TABLE counters, idle in transaction" in blocked.evidence
    assert "4711" not in repr(blocked)
    assert "pg_terminate_backend" in blocked.change


async def test_connects_that_are_not_answered(service_url: str, proxy: FaultProxy) -> None:
    assert not hasattr(asyncpg.exceptions, "ConnectionTimeoutError")  # the seed's symptom has another name
    parts = urlsplit(service_url)
    url = urlunsplit(parts._replace(netloc=f"{parts.username}:secret@127.0.0.1:{proxy.port}"))
    proxy.mode = Mode.SILENT
    async with Database(DatabaseSettings(url=url, connection_timeout=0.3, pool_timeout=0.3)) as db:
        with pytest.raises(errors.ConnectTimeout) as refused:
            async with db.session() as session:
                await session.execute(text("SELECT 1"))
    assert symptom_of(refused.value) == "connect-timeouts"
    found = await doctor(url, "reach", connection_timeout=0.3)
    assert found["log-in"][0].symptom == "connect-timeouts"
    assert "to let us in" in found["log-in"][0].evidence


async def test_a_statement_over_its_limit_for_want_of_an_index(service_url: str) -> None:
    async with Database(DatabaseSettings(url=service_url)) as db:
        db.workload("strict", statement_timeout=0.001)
        async with db.session() as session:
            await session.execute(text("CREATE TABLE plays AS SELECT n FROM generate_series(1, 100000) n"))
            await session.commit()
        async with db.session() as session:
            for _ in range(15):
                await session.execute(text("SELECT n FROM plays WHERE n = 4711"))
        with pytest.raises(errors.StatementTimeout) as ended:
            async with db.session(workload="strict") as session:
                await session.execute(text("SELECT count(*) FROM plays a, plays b WHERE a.n < b.n"))
    assert symptom_of(ended.value) == "statement-timeouts"
    assert symptom_of(
        asyncpg.exceptions.QueryCanceledError("canceling statement due to statement timeout")
    ) == ("statement-timeouts")
    found = await doctor(service_url, "sequential-scans")
    assert "public.plays" in found["sequential-scans"][0].evidence
    assert "CREATE INDEX" in found["sequential-scans"][0].change


async def test_a_role_that_may_have_no_more_connections(service_url: str, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"ALTER ROLE {urlsplit(service_url).username} CONNECTION LIMIT 1")
    async with Database(DatabaseSettings(url=service_url)) as db, db.session() as session:
        await session.execute(text("SELECT 1"))
        found = await doctor(service_url, "log-in")
    assert found["log-in"][0].symptom == "too-many-connections"
