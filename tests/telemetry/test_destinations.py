"""Logfire and Prometheus, as the service has them: off unless switched on."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path
from typing import Any

import httpx
import logfire
import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text
from starlette.applications import Starlette

from backend.config import MetricsSettings, ServerSettings, Settings, StorageSettings
from backend.main import create_app
from backend.migrations.upgrade import upgrade
from steadypool import Database, DatabaseSettings, errors
from steadypool.fastapi.metrics import serve_metrics
from steadypool.telemetry.logfire import enable
from steadypool.telemetry.prometheus import PoolCollector

from .conftest import MakeDatabase

pytestmark = pytest.mark.anyio


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this machine can be reached."""
    monkeypatch.delenv("LOGFIRE_TOKEN", raising=False)
    resolve = socket.getaddrinfo

    def only_here(host: Any, *args: Any, **more: Any) -> Any:
        assert host in (None, "127.0.0.1", "localhost", b"127.0.0.1"), f"looked up {host!r}"
        return resolve(host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", only_here)


@pytest.mark.usefixtures("no_network")
async def test_logfire_gets_what_the_seed_says(make_db: MakeDatabase, database_url: str) -> None:
    """Connection pool metrics, query execution times, timeout events, connection errors; without a token."""
    db = make_db(database_url, pool_size=1, max_overflow=0, statement_timeout=1.0)
    screen, reader, exporter = io.StringIO(), InMemoryMetricReader(), InMemorySpanExporter()
    reporting = enable(
        db.source,
        service_name="test",
        local=True,
        console=logfire.ConsoleOptions(colors="never", output=screen),
        metrics=logfire.MetricsOptions(additional_readers=[reader]),
        additional_span_processors=[SimpleSpanProcessor(exporter)],
    )
    async with db.session() as session:
        await session.execute(text("select 1 from pg_class"))
        with pytest.raises(errors.PoolTimeout):
            async with db.connection():
                pass
        with pytest.raises(errors.StatementTimeout):
            await session.execute(text("select pg_sleep(3)"))
    broken = make_db(database_url + "_not_there")
    broken_reporting = enable(
        broken.source,
        service_name="test",
        local=True,
        console=False,
        additional_span_processors=[SimpleSpanProcessor(exporter)],
    )
    with pytest.raises(errors.ConnectFailed):
        async with broken.connection():
            pass
    data: Any = reader.get_metrics_data()
    names = {m.name for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics}
    assert {
        "db.client.connection.count",
        "db.client.operation.duration",
        "db.client.connection.timeouts",
    } <= names
    spans = [(span.name, dict(span.attributes or {})) for span in exporter.get_finished_spans()]
    # Logfire takes the word `session` for a secret, elsewhere.
    assert any(name == "SELECT pg_class" and its["steadypool.way"] == "session" for name, its in spans)
    # On a busy machine there are others of these names, of those who waited for a moment.
    failed = {(name, its["error.type"]) for name, its in spans if "error.type" in its}
    assert failed >= {
        ("steadypool waiting", "PoolTimeout"),
        ("SELECT", "StatementTimeout"),
        ("steadypool connecting", "ConnectFailed"),
    }
    reporting.stop()
    broken_reporting.stop()
    assert "SELECT pg_class" in screen.getvalue()


async def test_metrics_for_prometheus(db: Database) -> None:
    app, collector = Starlette(), PoolCollector()
    collector.add(db.source)
    serve_metrics(app, collector)
    async with db.connection():
        async with client(app) as http:
            answer = await http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    values = {
        (sample.name, sample.labels.get("db_client_connection_state")): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert values["db_client_connection_count", "used"] == 1
    assert values["db_client_connection_wait_time_seconds_count", None] == 1


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


@pytest.fixture
def plyr_url(database_url: str) -> str:
    upgrade(DatabaseSettings(url=database_url))
    return database_url


@pytest.fixture
def settings(plyr_url: str, tmp_path: Path) -> Settings:
    return Settings(
        database=DatabaseSettings(url=plyr_url),
        storage=StorageSettings(audio_dir=tmp_path / "audio"),
        server=ServerSettings(data_dir=tmp_path),
    )


async def test_plyr_serves_metrics_only_when_it_is_told_to(settings: Settings) -> None:
    for enabled, status in ((False, 404), (True, 200)):
        app = create_app(settings.model_copy(update={"metrics": MetricsSettings(enabled=enabled)}))
        async with app.router.lifespan_context(app), client(app) as http:
            await http.get("/readyz")
            answer = await http.get("/metrics")
            assert answer.status_code == status
            if enabled:
                assert (
                    'db_client_connection_create_time_seconds_count{db_client_connection_pool_name="plyr"}'
                    in (answer.text)
                )


PLYR = """
import asyncio, sys
import httpx
from pathlib import Path
from backend.config import load_settings
from backend.main import create_app

async def main():
    app = create_app(load_settings())
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            print((await client.get("/tracks/")).status_code)

asyncio.run(main())
"""
"""Logfire is switched on for a whole process, so this one is a process of its own."""


async def test_plyr_reports_by_logfire_when_it_is_told_to(plyr_url: str, tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": plyr_url,
        "PLYR_DATA_DIR": str(tmp_path),
        "STORAGE_AUDIO_DIR": str(tmp_path),
        "LOGFIRE_ENABLED": "true",
        "LOGFIRE_CONSOLE_COLORS": "never",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PLYR, cwd=tmp_path, env=environment, stdout=PIPE, stderr=STDOUT
    )
    output, _ = await process.communicate()
    shown = output.decode()
    assert process.returncode == 0, shown
    assert "200" in shown
    lines = [line.partition(" ")[2] for line in shown.splitlines()]
    request = next(i for i, line in enumerate(lines) if line.startswith("GET /tracks"))
    below = lines[request + 1 :]
    assert any(line.startswith("  ") and "steadypool connecting" in line for line in below), shown
    assert any(line.startswith("  ") and " SELECT " in line for line in below), shown
