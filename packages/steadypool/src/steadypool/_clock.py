"""Time and chance, handed in. Nobody else in the library asks what time it is or throws dice.

Tests hand in a clock that they move themselves, and a seeded `random.Random`.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Protocol


class Clock(Protocol):
    """Seconds that never go backwards, and a way to let them pass."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Come back after that many seconds."""
        ...


class SystemClock:
    """The machine's own monotonic clock."""

    monotonic = staticmethod(time.monotonic)
    """Seconds since some fixed moment. The function itself: it is called several times in every use of a connection."""

    async def sleep(self, seconds: float) -> None:
        """Come back after that many seconds."""
        await asyncio.sleep(seconds)


SYSTEM_CLOCK = SystemClock()


def wall_time() -> float:
    """Seconds since 1970, for people to read; never to wait by, since it may jump."""
    return time.time()


@dataclass
class Backoff:
    """Growing pauses with full jitter: each is random between nothing and a ceiling that doubles.

    Full jitter spreads a crowd of clients best for the load it makes (Marc Brooker, "Exponential Backoff and
    Jitter", AWS Architecture Blog, 2015).

    Args:
        first: ceiling of the first pause, in seconds.
        ceiling: no pause is longer than this, in seconds.
        rng: where the randomness comes from.

    Example:
        >>> backoff = Backoff(first=0.05, ceiling=0.5, rng=random.Random(1))
        >>> all(0 <= backoff.next_pause() <= 0.5 for _ in range(10))
        True
    """

    first: float = 0.05
    ceiling: float = 0.5
    rng: random.Random = field(default_factory=random.Random)
    attempts: int = 0

    def next_pause(self, ceiling: float | None = None) -> float:
        """Seconds to pause before the next attempt; `ceiling` overrides the largest pause this once."""
        limit = self.ceiling if ceiling is None else ceiling
        # 2**32 is far above any ceiling in use; without the cap the power overflows a float after ~1,000 tries.
        bound = min(limit, self.first * 2.0 ** min(self.attempts, 32))
        self.attempts += 1
        return self.rng.uniform(0.0, bound)

    def reset(self) -> None:
        """Start over after a success."""
        self.attempts = 0
