"""Cancel a request at each step of the event loop: nothing leaks, whatever it was doing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.util import greenlet_spawn

import steadypool
from steadypool.sqlalchemy import create_async_engine

pytestmark = pytest.mark.anyio

STEPS = [*range(24), *(round(24 * 1.15**n) for n in range(36))]
"""Turns of the event loop after which a use is cancelled: each of the first, then wider apart, as more and more of
them pass while the network is waited for. A sweep ends where the use does."""

LEFT_OVER = (
    "select pid, state, query from pg_stat_activity"
    " where datname = %s and backend_type = 'client backend' and (state <> 'idle' or xact_start is not null)"
)


@pytest.fixture
async def engine(driver: str, database_url: str, anyio_backend: object) -> AsyncIterator[AsyncEngine]:
    url = database_url.replace("postgresql://", f"postgresql+{driver}://")
    engine = create_async_engine(url, pool_size=2, max_overflow=0, pool_timeout=10)
    async with engine.begin() as connection:
        await connection.execute(text("create table t (a int)"))
    yield engine
    await engine.dispose()


async def commit(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("insert into t values (:a)"), {"a": 1})


async def roll_back(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execute(text("insert into t values (2)"))
        await connection.rollback()
        await connection.execute(text("select count(*) from t"))


async def bare_close(engine: AsyncEngine) -> None:
    """Without the shield that `async with` puts around close()."""
    connection = await engine.connect()
    try:
        # Two, since one is a single flight on a pipelined connection: too few steps to be cancelled at.
        await connection.execute(text("insert into t values (3)"))
        await connection.execute(text("insert into t values (3)"))
    finally:
        await connection.close()


async def use_a_session(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(text("insert into t values (4)"))
        async with session.begin_nested():
            await session.execute(text("insert into t values (5)"))


async def stream(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        result = await connection.stream(text("select generate_series(1, 500)"))
        async for row in result.partitions(100):
            assert row


async def invalidate(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execute(text("select 1"))
        await connection.rollback()
        await connection.invalidate()
        await connection.execute(text("select 1"))


async def raw(engine: AsyncEngine) -> None:
    proxy = await engine.raw_connection()

    def use() -> None:
        try:
            cursor = proxy.cursor()
            cursor.execute("insert into t values (6)")
            proxy.commit()
        finally:
            proxy.close()

    await greenlet_spawn(use)


USES: list[Callable[[AsyncEngine], Awaitable[None]]] = [
    commit,
    roll_back,
    bare_close,
    use_a_session,
    stream,
    invalidate,
    raw,
]


async def cancelled_at(step: int, use: Callable[[AsyncEngine], Awaitable[None]], engine: AsyncEngine) -> bool:
    """Cancel a use at its `step`-th turn of the loop; whether it was still going on."""
    task: asyncio.Task[None] = asyncio.ensure_future(use(engine))  # type: ignore[arg-type]
    for _ in range(step):
        await asyncio.sleep(0)
        if task.done():
            break
    cancelled = not task.done()
    task.cancel()
    results = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError | None), results[0]
    return cancelled


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
async def test_cancelled_at_each_step(
    engine: AsyncEngine, pg: Any, eventually: Any, use: Callable[[AsyncEngine], Awaitable[None]]
) -> None:
    pool: Any = engine.pool
    for step in STEPS:
        going_on = await cancelled_at(step, use, engine)
        await eventually(lambda: pool.checkedout() == 0)
        if not going_on:
            break
        await use(engine)
        assert pool.checkedout() == 0
    assert step > 4
    await eventually(lambda: pool.core.count() == pool.checkedin())
    await pg.wait_until(lambda: nothing_left(pg))
    assert len(await pg.backends()) == pool.checkedin()


async def nothing_left(pg: Any) -> bool:
    return not await pg.fetch(LEFT_OVER, pg.database)


async def test_cancelled_while_the_server_works(engine: AsyncEngine, pg: Any, eventually: Any) -> None:
    """The statement ends on the server too, long before it would have ended by itself."""

    async def sleep() -> None:
        async with engine.begin() as connection:
            await connection.execute(text("select pg_sleep(30)"))

    async def is_sleeping() -> bool:
        return any(b.state == "active" and "pg_sleep" in b.query for b in await pg.backends())

    task = asyncio.create_task(sleep())
    await pg.wait_until(is_sleeping)
    task.cancel()
    async with asyncio.timeout(1):
        with pytest.raises(asyncio.CancelledError):
            await task
    await eventually(lambda: engine.pool.checkedout() == 0)
    await pg.wait_until(lambda: nothing_left(pg))


async def test_cancelled_by_a_deadline_at_each_moment(engine: AsyncEngine, pg: Any, eventually: Any) -> None:
    pool: Any = engine.pool
    for milliseconds in range(0, 30, 2):
        try:
            with steadypool.deadline(milliseconds / 1000):
                await commit(engine)
        except steadypool.DeadlineExceeded:
            pass
        await eventually(lambda: pool.checkedout() == 0)
        await commit(engine)
    await pg.wait_until(lambda: nothing_left(pg))


async def test_many_are_cancelled_at_once(engine: AsyncEngine, pg: Any, eventually: Any) -> None:
    pool: Any = engine.pool
    for turns in range(0, 40, 2):
        tasks = [asyncio.ensure_future(commit(engine)) for _ in range(6)]  # three times what the pool has
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert ended[1::2] == [None] * 3
        assert all(isinstance(end, asyncio.CancelledError | None) for end in ended)
        await eventually(lambda: pool.checkedout() == 0)
    await pg.wait_until(lambda: nothing_left(pg))
