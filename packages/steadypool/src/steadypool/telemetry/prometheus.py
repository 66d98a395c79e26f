"""Prometheus: a collector, and the text that `/metrics` answers. Needs prometheus-client.

The names are those that OpenTelemetry's exporters would give to the same metrics (`metrics.Metric.prometheus_name`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from steadypool.telemetry import metrics
from steadypool.telemetry.metrics import BUCKETS, Kind, Metric
from steadypool.telemetry.tally import Attributes, MetricAggregator

if TYPE_CHECKING:
    from steadypool.telemetry.source import Source

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""What `render` returns."""


class PoolCollector(Collector):
    """Collects the metrics of any number of pools.

    Example:
        >>> collector = PoolCollector()
        >>> stop = collector.add(database.source)
        >>> prometheus_client.REGISTRY.register(collector)
    """

    def __init__(self) -> None:
        self._tallies: list[tuple[MetricAggregator, Callable[[], None]]] = []
        self._histograms: dict[tuple[Metric, Attributes], _Buckets] = {}

    def add(self, source: Source) -> Callable[[], None]:
        """Count what happens in a pool from now on, until the function that this returns is called.

        Args:
            source: the pool: `database.source`, or `steadypool.sqlalchemy.source_of(engine)`.
        """
        for known, stop_known in self._tallies:
            if known.counts_for(source):
                return stop_known  # nothing is counted twice
        tally = MetricAggregator(source, self._observe, exporter=f"prometheus-{id(self)}")

        def stop() -> None:
            if (tally, stop) in self._tallies:
                self._tallies.remove((tally, stop))
                pool = (metrics.POOL, tally.name)
                for key in [key for key in self._histograms if pool in key[1]]:
                    del self._histograms[key]  # the next pool of this name begins anew
                tally.stop()

        self._tallies.append((tally, stop))
        return stop

    def _observe(self, metric: Metric, value: float, attributes: Attributes) -> None:
        buckets = self._histograms.get((metric, attributes))
        if buckets is None:
            buckets = self._histograms[metric, attributes] = _Buckets()
        buckets.add(value)

    def collect(self) -> Iterator[Family]:
        """The families of all metrics, as prometheus_client wants them."""
        numbers = [row for tally, _ in tuple(self._tallies) for row in (*tally.counts(), *tally.levels())]
        histograms = self._histograms.copy()
        for metric in metrics.ALL:
            keys = (metrics.POOL, *metric.attributes)
            labels = [key.replace(".", "_") for key in keys]
            if metric.kind is Kind.HISTOGRAM:
                family = HistogramMetricFamily(metric.prometheus_name, metric.description, labels=labels)
                for (which, attributes), buckets in histograms.items():
                    if which is metric:
                        family.add_metric(_values(keys, attributes), *buckets.cumulated())
                yield family
                continue
            kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            plain = kind(metric.prometheus_name, metric.description, labels=labels)
            for which, attributes, value in numbers:
                if which is metric:
                    plain.add_metric(_values(keys, attributes), value)
            yield plain

    def render(self) -> bytes:
        """All of it as text, for `/metrics`."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)


class _Buckets:
    """One series of a histogram."""

    __slots__ = ("_counts", "_sum")

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(BUCKETS, value)] += 1
        self._sum += value

    def cumulated(self) -> tuple[list[tuple[str, float]], float]:
        """Pairs of upper bound and how many are at most that, and the sum."""
        pairs: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), tuple(self._counts), strict=True):
            total += count
            pairs.append((bound, total))
        return pairs, self._sum


def _values(keys: tuple[str, ...], attributes: Attributes) -> list[str]:
    """The values in the order of the labels; one that is not known is empty, which is "absent" there."""
    known = dict(attributes)
    return [known.get(key, "") for key in keys]
