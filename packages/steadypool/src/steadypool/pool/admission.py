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
from itertools import islice

REMEMBERED = 64
"""Uses that an average is taken of, and how much they differ."""
SPANS = (16, REMEMBERED, 512)
"""... and two more of fewer and of more uses: an optimist believes the lowest. The short one follows at once when a
database that was slow gets fast; the long one remembers that it was fast when it gets slow for a while."""
_NUMBERED = tuple(enumerate(SPANS))
ENOUGH = 16
"""Uses that must be known before anything is said."""
CERTAINTY = 3.0
"""Standard errors that an optimist stays below the average."""
QUICK = 0.1
"""The part of all uses that counts as quick."""


class WaitEstimator:
    """How long connections are held, and when the next turn comes.

    Args:
        enough: uses that must be known before anything is said.

    Example:
        >>> forecast = WaitEstimator()
        >>> for _ in range(64):
        ...     forecast.held(0.1)
        >>> forecast.expected(ahead=29, places=3)
        1.0
        >>> round(forecast.earliest(now=0.0, ahead=29, places=3), 2)
        0.9
    """

    def __init__(self, enough: int = ENOUGH) -> None:
        self.enough = enough
        self._seconds: deque[float] = deque(maxlen=max(SPANS))
        self._sums = [0.0 for _ in SPANS]
        self._squares = 0.0
        self._next = 0.0
        self._usual: _Uses | None = None
        """What is known of the last uses; None where more have come since it was reckoned, or too few."""

    def held(self, seconds: float) -> None:
        """Somebody gave a connection back after so many seconds."""
        # Called at every use of a connection, and oftener than anybody asks: sums only.
        known, sums, count = self._seconds, self._sums, len(self._seconds)
        for number, length in _NUMBERED:
            sums[number] += seconds if count < length else seconds - known[-length]
        oldest = known[-REMEMBERED] if count >= REMEMBERED else 0.0
        self._squares += seconds * seconds - oldest * oldest
        known.append(seconds)
        self._usual = None

    @property
    def _uses(self) -> _Uses | None:
        """What is known of the last uses; None while too few are."""
        count = len(self._seconds)
        if self._usual is None and count >= self.enough:
            means = [
                max(0.0, total / min(count, length)) for total, length in zip(self._sums, SPANS, strict=True)
            ]
            known, mean = min(count, REMEMBERED), means[SPANS.index(REMEMBERED)]
            deviation = math.sqrt(max(0.0, self._squares / known - mean * mean))
            self._usual = _Uses(known, mean, min(means), deviation)
        return self._usual

    @property
    def mean(self) -> float | None:
        """Seconds that a use takes on average; None while too few are known."""
        uses = self._uses
        return None if uses is None else uses.mean

    @property
    def quick(self) -> float:
        """Seconds that only one use in ten stays below; 0 while too few are known."""
        uses = self._uses
        if uses is None:
            return 0.0
        if uses.quick is None:
            last = sorted(islice(reversed(self._seconds), uses.known))
            uses.quick = last[int(QUICK * uses.known)]
        return uses.quick

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
        if whole <= 0 or (uses := self._uses) is None:
            self._next = now
            return 0.0
        # So many uses, at least, begin and end before the turn; the rest may still be under way then.
        by_queue = uses.least(whole) / places
        return min(by_queue, max(0.0, self._next - now))

    def joins(self, now: float, turn: float, places: float) -> None:
        """Somebody waits whose turn comes in `turn` seconds at the earliest: the next one's is after that."""
        uses = self._uses
        if uses is not None:
            # The share of one use in the time that many of them take together.
            self._next = now + turn + uses.least(REMEMBERED) / REMEMBERED / places


class _Uses:
    """What is known of the last uses: how many they are, their average, and how much they differ.

    `lowest` is the average that an optimist believes, `quick` what only one in ten stays below, once somebody asked.
    """

    __slots__ = ("deviation", "known", "lowest", "mean", "quick")

    def __init__(self, known: int, mean: float, lowest: float, deviation: float) -> None:
        self.known = known
        self.mean = mean
        self.lowest = lowest
        self.deviation = deviation
        self.quick: float | None = None

    def least(self, uses: float) -> float:
        """Seconds that so many uses, one after the other, take at least."""
        error = self.deviation * math.sqrt(uses + uses * uses / self.known)
        return max(0.0, uses * self.lowest - CERTAINTY * error)
