"""Symptoms of the seed's troubleshooting, produced on purpose: page, alert, metric and error name one cause."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from steadypool import Database, DatabaseSettings, errors
from steadypool.fastapi.dashboard.facts import now_facts
from steadypool.lab import FaultProxy
from steadypool.lab.proxy import Mode
from steadypool.telemetry.prometheus import PoolCollector

pytestmark = pytest.mark.anyio


async def ask(db: Database, statement: str = "select 1") -> None:
    async with db.session() as session:
        await session.execute(text(statement))


async def exhausted(db: Database, _proxy: FaultProxy) -> None:
    async with db.session() as one, db.session() as other:
        await one.execute(text("select 1"))
        await other.execute(text("select 1"))
        with pytest.raises(errors.PoolTimeout, match="QueuePool limit of size 2 overflow 0 reached"):
            await ask(db)


async def silent(db: Database, proxy: FaultProxy) -> None:
    proxy.mode = Mode.SILENT
    with pytest.raises(errors.ConnectTimeout):
        await ask(db)
    proxy.mode = Mode.PASS


async def slow(db: Database, _proxy: FaultProxy) -> None:
    with pytest.raises(errors.StatementTimeout):
        await ask(db, "select pg_sleep(9)")


async def leaked(db: Database, _proxy: FaultProxy) -> None:
    async with db.session() as session:
        await session.execute(text("select 1"))
        while not db.stats().totals.leaks:
            await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Symptom:
    """What is done, and what each of those who watch says of it."""

    make: Callable[[Database, FaultProxy], Awaitable[None]]
    runbook: str
    alert: str
    series: str
    labels: dict[str, str]
    kind: str


SYMPTOMS = [
    Symptom(
        exhausted,
        "exhaustion",
        "pool_timeouts",
        "steadypool_acquire_failures_total",
        {"error_type": "PoolTimeout"},
        "pool_timeouts",
    ),
    Symptom(
        silent,
        "connect-timeouts",
        "connection_errors",
        "steadypool_connect_failures_total",
        {},
        "connect_failures",
    ),
    Symptom(
        slow,
        "statement-timeouts",
        "statement_timeouts",
        "steadypool_statement_timeouts_total",
        {},
        "statement_timeouts",
    ),
    Symptom(leaked, "leaks", "leak", "steadypool_leaks_total", {}, "leak"),
]


def counted(collector: PoolCollector, series: str, labels: dict[str, str]) -> float:
    return sum(
        sample.value
        for family in text_string_to_metric_families(collector.render().decode())
        for sample in family.samples
        if sample.name == series and labels.items() <= sample.labels.items()
    )


@pytest.mark.parametrize("symptom", SYMPTOMS, ids=lambda symptom: symptom.make.__name__)
async def test_a_symptom_is_found_by_whoever_looks(
    symptom: Symptom, proxied_url: str, proxy: FaultProxy
) -> None:
    settings = DatabaseSettings(
        url=proxied_url,
        pool_size=2,
        max_overflow=0,
        pool_timeout=0.3,
        connection_timeout=0.5,
        statement_timeout=0.5,
        leak_after=0.4 if symptom.make is leaked else None,
        alert_rate=1,
        alert_after=2,
    )
    collector = PoolCollector()
    async with Database(settings) as db:
        stop = collector.add(db.source)
        await symptom.make(db, proxy)
        while not [alert for alert in db.watch.alerts.raised if alert.rule.name == symptom.alert]:
            assert await db.watch.next_look(10.0)
        facts: dict[str, Any] = now_facts(db.watch)
        alert = next(each for each in facts["alerts"] if each["name"] == symptom.alert)
        assert f"steadypool why {symptom.runbook}" in alert["message"]
        assert symptom.kind in {note["kind"] for note in facts["journal"]}
        if symptom.make is leaked:
            assert "leaked" in facts["leaks"][0]["stack"]
        else:
            assert facts["verdict"]["reasons"][0]["runbook"] == symptom.runbook
        # While it is silent a second attempt goes out beside the first.
        expected = db.stats().totals.connect_failures if symptom.make is silent else 1
        assert counted(collector, symptom.series, symptom.labels) == expected >= 1
        stop()
