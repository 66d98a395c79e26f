"""`/livez` and `/readyz`: whether to restart an instance, and whether to send it requests.

Ready means: the database is open, and the last attempt to connect did not fail. Being exhausted is still ready: the
requests that come are queued and bounded, and taking busy instances out one after the other turns load into an outage.
Live connections are not pinged for this; a database that died silently is noticed by the next request that uses one.

Where somebody listens, `/readyz` shows the listener as well. It never makes an instance unready: one that hears nothing
knows that, and asks the database instead.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from steadypool.deadline import deadline
from steadypool.errors import SteadypoolError
from steadypool.fastapi.managed import (
    DatabaseOrGetter,
    EngineOrGetter,
    ListenerStatistics,
    Statistics,
    served,
)

PROBE_SECONDS = 0.8
"""How long `/readyz` waits for a connection where the pool's state says nothing."""


class Health:
    """The two answers of one application."""

    def __init__(self, database: DatabaseOrGetter | EngineOrGetter) -> None:
        self._database = database
        self._connected_before = False

    async def live(self, _request: Request) -> Response:
        """200 as long as the event loop runs."""
        return _answer(HTTPStatus.OK, "live")

    async def ready(self, _request: Request) -> Response:
        """200, or 503 with the reason."""
        database = served(self._database)
        stats = database.stats()
        listener = stats.listener
        if stats.closed:
            return _answer(HTTPStatus.SERVICE_UNAVAILABLE, "not ready", "closed", listener)
        if not self._known_good(stats):
            try:
                # Out of time this gives up, but the connect goes on in the pool, and the next question finds it done.
                with deadline(PROBE_SECONDS):
                    async with database.connection():
                        self._connected_before = True
            except SteadypoolError as error:
                reason = type(error).__name__
                return _answer(HTTPStatus.SERVICE_UNAVAILABLE, "not ready", reason, listener)
        return _answer(HTTPStatus.OK, "ready", listener=listener)

    def _known_good(self, stats: Statistics) -> bool:
        if (
            stats.totals.connects > 0
        ):  # also of connections that are closed by now: a database may be left to sleep
            self._connected_before = True
        return self._connected_before and stats.pool.last_connect_failure is None


def _answer(
    status: HTTPStatus, word: str, reason: str | None = None, listener: ListenerStatistics | None = None
) -> JSONResponse:
    body: dict[str, Any] = {"status": word}
    if reason is not None:
        body["reason"] = reason
    if listener is not None:  # its last error names addresses, which are nobody's business here
        body["listener"] = {
            "state": listener.state,
            "lag": listener.lag,
            "silent_for": listener.silent_for,
            "behind": listener.behind,
            "connects": listener.connects,
            "gaps": listener.gaps,
        }
    return JSONResponse(body, status_code=status, headers={"Cache-Control": "no-store"})
