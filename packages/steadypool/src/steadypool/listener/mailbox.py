"""What waits for one subscriber: a bounded number of things, and an honest word about the rest."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Notification:
    """One NOTIFY as it arrived; `pid` is the sender's backend."""

    channel: str
    payload: str
    pid: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Something may have been missed between two moments, in seconds on the listener's clock.

    Whoever keeps a copy of what the notifications are about has to read it anew.
    """

    since: float
    until: float
    reason: str


class Overflow(StrEnum):
    """What happens to a notification for which there is no room."""

    DROP_OLDEST = "drop_oldest"
    """The oldest that waits is dropped, and a gap takes its place."""
    CONFLATE = "conflate"
    """One that says what a waiting one says is not kept twice; without room even so, all become one gap."""


class Mailbox:
    """Holds what one subscriber has not taken yet.

    Args:
        size: notifications that may wait.
        overflow: what happens to more.
    """

    def __init__(self, size: int, overflow: Overflow) -> None:
        self.size = size
        self.overflow = overflow
        self.dropped = 0
        self._gap: Gap | None = None
        self._waiting: OrderedDict[object, tuple[float, Notification]] = OrderedDict()
        self._takers: deque[asyncio.Future[None]] = deque()
        self._end: BaseException | None = None

    def __len__(self) -> int:
        return len(self._waiting) + (self._gap is not None)

    def put(self, notification: Notification, now: float) -> None:
        """Keep one for the subscriber."""
        conflates = self.overflow is Overflow.CONFLATE
        key: object = (notification.channel, notification.payload) if conflates else object()
        if key in self._waiting:
            return
        self._waiting[key] = (now, notification)
        if len(self._waiting) > self.size:
            self._make_room(now)
        self._wake()

    def _make_room(self, now: float) -> None:
        if self.overflow is Overflow.CONFLATE:
            (oldest, _), count = next(iter(self._waiting.values())), len(self._waiting)
            self._waiting.clear()
        else:
            (_, (oldest, _)), count = self._waiting.popitem(last=False), 1
        self.dropped += count
        self.put_gap(Gap(oldest, now, f"more than {self.size} notifications waited for a slow subscriber"))

    def put_gap(self, gap: Gap) -> None:
        """Tell the subscriber, before anything else, that something may be missing; gaps are joined into one."""
        known = self._gap
        if known is not None:
            reason = known.reason if gap.reason in known.reason else f"{known.reason}; {gap.reason}"
            gap = Gap(min(known.since, gap.since), max(known.until, gap.until), reason)
        self._gap = gap
        self._wake()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more will come; `error` is raised to the subscriber, or iteration just ends."""
        self._end = error or StopAsyncIteration()
        self._wake()

    def resume(self) -> None:
        """Take an `end` back: there will be more after all."""
        self._end = None

    async def take(self) -> Notification | Gap:
        """The next thing, gaps first. Raises what `end` was given once nothing is left."""
        while not len(self):
            if self._end is not None:
                raise self._end
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._takers.append(future)
            try:
                await future
            finally:
                if future in self._takers:
                    self._takers.remove(future)
        if self._gap is not None:
            gap, self._gap = self._gap, None
            return gap
        _, (_, notification) = self._waiting.popitem(last=False)
        return notification

    def _wake(self) -> None:
        while self._takers:
            future = self._takers.popleft()
            if not future.done():
                future.set_result(None)
                return
