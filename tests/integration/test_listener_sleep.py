"""DATABASE_IDLE_POLICY: an idle application keeps its database awake, or lets it sleep and loses nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import psycopg
import pytest
from sqlalchemy import text

from steadypool import Database, DatabaseSettings
from steadypool.listener import Gap, ListenerOptions, ListenerState, Notification, Subscription
from steadypool.listener.config import options_for
from steadypool.settings import LET_GO_AFTER
from steadypool_lab import FaultProxy, SuspendingPostgres
from steadypool_lab.network.proxy import Mode
from steadypool_lab.suspending import PowerState

pytestmark = pytest.mark.anyio

SLEEP_AFTER = 1.5


@pytest.fixture
async def sleepy(anyio_backend: str) -> AsyncIterator[SuspendingPostgres]:
    async with SuspendingPostgres(sleep_after=SLEEP_AFTER, wake=0.2) as server:
        yield server


def database(url: str, options: ListenerOptions) -> Database:
    settings = DatabaseSettings(url=url.replace("postgresql://", "postgresql+asyncpg://"))
    return Database(settings, listener=options)


async def take(notifications: Subscription) -> Notification | Gap:
    async with asyncio.timeout(60):
        return await anext(notifications)


async def until_asleep(server: SuspendingPostgres, seconds: float) -> None:
    end = time.monotonic() + seconds
    while server.state is not PowerState.ASLEEP:
        assert time.monotonic() < end, server.state
        await asyncio.sleep(0.02)


def test_the_policy_makes_the_times() -> None:
    assert options_for(DatabaseSettings(url="postgresql://a@b/c")) == ListenerOptions()
    allowed = DatabaseSettings(url="postgresql://a@b/c", idle_policy="allow_sleep")
    assert options_for(allowed) == ListenerOptions(dormant_after=LET_GO_AFTER)
    assert LET_GO_AFTER <= 60  # providers suspend after 60 s at the earliest, most after 5 minutes
    assert options_for(allowed.replace(pool_idle_timeout=20)).dormant_after == 20


async def test_the_policy_of_the_settings_is_the_databases(database_url: str) -> None:
    async with Database(DatabaseSettings(url=database_url, idle_policy="allow_sleep")) as db:
        async with db.listen("changes"):
            assert db.listener.options.dormant_after == LET_GO_AFTER


async def test_keep_awake_keeps_it_awake(sleepy: SuspendingPostgres) -> None:
    options = ListenerOptions(heartbeat_interval=0.3)
    async with database(sleepy.url, options) as db, db.listen("changes"):
        await asyncio.sleep(SLEEP_AFTER * 2)
        assert sleepy.knocks.suspends == 0


async def test_allow_sleep_lets_it_sleep_and_wakes_with_the_first_request(sleepy: SuspendingPostgres) -> None:
    options = ListenerOptions(heartbeat_interval=0.2, dormant_after=0.5)
    caught_up = 0

    async def catch_up() -> None:
        nonlocal caught_up
        caught_up += 1

    async with database(sleepy.url, options) as db, db.listen("changes", catch_up=catch_up) as notifications:
        await db.notify("changes", "awake")
        assert isinstance(await take(notifications), Notification)
        await until_asleep(sleepy, SLEEP_AFTER * 4)
        assert db.listener.state is ListenerState.DORMANT
        assert not notifications.is_live
        attempts = sleepy.knocks.attempts
        await asyncio.sleep(SLEEP_AFTER)
        assert sleepy.knocks.attempts == attempts  # it stays asleep: nobody knocks
        # somebody else wakes it, changes something, and says so to nobody
        async with await psycopg.AsyncConnection.connect(sleepy.url, autocommit=True) as other:
            await other.execute("notify changes, 'missed'")
        assert db.listener.state is ListenerState.DORMANT
        async with db.session() as session:
            await session.execute(text("select 1"))
        told = await take(notifications)
        assert isinstance(told, Gap)
        assert "sleep" in told.reason
        assert caught_up == 2
        await db.notify("changes", "heard")
        heard = await take(notifications)
        assert isinstance(heard, Notification)
        assert heard.payload == "heard"


async def test_the_heartbeat_goes_along_with_use_only(
    database_url: str, proxied_url: str, proxy: FaultProxy
) -> None:
    settings = DatabaseSettings(url=database_url, direct_url=proxied_url)
    options = ListenerOptions(heartbeat_interval=0.1, heartbeat_timeout=0.3, dormant_after=60)
    async with Database(settings, listener=options) as db, db.listen("changes") as notifications:
        await asyncio.sleep(0.5)
        sent = proxy.bytes_up
        await asyncio.sleep(0.5)
        assert proxy.bytes_up == sent
        proxy.mode = Mode.SILENT
        await asyncio.sleep(0.6)
        assert notifications.is_live  # nobody asked, nobody knows
        async with db.session() as session:
            await session.execute(text("select 1"))
        end = time.monotonic() + 3
        while notifications.is_live:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)


async def test_who_may_sleep_does_not_knock_at_a_database_that_is_gone(
    database_url: str, proxied_url: str, proxy: FaultProxy
) -> None:
    settings = DatabaseSettings(url=database_url, direct_url=proxied_url)
    options = ListenerOptions(heartbeat_interval=0.1, heartbeat_timeout=0.3, dormant_after=0.4)
    async with Database(settings, listener=options) as db:
        proxy.mode = Mode.RESET
        async with db.listen("changes") as notifications:
            end = time.monotonic() + 5
            while db.listener.state is not ListenerState.DORMANT:
                assert time.monotonic() < end
                await asyncio.sleep(0.01)
            knocks = proxy.accepted
            await asyncio.sleep(0.5)
            assert proxy.accepted == knocks
            proxy.mode = Mode.PASS
            async with db.session() as session:
                await session.execute(text("select 1"))
            assert isinstance(await take(notifications), Gap)


async def test_an_idle_application_lets_the_database_sleep_and_loses_nothing(
    sleepy: SuspendingPostgres,
) -> None:
    """Pool and listener both let go; the first request wakes both."""
    settings = DatabaseSettings(
        url=sleepy.url.replace("postgresql://", "postgresql+asyncpg://"),
        idle_policy="allow_sleep",
        pool_idle_timeout=0.3,
    )
    async with Database(settings) as db, db.listen("changes") as notifications:
        async with db.session() as session:
            await session.execute(text("select 1"))
        await until_asleep(sleepy, 15)
        assert db.stats().pool.idle == 0
        async with db.session() as session:
            await db.notify("changes", "awake", session=session)
            await session.commit()
        heard = await take(notifications)
        assert isinstance(heard, Gap | Notification)
