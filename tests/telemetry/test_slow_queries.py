"""The log of slow queries, structured lines, and the lag of the event loop."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import time
from typing import Any

import pytest
from sqlalchemy import text

from steadypool import Database, errors
from steadypool._clock import SYSTEM_CLOCK
from steadypool.events import Event, StatementFinished
from steadypool.telemetry.lines import as_line, log_lines
from steadypool.telemetry.loop_lag import LoopLag
from steadypool.telemetry.slow_queries import log_slow_queries

from .conftest import MakeDatabase

pytestmark = pytest.mark.anyio


def block(seconds: float) -> None:
    """What nobody should do on an event loop."""
    time.sleep(seconds)


def slow_lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "steadypool.slow"]


async def test_a_slow_query_is_one_line_that_says_where_the_time_went(
    make_db: MakeDatabase, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    db = make_db(database_url, slow_query_after=0.15)
    db.workload("reports", max_connections=1)
    with caplog.at_level(logging.WARNING, "steadypool.slow"):
        async with db.session(workload="reports") as session:
            await session.execute(text("select 1"))
            await session.execute(
                text("select generate_series(1, 3), pg_sleep(0.2), :secret"), {"secret": "anna"}
            )
    # On a busy machine the first one may be slow as well.
    (record,) = (record for record in slow_lines(caplog) if "generate_series" in record.getMessage())
    line = record.getMessage()
    assert "\n" not in line
    assert line.startswith("slow query [")
    assert "anna" not in line
    values: dict[str, Any] = record.__dict__["steadypool"]
    assert values["executing_ms"] >= 200
    assert values["ms"] == pytest.approx(
        values["waiting_ms"] + values["connecting_ms"] + values["executing_ms"], abs=0.2
    )
    assert (values["rows"], values["workload"], values["way"]) == (3, "reports", "session")
    for key in ("ms", "rows", "waiting_ms", "connecting_ms", "executing_ms", "workload", "request"):
        assert f" {key}={values[key]}" in line


async def test_the_default_is_half_a_second_and_off_means_off(database_url: str) -> None:
    from steadypool import DatabaseSettings

    assert DatabaseSettings(url=database_url).slow_query_after == 0.5
    settings = DatabaseSettings(url=database_url, slow_query_after="off", recorder=False)
    async with Database(settings) as db:
        assert not db.events.wanted(StatementFinished)


async def test_a_request_in_the_line_stays_one_word(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    stop = log_slow_queries(db.events, 0.0)
    event = StatementFinished("main", 0.0, "[1] x", "session", 1.0, request='GET /a"b\nc {d}')
    with caplog.at_level(logging.WARNING, "steadypool.slow"):
        db.events.emit(event)
    stop()
    (record,) = slow_lines(caplog)[:1]
    assert 'request="GET /a\'b\\nc {d}"' in record.getMessage()


async def test_events_as_lines_of_json(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    told: list[Event] = []
    stop = log_lines(db.events)
    db.events.subscribe(told.append)
    with caplog.at_level(logging.INFO, "steadypool.events.lines"):
        async with db.connection():
            pass
    stop()
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name.endswith(".lines")]
    (connected,) = (line for line in lines if line["event"] == "ConnectSucceeded")
    assert (connected["pool"], connected["connection"]) == ("main", 1)
    for event in told:
        json.loads(as_line(event))


async def test_the_lag_is_what_the_loop_was_late() -> None:
    lag = LoopLag(SYSTEM_CLOCK, interval=0.02)
    lag.start()
    await asyncio.sleep(0.05)
    block(0.3)
    assert lag.seconds >= 0.2  # known before the loop had a chance to find out
    await asyncio.sleep(0.001)
    assert 0.2 <= lag.worst < 5
    lag.stop()
    assert not pending(LoopLag)


async def test_a_busy_loop_is_told_from_a_slow_pool(db: Database) -> None:
    async with db.session() as session:
        await session.execute(text("select 1"))
        await asyncio.sleep(0.3)
        block(0.7)
        assert db.stats().loop_lag >= 0.3
    assert db.source.loop_lag is not None


async def test_the_chain_ends_with_whoever_began_it() -> None:
    lag = LoopLag(SYSTEM_CLOCK, interval=0.01)
    lag.start()
    assert pending(LoopLag)
    del lag
    gc.collect()
    async with asyncio.timeout(60):
        while pending(LoopLag):
            await asyncio.sleep(0.01)


def pending(kind: type) -> bool:
    """Whether the loop has a timer that refers to such an object, or would call its function."""
    scheduled: list[Any] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return any(
        getattr(handle._callback, "__module__", "") == kind.__module__ and not handle.cancelled()
        for handle in scheduled
    )


async def test_an_exhausted_pool_says_that_it_was_the_loop(db: Database) -> None:
    async with db.connection(), db.connection(), db.connection():

        async def wait() -> None:
            async with db.connection():
                pass

        waiting = asyncio.create_task(wait())
        while not db.stats().pool.waiting:
            await asyncio.sleep(0)
        block(1.0)
        with pytest.raises(
            errors.PoolTimeout, match=r"The event loop was busy, so this is said [0-9.]+s late"
        ):
            await waiting
