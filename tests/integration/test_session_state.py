"""What a holder leaves in its session does not reach the next one; what left nothing is not reset."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import psycopg
import psycopg.adapt
import psycopg.rows
import pytest
import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.util import greenlet_spawn

from steadypool import Database, DatabaseSettings, errors
from steadypool.pipeline import PipelinedConnection
from steadypool.sqlalchemy import create_async_engine
from steadypool_lab import EmbeddedPostgres
from steadypool_lab.testing import Observer

from .poolers import pgbouncer

pytestmark = pytest.mark.anyio

CHANGES = {
    "role": "set role mallory",
    "session authorization": "set session authorization mallory",
    "a custom setting": "select set_config('app.tenant', '42', false)",
    "search_path": "set search_path to evil",
    "a limit": "set statement_timeout = 7777",
    "an advisory lock": "select pg_advisory_lock(4711)",
    "a temporary table": "create temp table victims as select 'FAKE' as secret",
    "a prepared statement": "prepare left_behind as select 1",
    "LISTEN": "listen changes",
    "a cursor": "declare left_open cursor with hold for select 1",
}
LEFT = """
    select json_build_object(
        'role', (select rolname from pg_roles where oid = current_user::regrole::oid),
        'session_user', session_user,
        'tenant', coalesce(current_setting('app.tenant', true), ''),
        'search_path', current_setting('search_path'),
        'statement_timeout', current_setting('statement_timeout'),
        'locks', (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
        'temporary', (select count(*) from pg_class where relname = 'victims'),
        'prepared', (select count(*) from pg_prepared_statements where from_sql),
        'listening', (select count(*) from pg_listening_channels()),
        'cursors', (select count(*) from pg_cursors where is_holdable),
        'pid', pg_backend_pid()
    )::text
"""

MakeDatabase = Callable[..., Database]


@pytest.fixture(params=["asyncpg", "psycopg", "steadypool"])
def driver(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def make(driver: str, database_url: str, anyio_backend: object) -> AsyncIterator[MakeDatabase]:
    made: list[Database] = []

    def make(**settings: Any) -> Database:
        hook = settings.pop("on_connect", None)
        settings = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5, "ping_after_idle": 60} | settings
        url = database_url.replace("postgresql://", f"postgresql+{driver}://")
        made.append(Database(DatabaseSettings(url=url, **settings), on_connect=hook))
        return made[-1]

    yield make
    for database in made:
        await database.close()


@pytest.fixture(autouse=True)
async def mallory(pg: Observer, anyio_backend: object) -> None:
    await pg.fetch(
        "do $$ begin create role mallory; exception when duplicate_object or unique_violation then null; end $$"
    )


async def run(db: Database, way: str, sql: str) -> Any:
    if way == "session":
        async with db.session() as session:
            value = (
                (await session.execute(sa.text(sql))).scalar()
                if sql.lstrip().startswith("select")
                else (await session.execute(sa.text(sql)))
            )
            await session.commit()
            return value
    async with db.connection() as connection:
        if sql.lstrip().startswith("select"):
            return await connection.fetchval(sql)
        return await connection.execute(sql)


@pytest.mark.parametrize("way", ["session", "connection"])
@pytest.mark.parametrize("change", CHANGES)
async def test_no_change_reaches_the_next_holder(make: MakeDatabase, change: str, way: str) -> None:
    db = make()
    clean = await run(db, "session", LEFT)
    await run(db, way, CHANGES[change])
    for reader in ("connection", "session"):
        assert await run(db, reader, LEFT) == clean  # by the same connection: its pid is in it


@pytest.mark.parametrize("change", CHANGES)
async def test_as_the_stock_engine_unless_asked(database_url: str, driver: str, change: str) -> None:
    """Session state stays, and is cleaned where the engine was told so."""
    url = database_url.replace("postgresql://", f"postgresql+{driver}://")
    for reset in ("never", "touched", "always"):
        options = {} if reset == "never" else {"reset": reset}
        engine = create_async_engine(url, pool_size=1, max_overflow=0, **options)
        try:
            states = []
            for sql in (LEFT, CHANGES[change], LEFT):
                async with engine.connect() as connection:
                    result = await connection.execute(sa.text(sql))
                    states.append(result.scalar() if sql is LEFT else None)
                    await connection.commit()
            assert (states[0] == states[2]) is (reset != "never")
        finally:
            await engine.dispose()


@pytest.mark.parametrize("touches", [True, False])
async def test_a_transaction_left_open_hides_no_change(database_url: str, driver: str, touches: bool) -> None:
    """`pool_reset_on_return=None` leaves a transaction open, unless its session has to be made clean."""
    url = database_url.replace("postgresql://", f"postgresql+{driver}://")
    engine = create_async_engine(url, pool_size=1, max_overflow=0, pool_reset_on_return=None, reset="touched")
    raw: Any = await engine.raw_connection()

    def leave(*statements: str) -> None:
        cursor = raw.cursor()
        for sql in statements:
            cursor.execute(sql)
        cursor.close()
        raw.close()

    change = "set timezone = 'Asia/Tokyo'" if touches else "select 1"
    await greenlet_spawn(leave, "create table left_open (a int)", change)
    async with engine.connect() as connection:
        left = "select current_setting('timezone') = 'Asia/Tokyo', to_regclass('left_open') is null"
        assert tuple((await connection.execute(sa.text(left))).one()) == (False, touches)
        await connection.rollback()
    await engine.dispose()


async def test_a_word_that_is_none_is_refused(database_url: str) -> None:
    with pytest.raises(
        errors.ConfigurationError, match=r"reset='sometimes': allowed: touched, always, never"
    ):
        create_async_engine(database_url, reset="sometimes")  # type: ignore[arg-type]


async def test_what_a_function_does_inside_needs_always(make: MakeDatabase) -> None:
    sly = "create function sly() returns text language sql as $$ select set_config('app.tenant', '42', false) $$"
    db = make()
    await run(db, "session", sly)
    await run(db, "session", "select sly()")
    assert '"tenant" : "42"' in await run(db, "session", LEFT)  # which no client can see
    db = make(reset="always")
    for way in ("session", "connection"):
        await run(db, way, "select sly()")
        assert '"tenant" : ""' in await run(db, way, LEFT)


async def test_a_reported_setting_is_seen_also_inside_a_function(make: MakeDatabase) -> None:
    db = make()
    await run(
        db,
        "session",
        "create function sly() returns text language sql as $$ select set_config('timezone', 'Asia/Tokyo', false) $$",
    )
    before = await run(db, "session", "select current_setting('timezone')")
    for way in ("session", "connection"):
        await run(db, way, "select sly()")
        assert await run(db, way, "select current_setting('timezone')") == before


async def test_what_on_connect_set_is_set_again(make: MakeDatabase) -> None:
    calls: list[object] = []

    async def on_connect(connection: Any) -> None:
        calls.append(connection)
        await connection.execute("set search_path to tenant_7")

    db = make(on_connect=on_connect)
    assert await run(db, "session", "select current_setting('search_path')") == "tenant_7"
    await run(db, "connection", "set search_path to evil")
    assert await run(db, "session", "select current_setting('search_path')") == "tenant_7"
    await run(db, "session", "select 1")
    assert len(calls) == 2  # when it was opened, and after the only use that changed something


async def test_a_connection_with_other_connect_handlers_is_replaced(make: MakeDatabase) -> None:
    db = make()

    def handler(dbapi_connection: Any, _record: Any) -> None:
        cursor = dbapi_connection.cursor()
        cursor.execute("set search_path to tenant_7")
        cursor.close()
        dbapi_connection.commit()

    event.listen(db.engine.sync_engine, "connect", handler)
    pid = await run(db, "session", "select pg_backend_pid()")
    await run(db, "session", "set search_path to evil")
    assert await run(db, "session", "select current_setting('search_path')") == "tenant_7"
    assert await run(db, "session", "select pg_backend_pid()") != pid


async def test_the_own_limit_of_a_workload_is_no_change(make: MakeDatabase, pg: Observer) -> None:
    db = make()
    db.workload("uploads", statement_timeout=30)
    pid = None
    for _ in range(3):
        async with db.connection(workload="uploads") as connection:
            assert await connection.fetchval("select current_setting('statement_timeout')") == "30s"
            pid = await connection.fetchval("select pg_backend_pid()")
    assert pid is not None
    last = await pg.fetch("select query from pg_stat_activity where pid = %s", pid)
    assert last == [("RESET statement_timeout",)]
    async with db.connection(workload="uploads") as connection:
        await connection.execute("set app.tenant = '42'")
    assert '"tenant" : ""' in await run(db, "session", LEFT)


async def test_concurrent_holders_get_clean_sessions(make: MakeDatabase) -> None:
    db = make(pool_size=3)

    async def tenant(number: int) -> None:
        async with db.connection() as connection:
            before = await connection.fetchval("select coalesce(current_setting('app.tenant', true), '')")
            assert before == ""
            await connection.execute(f"set app.tenant = '{number}'")

    await asyncio.gather(*(tenant(number) for number in range(60)))


async def test_what_is_done_on_the_drivers_own_connection_counts(make: MakeDatabase) -> None:
    db = make()
    clean = await run(db, "session", LEFT)
    async with db.connection() as connection:
        await connection.driver_connection.execute("set app.tenant = '42'")
    assert await run(db, "session", LEFT) == clean


@pytest.mark.parametrize(
    "sql",
    [
        r"""select U&"set\005fconfig"('role', 'mallory', false)""",
        "select 1 as a\u00a0$$, set_config('role', 'mallory', false) as \"$$\"",
        "update pg_settings set setting = 'evil' where name = 'search_path'",
        "create table pg_temp.victims (secret text)",
        "create or replace temporary recursive view victims (n) as select 1",
        "select * from ts_stat('select pg_advisory_lock(99)::text::tsvector')",
        "/* a */ ; set role mallory",
    ],
)
async def test_what_changes_a_shared_session_is_refused(make: MakeDatabase, sql: str) -> None:
    db = make()
    clean = await run(db, "session", LEFT)
    for call in (db.execute, db.fetch):
        with pytest.raises(errors.NotMultiplexable):
            await call(sql)
    assert await run(db, "session", LEFT) == clean


async def test_a_shared_connection_is_clean_when_it_is_handed_over(database_url: str) -> None:
    """Also of what only a function did inside."""
    async with Database(DatabaseSettings(url=database_url, pool_size=1, max_overflow=0)) as db:
        await db.execute(
            "create function sly() returns text language sql as $$ select set_config('app.tenant', '42', false) $$"
        )
        clean = await run(db, "session", LEFT)
        for way in ("session", "connection"):
            assert await db.fetchval("select sly()") == "42"
            assert await run(db, way, LEFT) == clean


async def test_a_reloaded_configuration_is_reset_once(private_server: EmbeddedPostgres, driver: str) -> None:
    """It changes what the server reports in every session, and a reset does not take it back."""
    pg = await Observer.connect(private_server.url)
    url = private_server.url.replace("postgresql://", f"postgresql+{driver}://")
    try:
        async with Database(DatabaseSettings(url=url, pool_size=1, max_overflow=0)) as db:
            pid = await run(db, "session", "select pg_backend_pid()")
            await pg.fetch("alter system set datestyle to 'SQL, DMY'")
            await pg.fetch("select pg_reload_conf()")
            await pg.wait_until(lambda: _writes_dates(db, "SQL, DMY"))
            await run(db, "session", "select 'last'")
            assert await run(db, "session", "select pg_backend_pid()") == pid
            last = await pg.fetch("select query from pg_stat_activity where pid = %s", pid)
            assert "DISCARD" not in last[0][0]
    finally:
        await pg.close()


async def _writes_dates(db: Database, style: str) -> bool:
    return await run(db, "session", "select current_setting('datestyle')") == style


async def test_settings_of_a_transaction_are_no_change(database_url: str, pg: Observer) -> None:
    """Its ROLLBACK may still be on its way when the connection comes back."""
    async with Database(DatabaseSettings(url=database_url, pool_size=1, max_overflow=0)) as db:
        for _ in range(3):
            async with db.session(local={"timezone": "Asia/Tokyo"}) as session:
                pid = await session.scalar(sa.text("select pg_backend_pid()"))
        await pg.wait_until(lambda: _is_idle(pg, pid))
        assert await pg.fetch("select query from pg_stat_activity where pid = %s", pid) == [("ROLLBACK",)]
        assert await run(db, "session", "select current_setting('timezone')") != "Asia/Tokyo"


async def _is_idle(pg: Observer, pid: int) -> bool:
    return await pg.fetch("select state from pg_stat_activity where pid = %s", pid) == [("idle",)]


@pytest.mark.parametrize(("mode", "left"), [("session", False), ("transaction", True)])
async def test_behind_a_pooler(database_url: str, driver: str, mode: str, left: bool) -> None:
    """In transaction mode the session is the pooler's: a reset would arrive at whichever comes next."""
    async with pgbouncer(database_url, mode) as url:
        url = url.replace("postgresql://", f"postgresql+{driver}://")
        settings = DatabaseSettings(url=url, pooler=mode, pool_size=1, max_overflow=0)
        async with Database(settings) as db:
            await run(db, "connection", "set app.tenant = '42'")
            assert ('"tenant" : "42"' in await run(db, "session", LEFT)) is left


async def test_a_reset_of_the_encoding_is_not_overtaken(database_url: str) -> None:
    """What comes behind it would be sent in the last holder's encoding."""
    url = f"{database_url}?client_encoding=latin1"
    async with Database(DatabaseSettings(url=url, pool_size=1, max_overflow=0)) as db:
        await run(db, "session", "create table names (name text)")
        await run(db, "connection", "set client_encoding to utf8")
        async with db.connection() as connection:
            await connection.execute("insert into names values ($1)", "é")
            assert await connection.fetchval("select length(name) from names") == 1


# -- what the driver keeps ---------------------------------------------------------------------------------------------


class _Loader(psycopg.adapt.Loader):
    def load(self, data: Any) -> str:
        return "another's"


async def _mark(raw: psycopg.AsyncConnection[Any]) -> None:
    """Change what psycopg keeps of a connection."""
    raw.row_factory = psycopg.rows.dict_row  # type: ignore[assignment]
    raw.prepare_threshold = None
    raw.add_notice_handler(print)
    await raw.set_read_only(True)
    await raw.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)


async def _leave_marks(connection: Any, heard: list[str]) -> None:
    """Change what the driver keeps of a connection, whichever it is."""
    if isinstance(connection, PipelinedConnection):
        connection.adapters.register_loader("int4", _Loader)
        async with connection.plain() as raw:
            await _mark(raw)
    elif isinstance(connection, psycopg.AsyncConnection):
        connection.adapters.register_loader("int4", _Loader)
        if connection.info.transaction_status:
            await connection.rollback()
        await _mark(connection)
        await connection.set_autocommit(not connection.autocommit)
    else:
        connection.add_query_logger(lambda record: heard.append(record.query))
        connection.add_log_listener(lambda *_: heard.append("a notice"))
        await connection.add_listener("changes", lambda *_: heard.append("a notification"))


async def _values(db: Database) -> list[Any]:
    sql = "select 1 as a, current_setting('transaction_read_only'), current_setting('transaction_isolation')"
    async with db.session() as session:
        values = [tuple(row) for row in await session.execute(sa.text(sql))]
    async with db.connection() as connection:
        await connection.execute("do $$ begin raise notice 'to whoever listens'; end $$")
        values += [tuple(row) for row in await connection.fetch(sql)]
    return [*values, tuple((await db.fetch("select 1 as a"))[0])]


@pytest.mark.parametrize("way", ["session", "connection"])
async def test_what_the_driver_keeps_is_restored(make: MakeDatabase, way: str) -> None:
    db = make()
    clean = await _values(db)
    heard: list[str] = []
    if way == "session":
        async with db.engine.connect() as connection:
            raw = (await connection.get_raw_connection()).driver_connection
            await _leave_marks(raw, heard)
    else:
        async with db.connection() as connection:
            await _leave_marks(connection.driver_connection, heard)
    assert await _values(db) == clean
    async with db.session() as session:
        await session.execute(sa.text("create table never_committed (n int)"))
    async with db.session() as session:
        assert await session.scalar(sa.text("select to_regclass('never_committed')")) is None
        await session.execute(sa.text("notify changes"))
        await session.commit()
    assert [said for said in heard if said != 'LISTEN "changes"'] == []  # which is its own


async def test_types_that_on_connect_registers_stay(database_url: str) -> None:
    for driver in ("psycopg", "steadypool"):
        url = database_url.replace("postgresql://", f"postgresql+{driver}://")

        async def on_connect(connection: Any) -> None:
            connection.adapters.register_loader("int4", _Loader)

        settings = DatabaseSettings(url=url, pool_size=1, max_overflow=0)
        async with Database(settings, on_connect=on_connect) as db:
            for _ in range(3):
                async with db.connection() as connection:
                    assert await connection.fetchval("select 1") == "another's"
                    await connection.execute("set app.tenant = '42'")


# -- what no setting is ------------------------------------------------------------------------------------------------


async def test_no_seed_is_left(make: MakeDatabase) -> None:
    """Whoever set it could tell what random() gives the next holder."""
    db = make()
    for sql in ("select setseed(0.5)", "set seed = 0.5"):
        numbers = set()
        for _ in range(2):
            await run(db, "connection", sql)
            numbers.add(await run(db, "session", "select random()"))
        assert len(numbers) == 2


async def test_no_value_of_a_sequence_is_left(make: MakeDatabase) -> None:
    db = make(reset="always")
    await run(db, "session", "create table numbered (id serial)")
    for way in ("session", "connection"):
        await run(db, way, "insert into numbered default values")
        with pytest.raises(Exception, match="lastval is not yet defined in this session"):
            await run(db, way, "select lastval()")


async def test_local_settings_in_autocommit_are_refused(make: MakeDatabase) -> None:
    """None would be set: what a policy relies on would be another's, or nobody's."""
    db = make()
    async with db.session(local={"app.tenant": "42"}) as session:
        with pytest.raises(errors.ConfigurationError, match="AUTOCOMMIT has none"):
            await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
    db.workload("vacuum", statement_timeout=30)
    async with db.session(workload="vacuum") as session:
        await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        await session.execute(sa.text("vacuum pg_class"))


SIGN_IN = "create function sign_in() returns text language sql as $$ select set_config('app.tenant', '42', false) $$"
"""What it does no client can see: the setting goes with a reset only, and so shows that there was none."""
MOVE = "create function move() returns text language sql as $$ select set_config('timezone', 'Asia/Tokyo', false) $$"


async def _move(db: Database) -> None:
    """Leave a reported setting, with a ROLLBACK on its way when the connection comes back."""
    async with db.engine.connect() as connection:
        await connection.execute(sa.text("select move()"))
        await connection.commit()
        await connection.execute(sa.text("select 1"))


@pytest.mark.parametrize("hook", [False, True], ids=["", "on_connect"])
async def test_what_a_rollback_does_not_take_back_reaches_no_way(database_url: str, hook: bool) -> None:
    async def on_connect(connection: Any) -> None:
        pass

    settings = DatabaseSettings(url=database_url, pool_size=1, max_overflow=0)
    async with Database(settings, on_connect=on_connect if hook else None) as db:
        await run(db, "session", MOVE)
        before = await run(db, "session", "select current_setting('timezone')")
        for way in ("session", "connection"):
            await _move(db)
            assert await run(db, way, "select current_setting('timezone')") == before
        await _move(db)
        assert await db.fetchval("select current_setting('timezone')") == before


async def _set_local_and_sign_in(db: Database) -> None:
    await run(db, "session", SIGN_IN)
    await run(db, "session", "select sign_in()")
    for _ in range(2):
        async with db.session(local={"timezone": "Asia/Tokyo"}) as session:
            await session.execute(sa.text("select 1"))
        assert await run(db, "session", "select current_setting('app.tenant', true)") == "42"


async def test_settings_of_a_transaction_cost_the_next_holder_no_reset(make: MakeDatabase) -> None:
    await _set_local_and_sign_in(make())


async def test_settings_of_a_transaction_cost_no_reset_behind_a_pooler(database_url: str) -> None:
    async with pgbouncer(database_url, "transaction") as url:
        settings = DatabaseSettings(url=url, pooler="transaction", pool_size=1, max_overflow=0)
        async with Database(settings) as db:
            await db.fetchval("select 1")  # which finds out that this pooler carries two statements at once
            await _set_local_and_sign_in(db)


@pytest.mark.parametrize("way", ["session", "connection"])
async def test_an_error_of_a_statement_costs_no_reset(make: MakeDatabase, way: str) -> None:
    db = make()
    await run(db, "session", SIGN_IN)
    await run(db, "session", "select sign_in()")
    with pytest.raises(Exception, match="division by zero"):
        await run(db, way, "select 1 / 0")
    assert await run(db, "session", "select current_setting('app.tenant', true)") == "42"


async def test_a_change_after_the_pool_was_closed_says_that_the_connection_is_lost(
    make: MakeDatabase,
) -> None:
    db = make()
    async with db.connection() as connection:
        await connection.fetch("select 1")
        await db.close(grace=0)
        with pytest.raises(errors.ConnectionLost):
            await connection.execute("set work_mem = '5MB'")


async def test_a_change_after_the_engines_pool_was_closed(make: MakeDatabase) -> None:
    db = make()
    connection = await db.engine.connect()
    await connection.execute(sa.text("select 1"))
    await db.close(grace=0)
    with pytest.raises(exc.DBAPIError):
        await connection.execute(sa.text("set work_mem = '5MB'"))


async def test_a_reset_needs_no_plpgsql(private_server: EmbeddedPostgres, driver: str) -> None:
    """Except after PREPARE: then the connection is replaced where plpgsql may not be used."""
    pg = await Observer.connect(private_server.url)
    await pg.fetch("create role plain_user login password 'secret'")
    await pg.fetch("revoke usage on language plpgsql from public")
    server = sa.make_url(private_server.url)
    url = server.set(drivername=f"postgresql+{driver}", username="plain_user", password="secret")
    settings = DatabaseSettings(
        url=url.render_as_string(hide_password=False), pool_size=1, max_overflow=0, reset="touched"
    )
    try:
        async with Database(settings) as db:
            clean = await run(db, "session", LEFT)
            for change in CHANGES:
                if change not in ("role", "session authorization", "a prepared statement", "LISTEN"):
                    await run(db, "connection", CHANGES[change])
                    assert await run(db, "connection", LEFT) == clean
            await run(db, "session", CHANGES["a prepared statement"])
            left = await run(db, "session", LEFT)
            assert left != clean
            assert '"prepared" : 0' in left
    finally:
        await pg.fetch("grant usage on language plpgsql to public")
        await pg.fetch("drop role plain_user")
        await pg.close()


@pytest.mark.parametrize("driver", ["psycopg", "steadypool"])
async def test_no_notification_reaches_the_next_holder(make: MakeDatabase, driver: str) -> None:
    db = make()

    async def backlog(connection: Any) -> list[str]:
        raw = connection.driver_connection
        async with contextlib.AsyncExitStack() as stack:
            plain = raw if driver == "psycopg" else await stack.enter_async_context(raw.plain())
            return [one.payload async for one in plain.notifies(timeout=0)]

    async with db.connection() as connection:
        await connection.execute("listen changes")
        await connection.execute("notify changes, 'for the first holder'")
        pid = await connection.fetchval("select pg_backend_pid()")
    async with db.connection() as connection:
        assert await connection.fetchval("select pg_backend_pid()") == pid
        assert await backlog(connection) == []


SET_AT_CONNECT = "set search_path to tenant_7"


def _set_at_connect(dbapi_connection: Any) -> None:
    cursor = dbapi_connection.cursor()
    cursor.execute(SET_AT_CONNECT)
    cursor.close()
    dbapi_connection.commit()


@pytest.mark.parametrize("how", ["connect", "do_connect", "async_creator"])
async def test_what_the_application_set_at_connect_is_there_again(
    database_url: str, driver: str, how: str
) -> None:
    async def open_connection() -> Any:
        if driver == "asyncpg":
            opened = await asyncpg.connect(database_url)
            await opened.execute(SET_AT_CONNECT)
        else:
            opened = await psycopg.AsyncConnection.connect(database_url)
            await opened.execute(SET_AT_CONNECT)
            await opened.commit()
        return PipelinedConnection(opened) if driver == "steadypool" else opened

    url = database_url.replace("postgresql://", f"postgresql+{driver}://")
    creator = {"async_creator": open_connection} if how == "async_creator" else {}
    engine = create_async_engine(url, pool_size=1, max_overflow=0, reset="touched", **creator)
    if how == "connect":

        @event.listens_for(engine.sync_engine, "connect", named=True)
        def named(**given: Any) -> None:
            _set_at_connect(given["dbapi_connection"])

    if how == "do_connect":

        @event.listens_for(engine.sync_engine, "do_connect")
        def opens(dialect: Any, _record: Any, arguments: Any, options: Any) -> Any:
            opened = dialect.connect(*arguments, **options)
            _set_at_connect(opened)
            return opened

    try:
        for _ in range(2):
            async with engine.connect() as connection:
                path = await connection.scalar(sa.text("select current_setting('search_path')"))
                assert path == "tenant_7"
                await connection.execute(sa.text("set work_mem = '5MB'"))
                await connection.commit()
    finally:
        await engine.dispose()
