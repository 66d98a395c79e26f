"""A network that accepts everything and answers nothing: connecting, warm connections, and in mid-query."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from steadypool import Database, deadline, errors
from steadypool_lab.network.proxy import FaultProxy, Mode
from steadypool_lab.testing import Observer

from .conftest import MakeDatabase
from .kit import (
    MARGIN,
    STATEMENT_GRACE,
    T,
    ask,
    assert_all_named,
    assert_named,
    at_once,
    nothing_strays,
    peak_of,
    rests,
    serves,
    timed,
    until,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def make_db(make_db: MakeDatabase) -> MakeDatabase:
    """Connecting has no longer than all else: here it is what does not succeed."""

    def make(url: str, **settings: Any) -> Database:
        return make_db(url, **({"connection_timeout": T, "pool_timeout": T} | settings))

    return make


@pytest.mark.hedges
async def test_connecting_to_silence(db: Database, proxy: FaultProxy, pg: Observer) -> None:
    proxy.mode = Mode.SILENT
    async with peak_of(proxy) as peak:
        outcomes = await at_once(30, lambda: ask(db))
    assert_all_named(outcomes, T + MARGIN, errors.ConnectTimeout)
    assert 1 <= peak.open <= 2  # a probe and its hedge
    assert proxy.accepted <= 4
    proxy.mode = Mode.PASS
    await serves(db)
    await rests(db)
    await nothing_strays(pg, db)


@pytest.mark.hedges
async def test_connecting_to_silence_with_a_deadline(db: Database, proxy: FaultProxy) -> None:
    proxy.mode = Mode.SILENT

    async def call() -> None:
        with deadline(T / 2):
            await ask(db)

    async with peak_of(proxy) as peak:
        outcomes = await at_once(30, call)
    assert_all_named(outcomes, T / 2 + MARGIN, errors.DeadlineExceeded)
    assert {
        outcome.error.phase for outcome in outcomes if isinstance(outcome.error, errors.DeadlineExceeded)
    } == {errors.Phase.CONNECTING}
    assert 1 <= peak.open <= 2
    assert proxy.accepted <= 2


async def test_without_a_breaker_callers_try_side_by_side(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy
) -> None:
    """DATABASE_BREAKER=off: only DATABASE_MAX_CONNECTING bounds the attempts, and nobody is refused untried."""
    db = make_db(proxied_url, breaker="off", max_connecting=4)
    proxy.mode = Mode.SILENT
    async with peak_of(proxy) as peak:
        outcomes = await at_once(30, lambda: ask(db))
    assert_all_named(outcomes, T + MARGIN, errors.ConnectTimeout)
    assert peak.open == 4
    with deadline(0.01):  # shorter than the pause after the failure
        outcome = await timed(ask(db))
    assert_named(outcome.error, errors.DeadlineExceeded)
    proxy.mode = Mode.PASS
    await serves(db)


@pytest.mark.hedges
async def test_the_connect_that_was_held_serves_whoever_has_time_left(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy
) -> None:
    """A database that is asleep holds the connection until it is awake: one attempt and its hedge are enough."""
    db = make_db(proxied_url, connection_timeout=5, pool_timeout=5)
    proxy.mode = Mode.SILENT
    callers = asyncio.create_task(at_once(30, lambda: ask(db)))
    await until(lambda: proxy.accepted)
    await asyncio.sleep(T)
    assert proxy.accepted <= 2  # a probe and its hedge, both held open
    proxy.mode = Mode.PASS
    outcomes = await callers
    assert [outcome.result for outcome in outcomes] == [1] * 30
    assert proxy.accepted <= db.pool.core.options.limit
    await rests(db)


@pytest.mark.parametrize("pinged", [True, False])
async def test_warm_connections_go_silent(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy, pg: Observer, pinged: bool
) -> None:
    db = make_db(proxied_url, ping_after_idle=0.0 if pinged else 60.0)
    assert await db.warm_up(5) == 5
    proxy.mode = Mode.SILENT
    outcomes = await at_once(30, lambda: ask(db))
    # What has no ping finds out in the statement itself, to which the client gives its grace.
    assert_all_named(outcomes, T + (0 if pinged else STATEMENT_GRACE) + MARGIN)
    proxy.mode = Mode.PASS
    await until(lambda: db.pool.checkedout() == 0)
    await serves(db)
    await rests(db)
    await nothing_strays(pg, db)


@pytest.mark.parametrize("way", ["session", "dedicated"])
async def test_silence_in_mid_query(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy, pg: Observer, way: str
) -> None:
    db = make_db(proxied_url, statement_timeout=20.0)

    async def running() -> bool:
        return any(
            "pg_sleep" in backend.query and backend.state == "active" for backend in await pg.backends()
        )

    async def call() -> None:
        with deadline(3.0):
            if way == "session":
                await ask(db, "select pg_sleep(20)")
            else:
                async with db.connection() as connection:
                    await connection.fetch("select pg_sleep(20)")

    caller = asyncio.create_task(timed(call()))
    await pg.wait_until(running)
    proxy.mode = Mode.SILENT
    outcome = await caller
    assert_named(outcome.error, errors.DeadlineExceeded)
    assert isinstance(outcome.error, errors.DeadlineExceeded)
    assert outcome.error.phase is errors.Phase.EXECUTING
    assert outcome.error.maybe_executed
    assert outcome.seconds < 3.0 + MARGIN
    proxy.mode = Mode.PASS
    assert await until(lambda: db.pool.core.count() == 0) < 1.0 + MARGIN
    await nothing_strays(pg, db, seconds=2.5)
    await serves(db)


async def test_silence_in_mid_query_ends_by_the_statements_own_limit(
    db: Database, proxy: FaultProxy, pg: Observer
) -> None:
    async with db.session() as session:
        await session.execute(text("select 1"))
        proxy.mode = Mode.SILENT
        outcome = await timed(session.execute(text("select 2")))
        assert_named(outcome.error, errors.StatementTimeout)
        assert T + STATEMENT_GRACE <= outcome.seconds < T + STATEMENT_GRACE + MARGIN
        left = await timed(session.close())
        assert left.seconds < MARGIN
    proxy.mode = Mode.PASS
    await until(lambda: db.pool.core.count() == 0)
    await serves(db)
    await nothing_strays(pg, db)
