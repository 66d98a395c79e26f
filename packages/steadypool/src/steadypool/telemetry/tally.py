"""From events to numbers with attributes, once for all exporters: what is counted here is what each of them shows.

An exporter counts from the moment at which somebody asks for it, each for itself; `counters` counts for the process
itself, without attributes. A test holds the two together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from steadypool import errors, events
from steadypool._sqlstate import NO_WORD
from steadypool.telemetry import metrics
from steadypool.telemetry.bounded import OTHER, CardinalityLimit
from steadypool.telemetry.causes import connect_cause
from steadypool.telemetry.counters import FOUND_DEAD
from steadypool.telemetry.metrics import Metric
from steadypool.telemetry.source import Source

Attributes = tuple[tuple[str, str], ...]
"""Names and values, the pool's name first."""

Observe = Callable[[Metric, float, Attributes], None]
"""Takes one measurement of a histogram."""

MOST_KINDS = 1_000
"""Kinds of statements that are told apart, by summary, SQLSTATE, error, way and workload together; what comes later is
`other`, so that no combination of attributes makes more series than this."""

TALLIED: tuple[type[events.Event], ...] = (
    events.ConnectSucceeded,
    events.ConnectAttemptFailed,
    events.Acquired,
    events.AcquireFailed,
    events.Released,
    events.Closed,
    events.ConnectionLost,
    events.LeakSuspected,
    events.StatementFinished,
    events.StatementTimedOut,
    events.BreakerChanged,
    events.ListenerGap,
)
"""The events that a `MetricAggregator` looks at."""

_ERRORS = ("PoolTimeout", "ConnectTimeout", "DeadlineExceeded")
_FROM_THE_START: tuple[tuple[Metric, tuple[tuple[str, str], ...]], ...] = (
    (metrics.LEAKS, ()),
    (metrics.GAPS, ()),
    (metrics.STATEMENT_TIMEOUTS, ()),
    *((metrics.TIMEOUTS, ((metrics.ERROR_TYPE, name),)) for name in _ERRORS),
    *(
        (metrics.ACQUIRE_FAILURES, ((metrics.ERROR_TYPE, name),))
        for name in (*_ERRORS, "PoolQueueFull", "ConnectFailed", "DatabaseUnavailable")
    ),
    *((metrics.CONNECT_FAILURES, ((metrics.CAUSE, cause),)) for cause in ("refused", "timeout")),
    *((metrics.LOST, ((metrics.CAUSE, cause),)) for cause in (NO_WORD, "57P01", "idle")),
)
"""Counters that are there before they count: a rate cannot see the first of a series that was not there before."""

_names_lock = threading.Lock()
_names_in_use: dict[str, set[str]] = {}

_Kind = tuple[str, str | None, str | None, str, str | None]


class MetricAggregator:
    """Counts what happens in one pool, and reads its levels when asked.

    Two pools of one name get names of their own (`main`, `main-2`): their numbers must not be mixed up.

    Args:
        source: the pool.
        observe: takes each measurement of a histogram.
        exporter: who counts; names are unique for each.
    """

    def __init__(self, source: Source, observe: Observe, *, exporter: str) -> None:
        self._source = source
        self._observe = observe
        self._exporter = exporter
        self._bounded = CardinalityLimit()
        self.name = _take_name(exporter, source.name)
        self._pool: Attributes = ((metrics.POOL, self.name),)
        self._counts: dict[tuple[Metric, Attributes], int] = {}
        self._kinds: dict[_Kind, Attributes] = {}
        for metric, attributes in _FROM_THE_START:
            self._counts[metric, self._with(*attributes)] = 0
        self._unsubscribe = source.events.subscribe(self._tell, *TALLIED)
        self._tellers: dict[type[events.Event], Callable[..., None]] = {
            events.ConnectSucceeded: self._time(metrics.CREATE_TIME),
            events.Acquired: self._time(metrics.WAIT_TIME),
            events.Released: self._time(metrics.USE_TIME),
            events.ConnectAttemptFailed: self._connect_failed,
            events.AcquireFailed: self._acquire_failed,
            events.Closed: self._closed,
            events.ConnectionLost: self._lost,
            events.LeakSuspected: self._one(metrics.LEAKS),
            events.StatementFinished: self._statement,
            events.StatementTimedOut: self._timed_out,
            events.BreakerChanged: self._breaker,
            events.ListenerGap: self._one(metrics.GAPS),
        }

    def counts_for(self, source: Source) -> bool:
        """Whether this is the one that counts what happens there."""
        return self._source.events is source.events

    def stop(self) -> None:
        """Count no more, and give the name back."""
        self._unsubscribe()
        with _names_lock:
            _names_in_use[self._exporter].discard(self.name)

    def counts(self) -> Iterator[tuple[Metric, Attributes, int]]:
        """Every counter so far; may be called from another thread."""
        for (metric, attributes), value in self._counts.copy().items():
            yield metric, attributes, value
        if self._source.collateral is not None:
            yield metrics.COLLATERAL, self._pool, self._source.collateral()

    def levels(self) -> Iterator[tuple[Metric, Attributes, float]]:
        """Every level and gauge at this moment; may be called from another thread."""
        source, pool = self._source, self._pool
        connections, size, limit = source.connections(), source.size(), source.limit()
        for state, count in connections.items():
            yield metrics.COUNT, (*pool, (metrics.STATE, state)), count
        yield metrics.IDLE_MIN, pool, 0
        yield metrics.IDLE_MAX, pool, size
        if limit is not None:
            yield metrics.MAX, pool, limit
        yield metrics.PENDING, pool, source.waiting()
        yield metrics.UTILIZATION, pool, connections.get("used", 0) / size
        yield metrics.BREAKER_OPEN, pool, source.breaker_open()
        if source.loop_lag is not None:
            yield metrics.LOOP_LAG, pool, source.loop_lag()
        listener = None if source.listener is None else source.listener()
        if listener is not None:
            yield metrics.LISTENER_UP, pool, listener.connected
            yield metrics.LISTENER_DEAF, pool, listener.deaf

    # -- one event each ----------------------------------------------------------------------------------------

    def _tell(self, event: events.Event) -> None:
        self._tellers[type(event)](event)

    def _with(self, *attributes: tuple[str, str | None]) -> Attributes:
        bounded = self._bounded
        return self._pool + tuple(
            (key, bounded(key, value)) for key, value in attributes if value is not None
        )

    def _count(self, metric: Metric, *attributes: tuple[str, str | None]) -> None:
        key = (metric, self._with(*attributes))
        self._counts[key] = self._counts.get(key, 0) + 1

    def _one(self, metric: Metric) -> Callable[..., None]:
        def count(_event: events.Event) -> None:
            self._count(metric)

        return count

    def _time(self, metric: Metric) -> Callable[..., None]:
        def observe(event: events.ConnectSucceeded | events.Acquired | events.Released) -> None:
            self._observe(metric, event.seconds, self._pool)

        return observe

    def _connect_failed(self, event: events.ConnectAttemptFailed) -> None:
        self._count(metrics.CONNECT_FAILURES, (metrics.CAUSE, connect_cause(event.error)))

    def _acquire_failed(self, event: events.AcquireFailed) -> None:
        kind = (metrics.ERROR_TYPE, type(event.error).__name__)
        self._count(metrics.ACQUIRE_FAILURES, kind, (metrics.WORKLOAD, event.workload))
        # Whoever was turned away at once had no time that could be up.
        if isinstance(event.error, TimeoutError) and not isinstance(event.error, errors.PoolQueueFull):
            self._count(metrics.TIMEOUTS, kind)

    def _closed(self, event: events.Closed) -> None:
        self._count(metrics.CLOSED, (metrics.CAUSE, event.reason))
        if event.reason == FOUND_DEAD:
            self._count(metrics.LOST, (metrics.CAUSE, "idle"))

    def _lost(self, event: events.ConnectionLost) -> None:
        self._count(metrics.LOST, (metrics.CAUSE, event.cause))

    def _timed_out(self, event: events.StatementTimedOut) -> None:
        self._count(metrics.STATEMENT_TIMEOUTS, (metrics.WORKLOAD, event.workload))

    def _breaker(self, event: events.BreakerChanged) -> None:
        self._count(metrics.BREAKER_CHANGES, (metrics.CAUSE, event.after))

    def _statement(self, event: events.StatementFinished) -> None:
        kind = (event.summary, event.sqlstate, event.error_type, event.way, event.workload)
        attributes = self._kinds.get(kind)
        if attributes is None:
            if len(self._kinds) >= MOST_KINDS:
                kind = (OTHER, None, event.error_type and OTHER, event.way, None)
            attributes = self._kinds[kind] = self._attributes_of(*kind)
        self._observe(metrics.DURATION, event.seconds, attributes)

    def _attributes_of(
        self, summary: str, sqlstate: str | None, error_type: str | None, way: str, workload: str | None
    ) -> Attributes:
        return self._with(
            (metrics.SYSTEM, "postgresql"),
            (metrics.OPERATION, summary.partition(" ")[0]),
            (metrics.SUMMARY, summary),
            (metrics.STATUS_CODE, sqlstate),
            (metrics.ERROR_TYPE, error_type),
            (metrics.WAY, way),
            (metrics.WORKLOAD, workload),
        )


def _take_name(exporter: str, wanted: str) -> str:
    with _names_lock:
        in_use = _names_in_use.setdefault(exporter, set())
        name, number = wanted, 1
        while name in in_use:
            number += 1
            name = f"{wanted}-{number}"
        in_use.add(name)
        return name
