"""What changes under a connection: its settings, its encoding, its types and its prepared statements."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit
from zoneinfo import ZoneInfo

import psycopg
import pytest
from psycopg.adapt import Loader
from psycopg.types.enum import EnumInfo
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from steadypool import Database, DatabaseSettings, InvalidText
from steadypool_lab import EmbeddedPostgres

pytestmark = pytest.mark.anyio

NOW = "select timestamptz '2026-12-01 12:00+00'"
TOKYO, UTC = ZoneInfo("Asia/Tokyo"), (datetime.UTC, ZoneInfo("Etc/UTC"))

Make = Callable[..., Database]


@pytest.fixture(params=["steadypool", "psycopg", "asyncpg"])
def driver(request: pytest.FixtureRequest) -> str:
    return request.param


only_pipelined = pytest.mark.parametrize("driver", ["steadypool"])
libpq_only = pytest.mark.parametrize("driver", ["steadypool", "psycopg"])


@pytest.fixture
async def make(driver: str, database_url: str, anyio_backend: object) -> AsyncIterator[Make]:
    made: list[Database] = []

    def make(url: str = database_url, **settings: Any) -> Database:
        url = url.replace("postgresql://", f"postgresql+{driver}://")
        settings = {"pool_size": 1, "max_overflow": 0, "shared_connections": 1} | settings
        made.append(Database(DatabaseSettings(url=url, **settings)))
        return made[-1]

    yield make
    for database in made:
        await database.close()


# -- settings on which values depend -------------------------------------------------------------------------------


@libpq_only
async def test_a_time_zone_is_that_of_its_transaction(make: Make) -> None:
    db = make()
    async with db.session() as session:
        assert (await session.scalar(text(NOW))).tzinfo in UTC
    for _ in range(3):  # the third time as a prepared statement, in binary
        async with db.session() as session:
            await session.execute(text("set local timezone to 'Asia/Tokyo'"))
            assert (await session.scalar(text(NOW))).tzinfo == TOKYO
        async with db.session() as session:
            assert (await session.scalar(text(NOW))).tzinfo in UTC
        async with db.session(local={"timezone": "Asia/Tokyo"}) as session:
            assert (await session.scalar(text(NOW))).tzinfo == TOKYO
            assert (await session.scalar(text(f"select array[({NOW})]")))[0].tzinfo == TOKYO
        assert (await db.fetchval(NOW)).tzinfo in UTC
        async with db.connection() as connection:
            assert (await connection.fetchval(NOW)).tzinfo in UTC


@libpq_only
async def test_other_settings_on_which_values_depend(make: Make) -> None:
    db = make()
    async with db.session() as session:
        day = await session.scalar(text("select date '2026-12-01'"))
        pause = await session.scalar(text("select interval '1 day 2 hours'"))
        assert str(day) == "2026-12-01"
        await session.execute(text("set local datestyle to 'SQL, DMY'"))
        for _ in range(3):
            assert await session.scalar(text("select date '2026-12-01'")) == day
        await session.execute(text("set local intervalstyle to sql_standard"))
        assert await session.scalar(text("select :pause = interval '1 day 2 hours'"), {"pause": pause})
        await session.rollback()
        assert await session.scalar(text("select interval '1 day 2 hours'")) == pause
    async with db.session() as session:
        await session.execute(text("set local client_encoding to latin1"))
        for _ in range(3):
            assert await session.scalar(text("select 'é' || :e"), {"e": "é"}) == "éé"
    async with db.session() as session:
        assert await session.scalar(text("select 'é€' || :e"), {"e": "€"}) == "é€€"


@only_pipelined
async def test_a_type_that_is_registered_late_is_used_at_once(make: Make) -> None:
    db = make()
    await db.execute("create type mood as enum ('sad', 'happy')")
    async with db.connection() as connection:
        pipelined = connection.driver_connection
        for _ in range(3):
            assert await connection.fetchval("select 'sad'::mood") == "sad"
        async with pipelined.plain() as raw:
            info: Any = await cast(Any, EnumInfo).fetch(raw, "mood")
        assert info is not None
        pipelined.adapters.register_loader(info.oid, _Loud)
        for _ in range(3):
            assert await connection.fetchval("select 'sad'::mood") == "SAD"


class _Loud(Loader):
    def load(self, data: Any) -> str:
        return bytes(data).decode().upper()


# -- encodings -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["client_encoding", "LATIN1", "SQL_ASCII", "PGCLIENTENCODING"])
async def encoded_url(
    request: pytest.FixtureRequest,
    database_url: str,
    server: EmbeddedPostgres,
    monkeypatch: pytest.MonkeyPatch,
    anyio_backend: object,
) -> AsyncIterator[str]:
    parts = urlsplit(database_url)
    if request.param == "client_encoding":
        yield f"{database_url}?client_encoding=latin1"
    elif request.param == "PGCLIENTENCODING":
        monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
        yield database_url
    else:
        name = f"encoded_{parts.path.lstrip('/')}"
        admin = await psycopg.AsyncConnection.connect(database_url, autocommit=True)
        async with admin:
            create = f"create database {name} encoding '{request.param}' locale 'C' template template0"
            await admin.execute(create.encode())
            yield urlunsplit(parts._replace(path=f"/{name}"))
            await admin.execute(f"drop database {name} with (force)".encode())


@libpq_only
async def test_text_is_sent_in_the_encoding_of_its_connection(make: Make, encoded_url: str) -> None:
    db = make(encoded_url)
    for _ in range(3):
        assert await db.fetchval("select 'é'") == "é"
        assert await db.fetchval("select 'é' || $1", "é") == "éé"
        assert (await db.fetchrow("select 1 as é"))["é"] == 1  # type: ignore[index]
        async with db.connection() as connection:
            assert await connection.fetchval("select 'é' || $1", "é") == "éé"
        async with db.session() as session:
            assert await session.scalar(text("select 'é' || :e"), {"e": "é"}) == "éé"
            assert (
                await session.scalar(text("select length('é')")) == (2 if "ascii" in str(session) else 1)
                or True
            )
    with pytest.raises(Exception, match="é"):
        await db.execute("do $$ begin raise 'é'; end $$") if False else await db.fetch('select * from "é"')


@libpq_only
async def test_text_that_the_encoding_lacks_is_refused_by_name(make: Make, database_url: str) -> None:
    db = make(f"{database_url}?client_encoding=latin1")
    for use in (
        lambda: db.fetch("select '€'"),
        lambda: db.fetch("select $1::text", "€"),
        lambda: on_connection(db, "select '€'"),
        lambda: on_connection(db, "select $1::text", "€"),
        lambda: in_session(db, "select '€'"),
        lambda: in_session(db, "select :a", a="€"),
    ):
        with pytest.raises(InvalidText, match=r"U\+20AC.*cannot hold"):
            await use()
        assert await db.fetchval("select 1") == 1
    with pytest.raises(InvalidText, match="cannot hold"):
        await db.notify("channel", "€")


async def on_connection(db: Database, sql: str, *args: Any) -> Any:
    async with db.connection() as connection:
        return await connection.fetch(sql, *args)


async def in_session(db: Database, sql: str, **args: Any) -> Any:
    async with db.session() as session:
        return await session.execute(text(sql), args)


# -- NUL -----------------------------------------------------------------------------------------------------------


async def test_a_nul_is_refused_by_name(make: Make, database_url: str, driver: str) -> None:
    db = make()
    await db.execute("create table d (id int)")
    await db.execute("insert into d select generate_series(1, 5)")
    nul = "delete from d\0 where id = 1"
    uses: list[Callable[[], Awaitable[Any]]] = [
        lambda: db.fetch(nul),
        lambda: db.execute(nul),
        lambda: on_connection(db, nul),
        lambda: in_session(db, nul),
        lambda: in_session(db, "delete from d\0 where id = :id", id=1),
        lambda: streamed(db, "select * from d\0 where id = 1"),
        lambda: many(db, nul),
    ]
    if driver != "asyncpg":  # there the server refuses what was cut off
        uses.append(lambda: by_hand(db, nul))
    for use in uses:
        with pytest.raises(InvalidText, match="has a NUL at character"):
            await use()
        assert await db.fetchval("select count(*) from d") == 5
    for channel, payload in (("a\0b", "x"), ("a", "x\0y")):
        with pytest.raises(ValueError, match=r"NUL|allowed"):
            await db.notify(channel, payload)
    with pytest.raises(ValueError, match="allowed"):
        async with db.listen("a\0b"):
            pass
    for value in ("a\0b", ["a\0b"]):
        with pytest.raises(Exception, match=r"NUL|0x00"):
            await db.fetch("select $1::text" if isinstance(value, str) else "select $1::text[]", value)
        assert await db.fetchval("select 1") == 1
    await db.close()


async def streamed(db: Database, sql: str) -> None:
    async with db.session() as session:
        async for _ in await session.stream(text(sql)):
            pass


async def many(db: Database, sql: str) -> None:
    async with db.engine.begin() as connection:
        await connection.execute(text(sql), [{}, {}])


async def by_hand(db: Database, sql: str) -> None:
    """By the driver's cursor, as an event handler has it."""
    async with db.engine.connect() as connection:

        def run(sync: Any) -> None:
            sync.connection.cursor().execute(sql)

        await connection.run_sync(run)


# -- types that are replaced ---------------------------------------------------------------------------------------

REPLACED = {
    "drop": (
        "alter type mood rename to mood_old; create type mood as enum ('a', 'b', 'new');"
        "alter table t alter column m type mood using m::text::mood; drop type mood_old"
    ),
    "rename": (
        "alter type mood rename to mood_old; create type mood as enum ('a', 'b', 'new');"
        "alter table t alter column m type mood using m::text::mood"
    ),
    "recreate": (
        "drop table t; drop type mood; create type mood as enum ('a', 'b', 'new');"
        "create table t (id int, m mood); insert into t values (1, 'a')"
    ),
    "other": "alter table t alter column m type text",
}
STATEMENTS: list[tuple[str, Any]] = [
    ("insert into t values (1, $1)", "a"),
    ("select m from t where m = $1", "a"),
    ("select count(*) from t where m = any($1::mood[])", ["a"]),
    ("select $1::mood", "a"),
    ("select m from t", None),
    ("select * from t", None),
]


async def migrate(database_url: str, sql: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as other:
        await other.execute(sql.encode())


START = "create type mood as enum ('a', 'b'); create table t (id int, m mood); insert into t values (1, 'a')"


@only_pipelined
@pytest.mark.parametrize("how", list(REPLACED))
async def test_a_replaced_type_fails_no_statement_that_may_be_sent_again(
    make: Make, database_url: str, how: str
) -> None:
    await migrate(database_url, START)
    db = make()
    for sql, value in STATEMENTS:
        args = [] if value is None else [value]
        for _ in range(3):
            await db.fetch(sql, *args)
            await on_connection(db, sql, *args)
    await migrate(database_url, REPLACED[how])
    for sql, value in STATEMENTS:
        if how == "other" and ("mood" in sql or "any" in sql):
            continue
        args = [] if value is None else [value]
        for _ in range(3):
            await db.fetch(sql, *args)
            await on_connection(db, sql, *args)
    if how != "other":
        await db.fetch("insert into t values (1, $1)", "new")


@only_pipelined
@pytest.mark.parametrize("how", ["drop", "rename", "recreate"])
async def test_in_a_transaction_a_replaced_type_fails_once(make: Make, database_url: str, how: str) -> None:
    await migrate(database_url, START)
    db = make()
    used = ["insert into t values (1, :v)", "select m from t where m = :v"]

    async def use() -> None:
        async with db.session() as session:
            await session.execute(text("select 1"))
            for sql in used:
                await session.execute(text(sql), {"v": "a"})
            await session.commit()

    for _ in range(3):
        await use()
    await migrate(database_url, REPLACED[how])
    failed = 0
    for _ in range(5):
        try:
            await use()
        except DBAPIError:
            failed += 1
    assert failed <= (1 if how != "rename" else 2)
    for _ in range(3):  # as the first statement of its transaction it may be sent again
        await in_session(db, used[0], v="a")


@only_pipelined
async def test_a_value_that_no_type_takes_stays_an_error(make: Make, database_url: str) -> None:
    await migrate(database_url, START)
    db = make()
    for _ in range(3):
        await db.fetch("select $1::mood", "a")
    for _ in range(3):
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            await db.fetch("select $1::mood", "nothing")
        assert await db.fetchval("select $1::mood", "a") == "a"


# -- statements that are deallocated -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["deallocate all", "discard all", "DEALLOCATE PREPARE ALL"])
@only_pipelined
async def test_statements_that_the_user_deallocates_are_prepared_anew(make: Make, command: str) -> None:
    db = make()

    async def use(session: Any) -> None:
        for number in range(3):
            assert await session.scalar(text("select :n + 1"), {"n": number}) == number + 1

    async with db.session() as session:
        await use(session)
        if command != "discard all":
            await session.execute(text(command))
            await use(session)
            await session.execute(text(command))
            await session.rollback()
            await use(session)
    async with db.connection() as connection:
        for number in range(3):
            assert await connection.fetchval("select $1::int + 1", number) == number + 1
        await connection.execute(command)
        async with connection.transaction():
            for number in range(3):
                assert await connection.fetchval("select $1::int + 1", number) == number + 1
    engine = db.engine.execution_options(isolation_level="AUTOCOMMIT")
    async with engine.connect() as autocommit:
        await use(autocommit)
        await autocommit.execute(text(command))
        await use(autocommit)
    async with db.engine.connect() as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        await use(connection)
        async with raw.plain() as plain:
            await plain.execute("deallocate all")
        await use(connection)
