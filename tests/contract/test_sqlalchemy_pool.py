"""Numbers, waiting, order, replacement and the end of connections, as SQLAlchemy's own pool tests look at them."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import exc, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.util import greenlet_spawn

pytestmark = pytest.mark.anyio


async def connected(engine: AsyncEngine) -> AsyncConnection:
    return await engine.connect()


Numbers = Callable[[AsyncEngine], tuple[int, int, int, int]]


async def test_numbers_while_connections_come_and_go(make: Any, counts: Numbers, eventually: Any) -> None:
    engine = make(pool_size=2, max_overflow=-1)
    assert counts(engine) == (2, 0, -2, 0)
    held: list[AsyncConnection] = []
    seen = []
    for _ in range(4):
        held.append(await engine.connect())
        seen.append(counts(engine))
    assert seen == [(2, 0, -1, 1), (2, 0, 0, 2), (2, 0, 1, 3), (2, 0, 2, 4)]
    for connection in held[:2]:
        await connection.close()
    assert counts(engine) == (2, 2, 2, 2)
    for connection in held[2:]:
        await connection.close()
    assert counts(engine) == (2, 2, 0, 0)
    async with engine.connect():
        assert counts(engine) == (2, 1, 0, 1)


async def test_status_is_one_line(make: Any) -> None:
    engine = make(pool_size=3, max_overflow=1, pool_timeout=12.5)
    async with engine.connect():
        assert engine.pool.status() == (
            "Pool size: 3  Connections in pool: 0 Current Overflow: -2 Current Checked out connections: 1"
        )
    assert engine.pool.timeout() == 12.5


async def test_the_defaults_are_those_of_sqlalchemy(make: Any, counts: Numbers) -> None:
    pool = make().pool
    assert (pool.size(), pool.timeout(), pool.overflow()) == (5, 30.0, -5)


@pytest.mark.parametrize("max_overflow", [42, 0, 1, -1])
async def test_no_size_is_no_limit(make: Any, max_overflow: int) -> None:
    engine = make(pool_size=0, max_overflow=max_overflow)
    held = [await engine.connect() for _ in range(3)]
    assert (engine.pool.size(), engine.pool.overflow(), engine.pool.checkedout()) == (0, 0, 3)
    for connection in held:
        await connection.close()
    assert (engine.pool.overflow(), engine.pool.checkedin(), engine.pool.checkedout()) == (0, 3, 0)


@pytest.mark.parametrize("timeout", [0, 0.2])
async def test_waiting_ends(make: Any, counts: Numbers, timeout: float) -> None:
    engine = make(pool_size=1, max_overflow=0, pool_timeout=timeout)
    async with engine.connect():
        started = asyncio.get_running_loop().time()
        with pytest.raises(exc.TimeoutError) as caught:
            await engine.connect()
        assert asyncio.get_running_loop().time() - started >= timeout * 0.9
    words = f"QueuePool limit of size 1 overflow 0 reached, connection timed out, timeout {timeout:.2f}"
    assert str(caught.value).startswith(words)
    assert caught.value.code == "3o7r"
    bare = str(caught.value).removeprefix(words).startswith(" (Background on this error at")
    assert bare is not make.differs("the message says more")
    assert counts(engine) == (1, 1, 0, 0)


async def test_waiting_without_an_end(make: Any) -> None:
    engine = make(pool_size=1, max_overflow=0, pool_timeout=None)
    assert engine.pool.timeout() is None
    first = await engine.connect()
    second = asyncio.create_task(connected(engine))
    await asyncio.sleep(0.05)
    assert not second.done()
    await first.close()
    await (await second).close()


async def test_all_who_wait_are_served(make: Any, counts: Numbers) -> None:
    engine = make(pool_size=2, max_overflow=1, pool_timeout=10)
    peaks: list[int] = []

    async def use() -> None:
        for _ in range(5):
            async with engine.connect() as connection:
                peaks.append(engine.pool.overflow())
                await connection.execute(text("select 1"))

    await asyncio.gather(*(use() for _ in range(10)))
    assert len(peaks) == 50
    assert max(peaks) <= 1
    assert counts(engine)[3] == 0


async def test_an_invalidated_connection_lets_those_who_wait_in(make: Any) -> None:
    engine = make(pool_size=1, max_overflow=0, pool_timeout=10)
    held = await engine.connect()

    async def use() -> int:
        async with engine.connect() as connection:
            return await connection.scalar(text("select 1"))

    waiting = [asyncio.create_task(use()) for _ in range(4)]
    await asyncio.sleep(0.05)
    await held.invalidate()
    await held.close()
    assert await asyncio.gather(*waiting) == [1] * 4


async def test_a_waiter_that_is_cancelled_leaves_its_place_to_others(make: Any, counts: Numbers) -> None:
    engine = make(pool_size=1, max_overflow=0, pool_timeout=10)
    held = await engine.connect()
    impatient = asyncio.create_task(connected(engine))
    patient = asyncio.create_task(connected(engine))
    await asyncio.sleep(0.05)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    await held.close()
    await (await patient).close()
    assert counts(engine) == (1, 1, 0, 0)


@pytest.mark.parametrize("lifo", [True, False])
async def test_the_order_in_which_idle_connections_are_taken(make: Any, pid_of: Any, lifo: bool) -> None:
    engine = make(pool_size=3, max_overflow=0, pool_use_lifo=lifo)
    held = [await engine.connect() for _ in range(3)]
    pids = [await pid_of(connection) for connection in held]
    for connection in held:
        await connection.close()
    again = [await engine.connect() for _ in range(3)]
    taken = [await pid_of(connection) for connection in again]
    assert taken == (pids[::-1] if lifo else pids)
    for connection in again:
        await connection.close()


async def test_a_connection_is_used_again_until_it_is_invalidated(make: Any, pid_of: Any) -> None:
    engine = make(pool_size=1, max_overflow=0)
    pids = []
    for _ in range(2):
        async with engine.connect() as connection:
            pids.append(await pid_of(connection))
    async with engine.connect() as connection:
        await connection.invalidate()
        pids.append(await pid_of(connection))
    async with engine.connect() as connection:
        pids.append(await pid_of(connection))
    assert pids[0] == pids[1] != pids[2] == pids[3]


async def test_an_old_connection_is_replaced(make: Any, pid_of: Any, eventually: Any) -> None:
    engine = make(pool_size=1, max_overflow=0, pool_recycle=1)
    async with engine.connect() as connection:
        first = await pid_of(connection)
    async with engine.connect() as connection:
        assert await pid_of(connection) == first
    if make.differs("recycled in the background"):
        pool: Any = engine.pool
        connects: list[str] = []
        pool.observers.subscribe(lambda event: connects.append(type(event).__name__))
        await eventually(lambda: "ConnectSucceeded" in connects)
        assert engine.pool.checkedin() == 1
    else:
        await asyncio.sleep(1.05)
    async with engine.connect() as connection:
        assert await pid_of(connection) != first


@pytest.mark.parametrize("value", ["rollback", True, "commit", None, False])
async def test_reset_on_return(make: Any, database_url: str, value: Any) -> None:
    url = database_url.replace("postgresql://", f"postgresql+{make.driver}://")
    engine = make(url, pool_size=1, max_overflow=0, pool_reset_on_return=value)
    async with engine.begin() as connection:
        await connection.execute(text("create table t (a int)"))
    raw = await engine.raw_connection()

    def insert() -> None:
        cursor = raw.cursor()
        cursor.execute("insert into t values (1)")
        cursor.close()
        raw.close()

    await greenlet_spawn(insert)
    async with engine.connect() as connection:
        seen = await connection.scalar(text("select count(*) from t"))
        await connection.rollback()
        kept = await connection.scalar(text("select count(*) from t"))
    assert (seen, kept) == {"commit": (1, 1), None: (1, 0), False: (1, 0)}.get(value, (0, 0))


async def test_a_transaction_begun_by_hand(make: Any) -> None:
    engine = make(pool_size=1, max_overflow=0)
    raw = await engine.raw_connection()
    await raw.driver_connection.execute("BEGIN")
    await raw.driver_connection.execute("SET LOCAL application_name = 'left behind'")
    await greenlet_spawn(raw.close)
    async with engine.connect() as connection:
        if make.driver != "asyncpg" or make.differs("cleaned behind SQLAlchemy's back"):
            assert await connection.scalar(text("show application_name")) != "left behind"
        else:
            with pytest.raises(exc.InterfaceError, match="manually started transaction"):
                await connection.execute(text("select 1"))
            await connection.invalidate()


async def test_a_begin_that_was_cancelled(make: Any) -> None:
    """asyncpg believes in the transaction from then on, and would make a SAVEPOINT of the next BEGIN."""
    if make.driver != "asyncpg":
        return
    engine = make(pool_size=1, max_overflow=0)
    raw = await engine.raw_connection()
    # what Transaction.start() leaves behind when it is cancelled before the server has read the BEGIN
    raw.driver_connection._top_xact = raw.driver_connection.transaction()
    await greenlet_spawn(raw.close)
    async with engine.connect() as connection:
        if make.differs("cleaned behind SQLAlchemy's back"):
            assert await connection.scalar(text("select 1")) == 1
        else:
            assert (await connection.get_raw_connection()).driver_connection._top_xact is not None
            await connection.invalidate()


async def test_dispose_while_one_is_out(make: Any, counts: Numbers, pid_of: Any, eventually: Any) -> None:
    engine = make(pool_size=2, max_overflow=0)
    out, idle = await engine.connect(), await engine.connect()
    await idle.close()
    before = engine.pool
    await engine.dispose()
    assert engine.pool is not before
    assert type(engine.pool) is type(before)
    assert counts(engine) == (2, 0, -2, 0)
    assert await pid_of(out) > 0  # what is out goes on
    driver_connection = (await out.get_raw_connection()).driver_connection
    await out.close()
    assert counts(engine) == (2, 0, -2, 0)

    def is_closed() -> bool:
        return driver_connection.is_closed() if make.driver == "asyncpg" else driver_connection.closed

    if make.differs("dispose closes what comes back"):
        await eventually(is_closed)
    else:
        assert not is_closed()
        await driver_connection.close()
    async with engine.connect() as connection:
        await connection.execute(text("select 1"))


async def test_dispose_without_closing_leaves_the_connections_alone(make: Any, pid_of: Any) -> None:
    engine = make(pool_size=1)
    async with engine.connect() as connection:
        first = await pid_of(connection)
        driver_connection = (await connection.get_raw_connection()).driver_connection
    before = engine.pool
    await engine.dispose(close=False)
    closed = driver_connection.is_closed() if make.driver == "asyncpg" else driver_connection.closed
    assert not closed
    async with engine.connect() as connection:
        assert await pid_of(connection) != first
    await greenlet_spawn(before.dispose)


async def test_dispose_outside_of_async_code(make: Any) -> None:
    engine = make()
    async with engine.connect():
        pass
    if make.is_ours:
        engine.sync_engine.dispose()  # stock's logs an error and leaves the socket open
    await engine.dispose()
    async with engine.connect() as connection:
        await connection.execute(text("select 1"))


async def test_a_recreated_pool_has_the_same_arguments(make: Any) -> None:
    engine = make(
        pool_size=8,
        max_overflow=10,
        pool_timeout=25,
        pool_use_lifo=True,
        pool_pre_ping=True,
        pool_recycle=35,
        pool_reset_on_return="commit",
        pool_logging_name="some pool",
        echo_pool="debug",
    )
    old, new = engine.pool, engine.pool.recreate()
    for name in ("_creator", "_dialect", "_reset_on_return", "_orig_logging_name", "echo", "logging_name"):
        assert getattr(old, name) == getattr(new, name)
    assert (new.size(), new.timeout(), new.overflow()) == (8, 25, -8)
    if make.is_ours:
        assert old.options == new.options
        assert old.options.use_lifo


async def test_no_connect_on_recreate_or_on_making_an_engine(make: Any) -> None:
    def creator() -> None:
        raise AssertionError("nobody asked for a connection")

    engine = make(creator=creator)
    await engine.dispose()
    engine.pool.recreate()


async def leak(engine: AsyncEngine, leaked: list[Any]) -> None:
    leaked.append(await engine.raw_connection())


@pytest.mark.filterwarnings("ignore")  # what is not given back is warned about, in several ways
@pytest.mark.parametrize("in_a_thread", [True, False])
async def test_what_is_not_given_back_comes_back(
    make: Any, counts: Numbers, eventually: Any, in_a_thread: bool
) -> None:
    engine = make(pool_size=1, max_overflow=0, pool_timeout=5)
    threads: set[int] = set()
    if make.is_ours:
        engine.pool.observers.subscribe(lambda _event: threads.add(threading.get_ident()))
    leaked: list[Any] = []
    await leak(engine, leaked)
    cycle: list[Any] = [leaked.pop()]
    cycle.append(cycle)
    del cycle
    if in_a_thread:
        if not make.is_ours and make.driver == "asyncpg":
            return await tidy(engine)  # stock calls into the loop from the wrong thread
        thread = threading.Thread(target=gc.collect)
        thread.start()
        await asyncio.to_thread(thread.join)
    else:
        gc.collect()
    await eventually(lambda: counts(engine)[3] == 0)
    async with engine.connect() as connection:
        assert await connection.scalar(text("select 1")) == 1
    assert threads == ({threading.get_ident()} if make.is_ours else set())
    return None


async def tidy(engine: AsyncEngine) -> None:
    gc.collect()
    await engine.dispose()


@pytest.mark.filterwarnings("ignore")
async def test_the_collector_changes_nothing_in_the_middle_of_the_pools_work(
    make: Any, eventually: Any
) -> None:
    if not make.is_ours:
        return
    engine = make(pool_size=2, max_overflow=0)
    leaked: list[Any] = []
    await leak(engine, leaked)
    seen: list[tuple[int, int]] = []
    core: Any = engine.pool.core
    is_open = core.driver.is_open

    def collecting_is_open(record: Any) -> bool:
        before = engine.pool.checkedout()
        leaked.clear()
        gc.collect()
        seen.append((before, engine.pool.checkedout()))
        return is_open(record)

    async with engine.connect():
        pass
    core.driver.is_open = collecting_is_open
    async with engine.connect():
        pass
    assert seen[0] == (1, 1)
    await eventually(lambda: engine.pool.checkedout() == 0)


@pytest.mark.parametrize("name", [None, "mine"])
async def test_logging(make: Any, caplog: pytest.LogCaptureFixture, name: str | None) -> None:
    caplog.set_level(logging.DEBUG, "sqlalchemy.pool")
    arguments = {} if name is None else {"pool_logging_name": name}
    engine = make(pool_size=1, **arguments)
    async with engine.connect() as connection:
        await connection.execute(text("select 1"))
    async with engine.connect() as connection:
        await connection.invalidate(ValueError("because"))
    await engine.dispose()
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("sqlalchemy.pool")]
    for words in (
        "Created new connection",
        "checked out from pool",
        "being returned to pool",
        "reset, transaction already reset",
        "Invalidate connection",
        "(reason: ValueError:because)",
        "Hard-closing connection",
        "Pool disposed. Pool size: 1",
        "Pool recreating",
    ):
        assert any(words in message for message in messages), words
    if name is not None:
        assert {r.name.rpartition(".")[2] for r in caplog.records if "pool" in r.name} == {name}


async def test_echo_pool(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    engine = make(echo_pool="debug", pool_logging_name="echoing")
    async with engine.connect():
        pass
    pool_logger = engine.pool.logger
    assert pool_logger.isEnabledFor(logging.DEBUG)
    assert engine.pool.echo == "debug"


async def test_no_double_checkin(make: Any) -> None:
    engine = make(pool_size=1)
    raw = await engine.raw_connection()
    record = raw._connection_record
    await greenlet_spawn(raw.close)
    with pytest.warns(exc.SAWarning, match="Double checkin attempted"):
        record.checkin()
    with pytest.warns(exc.SAWarning, match="already-closed"):
        raw.invalidate()
    assert engine.pool.checkedin() == 1


@pytest.mark.filterwarnings(
    "ignore:coroutine:RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
async def test_the_pool_needs_a_greenlet(make: Any) -> None:
    engine = make()
    with pytest.raises(exc.MissingGreenlet):
        engine.pool.connect()
    with pytest.raises(exc.MissingGreenlet):
        engine.sync_engine.connect()
    assert engine.pool.checkedout() == 0
