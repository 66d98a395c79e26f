"""Spans: what was done for whom, in the trace of whoever it was done for, with times that are true."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import text

from steadypool import Database, errors
from steadypool.telemetry.otel import CONNECTING_SPAN, WAITING_SPAN

from .conftest import MakeDatabase, Seen

pytestmark = pytest.mark.anyio


async def ask(db: Database, sql: str = "select 1") -> None:
    async with db.session() as session:
        await session.execute(text(sql))


def seconds(span: Any) -> float:
    return (span.end_time - span.start_time) / 1e9


async def test_connecting_and_statement_are_under_the_callers_span(db: Database, seen: Seen) -> None:
    tracer = seen.tracers.get_tracer("test")
    with tracer.start_as_current_span("work") as work:
        async with db.session() as session:
            await session.execute(text("select relname from pg_class limit 7"))
            await session.commit()
    # On a busy machine the caller also waits, for the event loop.
    spans = [span for span in seen.spans() if span.name != WAITING_SPAN]
    assert [span.name for span in spans] == [CONNECTING_SPAN, "SELECT pg_class", "COMMIT", "work"]
    connecting, statement, commit, outer = spans
    for span in (connecting, statement, commit):
        assert span.parent is not None
        assert span.parent.span_id == work.get_span_context().span_id
        assert outer.start_time <= span.start_time <= span.end_time <= outer.end_time  # type: ignore[operator]
    assert connecting.end_time <= statement.start_time <= statement.end_time <= commit.end_time  # type: ignore[operator]
    assert statement.kind is SpanKind.CLIENT
    assert statement.status.status_code is StatusCode.UNSET
    found = dict(statement.attributes or {})
    assert (
        found.items()
        >= {
            "db.system.name": "postgresql",
            "db.operation.name": "SELECT",
            "db.query.summary": "SELECT pg_class",
            "db.query.text": "select relname from pg_class limit ?",
            "db.response.returned_rows": 7,
            "db.client.connection.pool.name": "main",
            "steadypool.way": "session",
            "steadypool.connection": 1,
        }.items()
    )
    assert found["steadypool.connecting"] == pytest.approx(seconds(connecting), abs=1e-6)


async def test_waiting_is_a_span_of_its_own(make_db: MakeDatabase, database_url: str, seen: Seen) -> None:
    db = make_db(database_url, pool_size=1, max_overflow=0, pool_timeout=3)
    stop = seen.watch(db.source)
    async with db.connection():
        waiting = asyncio.create_task(ask(db))
        while not db.stats().pool.waiting:
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
    await waiting
    assert max(seconds(span) for span in seen.spans(WAITING_SPAN)) >= 0.1
    assert len(seen.spans(CONNECTING_SPAN)) == 1  # the one of the first caller
    stop()


async def test_a_failure_is_named_and_says_no_more(
    make_db: MakeDatabase, database_url: str, seen: Seen
) -> None:
    db = make_db(database_url, pool_size=1, max_overflow=0)
    stop = seen.watch(db.source)
    async with db.connection() as connection:
        with pytest.raises(errors.PoolTimeout):
            await ask(db)
        with pytest.raises(Exception, match="division by zero"):
            await connection.execute("select 1 / 0")
    # On a busy machine a caller who gets a connection also waits, for the event loop.
    (waited,) = (span for span in seen.spans(WAITING_SPAN) if span.status.status_code is StatusCode.ERROR)
    (failed,) = seen.spans("SELECT")
    for span, name in ((waited, "PoolTimeout"), (failed, None)):
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes is not None
        assert span.status.description == span.attributes["error.type"]
        assert name in (None, span.status.description)
        assert not span.events
    assert (failed.attributes or {})["db.response.status_code"] == "22012"
    stop()


async def test_a_failed_connect_is_a_span(make_db: MakeDatabase, database_url: str, seen: Seen) -> None:
    db = make_db(database_url + "_not_there")
    stop = seen.watch(db.source)
    with pytest.raises(errors.ConnectFailed):
        await ask(db)
    (span,) = (span for span in seen.spans() if span.status.status_code is StatusCode.ERROR)
    assert span.name == CONNECTING_SPAN
    assert (span.attributes or {})["error.type"] == "ConnectFailed"
    stop()


UPSTREAM = {
    "asyncpg": "AsyncPGInstrumentor",
    "psycopg": "PsycopgInstrumentor",
    "sqlalchemy": "SQLAlchemyInstrumentor",
}
"""What else could draw the same statements. Two of them at once draw them twice without us."""


@pytest.fixture(params=UPSTREAM)
def upstream(request: pytest.FixtureRequest, seen: Seen) -> Iterator[None]:
    module = importlib.import_module(f"opentelemetry.instrumentation.{request.param}")
    instrumentor: Any = getattr(module, UPSTREAM[request.param])()
    instrumentor.instrument(tracer_provider=seen.tracers, meter_provider=seen.meters)
    yield
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


@pytest.mark.usefixtures("upstream")
async def test_no_statement_is_drawn_twice_or_not_at_all(
    make_db: MakeDatabase, database_url: str, seen: Seen
) -> None:
    db = make_db(database_url)
    stop = seen.watch(db.source)
    await db.warm_up(1)
    seen.exporter.clear()  # upstream also draws what a new connection is asked
    async with db.session() as session:
        await session.execute(text("select 'session' as way"))
        await session.commit()
    async with db.connection() as connection:
        await connection.fetch("select 'dedicated' as way")
    drawn = [span for span in seen.spans() if " as way" in span.to_json()]
    assert len(drawn) == 2, [span.to_json() for span in drawn]
    commits = [span for span in seen.spans() if "COMMIT" in span.name.upper()]
    assert len(commits) == 1
    assert seen.value("db.client.operation.duration") == 3
    stop()


async def test_only_the_interface_is_needed_to_emit() -> None:
    """The SDK, Logfire and prometheus_client belong to whoever collects."""
    code = (
        "import sys, steadypool, steadypool.telemetry.otel\n"
        "collectors = ('opentelemetry.sdk', 'logfire', 'prometheus_client')\n"
        "print([name for name in sys.modules if name.startswith(collectors)])"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert output.decode().strip() == "[]"
