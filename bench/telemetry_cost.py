"""What telemetry costs: CPU of this process for 1,000 requests, with nothing that wants to know and with everything.

    python bench/telemetry_cost.py --rounds 100

A request is a session with one SELECT by primary key, over each driver; `shared` is the same SELECT by `db.fetchrow`
over postgresql+steadypool. The variants take turns in blocks, in an order that is drawn
anew each round, so that a machine that becomes slower meets all of them; what is compared is the difference within a
round. Prints the mean of each, and its difference to `nothing` with a 95 % interval (bootstrap over rounds).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from sqlalchemy import text

from steadypool import Database, DatabaseSettings
from steadypool.telemetry.lines import log_lines
from steadypool.telemetry.otel import instrument
from steadypool.telemetry.prometheus import PoolCollector
from steadypool_lab import EmbeddedPostgres

REQUESTS = 50
"""Requests in a block."""

QUERY = text("select name from tracks where id = :id")


class Nowhere(SpanExporter):
    """Takes spans and drops them: what sending costs depends on whom they are sent to."""

    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def metrics_only(db: Database) -> None:
    instrument(db.source, meter_provider=MeterProvider([InMemoryMetricReader()]), spans=False)


def spans(db: Database, sampled: bool = True) -> None:
    tracers = TracerProvider() if sampled else TracerProvider(sampler=ParentBased(ALWAYS_OFF))
    tracers.add_span_processor(BatchSpanProcessor(Nowhere()))
    instrument(db.source, meter_provider=MeterProvider([InMemoryMetricReader()]), tracer_provider=tracers)


def prometheus(db: Database) -> None:
    PoolCollector().add(db.source)


def everything(db: Database) -> None:
    spans(db)
    prometheus(db)
    log_lines(db.events)


VARIANTS: dict[str, tuple[dict[str, object], Callable[[Database], None]]] = {
    "nothing": ({"recorder": False, "slow_query_after": "off"}, lambda _db: None),
    "slow-query log": ({"recorder": False}, lambda _db: None),
    "as it comes (log, recorder)": ({}, lambda _db: None),
    "Prometheus": ({"recorder": False, "slow_query_after": "off"}, prometheus),
    "OpenTelemetry metrics": ({"recorder": False, "slow_query_after": "off"}, metrics_only),
    "OpenTelemetry, not sampled": (
        {"recorder": False, "slow_query_after": "off"},
        lambda db: spans(db, sampled=False),
    ),
    "OpenTelemetry, all spans": ({"recorder": False, "slow_query_after": "off"}, spans),
    "everything": ({}, everything),
}


WAYS = {"asyncpg": "asyncpg", "psycopg": "psycopg", "steadypool": "steadypool", "shared": "steadypool"}
"""What is measured, and over which driver."""


@asynccontextmanager
async def variant(url: str, way: str, name: str) -> AsyncIterator[Database]:
    settings, begin = VARIANTS[name]
    url = url.replace("postgresql://", f"postgresql+{WAYS[way]}://")
    async with Database(DatabaseSettings(url=url, pool_size=1, max_overflow=0, **settings), name=name) as db:
        begin(db)
        await block(db, way)
        yield db


async def block(db: Database, way: str, requests: int = REQUESTS) -> float:
    """CPU seconds of this process for so many requests."""
    started = time.process_time()
    for number in range(requests):
        if way == "shared":
            await db.fetchrow("select name from tracks where id = $1", number)
            continue
        async with db.session() as session:
            (await session.execute(QUERY, {"id": number})).first()
    return time.process_time() - started


def interval(differences: list[float], rng: random.Random) -> tuple[float, float]:
    means = sorted(statistics.fmean(rng.choices(differences, k=len(differences))) for _ in range(2000))
    return means[50], means[1949]


async def main(ways: list[str], rounds: int, seed: int) -> None:
    logging.getLogger("steadypool").addHandler(logging.NullHandler())
    async with EmbeddedPostgres.temporary() as server:
        url = await server.create_database("cost")
        async with Database(DatabaseSettings(url=url)) as db, db.connection() as connection:
            await connection.execute("create table tracks (id int primary key, name text)")
            await connection.execute("insert into tracks select i, 'x' from generate_series(1, 1000) i")
        for way in ways:
            await measure(url, way, rounds, random.Random(seed))


async def measure(url: str, way: str, rounds: int, rng: random.Random) -> None:
    """Take turns, and print the table."""
    async with AsyncExitStack() as stack:
        databases = {name: await stack.enter_async_context(variant(url, way, name)) for name in VARIANTS}
        seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for _ in range(rounds):
            for name in rng.sample(list(VARIANTS), len(VARIANTS)):
                seconds[name].append(await block(databases[name], way))
    per_thousand = 1000 / REQUESTS * 1000
    base = statistics.fmean(seconds["nothing"]) * per_thousand
    print(f"\n| {way:27} | ms CPU per 1,000 requests | more than `nothing` | 95 % interval |")
    print("| --- | ---: | ---: | ---: |")
    for name, measured in seconds.items():
        mean = statistics.fmean(measured) * per_thousand
        differences = [
            (one - other) * per_thousand for one, other in zip(measured, seconds["nothing"], strict=True)
        ]
        low, high = interval(differences, rng)
        more = mean - base
        print(f"| {name:27} | {mean:.0f} | {more:+.0f} ({more / base:+.1%}) | {low:+.0f} … {high:+.0f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(options.ways, options.rounds, options.seed))
