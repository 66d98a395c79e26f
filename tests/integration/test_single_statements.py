"""`db.fetch` and its kin, and SQLAlchemy's statements on them: the same on every URL, with the same limits."""

from __future__ import annotations

import asyncio
import datetime
import enum
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import bindparam, select
from sqlalchemy.dialects import postgresql as pg_types
from sqlalchemy.exc import InvalidRequestError

import steadypool
from conditions import until
from steadypool import Database, DatabaseSettings, deadline
from steadypool._sqlstate import sqlstate_in
from steadypool.events import StatementFinished
from steadypool_lab.network.proxy import FaultProxy
from steadypool_lab.testing import Observer

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncpg", "psycopg", "steadypool", "steadypool, nothing shared"])
def driver(request: pytest.FixtureRequest) -> str:
    return request.param


MakeDatabase = Callable[..., Database]


@pytest.fixture
async def make(driver: str, database_url: str, anyio_backend: object) -> AsyncIterator[MakeDatabase]:
    made: list[Database] = []
    name, _, alone = driver.partition(",")

    def make(url: str = database_url, **settings: Any) -> Database:
        settings = {"pool_size": 3, "max_overflow": 0, "pool_timeout": 2, "ping_after_idle": 60} | settings
        if alone:
            settings["shared_connections"] = 0
        url = url.replace("postgresql://", f"postgresql+{name}://")
        made.append(Database(DatabaseSettings(url=url, **settings)))
        return made[-1]

    yield make
    for database in made:
        await database.close()


@pytest.fixture
async def db(make: MakeDatabase) -> Database:
    return make()


# -- what they give ----------------------------------------------------------------------------------------------


async def test_rows_values_and_tags(db: Database) -> None:
    assert await db.execute("create table t (id int primary key, name text)") == "CREATE TABLE"
    assert await db.execute("insert into t values ($1, $2), ($3, $4)", 1, "a", 2, "b") == "INSERT 0 2"
    rows = await db.fetch("select id, name from t order by id")
    assert [(row["id"], row["name"], row[0], len(row)) for row in rows] == [(1, "a", 1, 2), (2, "b", 2, 2)]
    assert tuple(rows[0].keys()) == ("id", "name")
    row = await db.fetchrow("select name from t where id = $1", 2)
    assert row is not None
    assert row["name"] == "b"
    assert await db.fetchrow("select name from t where id = $1", 3) is None
    assert await db.fetchval("select name from t where id = $1", 1) == "a"
    assert await db.fetchval("select name from t where id = $1", 3) is None
    [returned] = await db.fetch("delete from t where id = $1 returning name", 1)
    assert returned["name"] == "a"
    assert await db.fetch("update t set name = 'c'") == []
    assert await db.fetchval("select name from t") == "c", "each is committed by itself"
    await until(lambda: not db.stats().pool.waiting)


async def test_rows_one_after_the_other(db: Database) -> None:
    numbers = [row[0] async for row in db.fetch_iter("select generate_series(1, $1::int)", 25, batch=10)]
    assert numbers == list(range(1, 26))
    async with aclosing(db.fetch_iter("select generate_series(1, 100)", batch=10)) as rows:
        assert (await anext(rows))[0] == 1
        assert db.stats().pool.leased >= 1
    assert await db.fetchval("select count(*) from pg_cursors where name = 'steadypool_rows'") == 0


async def test_each_query_has_its_own_columns_and_types(make: MakeDatabase) -> None:
    """All of them fetch by the same statement, from a cursor of the same name."""
    db = make(pool_size=1)
    await db.execute("create type mood as enum ('fine')")
    for _ in range(2):
        numbers = [row["n"] async for row in db.fetch_iter("select generate_series(1, 25) as n", batch=10)]
        assert numbers == list(range(1, 26))
    moods = [
        row["m"]
        async for row in db.fetch_iter("select 'fine'::mood as m from generate_series(1, 3)", batch=10)
    ]
    assert moods == ["fine"] * 3


async def test_an_engine_that_was_disposed_of_has_no_more_connections_than_it_may(
    make: MakeDatabase, pg: Observer
) -> None:
    db = make(pool_size=2)
    assert await db.fetchval("select 1") == 1
    await db.engine.dispose()
    await pg.wait_until(pg.is_quiet)
    async with db.connection() as connection:
        assert [await db.fetchval("select 2") for _ in range(3)] == [2] * 3
        assert await connection.fetchval("select 3") == 3
        assert len(await pg.backends()) <= 2
    await db.close()
    await pg.wait_until(pg.is_quiet)


def test_another_event_loop_is_told(database_url: str) -> None:
    url = database_url.replace("postgresql://", "postgresql+steadypool://")
    db = Database(DatabaseSettings(url=url))
    with asyncio.Runner() as first, asyncio.Runner() as second:
        assert first.run(db.fetchval("select 1")) == 1
        with pytest.raises(steadypool.WrongEventLoop):
            second.run(db.fetchval("select 1"))
        assert first.run(db.fetchval("select 1")) == 1
        first.run(db.close())


async def test_what_is_executed_by_a_name_has_the_columns_of_what_has_it_now(make: MakeDatabase) -> None:
    async with make(pool_size=1).connection() as connection:
        for query in ("select 1 as a", "select 'x' as b, 2 as c"):
            await connection.execute(f"prepare mine as {query}")
            for _ in range(3):
                [row] = await connection.fetch("/* mine */ execute mine")
                assert tuple(row.keys()) == (("a",) if "as a" in query else ("b", "c"))
            await connection.execute("deallocate mine")


async def test_what_outlives_its_statement_is_refused_unsent(db: Database, pg: Observer) -> None:
    for sql in ("begin", "set work_mem = '1MB'", "select pg_advisory_lock(1)", "listen x"):
        with pytest.raises(steadypool.NotMultiplexable):
            await db.execute(sql)
    with pytest.raises(steadypool.NotMultiplexable):
        await anext(db.fetch_iter("/* hello */ commit"))
    assert await pg.backends() == [], "nobody even connected"


async def test_the_servers_word_is_the_callers_own(db: Database) -> None:
    await db.execute("create table t (id int primary key deferrable initially deferred)")
    for sql, state in (("select 1/0", "22012"), ("insert into t values (1), (1)", "23505")):
        with pytest.raises(Exception, match=r"division by zero|duplicate key") as told:
            await db.execute(sql)
        assert getattr(told.value, "sqlstate", None) == state
    assert await db.fetchval("select count(*) from t") == 0


# -- limits ------------------------------------------------------------------------------------------------------


async def test_the_limits_of_single_statements(make: MakeDatabase) -> None:
    db = make(shared_statement_timeout=0.3, shared_lock_timeout=0.2, shared_result_limit=100_000)
    limits = await db.fetch("select current_setting('statement_timeout'), current_setting('lock_timeout')")
    assert list(map(tuple, limits)) == [("300ms", "200ms")]
    with pytest.raises(steadypool.StatementTimeout, match=r"limit 0\.30s") as late:
        await db.fetch("select pg_sleep(5)")
    assert not late.value.maybe_executed
    with pytest.raises(steadypool.StatementTimeout, match=r"limit 0\.10s"):
        await db.fetch("select pg_sleep(5)", timeout=0.1)
    assert (await db.fetchval("select 'slow' from pg_sleep(0.5)", timeout=5)) == "slow"
    with pytest.raises(steadypool.ResultTooLarge, match="DATABASE_SHARED_RESULT_LIMIT"):
        await db.fetch("select repeat('x', 1000) from generate_series(1, 1000)")
    async with db.session() as session:
        shown = await session.execute(
            sa.text("select current_setting('statement_timeout'), current_setting('lock_timeout')")
        )
        assert tuple(shown.one()) == ("10s", "0"), "nothing of it stays on the connection"


async def test_waiting_for_a_lock_has_a_limit_with_a_name(make: MakeDatabase) -> None:
    db = make(shared_lock_timeout=0.2)
    await db.execute("create table t (id int)")
    await db.execute("insert into t values (1)")
    async with db.session() as session:
        await session.execute(sa.text("select * from t for update"))
        with pytest.raises(steadypool.StatementTimeout, match=r"waiting 0\.20s for a lock") as locked:
            await db.execute("update t set id = 2")
        assert not locked.value.maybe_executed
        with pytest.raises(Exception, match="could not obtain lock") as refused:
            await db.fetch("select * from t for update nowait")
        assert not isinstance(refused.value, steadypool.StatementTimeout), "it did not want to wait"
    assert db.stats().totals.statement_timeouts == 1


async def test_whoever_holds_a_lock_does_not_queue_behind_who_waits_for_it(make: MakeDatabase) -> None:
    """Neither could ever go on, and Postgres sees no deadlock."""
    db = make(shared_connections=1, shared_lock_timeout=30, shared_statement_timeout=30)
    await db.execute("create table t (id int primary key, n int)")
    await db.execute("insert into t values (1, 0)")
    locked = asyncio.Event()

    async def wait_for_the_lock() -> Any:
        await locked.wait()
        return await db.fetchval("update t set n = n + 1 where id = 1 returning n")

    stranger = asyncio.create_task(wait_for_the_lock())
    for hold in (_by_session, _by_connection):
        async with asyncio.timeout(20), hold(db, "update t set n = 10 where id = 1"):
            locked.set()
            while await db.fetchval("select count(*) from pg_locks where not granted") == 0:
                assert not stranger.done()
            assert await db.fetchval("select n from t") == 0, "nothing is committed yet"
        assert await stranger == 11
        await db.execute("update t set n = 0")
        locked.clear()
        stranger = asyncio.create_task(wait_for_the_lock())
    stranger.cancel()
    await asyncio.wait({stranger})


@asynccontextmanager
async def _by_session(db: Database, sql: str) -> AsyncIterator[None]:
    async with db.session() as session:
        await session.execute(sa.text(sql))
        yield
        await session.commit()


@asynccontextmanager
async def _by_connection(db: Database, sql: str) -> AsyncIterator[None]:
    async with db.connection() as connection, connection.transaction():
        await connection.execute(sql)
        yield


async def test_the_deadline_of_the_caller(db: Database) -> None:
    assert await db.fetchval("select 1") == 1  # connecting is not what is to take too long
    with pytest.raises(steadypool.DeadlineExceeded) as late, deadline(0.2):
        await db.fetch("select pg_sleep(1)")
    assert late.value.maybe_executed
    assert await db.fetchval("select 1") == 1


# -- connections that die ----------------------------------------------------------------------------------------


async def test_what_does_no_harm_is_sent_again(make: MakeDatabase, pg: Observer) -> None:
    db = make(shared_statement_timeout=10)
    await db.execute("create table t (who text)")

    async def write(who: str, **options: Any) -> Any:
        return await db.fetch("insert into t select $1 from pg_sleep(0.4)", who, **options)

    calls = {
        "read_only": asyncio.create_task(db.fetchval("select 'read' from pg_sleep(0.4)", read_only=True)),
        "idempotent": asyncio.create_task(write("idempotent", idempotent=True)),
        "unsafe": asyncio.create_task(write("unsafe")),
    }

    async def all_are_sent() -> bool:
        await pg.fetch("select 1")
        shared = db.stats().shared
        return (db.stats().pool.leased if shared is None else shared.in_flight) == len(calls)

    await pg.wait_until(all_are_sent)
    await pg.wait_until(
        lambda: pg.fetch("select 1 from pg_stat_activity where query like %s", "%pg_sleep(0.4)%")
    )
    await pg.terminate()
    ends = dict(zip(calls, await asyncio.gather(*calls.values(), return_exceptions=True), strict=True))
    assert ends["read_only"] == "read"
    assert ends["idempotent"] == []
    assert isinstance(ends["unsafe"], steadypool.ConnectionLost)
    assert ends["unsafe"].maybe_executed
    rows = await db.fetch("select who from t")
    assert [row["who"] for row in rows] == ["idempotent"]


# -- what they cost ----------------------------------------------------------------------------------------------


async def test_round_trips(make: MakeDatabase, driver: str, proxied_url: str, proxy: FaultProxy) -> None:
    db = make(proxied_url, statement_timeout=20, connection_timeout=20, pool_timeout=20)
    told: list[StatementFinished] = []
    db.events.subscribe(told.append, StatementFinished)

    async def trips(**options: Any) -> int:
        for _ in range(6):  # by then psycopg has prepared it
            await db.fetch("select $1::int", 1, **options)
        proxy.delay = 0.01
        before = proxy.round_trips
        await db.fetch("select $1::int", 1, **options)
        proxy.delay = 0.0
        return proxy.round_trips - before

    # Alone: BEGIN with the limits, the statement, COMMIT; asyncpg asks for the types of the statement first.
    needed = {"asyncpg": 4, "psycopg": 3, "steadypool": 1, "steadypool, nothing shared": 3}
    assert await trips() == needed[driver]
    assert await trips(read_only=True) == needed[driver]
    assert await trips(timeout=1.0) == needed[driver], "limits travel with what they limit"
    assert len(told) == 21, "one statement each, for whoever watches"


# -- SQLAlchemy's statements -------------------------------------------------------------------------------------


class Mood(enum.Enum):
    CALM = "calm"
    BRIGHT = "bright"


class Backwards(sa.types.TypeDecorator[str]):
    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: object) -> str | None:
        return None if value is None else value[::-1]

    def process_result_value(self, value: str | None, dialect: object) -> str | None:
        return None if value is None else value[::-1]


METADATA = sa.MetaData()
THINGS = sa.Table(
    "things",
    METADATA,
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("mood", sa.Enum(Mood)),
    sa.Column("secret", Backwards),
    sa.Column("data", pg_types.JSONB),
    sa.Column("tags", pg_types.ARRAY(sa.Text)),
    sa.Column("key", sa.Uuid),
    sa.Column("price", sa.Numeric(10, 2)),
    sa.Column("ratio", sa.Float),
    sa.Column("at", sa.DateTime(timezone=True)),
    sa.Column("raw", sa.LargeBinary),
)
VALUES: dict[str, Any] = {
    "mood": Mood.BRIGHT,
    "secret": "abc",
    "data": {"a": [1, None, "ü"]},
    "tags": ["x", "y"],
    "key": uuid.UUID(int=7),
    "price": Decimal("1.50"),
    "ratio": 0.25,
    "at": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "raw": b"\0\1",
}


@pytest.fixture
async def things(db: Database) -> Database:
    async with db.engine.begin() as connection:
        await connection.run_sync(METADATA.create_all)
    return db


async def test_values_are_what_a_session_would_give(things: Database) -> None:
    db, columns = things, [column for column in THINGS.c if column.name != "id"]
    [added] = await db.fetch(sa.insert(THINGS).values(VALUES).returning(THINGS.c.id, THINGS.c.secret))
    assert tuple(added) == (1, "abc")
    assert await db.execute(sa.insert(THINGS).values(dict.fromkeys(VALUES))) == "INSERT 0 1"
    query = select(*columns).order_by(THINGS.c.id)
    rows = await db.fetch(query, read_only=True)
    assert dict(zip(rows[0].keys(), rows[0], strict=True)) == VALUES
    assert set(rows[1]) == {None}
    assert {type(value) for value in rows[0]} >= {Mood, Decimal, float, dict, list, bytes}
    async with db.session() as session:
        assert list(map(tuple, await session.execute(query))) == list(map(tuple, rows))
    assert [tuple(row) async for row in db.fetch_iter(query)] == list(map(tuple, rows))
    assert await db.fetchval("select secret from things where id = 1") == "cba", "the type turned it round"


async def test_a_query_is_made_once_and_asked_often(things: Database) -> None:
    db = things
    await db.execute(sa.insert(THINGS).values([{"mood": Mood.CALM}, {"mood": Mood.BRIGHT}]))
    by_mood = select(THINGS.c.id).where(THINGS.c.mood == bindparam("mood"))
    for mood, number in ((Mood.CALM, 1), (Mood.BRIGHT, 2), (Mood.CALM, 1)):
        assert await db.fetchval(by_mood, {"mood": mood}) == number
    for number, mood in ((1, Mood.CALM), (2, Mood.BRIGHT)):
        assert await db.fetchval(select(THINGS.c.mood).where(THINGS.c.id == number)) is mood
    assert await db.fetchval(sa.text("select cast(:a as int) + cast(:b as int)"), {"a": 2, "b": 3}) == 5
    assert await db.fetchval(select(sa.literal_column("'100%'"))) == "100%"


async def test_what_only_a_session_can_run_is_refused(things: Database) -> None:
    with pytest.raises(steadypool.ConfigurationError, match="any_"):
        await things.fetch(select(THINGS.c.id).where(THINGS.c.id.in_([1, 2])))
    table = sa.Table(
        "t", sa.MetaData(), sa.Column("id", sa.Uuid, default=uuid.uuid4), sa.Column("n", sa.Integer)
    )
    with pytest.raises(steadypool.ConfigurationError, match="default of id"):
        await things.execute(sa.insert(table).values(n=1))
    with pytest.raises(TypeError, match="one mapping"):
        await things.fetch(select(THINGS.c.id), 7)
    with pytest.raises(InvalidRequestError, match="bind parameter 'id'"):
        await things.fetch(select(THINGS.c.id).where(THINGS.c.id == bindparam("id")))


async def test_a_network_of_2_to_the_64_addresses_is_one_value(db: Database) -> None:
    assert str(await db.fetchval("select '2001:db8::/64'::cidr")) == "2001:db8::/64"


async def test_a_dashed_line_above_a_statement_is_a_comment(db: Database) -> None:
    sql = "-" * 60 + "\nselect 1"
    for _ in range(3):
        assert await db.fetchval(sql) == 1
        async with db.session() as session:
            assert await session.scalar(sa.text(sql)) == 1


# -- several statements in one text ------------------------------------------------------------------------------------


async def test_several_statements_in_one_text(db: Database) -> None:
    """One rule with every driver: `db` takes one; of a connection, `fetch` takes one and `execute` any number."""
    several = "insert into many values (1); select 7 as seven"
    await db.execute("create table many (n int)")
    for call in (db.fetch, db.fetchrow, db.fetchval, db.execute):
        with pytest.raises(steadypool.errors.NotMultiplexable, match="several statements"):
            await call(several)
    with pytest.raises(steadypool.errors.NotMultiplexable, match="several statements"):
        async for _ in db.fetch_iter("select 1; select 2"):
            pass
    async with db.connection() as connection:
        for call in (connection.fetch, connection.fetchrow, connection.fetchval):
            with pytest.raises(
                Exception, match="cannot insert multiple commands into a prepared statement"
            ) as info:
                await call(several)
            assert sqlstate_in(info.value) == "42601"
        assert await connection.fetchval("select count(*) from many") == 0
        assert await connection.execute(several) == "SELECT 1"
        assert await connection.execute("select 1; select 2; delete from many") == "DELETE 1"
        with pytest.raises(Exception, match="division by zero"):
            await connection.execute("insert into many values (2); select 1 / 0")
        assert await connection.fetchval("select count(*) from many") == 0, (
            "outside of a transaction they are one"
        )
        assert await connection.fetchval("select 1 ; -- and nothing else;") == 1


@pytest.mark.parametrize("sql", ["", ";", " -- nothing", "/* ; */ ;;"])
async def test_a_text_without_a_statement(db: Database, sql: str) -> None:
    assert list(await db.fetch(sql)) == []
    assert await db.execute(sql) == ""
    async with db.connection() as connection:
        assert list(await connection.fetch(sql)) == []
        assert await connection.execute(sql) == ""
