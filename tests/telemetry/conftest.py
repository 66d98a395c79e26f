"""A database for each driver, and what OpenTelemetry and Prometheus get to see of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from steadypool import Database, DatabaseSettings
from steadypool.telemetry.otel import instrument
from steadypool.telemetry.prometheus import PoolCollector
from steadypool.telemetry.source import Source

MakeDatabase = Callable[..., Database]


@dataclass
class Seen:
    """What both destinations were told; each number is asked of both, which have to agree."""

    reader: InMemoryMetricReader
    meters: MeterProvider
    exporter: InMemorySpanExporter
    tracers: TracerProvider
    collector: PoolCollector

    def watch(self, source: Source) -> Callable[[], None]:
        stop = instrument(source, meter_provider=self.meters, tracer_provider=self.tracers)
        stop_too = self.collector.add(source)

        def both() -> None:
            stop()
            stop_too()

        return both

    def value(self, name: str, /, pool: str = "main", **attributes: str) -> float:
        """The sum of a metric, or how many were measured, over the series that have these attributes."""
        wanted = {"db.client.connection.pool.name": pool} | {
            key.replace("__", "."): value for key, value in attributes.items()
        }
        theirs = self._otel(name, wanted)
        assert self._prometheus(name, wanted) == theirs, (name, wanted)
        return theirs

    def points(self) -> Iterator[tuple[str, Any]]:
        data: Any = self.reader.get_metrics_data()
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        yield metric.name, point

    def _otel(self, name: str, wanted: dict[str, str]) -> float:
        return sum(
            getattr(point, "count", None) if hasattr(point, "count") else point.value
            for which, point in self.points()
            if which == name and wanted.items() <= dict(point.attributes).items()
        )

    def _prometheus(self, name: str, wanted: dict[str, str]) -> float:
        from steadypool.telemetry.metrics import ALL, Kind

        (metric,) = (metric for metric in ALL if metric.name == name)
        sample_name = metric.prometheus_name + ("_count" if metric.kind is Kind.HISTOGRAM else "")
        labels = {key.replace(".", "_"): value for key, value in wanted.items()}
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.collector.render().decode())
            for sample in family.samples
            if sample.name == sample_name and labels.items() <= sample.labels.items()
        )

    @property
    def connections(self) -> dict[str, float]:
        return {
            state: self.value("db.client.connection.count", db__client__connection__state=state)
            for state in ("used", "idle", "opening", "closing")
        }

    def spans(self, name: str | None = None) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if name in (None, span.name)]

    def everything(self) -> str:
        """All that left the process, as text."""
        spans = "\n".join(span.to_json() for span in self.spans())
        metrics: Any = self.reader.get_metrics_data()
        return "\n".join((spans, metrics.to_json() if metrics else "", self.collector.render().decode()))


@pytest.fixture
def seen() -> Iterator[Seen]:
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    exporter = InMemorySpanExporter()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    yield Seen(reader, meters, exporter, tracers, PoolCollector())
    meters.shutdown()
    tracers.shutdown()


@pytest.fixture(params=["asyncpg", "psycopg", "steadypool"])
def driver(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def make_db(driver: str, anyio_backend: str) -> AsyncIterator[MakeDatabase]:
    """Makes databases for a URL without a driver; all of them are closed afterwards."""
    made: list[Database] = []

    def make(url: str, **settings: Any) -> Database:
        values = {
            "pool_size": 2,
            "max_overflow": 1,
            "pool_timeout": 0.2,
            "connection_timeout": 2.0,
            "statement_timeout": 5.0,
        }
        chosen = DatabaseSettings(
            url=url.replace("postgresql://", f"postgresql+{driver}://"), **(values | settings)
        )
        made.append(Database(chosen, engine_arguments={"leave_timeout": 1.0}))
        return made[-1]

    yield make
    for db in made:
        if db.pool.core.count():
            await db.close(grace=0.0)


@pytest.fixture
async def db(make_db: MakeDatabase, database_url: str, seen: Seen) -> AsyncIterator[Database]:
    """A database that both destinations watch."""
    database = make_db(database_url)
    stop = seen.watch(database.source)
    await database.open()
    yield database
    await database.close(grace=0.0)
    stop()
