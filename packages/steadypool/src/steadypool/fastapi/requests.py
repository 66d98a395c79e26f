"""The deadline of a request: from the settings, shortened by the client, replaced by the route."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from functools import partial
from http import HTTPMethod, HTTPStatus
from typing import cast

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steadypool._callsite import current_endpoint, current_request
from steadypool._clock import SYSTEM_CLOCK
from steadypool._printable import printable
from steadypool.deadline import Deadline, deadline, override_deadline
from steadypool.fastapi.managed import DatabaseOrGetter, EngineOrGetter, served
from steadypool.fastapi.problems import problem_response

TIMEOUT_HEADER = "X-Request-Timeout"
"""Seconds that a client gives its request; shortens the deadline, never lengthens it."""

LONGEST_PATH = 200
"""Characters of a path that are shown where its route is not known."""

_SCOPE_KEY = "steadypool.request"

_METHODS = frozenset(HTTPMethod)


class FromSettings(Enum):
    """A name for "nothing was said"."""

    FROM_SETTINGS = "DATABASE_REQUEST_DEADLINE"


FROM_SETTINGS = FromSettings.FROM_SETTINGS
"""The deadline of a request is what `DATABASE_REQUEST_DEADLINE` says."""


@dataclass(frozen=True, slots=True)
class _RequestTime:
    """When a request came, on the system clock, and the seconds its client gives it."""

    since: float
    client: float | None


def _shorter(one: float | None, other: float | None) -> float | None:
    return min((seconds for seconds in (one, other) if seconds is not None), default=None)


def parse_timeout(text: str) -> float | None:
    """The seconds of a header, or None if it is not a number of seconds above 0."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def endpoint_of(scope: Scope) -> str:
    """What a request is about, without what its client typed: `GET /tracks/{id}`, or `GET elsewhere` before routing."""
    method: str = scope["method"]
    route = scope.get("route")
    path: object = getattr(route, "path_format", None) or getattr(route, "path", None)
    return f"{method if method in _METHODS else 'other'} {path or 'elsewhere'}"


def holder_of(scope: Scope) -> str:
    """The name of a request that holds a connection: its route, or the beginning of its escaped path before routing.

    A path may contain line breaks, and secrets: routes have neither.
    """
    if "route" in scope:
        return endpoint_of(scope)
    path = printable(scope["path"][:LONGEST_PATH])
    return f"{printable(scope['method'])} {path}"


class DeadlineMiddleware:
    """Sets the deadline before anything else of the request runs, and lifts it when the response is complete.

    It also says what is being worked on, so that errors and leak reports name the request that holds a connection.

    What runs after the response (background tasks) has no deadline, provided that it runs in the task that sent the
    response: behind a `BaseHTTPMiddleware`, or after a streamed response, it keeps the request's.
    """

    def __init__(
        self,
        app: ASGIApp,
        database: DatabaseOrGetter | EngineOrGetter,
        seconds: float | FromSettings | None,
    ) -> None:
        self.app = app
        self.database = database
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        header = Headers(scope=scope).get(TIMEOUT_HEADER)
        client = None if header is None else parse_timeout(header)
        if header is not None and client is None:
            await _bad_header(scope["path"])(scope, receive, send)
            return
        now = SYSTEM_CLOCK.monotonic()
        scope[_SCOPE_KEY] = _RequestTime(now, client)
        seconds = _shorter(self._own_seconds(), client)
        task = asyncio.current_task()

        async def watched(message: Message) -> None:
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            if complete and asyncio.current_task() is task:
                override_deadline(None)

        named = current_request.set(partial(holder_of, scope))
        routed = current_endpoint.set(partial(endpoint_of, scope))
        try:
            with nullcontext() if seconds is None else deadline(seconds):
                await self.app(scope, receive, watched)
        finally:
            current_request.reset(named)
            current_endpoint.reset(routed)

    def _own_seconds(self) -> float | None:
        if isinstance(self.seconds, FromSettings):
            return served(self.database).settings.request_deadline
        return self.seconds


def _bad_header(path: str) -> ASGIApp:
    return problem_response(
        "bad-request-timeout",
        "Bad request",
        HTTPStatus.BAD_REQUEST,
        f"{TIMEOUT_HEADER} takes a number of seconds above 0.",
        path=path,
    )


def route_deadline(seconds: float | None) -> Callable[[HTTPConnection], Awaitable[None]]:
    """A dependency that gives a route a deadline of its own, longer or shorter than the application's.

    It counts from the arrival of the request. `X-Request-Timeout` may still shorten it.

    Args:
        seconds: how long requests of this route may take; None for no deadline (a stream of events).

    Raises:
        ValueError: the seconds are not above 0.

    Example:
        >>> @app.post("/tracks", dependencies=[Depends(route_deadline(60))])
        ... async def upload(file: UploadFile) -> Track: ...
    """
    if seconds is not None and not seconds > 0:
        raise ValueError(f"a route's deadline is above 0 seconds, not {seconds!r}")

    # Replaces without restoring: leaving the middleware's block does that. So it also holds for a streamed body.
    async def replace(connection: HTTPConnection) -> None:
        request = cast("_RequestTime | None", connection.scope.get(_SCOPE_KEY))
        if request is None:
            raise RuntimeError("route_deadline() needs steadypool.fastapi.install(app, database)")
        allowed = _shorter(seconds, request.client)
        override_deadline(None if allowed is None else Deadline(request.since + allowed, allowed))

    return replace
