"""What a subscriber has in its hands, and what the listener knows about it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from contextlib import suppress

from steadypool.deadline import override_deadline
from steadypool.listener.buffer import Gap, Notification, NotificationBuffer

CatchUp = Callable[[], Awaitable[None]]
"""Reads anew what the notifications are about; run after LISTEN and before anything is delivered."""


class Subscription:
    """What `async for` over `Database.listen` iterates: `Notification`s, and `Gap`s where some may be missing.

    Attributes:
        channel: what it hears.
        live: set while notifications of the channel are being heard, and the subscriber has caught up. Silence is
            noticed within a heartbeat's interval and timeout, so a copy of the data is at most that much out of date
            while this is set, and of unknown age while it is not.
    """

    def __init__(
        self, channel: str, mailbox: NotificationBuffer, catch_up: CatchUp | None, since: float
    ) -> None:
        self.channel = channel
        self.mailbox = mailbox
        self.catch_up = catch_up
        self.live = asyncio.Event()
        self.deaf_since = since
        self.deaf_because = "the listener started late"
        self.missed = False
        """Whether the subscriber went on while it could hear nothing."""
        self.heard_from = since
        """When the server's word came that it listens."""
        self.context = contextvars.copy_context()
        # what the listener does for it later is not part of the request that subscribed
        self.context.run(override_deadline, None)
        self._settled = asyncio.Event()
        mailbox.hold_back()

    @property
    def is_live(self) -> bool:
        """Whether it hears, and has caught up."""
        return self.live.is_set()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Notification | Gap:
        return await self.mailbox.take()

    async def begin(self, seconds: float) -> None:
        """Wait until it hears, or until it is known that it will not, or so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._settled.wait()
        self.missed = self.missed or not self.is_live

    def hears(self, now: float) -> Gap | None:
        """From now on it does; returns what it missed."""
        gap = Gap(self.deaf_since, now, self.deaf_because) if self.missed else None
        if gap is not None:
            self.mailbox.put_gap(gap)
        self.missed = False
        self.live.set()
        self._settled.set()
        self.mailbox.let_go()
        return gap

    def deafen(self, proven_at: float, reason: str) -> None:
        """From now on it may miss something; `proven_at` is when the connection last proved that it hears."""
        if self.is_live:
            self.live.clear()
            self.missed = True
            self.deaf_since = max(proven_at, self.heard_from)
            self.deaf_because = reason

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more will come."""
        self.live.clear()
        self._settled.set()
        self.mailbox.end(error)
