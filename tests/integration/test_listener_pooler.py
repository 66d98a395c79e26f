"""LISTEN behind PgBouncer: refused where it would hear nothing, past it where that is set, through it where it can."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import psycopg
import pytest

from steadypool import Database, DatabaseSettings, errors
from steadypool.listener import Gap, ListenerOptions, ListenerState, Notification, Subscription

from .poolers import pgbouncer

pytestmark = pytest.mark.anyio

QUICK = ListenerOptions(connect_timeout=5.0, heartbeat_interval=0.2, heartbeat_timeout=1.5)


@asynccontextmanager
async def database(url: str, direct_url: str | None = None) -> AsyncIterator[Database]:
    settings = DatabaseSettings(
        url=url.replace("postgresql://", "postgresql+psycopg://"), direct_url=direct_url
    )
    async with Database(settings, listener=QUICK) as db:
        yield db


async def take(notifications: Subscription) -> Notification | Gap:
    async with asyncio.timeout(60):
        return await anext(notifications)


async def test_listen_seems_to_work_behind_a_transaction_pooler(database_url: str) -> None:
    """Why it has to be proven from elsewhere: the server itself says that it listens."""
    async with pgbouncer(database_url, "transaction") as url:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as one:
            await one.execute("listen changes")
            async with await psycopg.AsyncConnection.connect(url, autocommit=True) as other:
                cursor = await other.execute("select pg_listening_channels()")
                assert await cursor.fetchall() == [("changes",)]  # it asks the same backend


async def test_refused_with_the_name_of_the_setting_that_helps(database_url: str) -> None:
    async with pgbouncer(database_url, "transaction") as url, database(url) as db:
        async with db.listen("changes") as notifications:
            with pytest.raises(errors.NotificationsBlocked, match="DATABASE_DIRECT_URL"):
                await take(notifications)
            assert db.listener.state is ListenerState.DEAF
            assert not notifications.is_live
            async with db.listen("others") as later:
                with pytest.raises(errors.NotificationsBlocked, match="DATABASE_DIRECT_URL"):
                    await take(later)
            stats = db.stats().listener
            assert stats is not None
            assert "DATABASE_DIRECT_URL" in (stats.last_error or "")


async def test_the_direct_url_goes_past_it(database_url: str) -> None:
    async with pgbouncer(database_url, "transaction") as url, database(url, database_url) as db:
        async with db.listen("changes") as notifications:
            connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
            async with connection:
                await connection.execute("select pg_notify('changes', 'through the pooler')")
            heard = await take(notifications)
            assert isinstance(heard, Notification)
            assert heard.payload == "through the pooler"


async def test_a_session_pooler_passes_them_on(database_url: str) -> None:
    async with pgbouncer(database_url, "session") as url, database(url, url) as db:
        async with db.listen("changes") as notifications:
            async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
                await connection.execute("select pg_notify('changes', 'heard')")
            heard = await take(notifications)
            assert isinstance(heard, Notification)
            assert db.listener.state is ListenerState.CONNECTED


async def test_deaf_later_and_hearing_again(database_url: str) -> None:
    """A failover leads to another pooler: the listener says so, and hears again once that is undone."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"{database_url.rpartition('@')[0]}@127.0.0.1:{port}{urlsplit(database_url).path}"
    async with database(database_url, url) as db:
        async with pgbouncer(database_url, "session", port):
            entered = db.listen("changes")
            notifications = await entered.__aenter__()
            assert notifications.is_live
        async with pgbouncer(database_url, "transaction", port):
            with pytest.raises(errors.NotificationsBlocked):
                while True:
                    assert isinstance(await take(notifications), Gap)
            assert db.listener.state is ListenerState.DEAF
        async with pgbouncer(database_url, "session", port):
            async with asyncio.timeout(60):
                await notifications.live.wait()
            assert isinstance(await take(notifications), Gap)
            await db.notify("changes", "heard")
            assert isinstance(await take(notifications), Notification)
        await entered.__aexit__(None, None, None)
