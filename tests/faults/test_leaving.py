"""Everything that leaves is bounded, on a network that does not answer any more: exits, cancellation, the end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import time
import warnings
from typing import Any

import pytest
import sqlalchemy.ext.asyncio as stock
from sqlalchemy import event, text
from sqlalchemy.util import await_only

from steadypool import Database, deadline, errors, events
from steadypool._callsite import as_text
from steadypool.pool.lease import EntryState
from steadypool.sqlalchemy.dialects.base import GOODBYE
from steadypool_lab.network.proxy import FaultProxy, Mode
from steadypool_lab.testing import Observer

from .conftest import MakeDatabase
from .kit import (
    MARGIN,
    STATEMENT_GRACE,
    T,
    ask,
    assert_named,
    at_once,
    failures,
    nothing_strays,
    reached,
    rests,
    serves,
    timed,
    until,
)

pytestmark = pytest.mark.anyio


async def heals(db: Database, proxy: FaultProxy, pg: Observer) -> None:
    """The network is back: nothing is left of what went before, and the pool serves."""
    proxy.mode = Mode.PASS
    await until(lambda: db.pool.checkedout() == 0)
    await rests(db)
    await nothing_strays(pg, db)
    await serves(db)


# -- exits of sessions -------------------------------------------------------------------------------------------


async def test_exit_of_a_session_with_an_open_transaction(
    db: Database, proxy: FaultProxy, pg: Observer
) -> None:
    async def call() -> None:
        async with db.session() as session:
            await session.execute(text("select 1"))
            proxy.mode = Mode.SILENT

    outcome = await timed(call())
    # What was not committed is rolled back by the server; whoever has its rows need not hear of the network.
    assert outcome.error is None
    assert outcome.seconds < T + MARGIN
    await heals(db, proxy, pg)


async def test_rollback(db: Database, proxy: FaultProxy, pg: Observer) -> None:
    async with db.session() as session:
        await session.execute(text("select 1"))
        proxy.mode = Mode.SILENT
        outcome = await timed(session.rollback())
        assert outcome.error is None
        assert outcome.seconds < T + MARGIN
    await heals(db, proxy, pg)


async def test_commit(db: Database, proxy: FaultProxy, pg: Observer) -> None:
    async with db.session() as session:
        await session.execute(text("create table t (a int)"))
        proxy.mode = Mode.SILENT
        outcome = await timed(session.commit())
        assert_named(outcome.error, errors.StatementTimeout)
        assert isinstance(outcome.error, errors.StatementTimeout)
        assert outcome.error.maybe_executed
        assert outcome.error.elapsed.executing >= T
        assert outcome.seconds < T + STATEMENT_GRACE + MARGIN
        left = await timed(session.close())
        assert left.error is None
        assert left.seconds < MARGIN
    await heals(db, proxy, pg)


async def test_commit_within_a_deadline(db: Database, proxy: FaultProxy, pg: Observer) -> None:
    async def call() -> None:
        with deadline(1.0):
            async with db.session() as session:
                await session.execute(text("create table t (a int)"))
                proxy.mode = Mode.SILENT
                await session.commit()

    outcome = await timed(call())
    assert_named(outcome.error, errors.StatementTimeout, errors.DeadlineExceeded)
    assert isinstance(outcome.error, errors.SteadypoolError)
    assert outcome.error.maybe_executed
    assert outcome.seconds < 1.0 + MARGIN
    await heals(db, proxy, pg)


@pytest.mark.parametrize("moment", ["statement", "rollback", "commit"])
@pytest.mark.parametrize("way", ["session", "engine"])
async def test_a_cancelled_caller_leaves_at_once(
    make_db: MakeDatabase,
    proxied_url: str,
    proxy: FaultProxy,
    pg: Observer,
    driver: str,
    moment: str,
    way: str,
) -> None:
    db = make_db(proxied_url, statement_timeout=20, engine_arguments={"leave_timeout": 5.0})
    silent = asyncio.Event()
    leaves_alone = driver == "steadypool" and moment == "rollback"  # which is not waited for

    async def call() -> None:
        # A session and a connection of the engine have these methods in common.
        block: Any = db.session() if way == "session" else db.engine.connect()
        async with block as connection:
            await connection.execute(text("select 1"))
            proxy.mode = Mode.SILENT
            silent.set()
            if moment == "statement":
                await connection.execute(text("select 2"))
            else:
                await getattr(connection, moment)()

    task = asyncio.create_task(call())
    await reached(silent, task)
    await asyncio.sleep(0.05)
    started = time.monotonic()
    task.cancel()
    await asyncio.wait([task], timeout=10)
    # 0.1 s is what is promised; the rest is a busy machine, and leaving politely would take longer.
    assert time.monotonic() - started < 0.1 + MARGIN
    assert task.cancelled() is not leaves_alone
    await heals(db, proxy, pg)


async def test_a_caller_cancelled_in_the_exit_of_its_session_leaves_at_once(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy, pg: Observer
) -> None:
    db = make_db(proxied_url, engine_arguments={"leave_timeout": 5.0})
    silent = asyncio.Event()

    async def call() -> None:
        async with db.session() as session:
            await session.execute(text("select 1"))
            proxy.mode = Mode.SILENT
            silent.set()

    task = asyncio.create_task(call())
    await reached(silent, task)
    await asyncio.sleep(0.05)
    started = time.monotonic()
    task.cancel()
    await asyncio.wait([task], timeout=10)
    assert time.monotonic() - started < 0.1 + MARGIN
    await heals(db, proxy, pg)


@pytest.mark.parametrize("moment", ["statement", "exit"])
async def test_a_dedicated_connection_is_left_at_once(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy, pg: Observer, moment: str
) -> None:
    db = make_db(proxied_url, statement_timeout=20, engine_arguments={"leave_timeout": 5.0})
    silent = asyncio.Event()

    async def call() -> None:
        async with db.connection() as connection:
            await connection.execute("begin")
            await connection.fetch("select 1")
            proxy.mode = Mode.SILENT
            silent.set()
            if moment == "statement":
                await connection.fetch("select 2")

    task = asyncio.create_task(call())
    await reached(silent, task)
    await asyncio.sleep(0.05)
    started = time.monotonic()
    task.cancel()
    await asyncio.wait([task], timeout=10)
    assert time.monotonic() - started < 0.1 + MARGIN
    assert task.cancelled()
    await heals(db, proxy, pg)


async def test_a_dedicated_connection_left_in_a_transaction(
    db: Database, proxy: FaultProxy, pg: Observer
) -> None:
    async def call() -> None:
        async with db.connection() as connection:
            await connection.execute("begin")
            proxy.mode = Mode.SILENT

    outcome = await timed(call())
    assert outcome.seconds < T + MARGIN
    assert outcome.error is None
    await heals(db, proxy, pg)


async def test_exit_with_an_isolation_level_of_ones_own(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy, pg: Observer
) -> None:
    """SQLAlchemy puts the level back when the connection has been cut off already."""
    db = make_db(proxied_url)

    async def call() -> None:
        async with db.engine.connect() as connection:
            connection = await connection.execution_options(isolation_level="SERIALIZABLE")
            await connection.execute(text("select 1"))
            proxy.mode = Mode.SILENT

    outcome = await timed(call())
    assert outcome.error is None
    assert outcome.seconds < T + MARGIN
    await heals(db, proxy, pg)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_what_stock_does_when_it_leaves_a_silent_network(
    driver: str, proxied_url: str, proxy: FaultProxy, pg: Observer
) -> None:
    """The comparison: SQLAlchemy's own engine is still leaving when ours has long left, in all the ways tested here."""
    url = proxied_url.replace("postgresql://", f"postgresql+{driver}://")
    engine, idle = stock.create_async_engine(url), stock.create_async_engine(url)
    silent, inside = asyncio.Event(), 0

    async def call(how: str) -> None:
        nonlocal inside
        async with stock.AsyncSession(engine) as session:
            await session.execute(text("select 1"))
            inside += 1
            await silent.wait()
            if how == "rollback":
                await session.rollback()
            elif how == "cancel":
                await session.execute(text("select 2"))

    async with idle.connect():
        pass
    leaving = {how: asyncio.create_task(call(how)) for how in ("exit", "rollback", "cancel")}
    await until(lambda: inside == 3)
    proxy.mode = Mode.SILENT
    silent.set()
    if driver == "asyncpg":  # psycopg says no goodbye that it would wait for
        leaving["dispose"] = asyncio.create_task(idle.dispose())
    await asyncio.sleep(0.05)
    leaving["cancel"].cancel()
    await asyncio.wait(leaving.values(), timeout=T + 0.2)  # SQLAlchemy cuts a cancelled one off after 2 s
    assert {how for how, task in leaving.items() if not task.done()} == set(leaving)
    proxy.mode = Mode.PASS
    await asyncio.wait(leaving.values())
    for one in (engine, idle):
        await one.dispose()


# -- cancellation at any moment ----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["session", "connection", "engine"])
async def test_hundreds_of_tasks_cancelled_at_random_moments(
    make_db: MakeDatabase, proxied_url: str, pg: Observer, way: str
) -> None:
    db = make_db(
        proxied_url, pool_size=5, max_overflow=5, pool_timeout=20, connection_timeout=20, statement_timeout=20
    )
    rng = random.Random(7)
    slowest = 0.0
    done = 0

    async def work() -> None:
        nonlocal done
        if way == "session":
            async with db.session() as session:
                await session.execute(text("select pg_sleep(0.002)"))
                await session.execute(text("select 1"))
                await session.commit()
        elif way == "connection":
            async with db.connection() as connection, connection.transaction():
                await connection.fetch("select pg_sleep(0.002)")
        else:
            async with db.engine.begin() as connection:
                await connection.execute(text("select pg_sleep(0.002)"))
        done += 1

    async def cancelled_somewhere(number: int) -> None:
        nonlocal slowest
        task = asyncio.create_task(work())
        if number % 5 == 0:
            await task
            return
        await asyncio.wait([task], timeout=rng.uniform(0, 0.4))
        started = time.monotonic()
        task.cancel()
        await asyncio.wait([task], timeout=10)
        slowest = max(slowest, time.monotonic() - started)
        assert task.done()
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                raise error

    await asyncio.gather(*(cancelled_somewhere(number) for number in range(170)))
    assert 34 <= done < 170
    assert slowest < T + MARGIN
    await rests(db)
    await nothing_strays(pg, db)
    await serves(db)

    async def all_idle() -> bool:  # a ROLLBACK that nobody waited for may still be on its way
        return {backend.state for backend in await pg.backends()} == {"idle"}

    await pg.wait_until(all_idle)


# -- the end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["close", "dispose"])
async def test_the_end_of_idle_connections_on_a_silent_network(
    make_db: MakeDatabase,
    proxied_url: str,
    proxy: FaultProxy,
    pg: Observer,
    caplog: pytest.LogCaptureFixture,
    way: str,
) -> None:
    caplog.set_level(logging.WARNING)
    db = make_db(proxied_url, pool_size=10, connection_timeout=20)
    assert await db.warm_up(10) == 10
    proxy.mode = Mode.SILENT
    outcome = await timed(db.close() if way == "close" else db.engine.dispose())
    assert outcome.error is None
    # All at once, and not one after the other.
    assert outcome.seconds < 2 * T + MARGIN
    assert not caplog.text
    await until(lambda: proxy.open == 0)
    proxy.mode = Mode.PASS
    await pg.wait_until(pg.is_quiet)
    gc.collect()


async def test_idle_connections_are_not_waited_for_at_the_end(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy, pg: Observer
) -> None:
    """However long the busy may take, and leaving in general: a goodbye has been said, and nobody answers."""
    db = make_db(
        proxied_url,
        pool_size=10,
        connection_timeout=20,
        close_grace=20,
        engine_arguments={"leave_timeout": 20.0},
    )
    assert await db.warm_up(10) == 10
    proxy.mode = Mode.SILENT
    outcome = await timed(db.close())
    assert outcome.error is None
    assert outcome.seconds < GOODBYE + MARGIN
    proxy.mode = Mode.PASS
    await pg.wait_until(pg.is_quiet)


@pytest.mark.parametrize("way", ["session", "connection"])
async def test_close_with_busy_connections_on_a_silent_network(
    make_db: MakeDatabase,
    proxied_url: str,
    proxy: FaultProxy,
    pg: Observer,
    caplog: pytest.LogCaptureFixture,
    way: str,
) -> None:
    caplog.set_level(logging.WARNING)
    db = make_db(
        proxied_url, connection_timeout=20, pool_timeout=20, statement_timeout=60, slow_query_after=60
    )

    async def sleeper() -> None:
        if way == "session":
            await ask(db, "select pg_sleep(30)")
        else:
            async with db.connection() as connection:
                await connection.fetch("select pg_sleep(30)")

    async def all_running() -> bool:
        return sum(backend.state == "active" for backend in await pg.backends()) == 5

    busy = asyncio.create_task(at_once(5, sleeper))
    await pg.wait_until(all_running)
    proxy.mode = Mode.SILENT
    outcome = await timed(db.close())
    assert outcome.error is None
    assert T <= outcome.seconds < T + T + MARGIN
    ended = await timed(busy)
    assert ended.seconds < MARGIN
    for error in failures(ended.result):
        assert_named(error, errors.ConnectionLost, errors.PoolClosed)
    assert len(failures(ended.result)) == 5
    assert not caplog.text
    assert db.pool.core.count() == 0
    proxy.mode = Mode.PASS
    await pg.wait_until(pg.is_quiet)
    gc.collect()


async def test_a_goodbye_that_hangs_leaves_nothing_behind(
    db: Database, proxy: FaultProxy, pg: Observer
) -> None:
    @event.listens_for(db.engine.sync_engine, "close")
    def hangs(_connection: Any, _record: Any) -> None:
        await_only(asyncio.Event().wait())

    await ask(db)
    outcome = await timed(db.pool.core.evict())
    assert outcome.seconds < T + MARGIN
    await rests(db)  # nobody watches the socket any more, either
    await until(lambda: proxy.open == 0)
    await pg.wait_until(pg.is_quiet)


async def test_close_while_connecting_to_silence(db: Database, proxy: FaultProxy) -> None:
    proxy.mode = Mode.SILENT
    callers = asyncio.create_task(at_once(5, lambda: ask(db)))
    await until(lambda: proxy.accepted)
    outcome = await timed(db.close(grace=0))
    assert outcome.seconds < MARGIN
    for error in failures(await callers):
        assert isinstance(error, errors.PoolClosed)
    await until(lambda: proxy.open == 0)
    assert db.pool.core.count() == 0


async def test_close_twice_and_at_once(db: Database, proxy: FaultProxy) -> None:
    assert await db.warm_up(3) == 3
    proxy.mode = Mode.SILENT
    outcomes = await at_once(3, lambda: db.close(grace=0.1))
    assert not failures(outcomes)
    assert await timed(db.close())
    with pytest.raises(errors.PoolClosed):
        await ask(db)


async def test_a_cancelled_close_leaves_nothing_open(db: Database, proxy: FaultProxy, pg: Observer) -> None:
    async def sleeper() -> None:
        await ask(db, "select pg_sleep(0.3)")

    busy = asyncio.create_task(timed(sleeper()))
    await until(lambda: db.pool.checkedout() == 1)
    closing = asyncio.create_task(db.close(grace=20))
    await asyncio.sleep(0.05)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await busy
    assert db.pool.core.count() == 0
    await pg.wait_until(pg.is_quiet)


# -- what nobody closes ------------------------------------------------------------------------------------------


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("way", ["session", "engine", "db.session", "db.connection"])
async def test_a_session_that_is_forgotten(
    make_db: MakeDatabase, proxied_url: str, pg: Observer, way: str
) -> None:
    db = make_db(proxied_url, pool_size=1, max_overflow=0, pool_timeout=5, connection_timeout=5)
    told: list[Any] = []
    db.events.subscribe(told.append, events.LeakSuspected)

    async def forget() -> None:
        # None of them in an `async with`: the user's mistake.
        if way == "session":
            await stock.AsyncSession(db.engine).execute(text("select 1"))
        elif way == "engine":
            await (await db.engine.connect()).execute(text("select 1"))
        else:
            block: Any = db.session() if way == "db.session" else db.connection()
            connection = await block.__aenter__()
            await connection.execute("begin" if way == "db.connection" else text("select 1"))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SQLAlchemy says what happened, and rightly so
        for _ in range(3):
            await forget()
            gc.collect()
            await until(lambda: db.pool.core.count(EntryState.LEASED) == 0)
            await rests(db)
            await serves(db, callers=2)
    await nothing_strays(pg, db)
    if way != "db.session":  # which is a generator, that the event loop ends orderly
        assert [leak.forgotten for leak in told] == [True] * 3
        assert "in forget" in as_text(told[0].places)


async def test_failing_connect_hooks_leave_no_descriptor(
    make_db: MakeDatabase, proxied_url: str, pg: Observer
) -> None:
    async def on_connect(_connection: Any) -> None:
        raise ValueError("the hook is wrong")

    db = make_db(proxied_url, on_connect=on_connect, connection_timeout=2, pool_timeout=2)
    await timed(ask(db))
    before = _descriptors()
    for _ in range(5):
        outcome = await timed(ask(db))
        assert_named(outcome.error, errors.HookFailed)
        assert "the hook is wrong" in str(outcome.error)
    await until(lambda: _descriptors() <= before)
    await pg.wait_until(pg.is_quiet)


async def test_a_connect_hook_that_hangs_is_bounded(
    make_db: MakeDatabase, proxied_url: str, pg: Observer
) -> None:
    async def on_connect(_connection: Any) -> None:
        await asyncio.Event().wait()

    db = make_db(proxied_url, on_connect=on_connect, connection_timeout=T, pool_timeout=T)
    outcome = await timed(ask(db))
    assert_named(outcome.error, errors.ConnectTimeout)
    assert outcome.seconds < T + MARGIN
    await rests(db)
    await pg.wait_until(pg.is_quiet)


async def test_faults_leave_no_descriptor(db: Database, proxy: FaultProxy, pg: Observer) -> None:
    await serves(db)
    await db.pool.core.evict()
    await rests(db)
    before = _descriptors()
    for mode in (Mode.SILENT, Mode.RESET, Mode.REFUSE):
        await serves(db)
        proxy.mode = mode
        await at_once(10, lambda: ask(db))
        proxy.mode = Mode.PASS
        await until(lambda: db.pool.checkedout() == 0)
    await serves(db)
    await db.pool.core.evict()
    await rests(db)
    await until(lambda: proxy.open == 0)
    await until(lambda: _descriptors() <= before)
