"""Whether a new connection is worth trying now.

While the server is known to answer, connections are opened as fast as callers need them. While nothing is known,
or the last attempt failed, one attempt at a time goes out and everybody waits for its answer: a database that is
asleep is woken once and not stormed. An attempt that takes long is not given up, since that may abort the wake-up,
but a second one goes out beside it, so that a stuck attempt never becomes the outage.

The breaker knows no connection and no pool; it is told what happened, and never of errors of SQL.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from steadypool._clock import Backoff

PAUSE_WHILE_WAITED_FOR = 0.5
"""Longest pause between attempts, in seconds, while somebody waits for a connection."""
PAUSE_WHEN_IDLE = 30.0
"""Longest pause between attempts, in seconds, when nobody does."""
HEDGE_AFTER = 0.25
"""Seconds, at least, before a second attempt goes out beside one that has not been answered."""
HEDGE_FACTOR = 4.0
"""... and at least this many times what the last connect took."""


class BreakerState(Enum):
    """What is known about the server."""

    CLOSED = "closed"
    """The last attempt to connect succeeded, or none was made yet."""
    OPEN = "open"
    """The last attempt failed; attempts go out one at a time, with pauses."""


@dataclass
class CircuitBreaker:
    """Decides how many connects may start.

    Args:
        max_connecting: most connects at a time while the server answers.
        backoff: the pauses between attempts while it does not.
        enabled: False lets `max_connecting` attempts go out at all times; only the pauses after a failure remain.

    Example:
        >>> breaker = CircuitBreaker(max_connecting=4)
        >>> breaker.allowance(now=0.0, opening=0, live=0)
        1
        >>> breaker.allowance(now=0.0, opening=1, live=3)
        3
    """

    max_connecting: int = 4
    backoff: Backoff = field(default_factory=lambda: Backoff(first=0.05, ceiling=PAUSE_WHILE_WAITED_FOR))
    enabled: bool = True
    state: BreakerState = BreakerState.CLOSED
    not_before: float = 0.0
    failed_at: float = 0.0
    last_connect: float = 0.0

    def allowance(self, *, now: float, opening: int, live: int, stuck: int = 0) -> int:
        """How many more connects may start now.

        Args:
            now: the moment, on the pool's clock.
            opening: connects under way that are expected to end soon.
            live: connections that are known to work.
            stuck: connects under way for longer than `hedge_after`.
        """
        pausing = self.state is BreakerState.OPEN and now < self.not_before
        if not self.enabled or (self.state is BreakerState.CLOSED and live > 0):
            most = max(self.max_connecting, 2) if stuck else self.max_connecting
            return 0 if pausing else max(0, most - opening - stuck)
        return 0 if pausing or opening > 0 or stuck > 1 else 1

    @property
    def hedge_after(self) -> float:
        """Seconds after which an attempt without an answer counts as stuck."""
        return max(HEDGE_AFTER, HEDGE_FACTOR * self.last_connect)

    def connected(self, seconds: float | None = None) -> None:
        """The server answers: a connect succeeded after so many seconds, or somebody else heard from it."""
        self.state = BreakerState.CLOSED
        self.last_connect = self.last_connect if seconds is None else seconds
        self.backoff.reset()

    def failed(self, *, now: float, someone_waits: bool) -> None:
        """A connect failed, for whatever reason."""
        self.state = BreakerState.OPEN
        self.failed_at = now
        ceiling = PAUSE_WHILE_WAITED_FOR if someone_waits else PAUSE_WHEN_IDLE
        self.not_before = now + self.backoff.next_pause(ceiling)

    def somebody_came(self) -> None:
        """A caller began to wait: a long pause from quieter times is cut short."""
        if self.state is BreakerState.OPEN:
            self.not_before = min(self.not_before, self.failed_at + PAUSE_WHILE_WAITED_FOR)

    def hopeless(self, *, now: float, until: float) -> bool:
        """Whether a caller who can wait until then would not even see the next attempt begin."""
        return (
            self.enabled
            and self.state is BreakerState.OPEN
            and now < self.not_before
            and until <= self.not_before
        )
