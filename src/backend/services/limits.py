"""How much one client or artist may ask for: kept in this process, for as many as fit, and forgotten with it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager

from backend.config import LimitSettings
from steadypool._clock import SYSTEM_CLOCK, Clock

MAX_KEYS = 50_000
"""Clients that are known at the same time; who asked least lately is forgotten first."""

_ROUNDING = 1e-6
MINUTE = 60.0
DAY = 86_400.0


class LimitExceeded(Exception):
    """Too much was asked for.

    Args:
        message: what is limited, for the client.
        retry_after: seconds until it may be asked for again.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimit:
    """At most `count` in any `period`: what was used comes back evenly (GCRA, one number for each key).

    Args:
        what: what is counted, for the message.
        count: how much there is in a period; None for no limit.
        period: seconds.
        clock: what time is taken from.
        max_keys: keys that are remembered.
    """

    def __init__(
        self,
        what: str,
        count: int | None,
        period: float,
        *,
        clock: Clock = SYSTEM_CLOCK,
        max_keys: int = MAX_KEYS,
    ) -> None:
        self._what = what
        self._count = count
        self._period = period
        self._clock = clock
        self._max_keys = max_keys
        self._full_again: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_again)

    def take(self, key: str, amount: int = 1) -> None:
        """Use some of it.

        Raises:
            LimitExceeded: there is not so much left; nothing was used.
        """
        if self._count is None:
            return
        now = self._clock.monotonic()
        wait = self._after(key, amount, now) - now - self._period
        if wait > _ROUNDING:
            raise LimitExceeded(f"the limit is {self._count:,} {self._what}", wait)
        self.charge(key, amount)

    def charge(self, key: str, amount: int) -> None:
        """Use some of it, even where there is less: what was used is known only afterwards."""
        if self._count is None or not amount:
            return
        self._full_again[key] = self._after(key, amount, self._clock.monotonic())
        self._full_again.move_to_end(key)
        if len(self._full_again) > self._max_keys:
            self._full_again.popitem(last=False)

    def _after(self, key: str, amount: int, now: float) -> float:
        assert self._count is not None
        return max(now, self._full_again.get(key, now)) + amount * self._period / self._count


class ConcurrencyLimit:
    """At most `count` at the same time for each key; None for no limit."""

    def __init__(self, what: str, count: int | None) -> None:
        self._what = what
        self._count = count
        self._held: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    @contextmanager
    def hold(self, key: str) -> Generator[None]:
        """Be one of them while the block runs.

        Raises:
            LimitExceeded: there are so many already.
        """
        held = self._held.get(key, 0)
        if self._count is not None and held >= self._count:
            raise LimitExceeded(f"the limit is {self._count:,} {self._what} at the same time", 1.0)
        self._held[key] = held + 1
        try:
            yield
        finally:
            left = self._held.pop(key) - 1
            if left:
                self._held[key] = left


class RecentPlays:
    """Who heard what lately, so that it is counted once.

    Args:
        interval: seconds in which one listener's plays of one track are one; None counts all.
        clock: what time is taken from.
        max_keys: plays that are remembered.
    """

    def __init__(
        self, interval: float | None, *, clock: Clock = SYSTEM_CLOCK, max_keys: int = MAX_KEYS
    ) -> None:
        self._interval = interval
        self._clock = clock
        self._max_keys = max_keys
        self._until: OrderedDict[tuple[str, int], float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def counts(self, listener: str, track_id: int) -> bool:
        """Whether this is a play of its own; if so it is remembered."""
        if self._interval is None:
            return True
        now = self._clock.monotonic()
        while self._until and (len(self._until) >= self._max_keys or next(iter(self._until.values())) <= now):
            self._until.popitem(last=False)
        if (listener, track_id) in self._until:
            return False
        self._until[listener, track_id] = now + self._interval
        return True


class Limits:
    """Everything that is limited for a client (an address) or an artist (a DID)."""

    def __init__(self, settings: LimitSettings, *, clock: Clock = SYSTEM_CLOCK) -> None:
        def a_minute(whose: str, count: int | None) -> RateLimit:
            return RateLimit(f"requests a minute for one {whose}", count, MINUTE, clock=clock)

        self.by_address = a_minute("address", settings.requests_per_address)
        self.by_artist = a_minute("artist", settings.requests_per_artist)
        self.streams = ConcurrencyLimit("streams for one listener", settings.streams)
        self.uploads_at_once = ConcurrencyLimit("uploads of one artist", settings.uploads_at_once)
        self.uploads = RateLimit("uploads a day for one artist", settings.uploads_per_day, DAY, clock=clock)
        self.upload_bytes = RateLimit(
            "bytes of uploads a day for one artist", settings.upload_bytes_per_day, DAY, clock=clock
        )
        self.plays = RecentPlays(settings.play_interval, clock=clock)
        self.copies = settings.copies
