"""Symptoms of the seed's troubleshooting, produced on purpose: the error, the page, the alert, the metric and
`steadypool doctor` name one cause."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from conditions import until
from steadypool import Database, DatabaseSettings, errors, events
from steadypool.cli.doctor.examination import CheckContext
from steadypool.cli.doctor.finding import Level
from steadypool.cli.doctor.run import Result, chosen_checks, examine
from steadypool.cli.why.topics import find
from steadypool.fastapi.dashboard.facts import now_facts
from steadypool.listener import ListenerOptions
from steadypool.telemetry.prometheus import PoolCollector
from steadypool_lab import FaultProxy, SuspendingPostgres
from steadypool_lab.network.proxy import Mode

from .poolers import pgbouncer

pytestmark = pytest.mark.anyio

FOUND_WITHIN = 60.0


@dataclass
class Stage:
    """Where a symptom is made: a database, by way of a network that can fail."""

    db: Database
    proxy: FaultProxy
    direct_url: str
    said: list[str] = field(default_factory=list[str])
    """What callers were told."""

    async def ask(self, statement: str = "select 1") -> None:
        async with self.db.session() as session:
            await session.execute(text(statement))

    @contextlib.contextmanager
    def fails(self, kind: type[errors.SteadypoolError]) -> Any:
        with pytest.raises(kind) as caught:
            yield
        self.said.append(str(caught.value))

    async def end_backends(self, where: str) -> None:
        """As an operator, a restart or a failover does it."""
        sql = f"select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and {where}"
        connection = await psycopg.AsyncConnection.connect(self.direct_url, autocommit=True)
        async with connection:
            while not (await (await connection.execute(sql)).fetchall()):
                await asyncio.sleep(0.01)


@asynccontextmanager
async def exhausted(stage: Stage) -> AsyncIterator[None]:
    async with stage.db.session() as one, stage.db.session() as other:
        await one.execute(text("select 1"))
        await other.execute(text("select 1"))
        with stage.fails(errors.PoolTimeout):
            await stage.ask()
        assert stage.said[0].startswith("QueuePool limit of size 2 overflow 0 reached")
        yield


@asynccontextmanager
async def silent(stage: Stage) -> AsyncIterator[None]:
    stage.proxy.mode = Mode.SILENT
    with stage.fails(errors.ConnectTimeout):
        await stage.ask()
    yield
    stage.proxy.mode = Mode.PASS


@asynccontextmanager
async def slow(stage: Stage) -> AsyncIterator[None]:
    async def again_and_again() -> None:
        while True:
            with stage.fails(errors.StatementTimeout):
                await stage.ask("select pg_sleep(9)")

    asking = asyncio.create_task(again_and_again())
    await until(lambda: stage.said)
    yield
    asking.cancel()
    await asyncio.wait([asking])


@asynccontextmanager
async def leaked(stage: Stage) -> AsyncIterator[None]:
    async with stage.db.session() as session:
        await session.execute(text("select 1"))
        await until(lambda: stage.db.stats().totals.leaks)
        yield


@asynccontextmanager
async def killed(stage: Stage) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as both:
        both.create_task(stage.end_backends("query like '%pg_sleep(8)%' and state = 'active'"))
        with stage.fails(errors.ConnectionLost):
            await stage.ask("select pg_sleep(8)")
    yield


@asynccontextmanager
async def deaf(stage: Stage) -> AsyncIterator[None]:
    async with stage.db.listen("changes") as notifications:
        with stage.fails(errors.NotificationsBlocked):
            await anext(notifications)
        yield


@dataclass(frozen=True)
class Symptom:
    """What is done, and what each of those who watch says of it; `check` is the doctor's, `sees` what it shows."""

    make: Callable[[Stage], AbstractAsyncContextManager[None]]
    runbook: str
    alert: str
    series: str
    labels: dict[str, str]
    kind: str
    check: str
    level: Level
    sees: str


SYMPTOMS = [
    Symptom(
        exhausted,
        "exhaustion",
        "pool_timeouts",
        "steadypool_acquire_failures_total",
        {"error_type": "PoolTimeout"},
        "pool_timeouts",
        "pool-use",
        Level.PROBLEM,
        "2 of 2 in use",
    ),
    Symptom(
        silent,
        "connect-timeouts",
        "connection_errors",
        "steadypool_connect_failures_total",
        {"steadypool_cause": "timeout"},
        "connect_failures",
        "log-in",
        Level.PROBLEM,
        "not connected within",
    ),
    Symptom(
        slow,
        "statement-timeouts",
        "statement_timeouts",
        "steadypool_statement_timeouts_total",
        {},
        "statement_timeouts",
        "long-statements",
        Level.WARNING,
        "pg_sleep(?)",
    ),
    Symptom(
        leaked,
        "leaks",
        "leak",
        "steadypool_leaks_total",
        {},
        "leak",
        "idle-in-transaction",
        Level.WARNING,
        "in a transaction of",
    ),
    Symptom(
        killed,
        "connection-lost",
        "connections_lost",
        "steadypool_connection_lost_total",
        {"steadypool_cause": "57P01"},
        "connections_lost",
        "ended-sessions",
        Level.WARNING,
        "1 were ended by an operator",
    ),
]


def counted(collector: PoolCollector, series: str, labels: dict[str, str]) -> float:
    return sum(
        sample.value
        for family in text_string_to_metric_families(collector.render().decode())
        for sample in family.samples
        if sample.name == series and labels.items() <= sample.labels.items()
    )


def settings_for(url: str, **changes: Any) -> DatabaseSettings:
    """Small and quick: what takes a minute elsewhere takes two seconds here."""
    small: dict[str, Any] = {
        "pool_size": 2,
        "max_overflow": 0,
        "pool_timeout": 1.0,
        "connection_timeout": 5.0,
        "statement_timeout": 1.5,
        "leak_after": None,
        "alert_rate": 1,
        "alert_after": 2,
    }
    return DatabaseSettings(url=url, **(small | changes))


async def raised(db: Database, name: str) -> dict[str, Any]:
    """What the page shows when an alert of this name is raised; its message is in it."""
    async with asyncio.timeout(FOUND_WITHIN):
        while not [alert for alert in db.watch.alerts.raised if alert.rule.name == name]:
            assert await db.watch.next_look(60.0)
    return now_facts(db.watch)


async def doctors_finding(settings: DatabaseSettings, check: str, symptom: str) -> Result:
    """What the doctor finds; it is asked again while it sees nothing, as a person would."""
    async with asyncio.timeout(FOUND_WITHIN):
        while True:
            results = await examine(CheckContext(settings, deadline=10.0), chosen_checks([check]))
            for result in results:
                if (result.check.name, result.finding.symptom) == (check, symptom):
                    return result


def check_the_page(facts: dict[str, Any], runbook: str, alert: str, kind: str) -> None:
    message = next(each["message"] for each in facts["alerts"] if each["name"] == alert)
    assert f"steadypool why {runbook}" in message
    assert kind in {note["kind"] for note in facts["journal"]}
    assert facts["verdict"]["reasons"][0]["runbook"] == runbook


@pytest.mark.parametrize("symptom", SYMPTOMS, ids=lambda symptom: symptom.make.__name__)
async def test_a_symptom_is_found_by_whoever_looks(
    symptom: Symptom, proxied_url: str, proxy: FaultProxy, database_url: str
) -> None:
    # psycopg hears what a server says last; asyncpg ends with EOF, and does not.
    url = proxied_url.replace("://", "+psycopg://") if symptom.make is killed else proxied_url
    settings = settings_for(
        url,
        leak_after=0.4 if symptom.make is leaked else None,
        connection_timeout=0.5 if symptom.make is silent else 5.0,
    )
    collector = PoolCollector()
    async with Database(settings) as db:
        stop = collector.add(db.source)
        stage = Stage(db, proxy, database_url)
        async with symptom.make(stage):
            facts = await raised(db, symptom.alert)
            result = await doctors_finding(settings, symptom.check, symptom.runbook)
        check_the_page(facts, symptom.runbook, symptom.alert, symptom.kind)
        assert result.finding.level is symptom.level
        assert symptom.sees in result.finding.evidence
        for said in stage.said:
            found = find(said)
            assert found is not None
            assert found.topic.key == symptom.runbook
        if symptom.make is leaked:
            assert "leaked" in facts["leaks"][0]["stack"]
        totals = db.stats().totals
        # While it is silent a second attempt goes out beside the first; who is slow again and again is ended each time.
        expected = {silent: totals.connect_failures, slow: totals.statement_timeouts}.get(symptom.make, 1)
        assert counted(collector, symptom.series, symptom.labels) == expected >= 1
        stop()


async def test_an_idle_connection_that_died_is_seen_and_hurts_nobody(
    proxied_url: str, proxy: FaultProxy, database_url: str
) -> None:
    collector = PoolCollector()
    async with Database(settings_for(proxied_url)) as db:
        stop, stage = collector.add(db.source), Stage(db, proxy, database_url)
        await stage.ask()
        await stage.end_backends("state = 'idle'")
        await until(lambda: not db.stats().pool.idle)
        await stage.ask()
        assert counted(collector, "steadypool_connection_lost_total", {"steadypool_cause": "idle"}) == 1
        assert "idle_death" in {note["kind"] for note in now_facts(db.watch)["journal"]}
        stop()


async def test_a_cold_start_is_found_by_whoever_looks(anyio_backend: str) -> None:
    collector = PoolCollector()
    async with SuspendingPostgres(sleep_after=None, wake=2.2) as sleepy:
        settings = settings_for(sleepy.url, pool_timeout=15, connection_timeout=15, request_deadline=20)
        await sleepy.fall_asleep()
        async with Database(settings) as db:
            stop = collector.add(db.source)
            async with db.session() as session:
                await session.execute(text("select 1"))
            facts = await raised(db, "cold_start")
            check_the_page(facts, "cold-start", "cold_start", "wake_up")
            series = "db_client_connection_create_time_seconds"
            quick = counted(collector, f"{series}_bucket", {"le": "1.0"})
            # The one that was held open, and perhaps one beside it.
            assert counted(collector, f"{series}_count", {}) - quick == db.stats().totals.connects >= 1
            stop()
        await sleepy.fall_asleep()
        results = await examine(CheckContext(settings), chosen_checks(["addresses", "log-in", "wake-up"]))
    (result,) = [result for result in results if result.check.name == "wake-up"]
    assert (result.finding.level, result.finding.symptom) == (Level.NOTE, "cold-start")
    assert "it slept and woke" in result.finding.evidence


async def test_a_deaf_listener_is_found_by_whoever_looks(database_url: str) -> None:
    quick = ListenerOptions(connect_timeout=5.0, heartbeat_interval=0.2, heartbeat_timeout=0.5)
    collector, seen = PoolCollector(), list[events.Event]()
    async with pgbouncer(database_url, "transaction") as url:
        settings = settings_for(url, connection_timeout=5, pool_timeout=5)
        async with Database(settings, listener=quick) as db:
            stop = collector.add(db.source)
            db.events.subscribe(seen.append, events.AlertRaised)
            stage = Stage(db, FaultProxy("127.0.0.1", 1), database_url)
            async with deaf(stage):
                facts = await raised(db, "listener_deaf")
                assert counted(collector, "steadypool_listener_connected", {}) == 0
                result = await doctors_finding(settings, "listen", "deaf-listener")
            check_the_page(facts, "deaf-listener", "listener_deaf", "listener")
            stop()
    found = find(stage.said[0])
    assert found is not None
    assert found.topic.key == "deaf-listener"
    assert result.finding.level is Level.PROBLEM
    assert "DATABASE_DIRECT_URL" in result.finding.change
    assert [event.name for event in seen if isinstance(event, events.AlertRaised)] == ["listener_deaf"]
