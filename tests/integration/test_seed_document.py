"""What the seed document says, tried as written: its defaults, its options, its failure modes, its snippets.

`docs/seed-map.md` says which statement is held by which test. Where it names seconds, they are scaled down here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession

import steadypool
from backend.config import Settings, get_settings
from backend.utilities.database import build_database, get_db, get_engine, get_session_maker, use_database
from steadypool import Database, DatabaseSettings
from steadypool_lab import FaultProxy, Mode
from steadypool_lab.testing import Observer

pytestmark = pytest.mark.anyio

MakeDatabase = Callable[..., Database]


@pytest.fixture(params=["asyncpg", "psycopg"])
def driver(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def make(driver: str, database_url: str, anyio_backend: object) -> AsyncIterator[MakeDatabase]:
    made: list[Database] = []

    def database(*, url: str = database_url, **settings: Any) -> Database:
        chosen = url.replace("postgresql://", f"postgresql+{driver}://")
        made.append(Database(DatabaseSettings(url=chosen, **settings)))
        return made[-1]

    yield database
    for each in made:
        await each.close()


async def backend_pid(session: AsyncSession) -> int:
    return (await session.execute(text("select pg_backend_pid()"))).scalar_one()


@pytest.mark.parametrize(
    ("sizes", "limit", "kept"),
    [
        ({}, 15, 10),
        ({"pool_size": 15, "max_overflow": 5}, 20, 15),
        ({"pool_size": 10, "max_overflow": 10}, 20, 10),
    ],
    ids=["defaults", "option 1: increase pool size", "option 2: increase overflow"],
)
async def test_so_many_hold_a_connection_the_next_fails_fast_and_the_overflow_is_closed(
    make: MakeDatabase, pg: Observer, sizes: dict[str, int], limit: int, kept: int
) -> None:
    db = make(pool_timeout=1.0, **sizes)
    async with contextlib.AsyncExitStack() as holding:
        sessions = [await holding.enter_async_context(db.session()) for _ in range(limit)]
        pids = await asyncio.gather(*(backend_pid(session) for session in sessions))
        assert len(set(pids)) == limit == len(await pg.backends())
        with pytest.raises(steadypool.PoolTimeout) as caught:
            async with db.session() as one_more:
                await backend_pid(one_more)
        size, overflow = db.settings.pool_size, db.settings.max_overflow
        assert str(caught.value).startswith(f"QueuePool limit of size {size} overflow {overflow} reached")

    async def only_the_kept() -> bool:
        return len(await pg.backends()) == kept

    await pg.wait_until(only_the_kept)
    assert (db.pool.checkedout(), db.pool.checkedin()) == (0, kept)
    async with db.session() as session:
        assert await backend_pid(session) in pids


async def test_the_one_returned_last_is_taken_first(make: MakeDatabase) -> None:
    db = make()
    async with db.session() as first, db.session() as second, db.session() as third:
        pids = [await backend_pid(session) for session in (first, second, third)]
        await first.rollback()
        await third.rollback()
        await second.rollback()
    async with db.session() as next_one, db.session() as after_that:
        assert [await backend_pid(next_one), await backend_pid(after_that)] == [pids[1], pids[2]]


async def test_a_connection_is_replaced_when_it_reaches_its_age(make: MakeDatabase) -> None:
    db = make(pool_recycle=1)
    seen = set()
    async with asyncio.timeout(60):
        while len(seen) < 2:
            async with db.session() as session:
                seen.add(await backend_pid(session))
    assert db.stats().pool.leased == 0


@pytest.mark.parametrize(("pre_ping", "asked"), [("select1", True), ("true", False), ("false", False)])
async def test_select1_asks_before_each_use_and_the_default_only_after_silence(
    make: MakeDatabase, pg: Observer, pre_ping: str, asked: bool
) -> None:
    db = make(pool_pre_ping=pre_ping, ping_after_idle=60)
    async with db.session() as session:
        await backend_pid(session)
    async with db.engine.connect():
        (backend,) = await pg.backends()
    assert ("select 1" in backend.query.lower()) is asked, backend.query


async def test_fifteen_requests_wait_for_the_wake_up_and_are_all_served(
    make: MakeDatabase, proxied_url: str, proxy: FaultProxy
) -> None:
    db = make(url=proxied_url)
    proxy.mode = Mode.SILENT

    async def request() -> int:
        async with db.session() as session:
            return (await session.execute(text("select 1"))).scalar_one()

    requests = [asyncio.create_task(request()) for _ in range(15)]
    async with asyncio.timeout(60):
        while db.stats().pool.waiting < 15:
            await asyncio.sleep(0)
        proxy.mode = Mode.PASS
        assert await asyncio.gather(*requests) == [1] * 15


async def test_a_slow_query_is_killed_and_the_connection_returned(
    make: MakeDatabase, pg: Observer, driver: str
) -> None:
    db = make(statement_timeout=0.3, pool_size=1, max_overflow=0)
    async with db.session() as session:
        pid = await backend_pid(session)
        with pytest.raises(steadypool.StatementTimeout) as caught:
            await session.execute(text("select pg_sleep(30)"))
        await session.rollback()
        assert await backend_pid(session) == pid, "the connection went back usable"
    assert not [backend for backend in await pg.backends() if backend.state == "active"]
    original = caught.value.orig
    names = {type(error).__name__ for error in (original, getattr(original, "__cause__", None))}
    assert names & {"QueryCanceledError", "QueryCanceled"}, names


async def test_two_kinds_of_work_have_their_own_timeouts(make: MakeDatabase) -> None:
    """The seed has one variable and recommends two values; here both hold at once."""
    db = make(statement_timeout=2.0)
    db.workload("uploads", statement_timeout=30.0)
    shown = {}
    for workload in (None, "uploads"):
        async with db.session(workload=workload) as session:
            shown[workload] = (await session.execute(text("show statement_timeout"))).scalar_one()
    assert shown == {None: "2s", "uploads": "30s"}


async def test_the_seeds_connect_args_reach_asyncpg(database_url: str) -> None:
    db = Database(DatabaseSettings(url=database_url.replace("postgresql://", "postgresql+asyncpg://")))
    seen: list[dict[str, Any]] = []

    def look(_dialect: Any, _record: Any, _args: Any, arguments: dict[str, Any]) -> None:
        seen.append(dict(arguments))

    event.listen(db.engine.sync_engine, "do_connect", look)
    async with db, db.session() as session:
        await backend_pid(session)
    (arguments,) = seen
    assert (arguments["statement_cache_size"], arguments["prepared_statement_cache_size"]) == (0, 0)
    first, second = (arguments["prepared_statement_name_func"]() for _ in range(2))
    assert first != second
    assert first.startswith("__asyncpg_")


async def test_the_diagnosis_runs_as_written(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = database_url.replace("postgresql://", "postgresql+asyncpg://")
    async with build_database(Settings(database=DatabaseSettings(url=url))) as database:
        with use_database(database):
            async with get_session_maker()() as session:
                await backend_pid(session)
                engine = get_engine()
                print(f"checked out: {engine.pool.checkedout()}")
                print(f"pool size: {engine.pool.size()}")
            async with contextlib.aclosing(get_db()) as sessions:
                async for session in sessions:
                    assert await backend_pid(session)
    assert capsys.readouterr().out == "checked out: 1\npool size: 10\n"


async def test_utilization_is_checked_out_over_pool_size(make: MakeDatabase) -> None:
    db = make(pool_size=2, max_overflow=2)
    async with db.session() as one, db.session() as two, db.session() as three:
        for session in (one, two, three):
            await backend_pid(session)
        assert db.stats().utilization == db.pool.checkedout() / 2 == 1.5


async def test_the_three_rates_to_watch_are_counted(
    make: MakeDatabase, proxied_url: str, proxy: FaultProxy
) -> None:
    db = make(url=proxied_url, pool_size=1, max_overflow=0, pool_timeout=0.2, statement_timeout=0.2)
    async with db.session() as session:
        await backend_pid(session)
        with pytest.raises(steadypool.PoolTimeout):
            async with db.session() as other:
                await backend_pid(other)
        with pytest.raises(steadypool.StatementTimeout):
            await session.execute(text("select pg_sleep(30)"))
    proxy.mode = Mode.REFUSE
    proxy.drop_all()
    for _ in range(2):  # the first meets the connection that broke, the second has to open one
        with steadypool.deadline(0.5), pytest.raises(steadypool.SteadypoolError):
            async with db.session() as session:
                await backend_pid(session)
    totals = db.stats().totals
    assert (totals.pool_timeouts, totals.statement_timeouts) == (1, 1)
    assert totals.connect_failures >= 1


def test_the_settings_are_where_the_seed_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_POOL_SIZE", "7")
    monkeypatch.setenv("LOGFIRE_ENABLED", "true")
    get_settings.cache_clear()
    try:
        settings = get_settings()
    finally:
        get_settings.cache_clear()
    assert (settings.database.pool_size, settings.database.max_overflow) == (7, 5)
    assert settings.observability.enabled is True
    assert (settings.queue.connect_timeout, settings.queue.heartbeat_interval) == (15.0, 5.0)
