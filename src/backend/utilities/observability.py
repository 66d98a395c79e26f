"""What the service tells about its database, and to whom: Logfire, Prometheus. Nothing unless it is switched on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from backend.config import Settings
from steadypool import Database
from steadypool.fastapi.metrics import serve_metrics
from steadypool.telemetry.prometheus import PoolCollector

SERVICE_NAME = "plyr"


def make_observable(app: FastAPI, settings: Settings) -> None:
    """Add what has to be there before the application starts."""
    if settings.metrics.enabled:
        app.state.collector = PoolCollector()
        serve_metrics(app, app.state.collector)


@asynccontextmanager
async def observed(app: FastAPI, database: Database) -> AsyncGenerator[None]:
    """Report the database while the block runs."""
    settings: Settings = app.state.settings
    collector: PoolCollector | None = getattr(app.state, "collector", None)
    if collector is not None:
        collector.add(database.source)
    if not settings.observability.enabled:
        yield
        return
    from steadypool.telemetry.logfire import enable  # takes a second to import, and few need it

    # From here on FastAPI draws a span around each request by itself; those of the database stand below it.
    reporting = enable(database.source, service_name=SERVICE_NAME)
    try:
        yield
    finally:
        await asyncio.to_thread(reporting.stop)  # sends what is left
