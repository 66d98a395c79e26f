"""What the listener's tests share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from steadypool import Database, DatabaseSettings, events
from steadypool.listener import Gap, ListenerOptions, ListenerState, Notification, Subscription

QUICK = ListenerOptions(
    connect_timeout=5.0, heartbeat_interval=0.2, heartbeat_timeout=1.5, catch_up_timeout=10.0
)


@asynccontextmanager
async def listening(
    url: str, direct_url: str | None = None, options: ListenerOptions | None = QUICK, **settings: Any
) -> AsyncGenerator[Database]:
    """A database whose statements go one way and whose listener goes another, if it is given one."""
    chosen = DatabaseSettings(
        url=url.replace("postgresql://", "postgresql+asyncpg://"), direct_url=direct_url, **settings
    )
    async with Database(chosen, listener=options) as db:
        yield db


class States:
    """The listener's states, one after the other."""

    def __init__(self, db: Database) -> None:
        self.seen: list[str] = []
        db.events.subscribe(self._look)

    def _look(self, event: events.Event) -> None:
        if isinstance(event, events.ListenerStateChanged):
            self.seen.append(event.after)

    async def reach(self, state: ListenerState, *, seconds: float = 30.0) -> None:
        """Wait until it gets, or has got, there since the last `forget`."""
        end = time.monotonic() + seconds
        while state not in self.seen:
            assert time.monotonic() < end, f"{state} not reached within {seconds} s: {self.seen}"
            await asyncio.sleep(0.005)

    def forget(self) -> None:
        self.seen.clear()


async def take(notifications: Subscription, seconds: float = 30.0) -> Notification | Gap:
    """The next thing that the subscriber hears."""
    async with asyncio.timeout(seconds):
        return await anext(notifications)


async def payload(notifications: Subscription, seconds: float = 30.0) -> str:
    """The next thing, which is a notification."""
    heard = await take(notifications, seconds)
    assert isinstance(heard, Notification), heard
    return heard.payload


async def gap(notifications: Subscription, seconds: float = 30.0) -> Gap:
    """The next thing, which is a gap."""
    heard = await take(notifications, seconds)
    assert isinstance(heard, Gap), heard
    return heard


async def until_heard(db: Database, notifications: Subscription, channel: str, word: str) -> list[Gap]:
    """Say it, again after each gap, and listen until it is heard; returns the gaps before it."""
    await db.notify(channel, word)
    gaps: list[Gap] = []
    while True:
        heard = await take(notifications)
        if isinstance(heard, Gap):
            gaps.append(heard)
            await db.notify(channel, word)
        elif heard.payload == word:
            return gaps
