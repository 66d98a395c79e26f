"""The dearest statements, by fingerprint: how often, how long, how many rows, how many errors."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from steadypool.monitor.histogram import Histogram

ENOUGH = 3
"""Times that a statement has to have run before it is said how long it usually takes."""


@dataclass(slots=True)
class Figures:
    """What is known of one statement; times in seconds, `last` is when it last ended."""

    count: int = 0
    total: float = 0.0
    most: float = 0.0
    rows: int = 0
    errors: int = 0
    last: float = 0.0
    durations: Histogram = field(default_factory=Histogram)


class TopStatements:
    """The statements that took the most time in each minute.

    Args:
        minutes: how many minutes are kept.
        most: how many statements of each.
    """

    def __init__(self, minutes: int, most: int) -> None:
        self._most = most
        self._kept: deque[dict[str, Any]] = deque(maxlen=minutes)
        self._open: dict[str, list[float]] = {}
        self._minute = 0
        self._fresh: list[dict[str, Any]] = []

    def add(self, fingerprint: str, seconds: float, at: float) -> None:
        """Count one statement that ended at that moment."""
        minute = int(at // 60)
        if minute != self._minute:
            if self._open:
                self._kept.append(self._so_far())
                self._fresh.append(self._kept[-1])
            self._open, self._minute = {}, minute
        figures = self._open.get(fingerprint)
        if figures is None:
            if len(self._open) >= 20 * self._most:
                dearest = sorted(self._open.items(), key=lambda item: -item[1][1])[: 10 * self._most]
                self._open = dict(dearest)
            figures = self._open[fingerprint] = [0, 0.0, 0.0]
        figures[0] += 1
        figures[1] += seconds
        if seconds > figures[2]:
            figures[2] = seconds

    def _so_far(self) -> dict[str, Any]:
        """The minute that has begun."""
        dearest = sorted(self._open.items(), key=lambda item: -item[1][1])[: self._most]
        rows = [[name, int(count), round(total, 4), round(most, 5)] for name, (count, total, most) in dearest]
        return {"at": self._minute * 60, "rows": rows}

    def fresh(self) -> list[dict[str, Any]]:
        """The minutes that ended since this was last asked."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def between(self, since: float, until: float) -> list[dict[str, Any]]:
        """The dearest statements of the minutes that this time touches."""
        sums: dict[str, list[float]] = {}
        for top in self:
            if top["at"] + 60 > since and top["at"] < until:
                for name, count, total, most in top["rows"]:
                    figures = sums.setdefault(name, [0, 0.0, 0.0])
                    figures[0] += count
                    figures[1] += total
                    figures[2] = max(figures[2], most)
        dearest = sorted(sums.items(), key=lambda item: -item[1][1])[: self._most]
        return [
            {"fingerprint": name, "count": int(count), "total": round(total, 4), "max": most}
            for name, (count, total, most) in dearest
        ]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter((*self._kept, self._so_far()) if self._open else tuple(self._kept))

    def restore(self, tops: Iterable[Mapping[str, Any]]) -> None:
        """Take back what was written."""
        self._kept.extend(dict(top) for top in tops)


class RecordedStatements:
    """The statements that took the most time in all.

    Args:
        most: how many are kept. There may be up to twice as many at a time: then those that took the least go.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._figures: dict[str, Figures] = {}

    def __len__(self) -> int:
        return len(self._figures)

    def count(self, fingerprint: str, seconds: float, rows: int | None, at: float, bucket: int) -> Figures:
        """Count one statement that ended at that moment, and whose duration is in that bucket."""
        figures = self._figures.get(fingerprint)
        if figures is None:
            if len(self._figures) >= 2 * self._most:
                self._figures = dict(self._dearest(self._most))
            figures = self._figures[fingerprint] = Figures()
        figures.count += 1
        figures.total += seconds
        if seconds > figures.most:
            figures.most = seconds
        figures.rows += rows or 0
        figures.last = at
        figures.durations.add_to(bucket)
        return figures

    def usual(self, fingerprint: str) -> float | None:
        """Seconds that it takes as a rule: the median, where it ran often enough to have one."""
        figures = self._figures.get(fingerprint)
        return None if figures is None or figures.count < ENOUGH else figures.durations.percentile(50)

    def _dearest(self, most: int) -> list[tuple[str, Figures]]:
        return sorted(self._figures.items(), key=lambda item: -item[1].total)[:most]

    def table(self, most: int) -> list[dict[str, Any]]:
        """The dearest first."""
        return [
            {
                "fingerprint": fingerprint,
                "count": figures.count,
                "total": round(figures.total, 4),
                "p50": figures.durations.percentile(50),
                "p95": figures.durations.percentile(95),
                "max": round(figures.most, 5),
                "rows": figures.rows,
                "errors": figures.errors,
                "last": round(figures.last, 3),
                "durations": dict(figures.durations.counts),
            }
            for fingerprint, figures in self._dearest(most)
        ]

    def restore(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take back what `table` wrote."""
        for row in rows:
            durations = {int(bucket): int(count) for bucket, count in row["durations"].items()}
            self._figures[row["fingerprint"]] = Figures(
                row["count"],
                row["total"],
                row["max"],
                row["rows"],
                row["errors"],
                row["last"],
                Histogram(durations),
            )
