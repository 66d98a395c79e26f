"""What is told of each statement: how it ended, what its connection cost, and never a value."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Column, Integer, MetaData, Table, Text, insert, text
from sqlalchemy.exc import IntegrityError

from steadypool import Database, DatabaseSettings, deadline, errors
from steadypool.events import ConnectionLost, Event, StatementFinished, WaitEnded
from steadypool.fastapi import install
from steadypool_lab.testing import Observer

pytestmark = pytest.mark.anyio

SECRET = "anna@example.org"


@pytest.fixture(params=["asyncpg", "psycopg", "steadypool"])
async def db(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[Database]:
    url = database_url.replace("postgresql://", f"postgresql+{request.param}://")
    settings = DatabaseSettings(url=url, pool_size=1, max_overflow=0, pool_timeout=1.0, statement_timeout=5)
    async with Database(settings) as database:
        yield database


@pytest.fixture
def told(db: Database) -> list[Any]:
    """What is told of statements, waits and losses, in order."""
    seen: list[Event] = []
    db.events.subscribe(seen.append, StatementFinished, WaitEnded, ConnectionLost)
    return seen


def statements(told: list[Any]) -> list[StatementFinished]:
    return [event for event in told if isinstance(event, StatementFinished)]


def names(told: list[Any]) -> list[str]:
    return [event.fingerprint.partition("] ")[2] for event in statements(told)]


async def test_every_statement_of_a_session_is_told_once(db: Database, told: list[Any]) -> None:
    async with db.session() as session:
        await session.execute(text("create table t (id int primary key, name text)"))
        await session.execute(text(f"insert into t values (1, '{SECRET}'), (2, :name)"), {"name": SECRET})
        await session.commit()
        rows = (await session.execute(text("select * from t /* why */"))).all()
        await session.execute(text("update t set name = 'x' where id > 5"))
        await session.rollback()
    assert len(rows) == 2
    assert names(told) == [
        "create table t (id int primary key, name text)",
        "insert into t values (?)",
        "COMMIT",
        "select * from t",
        "update t set name = ? where id > ?",
    ]
    assert [event.rows for event in statements(told)] == [None, 2, None, 2, 0]
    assert {(event.way, event.sqlstate, event.error_type) for event in statements(told)} == {
        ("session", None, None)
    }
    assert {event.connection for event in statements(told)} == {1}
    assert SECRET not in repr(told)


async def test_every_statement_of_a_dedicated_connection_is_told_once(db: Database, told: list[Any]) -> None:
    db.workload("reports", statement_timeout=3)
    async with db.connection(workload="reports") as connection, connection.transaction():
        await connection.execute("create table t (id int)")
        await connection.execute("insert into t select generate_series(1, $1::int)", 3)
        await connection.fetch("select * from t where id > $1", 1)
    assert names(told) == [
        "BEGIN",
        "create table t (id int)",
        "insert into t select generate_series(?)",
        "select * from t where id > ?",
        "COMMIT",
    ]
    assert [event.rows for event in statements(told)] == [None, None, 3, 2, None]
    assert {(event.way, event.workload) for event in statements(told)} == {("dedicated", "reports")}


async def test_what_failed_says_how(db: Database, told: list[Any]) -> None:
    db.workload("strict", statement_timeout=0.2)
    async with db.session() as session:
        await session.execute(text("create table t (name text unique deferrable initially deferred)"))
        await session.execute(text("create table u (name text primary key)"))
        await session.execute(text("insert into u values (:name)"), {"name": SECRET})
        await session.commit()
        with pytest.raises(IntegrityError):
            await session.execute(text("insert into u values (:name)"), {"name": SECRET})
        await session.rollback()
        await session.execute(text("insert into t values (:name), (:name)"), {"name": SECRET})
        with pytest.raises(IntegrityError):
            await session.commit()
    with pytest.raises(errors.StatementTimeout):
        async with db.session(workload="strict") as session:
            await session.execute(text("select pg_sleep(5)"))
    with pytest.raises(errors.StatementTimeout):
        async with db.connection(workload="strict") as connection:
            await connection.execute("select pg_sleep(5)")
    with pytest.raises(errors.DeadlineExceeded), deadline(0.2):
        async with db.connection() as connection:
            await connection.execute("select pg_sleep(5)")
    failed = [event for event in statements(told) if event.error_type]
    assert [(event.way, event.sqlstate, event.error_type) for event in failed] == [
        ("session", "23505", "IntegrityError"),
        ("session", "23505", "IntegrityError"),
        ("session", "57014", "StatementTimeout"),
        ("dedicated", "57014", "StatementTimeout"),
        ("dedicated", None, "DeadlineExceeded"),
    ]
    assert names(failed)[1] == "COMMIT"
    assert [event.workload for event in failed] == [None, None, "strict", "strict", None]
    assert 0.15 < failed[2].seconds < 2
    assert SECRET not in repr(told)


async def test_a_loss_is_told_with_its_cause(db: Database, told: list[Any], pg: Observer) -> None:
    for use in (db.session, db.connection):
        async with use() as it:
            sql: Any = "select 1" if use == db.connection else text("select 1")
            await it.execute(sql)
            await pg.terminate()
            with pytest.raises(errors.ConnectionLost):
                await it.execute(sql)
    lost = [event for event in told if isinstance(event, ConnectionLost)]
    assert len(lost) == 2
    # Who reads the socket first is chance: asyncpg while it was idle, or the next statement.
    assert {event.cause for event in lost} <= {"57P01", "no word"}
    assert [event.error_type for event in statements(told)] == [None, "ConnectionLost"] * 2
    assert db.stats().totals.connections_lost == 2


async def test_a_cancelled_statement_is_told(db: Database, told: list[Any]) -> None:
    db.pool.core.resize(size=2)
    for use in (db.session, db.connection):
        as_sql: Any = str if use == db.connection else text
        with pytest.raises(TimeoutError):
            async with use() as it:
                await it.execute(as_sql("select 1"))
                async with asyncio.timeout(0.2):
                    await it.execute(as_sql("select pg_sleep(5)"))
    assert [(event.way, event.error_type) for event in statements(told) if event.error_type] == [
        ("session", "CancelledError"),
        ("dedicated", "CancelledError"),
    ]
    assert len(statements(told)) == 4


async def test_what_its_connection_cost_is_told_with_the_first_statement(
    db: Database, told: list[Any]
) -> None:
    async with db.session() as session:
        await session.execute(text("select 1"))
        await session.execute(text("select 2"))
        waits = asyncio.create_task(second(db))
        while not db.stats().pool.waiting:
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
    await waits
    first, later, other = statements(told)
    assert first.connecting > 0
    assert first.waiting < 0.1
    assert (later.waiting, later.connecting) == (0, 0)
    assert other.waiting >= 0.1
    assert other.connecting == 0
    begin, wait = (event for event in told if isinstance(event, WaitEnded))
    assert (begin.connection, begin.error_type) == (1, None)
    assert begin.connecting == first.connecting
    assert wait.seconds == pytest.approx(other.waiting)


async def second(db: Database) -> None:
    async with db.session() as session:
        await session.execute(text("select 3"))


async def test_a_wait_in_vain_is_told(db: Database, told: list[Any]) -> None:
    async with db.connection():
        with pytest.raises(errors.PoolTimeout):
            await second(db)
        cancelled = asyncio.create_task(second(db))
        while not db.stats().pool.waiting:
            await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
    ended = [event for event in told if isinstance(event, WaitEnded) and event.error_type]
    assert [(event.error_type, event.connection) for event in ended] == [
        ("PoolTimeout", None),
        ("CancelledError", None),
    ]
    assert ended[0].seconds >= 0.3


async def test_a_stream_is_one_statement(db: Database, told: list[Any]) -> None:
    async with db.session() as session:
        result = await session.stream(text("select generate_series(1, 25)"))
        seen = [row async for row in result.yield_per(10)]
    assert len(seen) == 25
    assert names(told) == ["select generate_series(?)"]
    assert statements(told)[0].rows == 25


async def test_many_values_are_as_many_statements_as_are_sent(db: Database, told: list[Any]) -> None:
    table = Table("t", MetaData(), Column("id", Integer, primary_key=True), Column("name", Text))
    async with db.session() as session:
        await session.run_sync(lambda sync: table.create(sync.connection()))
        told.clear()
        await session.execute(insert(table).returning(table.c.id), [{"name": SECRET}] * 1500)
    assert [event.rows for event in statements(told)] == [1000, 500]
    assert all(name.startswith("INSERT INTO t (name) VALUES (?)") for name in names(told))


async def test_the_request_is_named_by_its_route(db: Database, told: list[Any]) -> None:
    app = FastAPI()
    install(app, db)

    @app.get("/users/{name}")
    async def user(name: str) -> str:
        await second(db)
        return name

    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get(f"/users/{SECRET}")).status_code == 200
    assert [event.request for event in statements(told)] == ["GET /users/{name}"]
    assert SECRET not in repr(told)


async def test_nothing_is_made_where_nobody_wants_it(database_url: str) -> None:
    settings = DatabaseSettings(url=database_url, slow_query_after="off", recorder=False)
    async with Database(settings) as db:
        assert not db.events.wanted(StatementFinished)
        assert not db.events.wanted(WaitEnded)
        unsubscribe = db.events.subscribe(print, StatementFinished)
        assert db.events.wanted(StatementFinished)
        unsubscribe()
        assert not db.events.wanted(StatementFinished)
