"""The web server: uvicorn, without its own handling of signals and with a word when it is ready."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Generator

import uvicorn

from backend.config import Settings
from backend.main import create_app, end_streams


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # Whoever starts this handles signals, from long before there is a server to stop. uvicorn would also
        # raise the signal again at the end, and the exit code would not be 0.
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and not self.should_exit:
            self._on_ready()


class Server:
    """Serves the application until it is told to stop.

    Args:
        settings: of the application.
        grace: seconds that requests in flight may take after `stop()`.
        on_ready: called when requests are answered.
    """

    def __init__(self, settings: Settings, *, grace: int, on_ready: Callable[[], None]) -> None:
        self.app = create_app(settings)
        config = uvicorn.Config(
            self.app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_graceful_shutdown=grace,
        )
        self._uvicorn = _Uvicorn(config, on_ready)

    async def serve(self, listeners: list[socket.socket]) -> None:
        """Serve on these sockets; returns when stopped and all requests have ended."""
        await self._uvicorn.serve(listeners)

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
