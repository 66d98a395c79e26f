"""When a caller's turn will come, judged by how long connections were held lately. Pure: it is told the time.

Two questions are answered from the same few numbers. "When, on average?" is for people: the expected wait in a
refusal. "When, at the earliest?" decides: a caller whose time is over even then is turned away at once. It must
hardly ever be wrong, so everything about it is optimistic:

- all connections in use are given back now, and each of the pool's places is always in use;
- a use takes less than the average, by three standard errors;
- whoever cannot be served in time, judged in the same way, takes nobody's place.
"""

from __future__ import annotations

import math
from collections import deque

REMEMBERED = 64
"""Uses that an average is taken of, and how much they differ."""
SPANS = (16, REMEMBERED, 512)
"""... and two more of fewer and of more uses: an optimist believes the lowest. The short one follows at once when a
database that was slow gets fast; the long one remembers that it was fast when it gets slow for a while."""
ENOUGH = 16
"""Uses that must be known before anything is said."""
CERTAINTY = 3.0
"""Standard errors that an optimist stays below the average."""
QUICK = 0.1
"""The part of all uses that counts as quick."""


class Forecast:
    """How long connections are held, and when the next turn comes.

    Args:
        enough: uses that must be known before anything is said.

    Example:
        >>> forecast = Forecast()
        >>> for _ in range(64):
        ...     forecast.held(0.1)
        >>> forecast.expected(ahead=29, places=3)
        1.0
        >>> round(forecast.earliest(now=0.0, ahead=29, places=3), 2)
        0.9
    """

    def __init__(self, enough: int = ENOUGH) -> None:
        self.enough = enough
        self._spans = tuple(_Span(length) for length in SPANS)
        self._usual = self._spans[SPANS.index(REMEMBERED)]
        self._next = 0.0

    def held(self, seconds: float) -> None:
        """Somebody gave a connection back after so many seconds."""
        for span in self._spans:
            span.add(seconds)

    @property
    def mean(self) -> float | None:
        """Seconds that a use takes on average; None while too few are known."""
        return self._usual.mean if len(self._usual.seconds) >= self.enough else None

    @property
    def quick(self) -> float:
        """Seconds that only one use in ten stays below; 0 while too few are known."""
        seconds = self._usual.seconds
        return sorted(seconds)[int(QUICK * len(seconds))] if len(seconds) >= self.enough else 0.0

    def expected(self, ahead: int, places: float) -> float | None:
        """Seconds until somebody is served who has `ahead` callers before it; None while too few uses are known."""
        mean = self.mean
        return None if mean is None else (ahead + 1) * mean / places

    def earliest(self, now: float, ahead: int, places: float) -> float:
        """Seconds, at least, until somebody is served who has `ahead` callers before it.

        Args:
            now: the moment.
            ahead: callers who wait and come first.
            places: connections there may be.
        """
        whole = ahead + 1 - places
        if self.mean is None or whole <= 0:
            self._next = now
            return 0.0
        # So many uses, at least, begin and end before the turn; the rest may still be under way then.
        by_queue = self._least(whole) / places
        return min(by_queue, max(0.0, self._next - now))

    def joins(self, now: float, turn: float, places: float) -> None:
        """Somebody waits whose turn comes in `turn` seconds at the earliest: the next one's is after that."""
        if self.mean is not None:
            # The share of one use in the time that many of them take together.
            self._next = now + turn + self._least(REMEMBERED) / REMEMBERED / places

    def _least(self, uses: float) -> float:
        """Seconds that so many uses, one after the other, take at least."""
        known = len(self._usual.seconds)
        error = self._usual.deviation * math.sqrt(uses + uses * uses / known)
        return max(0.0, uses * min(span.mean for span in self._spans) - CERTAINTY * error)


class _Span:
    """The last so many uses, with their sums."""

    __slots__ = ("_squares", "_sum", "seconds")

    def __init__(self, length: int) -> None:
        self.seconds: deque[float] = deque(maxlen=length)
        self._sum = 0.0
        self._squares = 0.0

    def add(self, seconds: float) -> None:
        if len(self.seconds) == self.seconds.maxlen:
            oldest = self.seconds[0]
            self._sum -= oldest
            self._squares -= oldest * oldest
        self.seconds.append(seconds)
        self._sum += seconds
        self._squares += seconds * seconds

    @property
    def mean(self) -> float:
        return max(0.0, self._sum / len(self.seconds))

    @property
    def deviation(self) -> float:
        return math.sqrt(max(0.0, self._squares / len(self.seconds) - self.mean**2))
