"""Whether a new connection is worth trying now.

While the server is known to answer, connections are opened as fast as callers need them. While nothing is known,
or the last attempt failed, one attempt at a time goes out and everybody waits for its answer: a database that is
asleep is woken once and not stormed. The breaker knows no connection and no pool; it is told what happened.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from steadypool.clock import Backoff

PAUSE_WHILE_WAITED_FOR = 0.5
"""Longest pause between attempts, in seconds, while somebody waits for a connection."""
PAUSE_WHEN_IDLE = 30.0
"""Longest pause between attempts, in seconds, when nobody does."""


class BreakerState(Enum):
    """What is known about the server."""

    CLOSED = "closed"
    """The last attempt to connect succeeded, or none was made yet."""
    OPEN = "open"
    """The last attempt failed; attempts go out one at a time, with pauses."""


@dataclass
class Breaker:
    """Decides how many connects may start.

    Args:
        max_connecting: most connects at a time while the server answers.
        backoff: the pauses between attempts while it does not.

    Example:
        >>> breaker = Breaker(max_connecting=4)
        >>> breaker.allowance(now=0.0, opening=0, live=0), breaker.allowance(now=0.0, opening=1, live=3)
        (1, 3)
    """

    max_connecting: int = 4
    backoff: Backoff = field(default_factory=lambda: Backoff(first=0.05, ceiling=PAUSE_WHILE_WAITED_FOR))
    state: BreakerState = BreakerState.CLOSED
    not_before: float = 0.0

    def allowance(self, *, now: float, opening: int, live: int) -> int:
        """How many more connects may start now, given those under way and the live connections."""
        if self.state is BreakerState.OPEN:
            return 0 if opening or now < self.not_before else 1
        if live == 0:
            return 0 if opening else 1
        return max(0, self.max_connecting - opening)

    def connected(self) -> None:
        """A connect succeeded."""
        self.state = BreakerState.CLOSED
        self.backoff.reset()

    def failed(self, *, now: float, someone_waits: bool) -> None:
        """A connect failed, for whatever reason."""
        self.state = BreakerState.OPEN
        ceiling = PAUSE_WHILE_WAITED_FOR if someone_waits else PAUSE_WHEN_IDLE
        self.not_before = now + self.backoff.next_pause(ceiling)

    def somebody_came(self, *, now: float) -> None:
        """A caller began to wait: a long pause from quieter times is cut short."""
        if self.state is BreakerState.OPEN:
            self.not_before = min(self.not_before, now + PAUSE_WHILE_WAITED_FOR)
