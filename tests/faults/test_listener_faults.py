"""The listener on networks that go silent, servers that come and go, and event loops that are busy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from conditions import until
from steadypool import Database, errors, events
from steadypool.listener import Gap, ListenerOptions, ListenerState
from steadypool.pool.circuit_breaker import BreakerState
from steadypool.pool.lease import EntryState
from steadypool_lab import EmbeddedPostgres, FaultProxy
from steadypool_lab.network.proxy import Mode
from steadypool_lab.testing import Observer

from .kit import ask, password_of
from .listening import QUICK, States, gap, listening, payload, take, until_heard

pytestmark = pytest.mark.anyio


@pytest.fixture
async def db(database_url: str, proxied_url: str) -> AsyncIterator[Database]:
    async with listening(database_url, proxied_url) as database:
        yield database


def test_silence_is_noticed_within_seven_seconds_by_default() -> None:
    options = ListenerOptions()
    assert options.heartbeat_interval + options.heartbeat_timeout <= 7.0
    assert options.connect_timeout == 15.0


async def test_silence_is_noticed_within_interval_and_timeout(db: Database, proxy: FaultProxy) -> None:
    async with db.listen("changes") as notifications:
        await until_heard(db, notifications, "changes", "begin")
        for _ in range(3):
            proxy.mode = Mode.SILENT
            noticed = await until(lambda: not notifications.is_live)
            assert noticed < QUICK.heartbeat_interval + QUICK.heartbeat_timeout + 0.5
            proxy.drop_all()
            proxy.mode = Mode.PASS
            await gap(notifications)


async def test_a_gap_begins_before_what_was_lost(db: Database, proxy: FaultProxy) -> None:
    """A notification that was on its way when the network went silent is inside the gap, whatever was heard later."""
    async with db.listen("changes") as notifications:
        await until_heard(db, notifications, "changes", "begin")
        proxy.delay = 0.05
        beats = db.listener._heartbeat
        for _ in range(3):
            known = beats.proven_at
            await until(lambda: beats.proven_at > known)  # noqa: B023
            said_at = time.monotonic()
            await db.notify("changes", "lost")
            proxy.mode = Mode.SILENT
            proxy.drop_all()
            lost_at = time.monotonic()
            proxy.mode = Mode.PASS
            told = await gap(notifications)
            assert told.since <= said_at
            assert told.until >= lost_at
            assert told.since >= known  # and it does not begin at the beginning of time


async def test_a_blocked_event_loop_is_not_silence(db: Database, proxy: FaultProxy) -> None:
    proxy.delay = 0.03  # so that a heartbeat is nearly always on its way
    options = ListenerOptions(heartbeat_interval=0.02, heartbeat_timeout=0.3)
    async with (
        listening(db.settings.require_url(), db.settings.require_direct_url(), options) as other,
        other.listen("changes") as notifications,
    ):
        await until_heard(other, notifications, "changes", "begin")
        begun = other.listener.stats()
        for number in range(6):
            await asyncio.sleep(0.011 * number)
            time.sleep(0.4)  # noqa: ASYNC251 - that is the point
        await other.notify("changes", "heard")
        assert await payload(notifications) == "heard"
        assert (other.listener.stats().connects, other.listener.stats().gaps) == (1, begun.gaps)


async def test_a_heartbeat_behind_a_flood_is_late_and_not_missed(db: Database, proxy: FaultProxy) -> None:
    async with db.listen("changes", buffer=100_000) as notifications:
        stop = asyncio.Event()

        async def flood() -> None:
            while not stop.is_set():
                async with db.session() as session:
                    await session.execute(
                        text(
                            "select pg_notify('changes', n::text || repeat('x', 200)) from generate_series(1, 2000) n"
                        )
                    )
                    await session.commit()

        proxy.delay = 0.15
        flooding = asyncio.create_task(flood())
        end = time.monotonic() + 2.0
        heard = 0
        while time.monotonic() < end:
            assert not isinstance(await take(notifications), Gap)
            heard += 1
        stop.set()
        await flooding
        assert heard > 1000
        assert db.listener.stats().connects == 1


@pytest.mark.parametrize("way", ["fast", "immediate", "kill"])
async def test_the_server_comes_back(restartable: EmbeddedPostgres, way: str) -> None:
    caught_up = 0

    async def catch_up() -> None:
        nonlocal caught_up
        caught_up += 1

    async with listening(restartable.url) as db, db.listen("changes", catch_up=catch_up) as notifications:
        await until_heard(db, notifications, "changes", "before")
        if way == "kill":
            await restartable.kill()
            await restartable.restart()
        else:
            await restartable.restart("fast" if way == "fast" else "immediate")
        told = await gap(notifications, 20)
        assert told.reason
        await until(lambda: notifications.is_live)
        assert caught_up >= 2
        await until_heard(db, notifications, "changes", "after")


async def test_a_pause_is_cut_short_when_the_pool_connects(db: Database, proxy: FaultProxy) -> None:
    class Longest:
        def uniform(self, _low: float, high: float) -> float:
            return high

    proxy.mode = Mode.REFUSE
    db.listener._backoff.rng = Longest()  # type: ignore[assignment]
    db.listener._backoff.attempts = 20  # it has been down for long: the pauses are 30 s
    async with db.listen("changes") as notifications:
        await until(lambda: db.listener.stats().last_error)
        proxy.mode = Mode.PASS
        assert await ask(db) == 1
        assert "started late" in (await gap(notifications)).reason


async def test_every_attempt_says_what_it_died_of(db: Database, proxy: FaultProxy) -> None:
    """Nothing that ends in a bare TimeoutError has an empty message."""
    proxy.mode = Mode.SILENT
    async with db.listen("changes"):
        await until(lambda: db.listener.stats().last_error)
        assert "s; it was connecting" in (db.listener.stats().last_error or "")
        proxy.mode = Mode.PASS


async def test_what_connects_and_dies_is_not_tried_in_a_hurry(restartable: EmbeddedPostgres) -> None:
    async with FaultProxy("127.0.0.1", restartable.port) as proxy:
        through = restartable.url.replace(f":{restartable.port}/", f":{proxy.port}/")
        async with listening(restartable.url, through) as db:
            db.events.subscribe(
                lambda event: (
                    proxy.drop_all()
                    if isinstance(event, events.ListenerStateChanged)
                    and event.after == ListenerState.CONNECTED
                    else None
                )
            )
            async with db.listen("changes"):
                await asyncio.sleep(1.2)
                # without growing pauses there were hundreds
                assert 2 <= db.listener.stats().connects <= 20
                assert db.listener._backoff.attempts >= 2


async def test_a_missed_heartbeat_makes_the_pool_prove_its_connections(
    server: EmbeddedPostgres, database_url: str, proxied_url: str, proxy: FaultProxy
) -> None:
    """The seed: "detects connection death before user requests fail". No request meets the dead connections."""
    async with FaultProxy("127.0.0.1", server.port) as other:
        through = database_url.replace(f":{server.port}/", f":{other.port}/")
        async with listening(
            proxied_url, through, pool_size=3, max_overflow=0, ping_after_idle=60, connection_timeout=2
        ) as db:
            core = db.pool.core
            changes: list[tuple[str, str]] = []
            db.events.subscribe(
                lambda event: (
                    changes.append((event.before, event.after))
                    if isinstance(event, events.BreakerChanged)
                    else None
                )
            )
            async with db.listen("changes") as notifications:
                assert await db.warm_up(3) == 3
                first = [connection.number for connection in core.connections().connections]
                proxy.mode = other.mode = Mode.SILENT
                await until(lambda: not notifications.is_live)
                assert db.stats().breaker is BreakerState.OPEN
                await until(lambda: not core.count(EntryState.IDLE, EntryState.PROVING, EntryState.SILENT))
                assert [connection.leases for connection in core.connections().connections] <= [1, 1, 1]
                proxy.drop_all()
                other.drop_all()
                proxy.mode = other.mode = Mode.PASS
                await gap(notifications)
                assert db.stats().breaker is BreakerState.CLOSED
                assert await ask(db) == 1
                assert not {c.number for c in core.connections().connections} & set(first)
            assert changes[:2] == [("closed", "open"), ("open", "closed")]


async def test_an_observer_that_raises_does_not_stop_it(
    db: Database, pg: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(_event: object) -> None:
        raise RuntimeError("a bug")

    db.events.subscribe(raises)

    def lost(_error: Exception) -> None:
        raise RuntimeError("another bug")

    async with db.listen("changes") as notifications:
        db.listener._on_lost = lost
        await pg.terminate()
        await gap(notifications)
        await until_heard(db, notifications, "changes", "heard")


async def test_gaps_are_told_to_everybody(
    db: Database, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[events.ListenerGap] = []
    db.events.subscribe(lambda event: told.append(event) if isinstance(event, events.ListenerGap) else None)
    states = States(db)
    async with db.listen("changes", buffer=2) as notifications:
        await until_heard(db, notifications, "changes", "begin")
        proxy.drop_all()
        reconnected = await gap(notifications)
        await states.reach(ListenerState.RECONNECTING)
        assert [(event.channel, event.since, event.reason) for event in told] == [
            ("changes", reconnected.since, reconnected.reason)
        ]
        assert reconnected.reason in caplog.text
        await until(lambda: notifications.is_live)
        for number in range(5):
            await db.notify("changes", str(number))
        await until(lambda: db.listener.stats().dropped == 3)
        assert len(told) == 2  # one gap, however much was dropped into it
        assert db.listener.stats().gaps == 2
        assert (db.stats().totals.listener_gaps, db.stats().totals.listener_reconnects) == (2, 1)
        assert "slow subscriber" in (await gap(notifications)).reason
        assert db.listener.stats().waiting == 2
    assert db.listener.stats().dropped == 3  # whoever leaves takes nothing out of the count


async def test_a_wrong_password_is_an_error_that_is_told(database_url: str) -> None:
    wrong = database_url.replace("postgres:", "postgres:not", 1)
    assert wrong != database_url
    async with listening(database_url, wrong) as db, db.listen("changes"):
        await until(lambda: db.listener.stats().last_error)
        assert "password" in (db.listener.stats().last_error or "")
        assert password_of(wrong) not in (db.listener.stats().last_error or "")


async def test_heartbeats_refused_by_the_server_say_so(db: Database) -> None:
    with pytest.raises(errors.ConfigurationError, match="heartbeat_interval"):
        ListenerOptions(heartbeat_interval=0)
    with pytest.raises(errors.ConfigurationError, match="buffer"):
        async with db.listen("changes", buffer=0):
            pass
