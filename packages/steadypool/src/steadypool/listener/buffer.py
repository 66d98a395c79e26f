"""What waits for one subscriber: a bounded number of things, and an honest word about the rest."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass
from enum import StrEnum

_LONGEST_REASON = 400
"""Characters; a subscriber who takes nothing through many reconnects has one gap with all their reasons."""


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


class NotificationBuffer:
    """Holds what one subscriber has not taken yet.

    While it is held back, nothing but gaps can be taken: the subscriber is still catching up.

    Args:
        size: notifications that may wait.
        overflow: what happens to more.
    """

    def __init__(self, size: int, overflow: Overflow) -> None:
        self.size = size
        self.overflow = overflow
        self.dropped = 0
        self._held_back = False
        self._gap: Gap | None = None
        self._waiting: OrderedDict[object, tuple[float, Notification]] = OrderedDict()
        self._takers: deque[asyncio.Future[None]] = deque()
        self._ended = False
        self._error: BaseException | None = None

    def __len__(self) -> int:
        return len(self._waiting) + (self._gap is not None)

    def put(self, notification: Notification, now: float) -> Gap | None:
        """Keep one for the subscriber; returns the gap that this opened, if there was no room."""
        conflates = self.overflow is Overflow.CONFLATE
        key: object = (notification.channel, notification.payload) if conflates else object()
        if key in self._waiting:
            return None
        self._waiting[key] = (now, notification)
        told_before = self._gap is not None
        if len(self._waiting) > self.size:
            self._make_room(now)
        self._wake()
        return None if told_before else self._gap

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
            gap = Gap(min(known.since, gap.since), max(known.until, gap.until), reason[-_LONGEST_REASON:])
        self._gap = gap
        self._wake()

    def hold_back(self) -> None:
        """Let notifications wait until `let_go`."""
        self._held_back = True

    def let_go(self) -> None:
        """What was held back can be taken."""
        self._held_back = False
        self._wake(len(self))

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more will come; `error` is raised to the subscriber, or iteration just ends."""
        self._ended, self._error = True, error
        self._wake(len(self._takers))

    def resume(self) -> None:
        """Take an `end` back: there will be more after all."""
        self._ended, self._error = False, None

    async def take(self) -> Notification | Gap:
        """The next thing, gaps first. Raises what `end` was given once nothing is left."""
        while (thing := self._next()) is None:
            if self._ended:
                # one error may be raised many times, and its traceback would grow with each
                raise StopAsyncIteration if self._error is None else self._error.with_traceback(None)
            await self._something_new()
        return thing

    def _next(self) -> Notification | Gap | None:
        if self._gap is not None:
            gap, self._gap = self._gap, None
            return gap
        if self._waiting and not self._held_back:
            _, (_, notification) = self._waiting.popitem(last=False)
            return notification
        return None

    async def _something_new(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._takers.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future in self._takers:
                self._takers.remove(future)
            else:
                self._wake()  # it was told of something that it will not take: the next one is told
            raise

    def _wake(self, count: int = 1) -> None:
        while self._takers and count > 0:
            future = self._takers.popleft()
            if not future.done():
                future.set_result(None)
                count -= 1
