"""`/metrics` for Prometheus; off unless an application adds it. Needs prometheus-client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from steadypool.telemetry.prometheus import CONTENT_TYPE, PoolCollector

if TYPE_CHECKING:
    from starlette.applications import Starlette


def serve_metrics(app: Starlette, collector: PoolCollector, *, path: str = "/metrics") -> None:
    """Answer `path` with what the collector has counted. It is for everybody who reaches the application.

    Args:
        app: a FastAPI or Starlette application.
        collector: has the pools: `collector.add(database.source)`, best before the first request.
        path: where.

    Example:
        >>> collector = PoolCollector()
        >>> stop = collector.add(database.source)
        >>> serve_metrics(app, collector)
    """

    async def metrics(_request: Request) -> Response:
        return Response(collector.render(), media_type=CONTENT_TYPE, headers={"Cache-Control": "no-store"})

    app.add_route(path, metrics, methods=["GET"], include_in_schema=False)
