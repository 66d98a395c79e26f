"""The web server: uvicorn, without its own handling of signals, and with a word when it is ready.

It answers before the database is prepared; whoever comes earlier waits for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Generator
from http import HTTPStatus
from typing import Any, cast

import uvicorn
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from backend.api.headers import SecurityHeaders
from backend.config import ServerSettings, Settings
from backend.connections import Connections, Limits
from backend.main import create_app, end_streams
from backend.process_limits import ACCEPT_AT_ONCE, connections_allowed, throttle_log
from backend.services.sign_in import SignInCodes
from steadypool.deadline import deadline
from steadypool.fastapi.problems import problem_response
from steadypool.fastapi.requests import TIMEOUT_HEADER, parse_timeout

HEALTH = ("/livez", "/readyz")
"""Answered whatever the database does."""
BACKLOG = 2048
"""Connections that the system holds until they are accepted."""


class UntilPrepared:
    """Lets requests wait until the database is prepared, as they would wait for a connection; health is answered.

    Args:
        app: the application.
        prepared: set when requests may be served.
        seconds: how long a request may take, this wait included; None for no limit.
    """

    def __init__(self, app: ASGIApp, *, prepared: asyncio.Event, seconds: float | None) -> None:
        self.app = app
        self._prepared = prepared
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http" or self._prepared.is_set() or scope["path"] in HEALTH:
            await self.app(scope, receive, send)
            return
        seconds = self._seconds
        header = Headers(scope=scope).get(TIMEOUT_HEADER)
        client = None if header is None else parse_timeout(header)
        if client is not None:
            seconds = client if seconds is None else min(seconds, client)
        with contextlib.nullcontext() if seconds is None else deadline(seconds):  # this wait is part of it
            try:
                async with asyncio.timeout(seconds):
                    await self._prepared.wait()
            except TimeoutError:
                await _not_ready(scope["path"])(scope, receive, send)
            else:
                await self.app(scope, receive, send)


def _not_ready(path: str) -> ASGIApp:
    return problem_response(
        "database-unavailable",
        "The database is unavailable",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The database is not ready yet.",
        path=path,
        headers={"Retry-After": "1"},
    )


class _Uvicorn(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, connections: Connections, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._connections = connections
        self._on_ready = on_ready

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # Whoever starts this handles signals, from long before there is a server to stop. uvicorn would also
        # raise the signal again at the end, and the exit code would not be 0.
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)  # asyncio has made it as short as the number that it accepts at once
        if self.started and not self.should_exit:
            self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        # Ten times a second, also while it stops.
        if counter % 10 == 0:
            self._connections.sweep(self.server_state.connections)
        return await super().on_tick(counter)


def _limits(settings: ServerSettings) -> Limits:
    return Limits(
        connections=settings.max_connections or connections_allowed(),
        head_bytes=settings.max_head_bytes,
        head_seconds=settings.head_timeout,
        body_rate=settings.min_body_rate,
    )


class Server:
    """Serves the application until it is told to stop.

    Args:
        settings: of the application.
        grace: seconds that requests in flight may take after `stop()`.
        on_ready: called when requests are answered.
        prepared: set when the database is as the application needs it; until then requests wait.
    """

    def __init__(
        self, settings: Settings, *, grace: int, on_ready: Callable[[], None], prepared: asyncio.Event
    ) -> None:
        self.app = create_app(settings)
        self.app.add_middleware(UntilPrepared, prepared=prepared, seconds=settings.database.request_deadline)
        connections = Connections(_limits(settings.server))
        config = uvicorn.Config(
            SecurityHeaders(
                self.app
            ),  # outside of everything that answers, the handler of unexpected errors included
            http=cast("Any", connections.create_protocol),
            ws="none",  # there is no such route, and its protocol knows none of these bounds
            backlog=ACCEPT_AT_ONCE,
            log_config=None,
            access_log=False,
            server_header=False,
            # Without a proxy that writes X-Forwarded-For, its value is the client's own word for its address.
            proxy_headers=settings.server.public_url is not None,
            lifespan="on",
            timeout_graceful_shutdown=grace,
        )
        self._uvicorn = _Uvicorn(config, connections, on_ready)

    async def serve(self, listeners: list[socket.socket]) -> None:
        """Serve on these sockets; returns when stopped and all requests have ended."""
        throttle_log()
        await self._uvicorn.serve(listeners)

    def sign_in_code(self, did: str) -> str:
        """Create the code of a link that signs in as this artist, once."""
        codes: SignInCodes = self.app.state.sign_in_codes
        return codes.issue(did)

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to."""
        return self._uvicorn.should_exit

    def stop(self) -> None:
        """Take no new requests and end after those in flight; a second time: end at once."""
        if self._uvicorn.should_exit:
            self._uvicorn.force_exit = True
        self._uvicorn.should_exit = True
        end_streams(self.app)
