"""The listener hears, notices when it does not, and says what may be missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

import steadypool
from steadypool import Database, DatabaseSettings, errors, events
from steadypool.listener import Gap, ListenerOptions, ListenerState, Notification, Subscription
from steadypool_lab.network.proxy import FaultProxy, Mode
from steadypool_lab.testing import Observer

pytestmark = pytest.mark.anyio

QUICK = ListenerOptions(connect_timeout=5.0, heartbeat_interval=0.3, heartbeat_timeout=1.5)
"""What is heard is looked at here; how soon silence is noticed, in tests/faults. The timeout is for busy machines."""


@pytest.fixture(params=["asyncpg", "psycopg"])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def db(driver: str, database_url: str, proxied_url: str) -> AsyncIterator[Database]:
    """Statements go straight to the server, the listener through a network that can fail."""
    settings = DatabaseSettings(
        url=database_url.replace("postgresql://", f"postgresql+{driver}://"), direct_url=proxied_url
    )
    async with Database(settings, listener=QUICK) as database:
        yield database


def reaches(db: Database, state: ListenerState) -> asyncio.Event:
    """Set when the listener gets there."""
    there = asyncio.Event()

    def look(event: events.Event) -> None:
        if isinstance(event, events.ListenerStateChanged) and event.after == state:
            there.set()

    db.events.subscribe(look)
    return there


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(60):
        await event.wait()


async def take(notifications: Subscription, seconds: float = 8.0) -> Notification | Gap:
    async with asyncio.timeout(seconds):
        return await anext(notifications)


async def test_hears_what_is_said(db: Database) -> None:
    async with db.listen("queue_changes") as notifications:
        await db.notify("queue_changes", "did:plc:1")
        heard = await take(notifications)
        assert isinstance(heard, Notification)
        assert (heard.channel, heard.payload) == ("queue_changes", "did:plc:1")
        stats = db.stats().listener
        assert stats is not None
        assert (stats.state, stats.channels, stats.subscribers) == ("connected", ("queue_changes",), 1)


async def test_a_transaction_that_rolls_back_says_nothing(db: Database) -> None:
    async with db.listen("changes") as notifications:
        async with db.session() as session:
            await db.notify("changes", "never", session=session)
        async with db.session() as session:
            await db.notify("changes", "committed", session=session)
            await session.commit()
        heard = await take(notifications)
        assert isinstance(heard, Notification)
        assert heard.payload == "committed"


async def test_many_channels_and_subscribers_share_one_connection(db: Database, pg: Observer) -> None:
    async with db.listen("one") as first, db.listen("two") as second, db.listen("two") as third:
        await db.notify("two", "x")
        assert [await take(second), await take(third)][0] == Notification("two", "x", (await take_pid(pg)))
        await db.notify("one", "y")
        heard = await take(first)
        assert isinstance(heard, Notification)
        assert heard.payload == "y"
    await db.notify("one", "nobody hears")
    stats = db.stats().listener
    assert stats is not None
    assert (stats.connects, stats.subscribers) == (1, 0)


async def take_pid(pg: Observer) -> int:
    return next(backend.pid for backend in await pg.backends() if "pg_notify" in backend.query)


async def test_silence_is_noticed_and_said(db: Database, proxy: FaultProxy) -> None:
    caught_up: list[str] = []

    async def catch_up() -> None:
        caught_up.append("again")

    async with db.listen("changes", catch_up=catch_up) as notifications:
        assert caught_up == ["again"]
        noticed = reaches(db, ListenerState.RECONNECTING)
        proxy.mode = Mode.SILENT
        await db.notify("changes", "lost")
        await soon(noticed)
        proxy.drop_all()
        proxy.mode = Mode.PASS
        gap = await take(notifications)
        assert isinstance(gap, Gap)
        assert "heartbeat" in gap.reason
        assert gap.until > gap.since
        assert caught_up == ["again", "again"]
        await db.notify("changes", "heard")
        heard = await take(notifications)
        assert isinstance(heard, Notification)
        assert heard.payload == "heard"
        stats = db.stats().listener
        assert stats is not None
        assert (stats.connects, stats.gaps) == (2, 1)


async def test_every_heartbeat_tells_its_lag(db: Database) -> None:
    told: list[events.ListenerHeartbeat] = []
    heard = asyncio.Event()

    def look(event: events.Event) -> None:
        if isinstance(event, events.ListenerHeartbeat):
            told.append(event)
            heard.set()

    db.events.subscribe(look, events.ListenerHeartbeat)
    async with db.listen("changes"):
        await soon(heard)
        assert told[0].seconds > 0
        assert (db.listener.stats().lag or 0.0) >= told[
            -1
        ].seconds  # more if the next one is on its way already


async def test_a_killed_backend_is_replaced(db: Database, pg: Observer) -> None:
    async with db.listen("changes") as notifications:
        await pg.terminate()
        assert isinstance(await take(notifications), Gap)
        await db.notify("changes", "heard")
        heard = await take(notifications)
        assert isinstance(heard, Notification)


async def test_begins_before_its_database(db: Database, proxy: FaultProxy) -> None:
    proxy.mode = Mode.REFUSE
    async with db.listen("changes") as notifications:
        assert db.listener.state is ListenerState.STARTING
        proxy.mode = Mode.PASS
        assert isinstance(await take(notifications), Gap)
        await db.notify("changes", "heard")
        assert isinstance(await take(notifications), Notification)


async def test_a_slow_subscriber_learns_what_it_missed(db: Database) -> None:
    async with (
        db.listen("changes", buffer=3) as oldest,
        db.listen("changes", overflow="conflate") as conflated,
        db.listen("last") as last,
    ):
        for number in range(10):
            await db.notify("changes", str(number))
        await db.notify("changes", "9")
        await db.notify("last", "")
        heard = await take(last)  # notifications arrive in order
        assert isinstance(heard, Notification)
        assert isinstance(await take(oldest), Gap)
        kept = [await take(oldest) for _ in range(3)]
        assert [heard.payload for heard in kept if isinstance(heard, Notification)] == ["8", "9", "9"]
        assert len(conflated.mailbox) == 10


async def test_ten_thousand_at_once(db: Database) -> None:
    async with db.listen("changes", buffer=20_000) as notifications:
        async with db.session() as session:
            await session.execute(
                text("select pg_notify('changes', n::text) from generate_series(1, 10000) n")
            )
            await session.commit()
        heard = [await take(notifications) for _ in range(10_000)]
        assert [n.payload for n in heard if isinstance(n, Notification)] == [str(n) for n in range(1, 10_001)]


async def test_dormant_until_somebody_comes(driver: str, database_url: str, pg: Observer) -> None:
    url = database_url.replace("postgresql://", f"postgresql+{driver}://")
    options = ListenerOptions(heartbeat_interval=0.1, dormant_after=0.2)
    async with Database(DatabaseSettings(url=url), listener=options) as db:
        dormant = reaches(db, ListenerState.DORMANT)
        async with db.listen("changes") as notifications:
            await soon(dormant)
            assert not [backend for backend in await pg.backends() if "NOTIFY" in backend.query]
            async with db.session() as session:
                await session.execute(text("select 1"))
            gap = await take(notifications)
            assert isinstance(gap, Gap)
            assert "sleep" in gap.reason
            await db.notify("changes", "heard")
            assert isinstance(await take(notifications), Notification)


async def test_refuses_what_postgres_would(db: Database) -> None:
    with pytest.raises(steadypool.ConfigurationError, match="7,999"):
        await db.notify("changes", "x" * 8000)
    await db.notify("changes", "x" * 7999)
    with pytest.raises(steadypool.ConfigurationError, match="63 bytes"):
        await db.notify("x" * 64)
    with pytest.raises(steadypool.ConfigurationError):
        async with db.listen(""):
            pass


async def test_close_ends_the_iteration(db: Database) -> None:
    async def consume() -> int:
        return len([heard async for heard in notifications])

    async with db.listen("changes") as notifications:
        task = asyncio.create_task(consume())
        await asyncio.sleep(0)
        await db.close()
        assert await task == 0
    with pytest.raises(errors.PoolClosed):
        async with db.listen("changes"):
            pass
