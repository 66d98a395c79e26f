"""What works over psycopg works over `postgresql+steadypool` too: each test runs on stock's engine and on ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import psycopg
import pytest
import sqlalchemy.ext.asyncio as stock
from psycopg.adapt import Dumper, Loader
from psycopg.types import TypeInfo
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.util import greenlet_spawn

import steadypool.sqlalchemy as ours
from steadypool import Database, DatabaseSettings, WrongEventLoop, deadline, errors
from steadypool._sql.texts import has_several_statements

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["stock psycopg", "ours psycopg", "ours steadypool"])
async def engine(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[AsyncEngine]:
    kind, driver = request.param.split()
    make = stock.create_async_engine if kind == "stock" else ours.create_async_engine
    engine = make(
        database_url.replace("postgresql://", f"postgresql+{driver}://"), pool_size=1, max_overflow=0
    )
    yield engine
    await engine.dispose()


# -- several statements in one text --------------------------------------------------------------------------------

SEVERAL = (
    "create table t (a int, b text); insert into t values (1, 'a;b'), (2, $$;$$); update t set a = a + 1"
)


async def rows(connection: Any) -> Any:
    return (await connection.execute(text("select a, b from t order by a"))).all()


async def test_several_statements_in_one_text(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(SEVERAL))
    async with engine.connect() as connection:
        assert await rows(connection) == [(2, "a;b"), (3, ";")]
        first = await connection.execute(
            text("select 1 as a, 'x' as b; select 2 as c; insert into t values (9, '')")
        )
        assert (list(first.keys()), first.all()) == (["a", "b"], [(1, "x")])
        inserted = await connection.execute(
            text("insert into t select 7, 'y' from generate_series(1, 3); select 1")
        )
        assert (inserted.returns_rows, inserted.rowcount) == (False, 3)
        await connection.rollback()
        assert await rows(connection) == [(2, "a;b"), (3, ";")]


async def test_several_statements_are_one_transaction_in_autocommit(engine: AsyncEngine) -> None:
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with autocommit.connect() as connection:
        await connection.execute(text("create table t (a int, b text)"))
        with pytest.raises(DBAPIError, match="division by zero"):
            await connection.execute(text("insert into t values (1, ''); select 1 / 0"))
        assert await rows(connection) == []
        await connection.execute(text("insert into t values (1, ''); insert into t values (2, '')"))
        assert await rows(connection) == [(1, ""), (2, "")]


async def test_an_error_in_several_statements(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        with pytest.raises(DBAPIError) as caught:
            await connection.execute(text("select 'é;'; select nothing from nowhere"))
        original = cast(Any, caught.value.orig)
        assert (original.sqlstate, original.diag.statement_position) == ("42P01", "34")
        with pytest.raises(DBAPIError, match="current transaction is aborted"):
            await connection.execute(text("select 1; select 2"))
        await connection.rollback()
        assert (await connection.execute(text("select 1; select 2"))).scalar() == 1


async def test_several_statements_that_end_their_transaction(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execute(
            text("create table t (a int, b text); commit; insert into t values (1, 'kept'); commit")
        )
        await connection.execute(text("insert into t values (2, 'lost')"))
        await connection.rollback()
        assert await rows(connection) == [(1, "kept")]


async def test_several_statements_with_parameters_are_refused(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        with pytest.raises(DBAPIError, match="multiple commands"):
            await connection.execute(text("select cast(:a as int); select 2"), {"a": 1})


async def test_what_is_prepared_and_dropped_by_several_statements(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(SEVERAL))
        for _ in range(8):
            assert await rows(connection) == [(2, "a;b"), (3, ";")]
        await connection.execute(
            text("deallocate all; alter table t alter column a type text using 'x' || a")
        )
        for _ in range(8):
            assert await rows(connection) == [("x2", "a;b"), ("x3", ";")]


async def test_several_statements_keep_to_the_limits(database_url: str) -> None:
    url = database_url.replace("postgresql://", "postgresql+steadypool://")
    engine = ours.create_async_engine(url, statement_timeout=60)
    with deadline(0.3), pytest.raises(errors.DeadlineExceeded):
        async with engine.connect() as connection:
            await connection.execute(text("select pg_sleep(60); select 2"))
    async with engine.connect() as connection:
        assert (await connection.execute(text("select 1; select 2"))).scalar() == 1
    await engine.dispose()


@pytest.mark.parametrize(
    ("sql", "several"),
    [
        ("select 1", False),
        ("select 1;", False),
        ("select 1; -- ; end\n /* ; /* ; */ ; */ ;", False),
        ("select ';' || E'\\';' || \";\" || $$;$$ || $a$;$$;$a$", False),
        ("select a$$, 1; select b$$", True),
        ("select 1;2", True),
        ("; select 1; ;", False),
        ("select '; select 2", False),
        ("select $a$; select 2", False),
        ("/* ; */ select 1 /* ; */; select 2", True),
        ("select é$$ ; select '$$'", True),
    ],
)
async def test_what_several_statements_are(sql: str, several: bool) -> None:
    assert has_several_statements(sql) is several


@pytest.mark.parametrize(
    "piece", ["-", "'", '"', "$", "$a$", "/*", "e'\\", ";", "a;", "--\n", " ", "$a", "*/", "E'"]
)
async def test_looking_for_several_statements_is_linear(piece: str) -> None:
    """By steps, which a busy machine does not lengthen: a pattern that goes back would never end on a megabyte."""
    for before in ("", "select 1;", "select ';"):
        has_several_statements(before + piece * (1_000_000 // len(piece)))


@pytest.mark.parametrize("driver", ["steadypool", "psycopg", "asyncpg"])
async def test_several_statements_on_a_connection_of_ones_own(driver: str, database_url: str) -> None:
    url = database_url.replace("postgresql://", f"postgresql+{driver}://")
    async with Database(DatabaseSettings(url=url)) as db, db.connection() as connection:
        await connection.execute(SEVERAL)
        async with connection.transaction():
            await connection.execute("insert into t values (8, 'x;y'); insert into t values (9, '')")
        with pytest.raises(Exception, match="division by zero"):
            await connection.execute("delete from t; select 1 / 0")
        assert await connection.fetchval("select array_agg(a order by a) from t") == [2, 3, 8, 9]
        with deadline(0.3), pytest.raises(errors.DeadlineExceeded):
            await connection.execute("select 1; select pg_sleep(60)")


# -- transactions in two phases ------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("statements", [0, 1])
async def test_a_transaction_in_two_phases_may_end_in_one(
    engine: AsyncEngine, end: str, statements: int
) -> None:
    def use(sync: Any) -> None:
        transaction = sync.begin_twophase()
        for _ in range(statements):
            sync.execute(text("select 1"))
        getattr(transaction, end)()
        transaction = sync.begin_twophase()
        assert sync.scalar(text("select 2")) == 2
        transaction.rollback()

    async with engine.connect() as connection:
        await connection.run_sync(use)
        assert await connection.scalar(text("select 3")) == 3


# -- psycopg's own connection --------------------------------------------------------------------------------------


class _Point:
    def __init__(self, x: str) -> None:
        self.x = x


class _PointDumper(Dumper):
    oid = 600

    def dump(self, obj: Any) -> bytes:
        return f"({obj.x},0)".encode()


class _PointLoader(Loader):
    def load(self, data: Any) -> Any:
        return _Point(bytes(data).decode())


async def register(connection: Any) -> None:
    """As pgvector's `register_vector_async`."""
    assert isinstance(connection, psycopg.AsyncConnection)
    info = await cast(Any, TypeInfo).fetch(connection, "point")
    info.register(connection)
    connection.adapters.register_dumper(_Point, _PointDumper)
    connection.adapters.register_loader(info.oid, _PointLoader)


async def test_run_async_has_psycopgs_connection(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def connected(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.run_async(register)

    async with engine.connect() as connection:
        for _ in range(8):
            value = await connection.scalar(text("select :p"), {"p": _Point("3")})
            assert (type(value), value.x) == (_Point, "(3,0)")

    async with engine.connect() as connection:
        raw = await connection.get_raw_connection()

        async def seven(connection: Any) -> Any:
            return await connection.execute("select 7")

        def again() -> Any:
            return cast(Any, raw.dbapi_connection).run_async(seven)

        assert (await (await greenlet_spawn(again)).fetchone())[0] == 7
        assert await connection.scalar(text("select 8")) == 8


# -- event loops ---------------------------------------------------------------------------------------------------


def test_a_session_used_from_another_event_loop_says_so(database_url: str) -> None:
    url = database_url.replace("postgresql://", "postgresql+steadypool://")
    engine = ours.create_async_engine(url)
    database = Database(DatabaseSettings(url=url))
    with asyncio.Runner() as home, asyncio.Runner() as other:
        session = AsyncSession(engine)
        assert home.run(session.scalar(text("select 1"))) == 1
        used = database.connection()
        connection = home.run(used.__aenter__())
        with pytest.raises(WrongEventLoop, match="another event loop"):
            other.run(session.scalar(text("select 1")))
        with pytest.raises(WrongEventLoop, match="another event loop"):
            other.run(connection.fetchval("select 1"))
        home.run(used.__aexit__(None, None, None))
        home.run(session.close())
        home.run(database.close())
        home.run(engine.dispose())
