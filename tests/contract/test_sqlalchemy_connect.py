"""What goes wrong while a connection is opened, left or looked at, and who hears of it."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy
import sqlalchemy.ext.asyncio
from sqlalchemy import event, exc, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool

import steadypool.sqlalchemy
from steadypool import ConnectFailed, ConnectionLost
from steadypool.errors import causes
from steadypool.sqlalchemy.errors import sqlstate_of

pytestmark = pytest.mark.anyio

TYPO = "this is a typo"


async def error_of(engine: AsyncEngine) -> BaseException:
    with pytest.raises(Exception) as caught:
        await engine.connect()
    return caught.value


@pytest.mark.parametrize("poolclass", [None, NullPool])
async def test_sql_that_is_wrong_in_a_connect_handler(make: Any, poolclass: Any) -> None:
    """The server had the last word, so it is said at once, by itself, and nothing is tried again."""
    engine, connects = make(poolclass=poolclass), 0

    @event.listens_for(engine.sync_engine, "connect")
    def handler(connection: Any, _record: Any) -> None:
        nonlocal connects
        connects += 1
        connection.cursor().execute(TYPO)

    for expected in (1, 2):
        error = await error_of(engine)
        assert isinstance(error, exc.ProgrammingError)
        assert sqlstate_of(error) == "42601"
        assert connects == expected


async def raw_connection(make: Any) -> Any:
    """The driver's own connection, as an application's creator makes it."""
    if make.driver == "asyncpg":
        import asyncpg

        return await asyncpg.connect(make.url.replace("+asyncpg", ""))
    if make.driver == "psycopg":
        import psycopg

        return await psycopg.AsyncConnection.connect(make.url.replace("+psycopg", ""))
    from steadypool.connect.dsn import parse_url
    from steadypool.connect.psycopg import open_psycopg
    from steadypool.pipeline import PipelinedConnection

    return PipelinedConnection(
        await open_psycopg(parse_url(make.url.replace("+steadypool", "")), timeout=5, autocommit=True)
    )


async def test_sql_that_is_wrong_in_a_creator(make: Any) -> None:
    connects = 0

    async def creator() -> Any:
        nonlocal connects
        connects += 1
        connection = await raw_connection(make)
        try:
            await connection.execute(TYPO)
        finally:
            await connection.close()

    error = await error_of(make(async_creator=creator))
    assert isinstance(error, exc.DBAPIError) or make.driver == "asyncpg"  # 2.0 lets asyncpg's own through
    assert sqlstate_of(error) == "42601"
    assert connects == 1


async def test_a_database_that_does_not_exist_can_be_told_from_other_failures(make: Any) -> None:
    """`create it if it is missing` works by the SQLSTATE of the driver's exception."""
    missing = make.url.rsplit("/", 1)[0] + "/no_such_database"
    for poolclass in (None, NullPool):
        error = await error_of(make(missing, poolclass=poolclass))
        if make.is_ours:
            assert isinstance(error, ConnectFailed)
            assert isinstance(error, exc.OperationalError)
            assert sqlstate_of(error) == "3D000"
            assert "no_such_database" in str(error.orig)


async def test_a_refused_connect_has_the_systems_error_in_its_chain(make: Any, private_port: int) -> None:
    url = make_url(make.url).set(port=private_port)
    error = await error_of(
        make(url, pool_timeout=0.2, **({"connection_timeout": 0.2} if make.is_ours else {}))
    )
    if make.is_ours:
        assert isinstance(error, ConnectFailed)
        assert any(isinstance(cause, ConnectionRefusedError) for cause in causes(error))
        assert isinstance(error.orig, ConnectionRefusedError)  # type: ignore[attr-defined]


async def test_no_connect_args(make: Any) -> None:
    """SQLAlchemy 2.1 takes None; 2.0 does not, and ours does with either."""
    if sqlalchemy.__version__.startswith("2.0.") and not make.is_ours:
        with pytest.raises(TypeError):
            make(connect_args=None)
        return
    async with make(connect_args=None).connect() as connection:
        assert await connection.scalar(text("select 1")) == 1


@pytest.mark.parametrize("one_port", [False, True])
async def test_several_hosts_in_connect_args(make: Any, one_port: bool) -> None:
    url = make_url(make.url)
    hosts: Any = ["127.0.0.1", "localhost"]
    ports: Any = [url.port] if one_port else [url.port, url.port]
    if make.driver == "psycopg":
        hosts, ports = ",".join(hosts), ",".join(map(str, ports))
    elif one_port:
        ports = url.port
    engine = make(url.set(host="nowhere.invalid", port=1), connect_args={"host": hosts, "port": ports})
    if make.driver == "steadypool" and not make.is_ours:
        return
    async with engine.connect() as connection:
        assert await connection.scalar(text("select 1")) == 1


async def test_sqlalchemys_function_replaced_in_place(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sqlalchemy.ext.asyncio, "create_async_engine", steadypool.sqlalchemy.create_async_engine
    )
    engine = sqlalchemy.ext.asyncio.create_async_engine(make.url, pool_size=2)
    async with engine.connect() as connection:
        assert await connection.scalar(text("select 1")) == 1
    assert type(engine.pool) is steadypool.sqlalchemy.SteadyPool
    await engine.dispose()


async def test_instrumentation_of_sqlalchemys_function_sees_the_url_that_was_given(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    original = sqlalchemy.ext.asyncio.create_async_engine

    def instrumented(*arguments: Any, **named: Any) -> AsyncEngine:
        engine = original(*arguments, **named)
        seen.append(engine.sync_engine.url.drivername)
        return engine

    monkeypatch.setattr(sqlalchemy.ext.asyncio, "create_async_engine", instrumented)
    engine = steadypool.sqlalchemy.create_async_engine(make.url)
    assert seen == [make_url(make.url).drivername]
    assert engine.url == make_url(make.url)
    assert type(engine.url) is type(make_url(make.url))


async def test_an_engine_from_a_configuration(make: Any) -> None:
    module = steadypool.sqlalchemy if make.is_ours else sqlalchemy.ext.asyncio
    engine = module.async_engine_from_config(
        {"db.url": make.url, "db.pool_size": "3", "db.pool_pre_ping": "true", "other.echo": "true"},
        prefix="db.",
        max_overflow=0,
    )
    assert engine.pool.size() == 3
    assert not engine.echo
    async with engine.connect() as connection:
        assert await connection.scalar(text("select 1")) == 1
    await engine.dispose()


def test_our_arguments_in_a_configuration(make: Any) -> None:
    engine = steadypool.sqlalchemy.async_engine_from_config(
        {"sqlalchemy.url": make.url, "sqlalchemy.statement_timeout": "2.5", "sqlalchemy.breaker": "off",
         "sqlalchemy.pool_pre_ping": "select1", "sqlalchemy.max_waiting": "7"}
    )  # fmt: skip
    pool: Any = engine.pool
    assert pool.dialect.guards.statement_timeout == 2.5
    assert (pool.options.max_waiting, pool.ping_by_select, pool.core.breaker.enabled) == (7, True, False)


# -- handlers of handle_error ------------------------------------------------------------------------------------


async def test_a_handler_hears_of_a_failed_ping(make: Any) -> None:
    engine = make(pool_pre_ping="select1" if make.is_ours else True)
    pings: list[Any] = []

    @event.listens_for(engine.sync_engine, "handle_error")
    def handler(context: Any) -> None:
        if context.is_pre_ping:
            pings.append((context.is_disconnect, isinstance(context.sqlalchemy_exception, exc.DBAPIError)))

    async with engine.connect() as connection:
        pid = await connection.scalar(text("select pg_backend_pid()"))
    async with make().connect() as other:
        await other.execute(text(f"select pg_terminate_backend({pid}, 5000)"))
    if make.is_ours:
        # Its end is seen before the ping is due; a ping that fails on an open socket has to be made.
        monkey = engine.pool.dialect
        failing, prove = True, monkey.prove

        async def fails(driver_connection: Any, *, select: bool) -> None:
            nonlocal failing
            if failing:
                failing = False
                raise make_driver_error(make.driver)
            await prove(driver_connection, select=select)

        async with engine.connect() as connection:
            await connection.scalar(text("select 1"))
        monkey.prove = fails
    async with engine.connect() as connection:
        assert await connection.scalar(text("select pg_backend_pid()")) != pid
    assert pings == [(True, True)]


def make_driver_error(driver: str) -> Exception:
    if driver == "asyncpg":
        import asyncpg

        return asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
    import psycopg

    return psycopg.OperationalError("the connection is lost")


async def test_a_handler_says_that_a_connection_is_not_lost(make: Any) -> None:
    engine = make()

    async with engine.connect() as connection:
        pid = await connection.scalar(text("select pg_backend_pid()"))
        async with make().connect() as other:
            await other.execute(text(f"select pg_terminate_backend({pid}, 5000)"))

        @event.listens_for(engine.sync_engine, "handle_error")
        def handler(context: Any) -> None:
            context.is_disconnect = False

        with pytest.raises(exc.DBAPIError) as caught:
            await connection.execute(text("select 1"))
        assert not isinstance(caught.value, ConnectionLost)
        assert not caught.value.connection_invalidated
        assert not connection.invalidated
        await connection.invalidate()


# -- leaving -----------------------------------------------------------------------------------------------------


async def test_a_rollback_that_fails_on_a_living_connection(make: Any) -> None:
    """The error is the driver's, and the connection goes on."""
    if make.driver != "asyncpg":
        return  # only asyncpg refuses by itself, while the connection lives
    engine = make()
    async with engine.connect() as connection:
        pid = await connection.scalar(text("select pg_backend_pid()"))
        adapter: Any = (await connection.get_raw_connection()).dbapi_connection
        await adapter._transaction.rollback()
        with pytest.raises(exc.InterfaceError, match="already rolled back"):
            await connection.rollback()
        assert not connection.invalidated
    async with engine.connect() as connection:
        assert await connection.scalar(text("select pg_backend_pid()")) == pid


async def test_what_can_be_terminated_has_terminate(make: Any) -> None:
    engine = make()
    async with engine.connect() as connection:
        raw = await connection.get_raw_connection()
        adapter: Any = raw.dbapi_connection
        assert hasattr(adapter, "terminate") or not engine.dialect.has_terminate
        if make.is_ours:
            adapter.terminate()
            assert not engine.dialect.is_open(adapter.driver_connection)
            await connection.invalidate()
