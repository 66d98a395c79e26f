"""OpenTelemetry: metrics and spans by the semantic conventions for database clients. Needs opentelemetry-api alone.

```python
from steadypool.telemetry.otel import instrument
stop = instrument(database.source)
```

Where an upstream instrumentation draws a span for the same statement, that one stays and ours is not drawn; waiting and
connecting, which upstream cannot see, are always ours. No span or metric carries a value, a literal, a comment, an
address or a server's message: the status of a failed span is the class of its error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from opentelemetry import metrics as otel_metrics
from opentelemetry import trace
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, TracerProvider

from steadypool._clock import wall_time
from steadypool.events import Event, StatementFinished, WaitEnded
from steadypool.telemetry import metrics
from steadypool.telemetry.metrics import Kind, Metric
from steadypool.telemetry.otel_compat import draws
from steadypool.telemetry.tally import Attributes, MetricAggregator

if TYPE_CHECKING:
    from steadypool.telemetry.source import Source

SCOPE = "steadypool"
"""The name of the meter and of the tracer."""

WAITING_SPAN = "steadypool waiting"
CONNECTING_SPAN = "steadypool connecting"

_NOISE = 0.001
"""Seconds of waiting around a connect that are not worth a span of their own."""


def instrument(
    source: Source,
    *,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
    spans: bool = True,
) -> Callable[[], None]:
    """Report a pool from now on, until the function that this returns is called.

    A pool that is reported to this meter provider already stays as it is, so that nothing is counted twice.

    Args:
        source: the pool: `database.source`, or `steadypool.sqlalchemy.source_of(engine)`.
        meter_provider: where metrics go; the global one if not given.
        tracer_provider: where spans go; the global one if not given.
        spans: whether spans are drawn, or metrics only.

    Example:
        >>> stop = instrument(database.source)
    """
    instruments = _instruments_of(meter_provider or otel_metrics.get_meter_provider())
    for known, stop_known in instruments.tallies:
        if known.counts_for(source):
            return stop_known
    tally = MetricAggregator(source, instruments.observe, exporter=f"otel-{id(instruments)}")
    undraw: list[Callable[[], None]] = []
    if spans:
        tracer = (tracer_provider or trace.get_tracer_provider()).get_tracer(SCOPE)
        draw = _Spans(tracer, tally.name, source.driver)
        undraw.append(source.events.subscribe(draw, StatementFinished, WaitEnded))

    def stop() -> None:
        if (tally, stop) in instruments.tallies:
            instruments.tallies.remove((tally, stop))
            tally.stop()
            for undo in undraw:
                undo()

    instruments.tallies.append((tally, stop))
    return stop


class _Instruments:
    """The instruments of one provider, shared by all pools: one of each name."""

    def __init__(self, provider: MeterProvider) -> None:
        self.tallies: list[tuple[MetricAggregator, Callable[[], None]]] = []
        meter = provider.get_meter(SCOPE)
        self._histograms = {
            metric: _histogram(meter, metric) for metric in metrics.ALL if metric.kind is Kind.HISTOGRAM
        }
        create: Mapping[Kind, Callable[..., object]] = {
            Kind.COUNTER: meter.create_observable_counter,
            Kind.LEVEL: meter.create_observable_up_down_counter,
            Kind.GAUGE: meter.create_observable_gauge,
        }
        for metric in metrics.ALL:
            if metric.kind is not Kind.HISTOGRAM:
                create[metric.kind](
                    metric.name,
                    callbacks=[partial(self._read, metric)],
                    unit=metric.unit,
                    description=metric.description,
                )

    def observe(self, metric: Metric, value: float, attributes: Attributes) -> None:
        """One measurement of a histogram."""
        self._histograms[metric].record(value, dict(attributes))

    def _read(self, metric: Metric, _options: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(value, dict(attributes))
            for tally, _ in tuple(self.tallies)
            for which, attributes, value in _numbers(tally, metric)
            if which is metric
        ]


def _numbers(tally: MetricAggregator, metric: Metric) -> Iterator[tuple[Metric, Attributes, float]]:
    return tally.counts() if metric.kind is Kind.COUNTER else tally.levels()


def _histogram(meter: Meter, metric: Metric) -> Histogram:
    return meter.create_histogram(
        metric.name,
        unit=metric.unit,
        description=metric.description,
        explicit_bucket_boundaries_advisory=list(metrics.BUCKETS),
    )


_known: list[tuple[MeterProvider, _Instruments]] = []
"""Providers last as long as the process, and some cannot be hashed."""


def _instruments_of(provider: MeterProvider) -> _Instruments:
    for known, instruments in _known:
        if known is provider:
            return instruments
    _known.append((provider, _Instruments(provider)))
    return _known[-1][1]


class _Spans:
    """Draws what is over into the trace of whoever it was done for: events are told in the caller's own context."""

    def __init__(self, tracer: Tracer, pool: str, driver: str) -> None:
        self._tracer = tracer
        self._pool = pool
        self._driver = driver

    def __call__(self, event: Event) -> None:
        if isinstance(event, StatementFinished):
            if not draws(self._driver, event.way, commit=event.fingerprint.endswith("] COMMIT")):
                self._statement(event)
        elif isinstance(event, WaitEnded):
            self._wait(event)

    def _statement(self, event: StatementFinished) -> None:
        self._draw(
            event.summary,
            SpanKind.CLIENT,
            _ns(wall_time()),
            event.seconds,
            event.error_type,
            {
                metrics.SYSTEM: "postgresql",
                metrics.OPERATION: event.summary.partition(" ")[0],
                metrics.SUMMARY: event.summary,
                metrics.TEXT: event.fingerprint.partition("] ")[2],
                metrics.ROWS: event.rows,
                metrics.STATUS_CODE: event.sqlstate,
                metrics.WAY: event.way,
                metrics.WORKLOAD: event.workload,
                "steadypool.connection": event.connection,
                "steadypool.waiting": event.waiting,
                "steadypool.connecting": event.connecting,
                "steadypool.fingerprint": event.fingerprint.partition("] ")[0].lstrip("["),
            },
        )

    def _wait(self, event: WaitEnded) -> None:
        end = _ns(wall_time())
        waiting = event.seconds - event.connecting
        connected = event.connecting > 0
        attributes = {metrics.WORKLOAD: event.workload, "steadypool.connection": event.connection}
        if waiting > _NOISE or not connected:
            begin = end - _ns(event.connecting)
            # The error belongs to what it ended in.
            error = None if connected else event.error_type
            self._draw(WAITING_SPAN, SpanKind.INTERNAL, begin, waiting, error, attributes)
        if connected:
            self._draw(
                CONNECTING_SPAN, SpanKind.INTERNAL, end, event.connecting, event.error_type, attributes
            )

    def _draw(
        self,
        name: str,
        kind: SpanKind,
        end: int,
        seconds: float,
        error: str | None,
        attributes: Mapping[str, str | int | float | None],
    ) -> None:
        span = self._tracer.start_span(name, kind=kind, start_time=end - _ns(seconds))
        if span.is_recording():
            known = {key: value for key, value in attributes.items() if value is not None}
            known[metrics.POOL] = self._pool
            if error is not None:
                known[metrics.ERROR_TYPE] = error
                span.set_status(Status(StatusCode.ERROR, error))
            span.set_attributes(known)  # all at once: each call takes the span's lock
        span.end(end)


def _ns(seconds: float) -> int:
    return int(seconds * 1_000_000_000)
