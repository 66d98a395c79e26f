"""The arguments of `create_async_engine`, and what an engine tells about itself."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, exc, make_url, text
from sqlalchemy.engine import CreateEnginePlugin
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, QueuePool, StaticPool
from sqlalchemy.util import greenlet_spawn

import steadypool
from steadypool.connect import parse_url
from steadypool.connect.psycopg import open_psycopg
from steadypool.pipeline import PipelinedConnection

pytestmark = pytest.mark.anyio


async def test_what_an_engine_is_called(make: Any) -> None:
    engine = make()
    assert engine.url == make_url(make.url)
    assert engine.url.drivername == f"postgresql+{make.driver}"
    assert (engine.name, engine.driver) == ("postgresql", make.driver)
    assert (engine.dialect.name, engine.dialect.driver) == ("postgresql", make.driver)
    assert repr(engine.sync_engine) == f"Engine({engine.url!r})"
    assert pickle.loads(pickle.dumps(engine.url)) == engine.url
    view = engine.execution_options(stream_results=True)
    assert view.url == engine.url
    assert view.pool is engine.pool


async def test_a_url_object_will_do(make: Any) -> None:
    async with make(make_url(make.url)).connect() as connection:
        assert await connection.scalar(text("select 1")) == 1


async def test_connect_args_reach_the_driver(make: Any) -> None:
    chosen: dict[str, Any] = {
        "asyncpg": {"server_settings": {"application_name": "chosen", "jit": "off"}, "command_timeout": 3},
        "psycopg": {"application_name": "chosen", "options": "-c jit=off", "prepare_threshold": None},
    }
    chosen["steadypool"] = chosen["psycopg"]
    async with make(connect_args=chosen[make.driver]).connect() as connection:
        assert await connection.scalar(text("show application_name")) == "chosen"
        assert await connection.scalar(text("show jit")) == "off"
        driver_connection: Any = (await connection.get_raw_connection()).driver_connection
        if make.driver == "psycopg":
            assert driver_connection.prepare_threshold is None
        elif make.driver == "steadypool":
            assert not driver_connection.statements.keeps
        else:
            assert driver_connection._config.command_timeout == 3


async def test_a_do_connect_handler_changes_the_arguments(make: Any) -> None:
    """A password that is asked for before each connect, as cloud providers want it."""
    url = make_url(make.url)
    engine = make(url.set(password="outdated", username="nobody"))
    asked: list[int] = []

    def handler(_dialect: Any, _record: Any, _arguments: list[Any], parameters: dict[str, Any]) -> None:
        asked.append(1)
        parameters["user"] = url.username
        parameters["password"] = url.password

    event.listen(engine.sync_engine, "do_connect", handler)
    for _ in range(2):
        async with engine.connect() as connection:
            assert await connection.scalar(text("select current_user")) == url.username
            await connection.invalidate()
    assert asked == [1, 1]


async def test_a_do_connect_handler_may_connect_itself(make: Any) -> None:
    engine = make()
    made: list[Any] = []

    def handler(dialect: Any, _record: Any, arguments: list[Any], parameters: dict[str, Any]) -> Any:
        made.append(dialect.connect(*arguments, **parameters))
        return made[-1]

    event.listen(engine.sync_engine, "do_connect", handler)
    async with engine.connect() as connection:
        assert (await connection.get_raw_connection()).dbapi_connection is made[0]


async def test_a_do_connect_handler_may_connect_by_the_drivers_module(make: Any) -> None:
    """SQLAlchemy's own recipe for replacing connect()."""
    engine = make()

    def handler(dialect: Any, _record: Any, arguments: list[Any], parameters: dict[str, Any]) -> Any:
        connection = dialect.dbapi.connect(*arguments, **parameters)
        cursor = connection.cursor()
        cursor.execute("set application_name = 'chosen'")
        cursor.close()
        connection.commit()
        return connection

    event.listen(engine.sync_engine, "do_connect", handler)
    for _ in range(2):
        async with engine.connect() as connection:
            assert await connection.scalar(text("show application_name")) == "chosen"
            await connection.invalidate()


@pytest.fixture
def open_raw(make: Any) -> Callable[[], Any]:
    """Opens the driver's own connection as an `async_creator` does."""

    async def connect() -> Any:
        url = make.url.replace(f"+{make.driver}", "")
        if make.driver == "asyncpg":
            import asyncpg

            return await asyncpg.connect(url)
        if make.driver == "steadypool":
            return PipelinedConnection(await open_psycopg(parse_url(url), timeout=10, autocommit=True))
        import psycopg

        return await psycopg.AsyncConnection.connect(url)

    return connect


async def test_an_async_creator(make: Any, open_raw: Any, counts: Any, eventually: Any) -> None:
    created: list[Any] = []

    async def creator() -> Any:
        created.append(await open_raw())
        return created[-1]

    engine = make(async_creator=creator, pool_size=1, max_overflow=0, pool_pre_ping=True)
    for _ in range(2):
        async with engine.connect() as connection:
            assert await connection.scalar(text("select 1")) == 1
            assert (await connection.get_raw_connection()).driver_connection is created[0]
    async with engine.connect() as connection:
        await connection.invalidate()
        await connection.execute(text("select 1"))
    assert len(created) == 2
    await engine.dispose()
    assert all(c.is_closed() if make.driver == "asyncpg" else c.closed for c in created)


async def test_json_functions(make: Any) -> None:
    from sqlalchemy import JSON, bindparam, select

    engine = make(
        json_serializer=lambda value: json.dumps({"wrapped": value}),
        json_deserializer=lambda found: ("read", json.loads(found)),
    )
    async with engine.connect() as connection:
        found = await connection.scalar(select(bindparam("value", {"a": 1}, type_=JSON)))
    assert found == ("read", {"wrapped": {"a": 1}})


async def test_pool_events_argument(make: Any) -> None:
    seen: list[str] = []
    engine = make(pool_events=[(lambda *_: seen.append("connect"), "connect")])
    async with engine.connect():
        assert seen == ["connect"]


class Plugin(CreateEnginePlugin):
    """Takes an argument of its own from the URL and from the call, and makes the pool smaller."""

    seen: list[Any] = []  # noqa: RUF012 - of the class, as SQLAlchemy makes the objects

    def __init__(self, url: Any, kwargs: dict[str, Any]) -> None:
        self.seen.append((url.query.get("flavour"), kwargs.pop("flavour_strength")))

    def update_url(self, url: Any) -> Any:
        return url.difference_update_query(["flavour"])

    def handle_pool_kwargs(self, pool_cls: Any, pool_args: dict[str, Any]) -> None:
        pool_args["pool_size"] = 3

    def engine_created(self, engine: Any) -> None:
        self.seen.append(engine.pool.size())


@pytest.mark.parametrize("in_url", [True, False])
async def test_plugins(make: Any, in_url: bool) -> None:
    from sqlalchemy.dialects import plugins

    plugins.register("contract_plugin", __name__, "Plugin")
    plugins.impls["contract_plugin"] = lambda: Plugin
    Plugin.seen = []
    query = {"flavour": "mint"} | ({"plugin": "contract_plugin"} if in_url else {})
    arguments = {} if in_url else {"plugins": ["contract_plugin"]}
    engine = make(make_url(make.url).update_query_dict(query), flavour_strength=7, **arguments)
    assert Plugin.seen == [("mint", 7), 3]
    assert engine.url == make_url(make.url)
    async with engine.connect() as connection:
        await connection.execute(text("select 1"))


@pytest.mark.parametrize("poolclass", [NullPool, StaticPool, AsyncAdaptedQueuePool])
async def test_a_pool_class_of_the_callers(make: Any, pid_of: Any, poolclass: Any) -> None:
    engine = make(poolclass=poolclass)
    assert type(engine.pool) is poolclass
    pids = []
    for _ in range(2):
        async with engine.connect() as connection:
            pids.append(await pid_of(connection))
    assert (pids[0] == pids[1]) is (poolclass is not NullPool)
    async with engine.connect() as connection:
        with pytest.raises(exc.DBAPIError):
            await connection.execute(text("select 1/0"))


async def test_a_commit_that_is_answered_by_a_rollback(make: Any) -> None:
    """An error that was not let through: stock says nothing, and what was written is lost."""
    engine = make()

    async def commit() -> None:
        async with engine.begin() as connection:
            with pytest.raises(exc.DBAPIError):
                await connection.execute(text("select 1/0"))

    if make.differs("a commit that was a rollback is told") or make.driver == "steadypool":
        with pytest.raises(steadypool.errors.TransactionRolledBack) as caught:
            await commit()
        assert isinstance(caught.value, exc.SQLAlchemyError)
    else:
        await commit()
    async with engine.begin() as connection:
        assert await connection.scalar(text("select 1")) == 1


async def test_none_for_the_pool_class_is_the_default(make: Any) -> None:
    engine = make(poolclass=None, pool=None, pool_size=2)
    assert type(engine.pool) is type(make().pool)
    assert engine.pool.size() == 2


async def test_a_pool_for_threads_is_refused(make: Any) -> None:
    with pytest.raises(exc.ArgumentError, match="QueuePool cannot be used with asyncio engine"):
        make(poolclass=QueuePool)


async def test_arguments_that_do_not_exist_are_refused(make: Any) -> None:
    with pytest.raises(TypeError, match="pool_sise"):
        make(pool_sise=3)


async def test_autocommit_for_all(make: Any) -> None:
    engine = make(isolation_level="AUTOCOMMIT", pool_size=1, pool_pre_ping=True)
    for _ in range(2):
        async with engine.connect() as connection:
            first = await connection.scalar(text("select now()"))
            assert await connection.scalar(text("select now()")) > first
        if make.is_ours:
            engine.pool.core.suspect_all()


async def test_an_isolation_level_for_one_connection_ends_with_it(make: Any) -> None:
    engine = make(pool_size=1, max_overflow=0)
    for level in ("SERIALIZABLE", "AUTOCOMMIT", "REPEATABLE READ"):
        async with engine.connect() as connection:
            connection = await connection.execution_options(isolation_level=level)
            await connection.execute(text("select 1"))
            first = await connection.scalar(text("select now()"))
            assert (await connection.scalar(text("select now()")) > first) is (level == "AUTOCOMMIT")
            if level != "AUTOCOMMIT":
                assert await connection.get_isolation_level() == level
        async with engine.connect() as connection:
            assert await connection.get_isolation_level() == "READ COMMITTED"
    view = engine.execution_options(isolation_level="REPEATABLE READ")
    async with view.connect() as connection:
        assert await connection.scalar(text("show transaction_isolation")) == "repeatable read"


@pytest.mark.parametrize("drop_all", [True, False])
async def test_pre_ping_hides_a_restart(make: Any, pg: Any, database_url: str, drop_all: bool) -> None:
    url = database_url.replace("postgresql://", f"postgresql+{make.driver}://")
    always = {"ping_after_idle": 0} if make.differs("what answered just now is not asked") else {}
    engine = make(url, pool_size=2, pool_pre_ping=True, **always)
    held = [await engine.connect(), await engine.connect()]
    for connection in held:
        await connection.close()
    backends = await pg.backends()
    assert len(backends) == 2
    await pg.terminate(*[b.pid for b in (backends if drop_all else backends[:1])])
    for _ in range(3):
        async with engine.connect() as connection:
            assert await connection.scalar(text("select 1")) == 1
    await engine.dispose()


async def test_without_pre_ping_the_first_statement_tells_and_the_next_works(
    make: Any, pg: Any, database_url: str
) -> None:
    url = database_url.replace("postgresql://", f"postgresql+{make.driver}://")
    engine = make(url, pool_size=1)
    connection = await engine.connect()
    await connection.execute(text("select 1"))
    await pg.terminate()
    with pytest.raises(exc.DBAPIError) as caught:
        await connection.execute(text("select 1"))
    assert caught.value.connection_invalidated
    assert connection.invalidated
    with pytest.raises(exc.PendingRollbackError):
        await connection.execute(text("select 1"))
    await connection.rollback()
    assert await connection.scalar(text("select 1")) == 1
    await connection.close()
    await engine.dispose()


async def test_an_error_of_the_database_is_sqlalchemys(make: Any) -> None:
    async with make().connect() as connection:
        with pytest.raises(exc.ProgrammingError) as caught:
            await connection.execute(text("select * from nowhere where a = :a"), {"a": 1})
        assert caught.value.statement is not None
        assert caught.value.orig is not None
        assert not caught.value.connection_invalidated
        await connection.rollback()
        with pytest.raises(exc.DBAPIError, match="division by zero"):
            await connection.execute(text("select 1/0"))


async def test_handle_error_handlers_of_the_caller(make: Any) -> None:
    engine = make()
    seen: list[Any] = []

    def handler(context: Any) -> Exception:
        seen.append(context.sqlalchemy_exception)
        return ZeroDivisionError("translated")

    event.listen(engine.sync_engine, "handle_error", handler)
    async with engine.connect() as connection:
        with pytest.raises(ZeroDivisionError, match="translated"):
            await connection.execute(text("select 1/0"))
    assert isinstance(seen[0], exc.DBAPIError)


async def test_raw_connection(make: Any, counts: Any) -> None:
    engine = make(pool_size=1)
    raw = await engine.raw_connection()
    assert counts(engine)[3] == 1
    assert await raw.driver_connection.execute("select 1") is not None
    await greenlet_spawn(raw.dbapi_connection.rollback)

    def use() -> int:
        with contextlib.closing(raw):
            cursor = raw.cursor()
            cursor.execute("select 7")
            return cursor.fetchone()[0]

    assert await greenlet_spawn(use) == 7
    assert counts(engine)[3] == 0


async def test_events_of_the_engine(make: Any) -> None:
    engine = make()
    seen: list[str] = []
    for name in (
        "begin",
        "before_cursor_execute",
        "after_cursor_execute",
        "commit",
        "rollback",
        "engine_disposed",
    ):

        def keep(*_arguments: Any, name: str = name) -> None:
            seen.append(name)

        event.listen(engine.sync_engine, name, keep)
    async with engine.begin() as connection:
        await connection.execute(text("select 1"))
    async with engine.connect() as connection:
        await connection.execute(text("select 1"))
    await engine.dispose()
    executed = ["begin", "before_cursor_execute", "after_cursor_execute"]
    assert seen == [*executed, "commit", *executed, "rollback", "engine_disposed"]
