"""Live queues where nothing can be heard: behind a pooler, without a driver that listens, and while watching."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from backend.services.live_queues import LiveQueues
from backend.services.queue_cache import Queue
from conditions import until
from steadypool import Database, DatabaseSettings
from steadypool.errors import ConfigurationError, NotificationsBlocked
from steadypool.listener import Gap, Notification

pytestmark = pytest.mark.anyio

DID = "did:plc:a"


class Script:
    """A subscription that says what it is told to."""

    def __init__(self) -> None:
        self.live = asyncio.Event()
        self.said: asyncio.Queue[Any] = asyncio.Queue()

    @property
    def is_live(self) -> bool:
        return self.live.is_set()

    def __aiter__(self) -> Script:
        return self

    async def __anext__(self) -> Any:
        thing = await self.said.get()
        if isinstance(thing, Exception):
            raise thing
        return thing


class Scripted(Database):
    def __init__(self, script: Script | Exception, idle_policy: str) -> None:
        super().__init__(DatabaseSettings(url="postgresql://nobody@127.0.0.1:1/x", idle_policy=idle_policy))
        self.script = script

    @asynccontextmanager
    async def listen(self, channel: str, **_: Any) -> AsyncGenerator[Any]:  # type: ignore[override]
        if isinstance(self.script, Exception):
            raise self.script
        yield self.script


@asynccontextmanager
async def live_queues(
    script: Script | Exception, idle_policy: str = "keep_awake"
) -> AsyncGenerator[LiveQueues]:
    async with LiveQueues(Scripted(script, idle_policy), poll_every=0.02) as live:
        yield live


async def test_behind_a_pooler_it_waits_until_it_hears(caplog: pytest.LogCaptureFixture) -> None:
    script = Script()
    async with live_queues(script) as live:
        for _ in range(2):
            script.said.put_nowait(NotificationsBlocked("a pooler"))
            await until(script.said.empty)
            await until(lambda: "a pooler" in caplog.text)
            assert not live.is_live
            script.live.set()
            await until(lambda: live.is_live)
            with live.watch(DID) as watch:
                script.said.put_nowait(Notification("queue_changes", f'{{"did": "{DID}", "revision": 1}}', 1))
                async with asyncio.timeout(60):
                    assert await watch.changed()
            script.live.clear()


async def test_without_a_listener_it_says_so_and_every_read_asks(caplog: pytest.LogCaptureFixture) -> None:
    async with live_queues(ConfigurationError("listening needs psycopg")) as live:
        await until(lambda: "listening needs psycopg" in caplog.text)
        assert not live.is_live
        with live.watch(DID) as watch:
            async with asyncio.timeout(60):
                assert await watch.changed()
                assert await watch.changed()
    assert [record.levelno for record in caplog.records if "psycopg" in record.message] == [logging.ERROR]


async def test_who_watches_a_database_that_may_sleep_does_not_keep_it_awake() -> None:
    async with live_queues(Script(), "allow_sleep") as live:
        with live.watch(DID) as watch:
            waiting = asyncio.create_task(watch.changed())
            await asyncio.sleep(0.2)  # ten times the pause after which it would look for itself
            assert not waiting.done()
            live.end_watches()
            assert await waiting is False


async def test_a_gap_is_told_to_everybody_and_a_change_to_those_it_concerns() -> None:
    script = Script()
    script.live.set()
    async with live_queues(script) as live:
        await until(lambda: live.is_live)
        with live.watch(DID) as one, live.watch("did:plc:b") as other:
            script.said.put_nowait(Notification("queue_changes", f'{{"did": "{DID}", "revision": 1}}', 1))
            await until(script.said.empty)
            await until(one.told.is_set)
            assert not other.told.is_set()
            script.said.put_nowait(Gap(0.0, 1.0, "silence"))
            await until(other.told.is_set)


async def test_a_watch_ends_after_its_time_and_with_the_service() -> None:
    script = Script()
    script.live.set()
    async with live_queues(script) as live:
        await until(lambda: live.is_live)
        with live.watch(DID) as watch:
            assert await watch.changed(0.01)
            live.end_watches()
            assert await watch.changed() is False
        assert not live._watches


class Committing:
    """A session whose COMMIT is answered after something else has happened."""

    def __init__(self, meanwhile: Callable[[], Awaitable[None]]) -> None:
        self._meanwhile = meanwhile

    async def commit(self) -> None:
        await self._meanwhile()


async def nothing() -> None: ...


async def test_what_a_commit_wrote_is_kept_if_nothing_newer_was_heard_before_its_answer() -> None:
    script = Script()
    script.live.set()
    async with live_queues(script) as live:
        await until(lambda: live.is_live)

        async def newer() -> None:
            with live.watch(DID) as watch:
                script.said.put_nowait(Notification("queue_changes", f'{{"did": "{DID}", "revision": 3}}', 1))
                await until(watch.told.is_set)

        async def gap() -> None:
            script.live.clear()
            await live._catch_up()
            script.live.set()

        async def commit(meanwhile: Callable[[], Awaitable[None]]) -> None:
            await live.commit(cast("AsyncSession", Committing(meanwhile)), DID, Queue({}, 2))

        for meanwhile in (newer, gap):
            await commit(meanwhile)
            assert live._cache.get(DID) is None, "others may have gone on from revision 2"
        await commit(nothing)
        assert live._cache.get(DID) == Queue({}, 2)
