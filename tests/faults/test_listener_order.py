"""LISTEN, then catching up, then delivery: whatever happens in between, and whoever comes and goes."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from conditions import until
from steadypool import Database, DatabaseSettings, deadline, errors
from steadypool.listener import ListenerState, Notification, Subscription
from steadypool_lab import EmbeddedPostgres
from steadypool_lab.network.proxy import FaultProxy, Mode
from steadypool_lab.testing import Observer

from .listening import QUICK, gap, listening, payload, take, until_heard

pytestmark = pytest.mark.anyio


@pytest.fixture
async def db(database_url: str, proxied_url: str) -> AsyncIterator[Database]:
    async with listening(database_url, proxied_url) as database:
        yield database


class Gate:
    """A catch-up function that can be made to wait, or to fail."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.entered = asyncio.Event()
        self.calls = 0
        self.failures: list[Exception] = []

    async def __call__(self) -> None:
        self.calls += 1
        self.entered.set()
        if self.failures:
            raise self.failures.pop(0)
        await self.open.wait()

    def shut(self) -> None:
        self.open.clear()
        self.entered.clear()


async def test_who_subscribes_while_another_catches_up_is_heard_too(db: Database) -> None:
    gate = Gate()
    gate.shut()

    async def first() -> None:
        async with db.listen("one", catch_up=gate) as notifications:
            assert await payload(notifications) == "x"

    task = asyncio.create_task(first())
    await gate.entered.wait()
    async with db.listen("two") as notifications:
        await db.notify("two", "y")
        assert await payload(notifications) == "y"
        assert db.listener.state is ListenerState.STARTING  # somebody has not caught up yet
        gate.open.set()
        await until(lambda: db.listener.state is ListenerState.CONNECTED)
        await db.notify("one", "x")
        await task


async def test_what_is_said_while_a_later_subscriber_catches_up_comes_afterwards(db: Database) -> None:
    async with db.listen("changes") as witness:

        async def catch_up() -> None:
            await db.notify("changes", "meanwhile")
            assert await payload(witness) == "meanwhile"

        async with db.listen("changes", catch_up=catch_up) as notifications:
            assert await payload(notifications) == "meanwhile"


async def test_nothing_is_delivered_before_the_catch_up_ends(db: Database, pg: Observer) -> None:
    gate = Gate()
    async with db.listen("changes", catch_up=gate) as notifications, db.listen("changes") as witness:
        gate.shut()
        await _end_listening(pg)
        await gate.entered.wait()
        taking = asyncio.create_task(take(notifications))
        await gap(witness)
        for word in ("1", "2", "3"):
            await until_heard(db, witness, "changes", word)
        assert not taking.done()
        assert not notifications.is_live
        gate.open.set()
        missed = await taking
        assert "57P01" in missed.reason, missed  # type: ignore[union-attr]
        assert [await payload(notifications) for _ in range(3)] == ["1", "2", "3"]
        assert notifications.is_live


async def test_a_catch_up_that_fails_is_told_and_tried_again(
    db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    gate.failures = [ValueError("boom"), TimeoutError()]
    async with db.listen("changes", catch_up=gate) as notifications:
        assert gate.calls == 3
        told = await gap(notifications)
        assert "boom" in told.reason
        assert "TimeoutError" in told.reason
        await db.notify("changes", "heard")
        assert await payload(notifications) == "heard"
        assert notifications.is_live


async def test_a_catch_up_that_hangs_is_given_up_and_tried_again(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0

    async def catch_up() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.Event().wait()

    options = type(QUICK)(catch_up_timeout=0.2, heartbeat_interval=0.2)
    async with (
        listening(database_url, options=options) as db,
        db.listen("changes", catch_up=catch_up) as notifications,
    ):
        assert "TimeoutError" in (await gap(notifications)).reason
        assert calls == 2


async def test_a_catch_up_that_hangs_stops_nobody_else(db: Database, proxy: FaultProxy) -> None:
    gate = Gate()
    gate.shut()
    async with db.listen("slow", catch_up=gate), db.listen("changes") as notifications:
        await until_heard(db, notifications, "changes", "before")
        proxy.mode = Mode.SILENT  # the heartbeat goes on, although somebody catches up for ever
        await until(lambda: not notifications.is_live)
        proxy.drop_all()
        proxy.mode = Mode.PASS
        assert len(await until_heard(db, notifications, "changes", "after")) == 1


async def test_a_catch_up_may_use_the_database_long_after_the_first_request(
    db: Database, pg: Observer
) -> None:
    done = 0

    async def catch_up() -> None:
        nonlocal done
        async with db.session() as session:
            await session.execute(text("select 1"))
        done += 1

    with deadline(0.5):
        entered = db.listen("changes", catch_up=catch_up)
        notifications = await entered.__aenter__()
    try:
        await asyncio.sleep(0.6)
        await _end_listening(pg)
        await gap(notifications)
        assert done == 2
    finally:
        await entered.__aexit__(None, None, None)


async def test_of_two_subscribers_one_leaves(db: Database) -> None:
    async with db.listen("changes") as stays:
        async with db.listen("changes"):
            pass
        await db.notify("changes", "still")
        assert await payload(stays) == "still"
    assert db.listener.stats().channels == ()
    async with db.listen("changes") as back:
        await db.notify("changes", "again")
        assert await payload(back) == "again"
    assert db.listener.stats().connects == 1


async def test_coming_and_going_while_connections_die(db: Database, proxy: FaultProxy) -> None:
    """Whatever order they come in, who is live hears what is said from then on, or is told of a gap."""
    rng = random.Random(5)

    async def harass() -> None:
        while True:
            await asyncio.sleep(rng.uniform(0.3, 0.9))
            proxy.drop_all(reset=rng.random() < 0.5)

    harassing = asyncio.create_task(harass())

    try:
        await asyncio.gather(*(_repeating(db, number, rng) for number in range(8)))
    finally:
        harassing.cancel()
    assert db.listener.stats().subscribers == 0
    assert not db.listener._joining


async def _repeating(db: Database, number: int, rng: random.Random) -> None:
    for round_ in range(12):
        channel = f"c{rng.randrange(3)}"
        async with asyncio.timeout(60), db.listen(channel) as notifications:
            word = f"{number}.{round_}"
            await notifications.live.wait()
            await db.notify(channel, word)
            while True:
                heard = await anext(notifications)
                if isinstance(heard, Notification):
                    if heard.payload == word:
                        break
                else:
                    await db.notify(channel, word)  # it may be what was lost


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 13, 21, 34])
async def test_cancelled_anywhere(db: Database, steps: int) -> None:
    async def subscriber() -> None:
        async with db.listen("changes", catch_up=Gate()) as notifications:
            await anext(notifications)

    for already_connected in (False, True):
        task = asyncio.create_task(subscriber())
        for _ in range(steps):
            await asyncio.sleep(0 if already_connected else 0.001)
        task.cancel()
        await asyncio.wait({task})
        assert db.listener is not None
        assert db.listener.stats().subscribers == 0
        async with db.listen("changes") as notifications:
            await db.notify("changes", "heard")
            assert await payload(notifications) == "heard"
    assert not db.listener._joining


async def test_close_while_it_connects(db: Database, proxy: FaultProxy) -> None:
    proxy.mode = Mode.SILENT

    async def subscriber() -> list[object]:
        async with db.listen("changes") as notifications:
            return [heard async for heard in notifications]

    task = asyncio.create_task(subscriber())
    await until(lambda: proxy.accepted)
    async with asyncio.timeout(1.0):
        await db.listener.close()
        assert await task == []
        await until(lambda: proxy.open == 0)  # the proxy has to hear of it


async def test_a_catch_up_may_close_the_database(db: Database, pg: Observer) -> None:
    async def catch_up() -> None:
        await db.close()

    async with asyncio.timeout(60):
        async with db.listen("changes", catch_up=catch_up) as notifications:
            assert [heard async for heard in notifications] == []
    await pg.wait_until(pg.is_quiet)


async def test_leaves_no_descriptors_behind(db: Database, pg: Observer) -> None:
    async with db.listen("changes") as notifications:
        await until_heard(db, notifications, "changes", "begin")
        before = len(os.listdir("/proc/self/fd"))
        for number in range(4):
            await _end_listening(pg)
            await gap(notifications)
            await until_heard(db, notifications, "changes", str(number))
        assert len(os.listdir("/proc/self/fd")) <= before


async def _end_listening(pg: Observer) -> None:
    """Kill the listening backend."""
    found = [
        backend.pid for backend in await pg.backends() if backend.application_name == "steadypool listener"
    ]
    assert found
    await pg.terminate(*found)


def test_an_event_loop_that_ends_without_a_close(server: EmbeddedPostgres, database_url: str) -> None:
    settings = DatabaseSettings(url=database_url)

    async def forgetful() -> Subscription:
        db = Database(settings, listener=QUICK)
        notifications = await db.listen("changes").__aenter__()
        assert notifications.is_live
        return notifications

    kept = asyncio.run(forgetful())
    assert kept.mailbox.resume() is None
    del kept
    gc.collect()  # a connection left open would complain here


async def test_belongs_to_one_event_loop(db: Database) -> None:
    caught: list[BaseException] = []

    async def elsewhere() -> None:
        async with db.listen("changes"):
            pass

    def run() -> None:
        try:
            asyncio.run(elsewhere())
        except errors.WrongEventLoop as error:
            caught.append(error)

    async with db.listen("changes"):
        thread = threading.Thread(target=run)
        thread.start()
        await asyncio.to_thread(thread.join)
    assert len(caught) == 1


async def test_a_closed_database_hears_nothing(database_url: str) -> None:
    async with listening(database_url) as db:
        pass
    with pytest.raises(errors.PoolClosed):
        db.listen("changes")


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
async def test_databases_in_other_encodings(server: EmbeddedPostgres, pg: Observer, encoding: str) -> None:
    name = f"other_{encoding.lower()}_{os.getpid()}"
    await pg.fetch(
        f"create database {name} encoding '{encoding}' locale 'C' template template0"  # type: ignore[arg-type]
    )
    url = server.blocking.database_url(name)
    try:
        async with listening(url) as db, db.listen("känal") as notifications:
            await db.notify("känal", "größe")
            assert await payload(notifications) == "größe"
            if encoding == "SQL_ASCII":
                async with db.session() as session:
                    await session.execute(text(r"select pg_notify('känal', E'\xff')"))
                    await session.commit()
                assert (await payload(notifications)).encode(errors="surrogateescape") == b"\xff"
            await db.notify("känal", "and on")
            assert await payload(notifications) == "and on"
    finally:
        await server.drop_database(name)


def test_without_psycopg_everything_but_listening_works(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("psycopg", "psycopg_binary"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing())
from steadypool import ConfigurationError, Database, DatabaseSettings
db = Database(DatabaseSettings(url="postgresql+asyncpg://app@localhost/app"))
try:
    db.listen("changes")
except ConfigurationError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "steadypool[psycopg]" in ran.stdout, ran.stderr


async def test_who_caught_up_on_a_connection_that_is_gone_does_not_hear(
    db: Database, proxy: FaultProxy
) -> None:
    calls = 0

    async def catch_up() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            wire = db.listener._wire
            assert wire is not None
            wire.close()

    async with db.listen("changes", catch_up=catch_up) as notifications:
        await until(lambda: notifications.is_live)
        assert calls == 2


async def test_one_who_never_catches_up_does_not_make_the_listener_look_broken(
    db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async def catch_up() -> None:
        raise ValueError("always")

    async with db.listen("one", catch_up=catch_up) as broken, db.listen("two") as notifications:
        assert "always" in (await gap(broken)).reason
        await until_heard(db, notifications, "two", "heard")
        await until(lambda: db.listener.state is ListenerState.CONNECTED)
        assert not broken.is_live
        assert db.listener.stats().behind == 1
