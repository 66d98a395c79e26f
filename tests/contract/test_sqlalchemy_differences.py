"""What ours does differently, on purpose: each row of WANTED_DIFFERENCES, as it is in both."""

from __future__ import annotations

import asyncio
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, exc, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import QueuePool
from sqlalchemy.util import greenlet_spawn

import steadypool
import steadypool.sqlalchemy

pytestmark = pytest.mark.anyio


async def connected(engine: AsyncEngine) -> AsyncConnection:
    return await engine.connect()


def test_each_wanted_difference_is_tested(wanted_differences: dict[str, Any]) -> None:
    folder = Path(__file__).parent
    sources = "".join(
        path.read_text() for path in [*folder.glob("test_sqlalchemy_*.py"), folder / "conftest.py"]
    )
    untested = [name for name in wanted_differences if f'differs("{name}")' not in sources]
    assert untested == []


def test_each_wanted_difference_is_told_to_users(wanted_differences: dict[str, Any]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "differences.md").read_text()
    sections = {
        "-".join(re.findall(r"\w+", heading.lower())) for heading in re.findall(r"^##+ (.+)$", page, re.M)
    }
    assert {
        name: each.section for name, each in wanted_differences.items() if each.section not in sections
    } == {}


async def test_dead_connections_are_not_counted(make: Any, counts: Any, eventually: Any) -> None:
    engine = make(pool_size=2, max_overflow=0)
    connection = await engine.connect()
    await connection.invalidate()
    await connection.close()
    if make.differs("dead connections are not counted"):
        assert counts(engine) == (2, 0, -2, 0)
        await eventually(lambda: engine.pool.core.count() == 0)
    else:
        assert counts(engine) == (2, 1, -1, 0)


async def test_connect_errors_have_a_name(make: Any) -> None:
    url = make.url.replace("postgres:", "nobody_we_know:")
    missing = make.url.rsplit("/", 1)[0] + "/no_such_database"
    for wrong in (missing,) if url == make.url else (missing, url):
        with pytest.raises(Exception, match=r"does not exist|authentication failed") as caught:
            await make(wrong).connect()
        if make.differs("connect errors have a name"):
            assert isinstance(caught.value, exc.OperationalError)
            assert isinstance(caught.value, steadypool.ConnectFailed)
            assert caught.value.final
            assert caught.value.__cause__ is not None
        elif make.driver in ("psycopg", "steadypool"):
            assert isinstance(caught.value, exc.OperationalError)
        else:
            assert not isinstance(caught.value, exc.OperationalError)


async def test_refused_connects_are_tried_again(make: Any, private_port: int) -> None:
    """Nobody listens at first; then somebody does who passes everything on."""
    url = make.url
    place, _, database = url.rpartition("/")
    wait = {"connect_retry": "wake"} if make.is_ours else {}
    engine = make(f"{place.rpartition(':')[0]}:{private_port}/{database}", pool_timeout=10, **wait)
    real = int(place.rpartition(":")[2])
    opening = asyncio.create_task(connected(engine))
    await asyncio.sleep(0.1)
    relay = await asyncio.start_server(lambda r, w: pass_on(r, w, real), "127.0.0.1", private_port)
    try:
        if make.differs("refused connects are tried again"):
            connection = await opening
            assert await connection.scalar(text("select 1")) == 1
            await connection.close()
        else:
            with pytest.raises((OSError, exc.OperationalError, steadypool.ConnectFailed)):
                await opening
    finally:
        await engine.dispose()
        relay.close()
        await asyncio.gather(*relays, return_exceptions=True)
        relays.clear()


relays: set[asyncio.Task[None]] = set()


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
        sink.close()
        await sink.wait_closed()

    for pair in ((reader, there_writer), (there_reader, writer)):
        relays.add(asyncio.create_task(copy(*pair)))


async def test_the_cancelled_caller_leaves_its_connect_behind(make: Any, eventually: Any) -> None:
    engine = make(pool_size=1, max_overflow=0)
    started = asyncio.Event()

    def handler(_dialect: Any, _record: Any, _arguments: Any, _parameters: Any) -> None:
        started.set()

    event.listen(engine.sync_engine, "do_connect", handler)
    opening = asyncio.create_task(connected(engine))
    await started.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert engine.pool.checkedout() == 0
    if make.differs("the cancelled caller leaves its connect behind"):
        await eventually(lambda: engine.pool.checkedin() == 1)
    else:
        assert engine.pool.checkedin() == 0


async def test_lost_connections_have_a_name(make: Any, pg: Any, database_url: str) -> None:
    engine = make(database_url.replace("postgresql://", f"postgresql+{make.driver}://"))
    connection = await engine.connect()
    await connection.execute(text("select 1"))
    await pg.terminate()
    with pytest.raises(exc.DBAPIError) as caught:
        await connection.execute(text("select 'a secret'"))
    assert caught.value.connection_invalidated
    if make.differs("lost connections have a name"):
        assert isinstance(caught.value, steadypool.ConnectionLost)
        assert isinstance(caught.value, exc.OperationalError)
        assert "a secret" not in str(caught.value)
    else:
        assert isinstance(caught.value, exc.OperationalError) is (make.driver != "asyncpg")
    await connection.close()
    await engine.dispose()


async def test_a_driver_that_has_lost_the_thread(make: Any, eventually: Any) -> None:
    """asyncpg says so when it read the server's last word while nobody used the connection."""
    if make.driver != "asyncpg":
        return
    import asyncpg

    engine = make(pool_size=1, max_overflow=0)

    def fail(*_arguments: Any) -> None:
        raise asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress")

    connection = await engine.connect()
    event.listen(engine.sync_engine, "do_execute", fail)
    named = make.differs("lost connections have a name")
    with pytest.raises(steadypool.ConnectionLost if named else asyncpg.InternalClientError):
        await connection.execute(text("select 1"))
    assert connection.invalidated is named
    await connection.close()


async def test_one_loss_does_not_close_the_rest(
    make: Any, pg: Any, database_url: str, pid_of: Any, eventually: Any
) -> None:
    engine = make(database_url.replace("postgresql://", f"postgresql+{make.driver}://"), pool_size=2)
    first, second = await engine.connect(), await engine.connect()
    lost, kept = await pid_of(first), await pid_of(second)
    await second.close()
    await pg.terminate(lost)
    with pytest.raises(exc.DBAPIError):
        await first.execute(text("select 1"))
    await first.close()
    async with engine.connect() as connection:
        stays = await pid_of(connection) == kept
    assert stays is make.differs("one loss does not close the rest")
    await engine.dispose()


async def test_a_returned_overflow_connection(make: Any, pid_of: Any, eventually: Any) -> None:
    engine = make(pool_size=1, max_overflow=1, pool_timeout=5)
    base, extra = await engine.connect(), await engine.connect()
    pid = await pid_of(extra)
    waiting = asyncio.create_task(connected(engine))
    await asyncio.sleep(0.05)
    await extra.close()
    third = await waiting
    assert await pid_of(third) == pid
    await base.close()
    await third.close()
    assert (engine.pool.checkedin(), engine.pool.overflow()) == (1, 0)
    if make.is_ours:
        await eventually(lambda: engine.pool.core.count() == 1)


async def test_first_come_first_served(make: Any) -> None:
    """A connection is given back, and before the one who waits for it has run, somebody new asks."""
    engine = make(pool_size=1, max_overflow=0, pool_timeout=5)
    order: list[str] = []
    raw = await engine.raw_connection()

    async def use(name: str) -> None:
        async with engine.connect():
            order.append(name)

    waiting = asyncio.create_task(use("waited"))
    await asyncio.sleep(0.05)

    async def give_back_and_ask() -> None:
        await greenlet_spawn(raw.close)
        await use("came later")

    await give_back_and_ask()
    await waiting
    fair = make.differs("first come, first served")
    assert order == (["waited", "came later"] if fair else ["came later", "waited"])


def test_one_loop_said_clearly(kind: str, driver: str, shared_database: str) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    make = create_async_engine if kind == "stock" else steadypool.sqlalchemy.create_async_engine
    engine = make(
        shared_database.replace("postgresql://", f"postgresql+{driver}://"), pool_size=1, max_overflow=0
    )

    async def hold_and_use() -> None:
        async with engine.connect() as connection:
            await connection.execute(text("select 1"))

    async def again() -> None:
        await hold_and_use()
        await engine.dispose()

    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        first.run_until_complete(hold_and_use())
        if kind == "ours":
            with pytest.raises(steadypool.WrongEventLoop, match="belongs to another event loop"):
                second.run_until_complete(hold_and_use())
        first.run_until_complete(engine.dispose())
        second.run_until_complete(again())  # after dispose() any loop will do
    finally:
        first.close()
        second.close()


async def test_one_loop_difference_is_named(make: Any) -> None:
    """Stock's pool does not know its loop; ours does."""
    engine = make()
    async with engine.connect():
        pass
    assert hasattr(engine.pool, "core") is make.differs("one loop, said clearly")


async def test_it_is_not_a_queue_pool(make: Any) -> None:
    engine = make()
    assert isinstance(engine.pool, QueuePool) is not make.differs("not a QueuePool")


@pytest.mark.parametrize(
    "name",
    ["PoolTimeout", "PoolQueueFull", "ConnectFailed", "ConnectTimeout", "StatementTimeout", "ConnectionLost"],
)
def test_errors_are_both_steadypools_and_sqlalchemys(name: str) -> None:
    error = getattr(steadypool.sqlalchemy, name)("what happened")
    assert isinstance(error, getattr(steadypool, name))
    assert isinstance(error, exc.TimeoutError if name.startswith("Pool") else exc.OperationalError)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.report) == (str(error), error.report)
