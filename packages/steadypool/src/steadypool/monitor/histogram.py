"""Durations in a few fixed buckets: small, quick to fill, and two of them add up to one.

The edges grow by the square root of two from 0.1 ms to about 105 s, so that a percentile is never off by more than
the width of its bucket, which is 41 % of its lower edge; inside of the bucket it is interpolated.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping

FIRST_EDGE = 0.0001
"""Seconds: everything shorter is in the first bucket."""

EDGES: tuple[float, ...] = tuple(FIRST_EDGE * 2 ** (step / 2) for step in range(41))
"""Upper ends of the buckets, in seconds. Beyond the last one there is one more, without an end."""


def bucket_of(seconds: float) -> int:
    """The number of the bucket that a duration is in."""
    return bisect_left(EDGES, seconds)


class Histogram:
    """Counts of durations.

    Example:
        >>> histogram = Histogram()
        >>> for milliseconds in range(1, 101):
        ...     histogram.add(milliseconds / 1000)
        >>> histogram.count, 0.045 < histogram.percentile(50) < 0.056
        (100, True)
    """

    __slots__ = ("counts",)

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: dict[int, int] = dict(counts or {})

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.add_to(bisect_left(EDGES, seconds))

    def add_to(self, bucket: int) -> None:
        """Count one duration of which the bucket is known."""
        counts = self.counts
        counts[bucket] = counts.get(bucket, 0) + 1

    def merge(self, others: Iterable[Histogram]) -> Histogram:
        """Add what others have counted to this one, and return it."""
        for other in others:
            for bucket, count in other.counts.items():
                self.counts[bucket] = self.counts.get(bucket, 0) + count
        return self

    @property
    def count(self) -> int:
        """How many durations there are."""
        return sum(self.counts.values())

    def total_from(self, seconds: float) -> float:
        """The sum, in seconds, of the durations of that length or more, each taken as the upper end of its bucket.

        Example:
            >>> Histogram({0: 5}).total_from(0.1)
            0.0
        """
        first, last = bucket_of(seconds), len(EDGES) - 1
        return sum(EDGES[min(each, last)] * count for each, count in self.counts.items() if each >= first)

    def percentile(self, percent: float) -> float | None:
        """The duration, in seconds, that so many percent do not exceed; None where nothing was counted.

        Example:
            >>> Histogram().percentile(95) is None
            True
        """
        total = self.count
        if total == 0:
            return None
        wanted, before = total * percent / 100, 0
        for bucket in sorted(self.counts):
            here = self.counts[bucket]
            if before + here >= wanted:
                low = EDGES[bucket - 1] if bucket else 0.0
                high = EDGES[bucket] if bucket < len(EDGES) else EDGES[-1]
                return low + (high - low) * (wanted - before) / here
            before += here
        return EDGES[-1]
