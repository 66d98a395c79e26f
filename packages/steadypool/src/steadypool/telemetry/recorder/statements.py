"""The dearest statements, by fingerprint: how often, how long, how many rows, how many errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from steadypool.events import StatementFinished
from steadypool.telemetry.recorder.histogram import Histogram


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


class Statements:
    """The statements that took the most time in all.

    Args:
        most: how many are kept. There may be up to twice as many at a time: then those that took the least go.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._figures: dict[str, Figures] = {}

    def __len__(self) -> int:
        return len(self._figures)

    def add(self, event: StatementFinished, at: float) -> None:
        """Count one statement that ended at that moment."""
        figures = self._figures.get(event.fingerprint)
        if figures is None:
            if len(self._figures) >= 2 * self._most:
                self._figures = dict(self._dearest(self._most))
            figures = self._figures[event.fingerprint] = Figures()
        figures.count += 1
        figures.total += event.seconds
        figures.most = max(figures.most, event.seconds)
        figures.rows += event.rows or 0
        figures.errors += event.error_type is not None
        figures.last = at
        figures.durations.add(event.seconds)

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
