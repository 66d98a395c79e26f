"""What is around the database: whether telemetry records anything, and whether the schema is the service's."""

from __future__ import annotations

import importlib
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sqlalchemy import text

from steadypool.cli.doctor.examination import CheckContext
from steadypool.cli.doctor.finding import Finding, check, note, ok, unknown, warning
from steadypool.database.database import Database
from steadypool.telemetry.metrics import DURATION

_SWITCH = "LOGFIRE_ENABLED"


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@check("instrumentation")
async def instrumentation(x: CheckContext) -> list[Finding]:
    """Whether telemetry really records: a request is reported to collectors of our own, and what arrives is counted."""
    on = os.environ.get(_SWITCH, "").strip().lower() in ("1", "true", "yes", "on")
    logfire, upstream = _installed("logfire"), _installed("opentelemetry-instrumentation-sqlalchemy")
    sqlalchemy = _installed("sqlalchemy") or "0"
    state = f"{_SWITCH} is {'on' if on else 'off'}; logfire {logfire or 'not installed'}"
    if on and not os.environ.get("LOGFIRE_TOKEN"):
        state += "; no LOGFIRE_TOKEN, so it shows on the console and nothing is sent"
    found: list[Finding] = []
    if on and logfire is None:
        why = "It is switched on, and nothing is recorded."
        found.append(
            warning(f"{_SWITCH}=true, and logfire is not installed", why, 'pip install "steadypool[logfire]"')
        )
    if _installed("opentelemetry-sdk") is None:
        found.append(note(f"{state}; nothing collects: opentelemetry-sdk is not installed"))
    elif x.failure is None:
        found.append(await _tried_out(x, state))
    if upstream is not None and sqlalchemy.startswith("2.1"):
        why = "It refuses SQLAlchemy 2.1 with one line in the log and records nothing."
        said = f"opentelemetry-instrumentation-sqlalchemy {upstream} with SQLAlchemy {sqlalchemy}"
        found.append(note(said, why, "leave it out: steadypool reports by itself"))
    return found or [ok(state)]


async def _tried_out(x: CheckContext, state: str) -> Finding:
    """One request on a connection of its own, reported as the service's are."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from steadypool.telemetry.otel import instrument

    await x.connection()
    reader, spans, tracing = InMemoryMetricReader(), InMemorySpanExporter(), TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    meters = MeterProvider(metric_readers=[reader])
    settings = x.settings.replace(pool_size=1, max_overflow=0)
    async with Database(settings, name="doctor") as database:
        stop = instrument(database.source, meter_provider=meters, tracer_provider=tracing)
        async with database.session() as session:
            await session.execute(text("SELECT 1"))
        stop()
    data = reader.get_metrics_data()
    metrics = [
        metric
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
    ]
    said = f"{state}; a request tried out gave {len(spans.get_finished_spans())} spans and {len(metrics)} metrics"
    if DURATION.name not in {metric.name for metric in metrics} or not spans.get_finished_spans():
        why = "Nobody will see why requests are slow."
        return warning(said, why, 'pip install -U "steadypool[logfire]"; then the service again')
    return ok(said)


@check("migrations")
async def migrations(x: CheckContext) -> list[Finding]:
    """Whether the schema is at the head of Alembic's migrations."""
    exists = (await x.row("SELECT to_regclass('alembic_version') IS NOT NULL AS there")).there
    current = [row[0] for row in await x.rows("SELECT version_num FROM alembic_version")] if exists else []
    now = ", ".join(current) or "none"
    if x.migrations is None:
        return [ok(f"revision {now}; what the head is, --migrations FOLDER tells")]
    if not (x.migrations / "env.py").is_file():
        return [unknown(f"{x.migrations} is no script location of Alembic: there is no env.py in it")]
    try:
        script: Any = importlib.import_module("alembic.script")  # the service's, not a dependency of ours
    except ModuleNotFoundError:
        return [unknown("Alembic is not installed here, so its head is not known")]
    heads: list[str] = script.ScriptDirectory(str(x.migrations)).get_heads()
    said = f"revision {now}, head {', '.join(heads) or 'none'}"
    if sorted(current) != sorted(heads):
        return [warning(said, "The code expects tables that are not like that.", "alembic upgrade head")]
    return [ok(said)]
