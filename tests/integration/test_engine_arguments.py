"""Arguments mean the same everywhere: 0 is no limit, an unknown name is refused, libpq's environment counts."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from sqlalchemy import event, text

from steadypool import ConfigurationError, Database, DatabaseSettings
from steadypool.connect.dsn import parse_url
from steadypool.connect.options import ASYNCPG, PSYCOPG, asyncpg_arguments, with_environment
from steadypool.sqlalchemy import create_async_engine
from steadypool_lab import EmbeddedPostgres

pytestmark = pytest.mark.anyio

TARGET = parse_url("postgresql://app@db.example/d")


@pytest.fixture(params=["asyncpg", "psycopg", "steadypool"])
def driver(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def url(database_url: str, driver: str) -> str:
    return database_url.replace("postgresql://", f"postgresql+{driver}://")


async def test_sqlalchemys_recipe_for_reset_events(url: str) -> None:
    """As its documentation of pooling has it for PostgreSQL."""
    engine = create_async_engine(url, pool_size=1, max_overflow=0, pool_reset_on_return=None)

    @event.listens_for(engine.sync_engine, "reset")
    def reset(dbapi_connection: Any, _record: Any, state: Any) -> None:
        if not state.terminate_only:
            # SQLAlchemy 2.0's connections of asyncpg have no `execute`; the recipe is for psycopg there.
            execute = getattr(dbapi_connection, "execute", None) or dbapi_connection.cursor().execute
            for command in ("CLOSE ALL", "RESET ALL", "UNLISTEN *", "SELECT pg_advisory_unlock_all()"):
                execute(command)
        dbapi_connection.rollback()

    held = text("select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()")
    async with engine.connect() as connection:
        pid = await connection.scalar(text("select pg_backend_pid()"))
        await connection.execute(text("select pg_advisory_lock(7)"))
        assert await connection.scalar(held) == 1
    async with engine.connect() as connection:
        assert await connection.scalar(text("select pg_backend_pid()")) == pid
        assert await connection.scalar(held) == 0
    await engine.dispose()


async def test_a_database_without_an_encoding(server: EmbeddedPostgres, driver: str) -> None:
    """In SQL_ASCII the server converts nothing; text is text all the same."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(
            "create database no_encoding encoding 'SQL_ASCII' template template0"
            " lc_collate 'C' lc_ctype 'C' locale_provider libc"
        )
    try:
        url = f"{server.url.rpartition('/')[0]}/no_encoding".replace("postgresql", f"postgresql+{driver}", 1)
        async with Database(DatabaseSettings(url=url)) as db:
            async with db.session() as session:
                assert await session.scalar(text("select cast(:x as text)"), {"x": "é"}) == "é"
            assert await db.fetchval("select $1::text", "é") == "é"
    finally:
        server.blocking.drop_database("no_encoding")


async def test_no_limit_of_statements(url: str) -> None:
    engine = create_async_engine(
        url, statement_timeout=0, connection_timeout=0, leave_timeout=0, idle_timeout=0
    )
    async with engine.connect() as connection:
        assert await connection.scalar(text("show statement_timeout")) == "0"
        assert await connection.scalar(text("select 1 from pg_sleep(0.6)")) == 1
    await engine.dispose()


async def test_no_limit_for_a_workload(url: str) -> None:
    async with Database(DatabaseSettings(url=url, statement_timeout=0.1)) as db:
        db.workload("reports", statement_timeout=0)
        async with db.session(workload="reports") as session:
            assert await session.scalar(text("show statement_timeout")) == "0"
            assert await session.scalar(text("select 1 from pg_sleep(0.8)")) == 1
        async with db.connection(workload="reports") as connection:
            assert await connection.fetchval("show statement_timeout") == "0"
            assert await connection.fetchval("select 1 from pg_sleep(0.8)") == 1
        with pytest.raises(ConfigurationError, match="statement_timeout=-1"):
            db.workload("reports", statement_timeout=-1)


@pytest.mark.parametrize(
    "name",
    ["statement_timeout", "connection_timeout", "pool_timeout", "leave_timeout", "leak_after", "idle_timeout",
     "ping_after_idle", "close_grace"],
)  # fmt: skip
def test_a_negative_limit_is_refused_by_name(name: str) -> None:
    arguments: Any = {name: -1}
    with pytest.raises(ConfigurationError, match=f"{name}=-1: allowed: seconds, 0 or more"):
        create_async_engine("postgresql+asyncpg://app@db.example/d", **arguments)


def test_an_argument_that_the_driver_does_not_know(url: str) -> None:
    with pytest.raises(ConfigurationError, match="no argument 'no_such_argument'"):
        create_async_engine(url, connect_args={"no_such_argument": 1})


async def test_an_argument_from_a_handler_that_the_driver_does_not_know(url: str) -> None:
    engine = create_async_engine(url)

    @event.listens_for(engine.sync_engine, "do_connect")
    def handler(_dialect: Any, _record: Any, _arguments: Any, parameters: Any) -> None:
        parameters["no_such_argument"] = 1

    with pytest.raises(ConfigurationError, match="no_such_argument"):
        await engine.connect()
    await engine.dispose()


async def test_on_connect_gets_the_drivers_own_connection(url: str, driver: str) -> None:
    seen: list[str] = []

    async def on_connect(connection: Any) -> None:
        seen.append(type(connection).__mro__[1].__module__.partition(".")[0])  # below our subclass of it
        await connection.execute("set search_path to elsewhere")

    async with Database(DatabaseSettings(url=url), on_connect=on_connect) as db, db.session() as session:
        assert await session.scalar(text("show search_path")) == "elsewhere"
    assert set(seen) == {"asyncpg" if driver == "asyncpg" else "psycopg"}


# -- libpq's environment -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PGREQUIREAUTH", "scram-sha-256"),
        ("PGGSSENCMODE", "require"),
        ("PGSSLCERTMODE", "require"),
        ("PGREQUIREPEER", "postgres"),
        ("PGSSLCRLDIR", "/somewhere"),
        ("PGCLIENTENCODING", "latin1"),
        ("PGMINPROTOCOLVERSION", "3.2"),
    ],
)
def test_what_asyncpg_cannot_honour_is_refused(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{variable}={value} in the environment"):
        with_environment(TARGET, ASYNCPG, {variable: value})
    assert with_environment(TARGET, PSYCOPG, {variable: value}) == TARGET  # libpq sees to it


def test_what_asyncpg_does_not_read_is_honoured() -> None:
    environment = {
        "PGCHANNELBINDING": "require",
        "PGOPTIONS": "-c jit=off",
        "PGAPPNAME": "plyr",
        "PGSSLMODE": "verify-full",
    }
    given = asyncpg_arguments(with_environment(TARGET, ASYNCPG, environment))
    assert given["server_settings"] == {"options": "-c jit=off", "application_name": "plyr"}
    assert "sslmode=verify-full" in given["dsn"]
    assert with_environment(TARGET, ASYNCPG, environment).options["channel_binding"] == "require"


def test_the_url_wins_over_the_environment() -> None:
    target = parse_url("postgresql://app@db.example/d?channel_binding=disable&require_auth=")
    found = with_environment(target, ASYNCPG, {"PGCHANNELBINDING": "require"})
    assert found.options["channel_binding"] == "disable"


@pytest.mark.parametrize("driver", [ASYNCPG, PSYCOPG])
def test_what_is_done_here_is_read_for_both(driver: str) -> None:
    environment = {
        "PGTARGETSESSIONATTRS": "read-write",
        "PGLOADBALANCEHOSTS": "random",
        "PGCONNECT_TIMEOUT": "7",
    }
    options = with_environment(TARGET, driver, environment).options
    assert options == {
        "target_session_attrs": "read-write", "load_balance_hosts": "random", "connect_timeout": "7"
    }  # fmt: skip


def test_an_engine_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGREQUIREAUTH", "scram-sha-256")
    with pytest.raises(ConfigurationError, match="PGREQUIREAUTH"):
        create_async_engine("postgresql+asyncpg://app@db.example/d")
    create_async_engine("postgresql://app@db.example/d")
