"""The queue's own connection, over which changes were announced by NOTIFY.

As plyr.fm had it: one connection per process, used by the heartbeat and by every request that changed a queue, while
that request kept its database session.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import asyncpg  # pyright: ignore[reportMissingTypeStubs]

_asyncpg: Any = asyncpg  # it has no type stubs


class Notifier:
    """The connection without any limit: how it was on 2025-11-17.

    Args:
        url: the database.
        connect_timeout: seconds; None for the driver's own.
        heartbeat: seconds between heartbeats, and for the answer to one; None for none.
    """

    def __init__(self, url: str, *, connect_timeout: float | None, heartbeat: float | None) -> None:
        self._url = url
        self._timeout = connect_timeout
        self._heartbeat = heartbeat
        self._connection: Any = None
        self._lock = asyncio.Lock()
        self._beating: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, and begin the heartbeat if there is one."""
        await self._connect()
        if self._heartbeat is not None:
            self._beating = asyncio.create_task(self._beat(self._heartbeat), name="lab heartbeat")

    async def _connect(self) -> None:
        self._connection = await _asyncpg.connect(self._url, timeout=self._timeout)

    async def notify(self) -> None:
        """Announce a change: over the connection if there is one, after waiting for whoever uses it."""
        if self._heartbeat is not None and (self._connection is None or self._connection.is_closed()):
            return  # documented: while it reconnects, others keep a stale queue
        async with self._lock:
            await self._connection.execute("NOTIFY queue_changes")

    async def _beat(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                if self._connection is None or self._connection.is_closed():
                    await self._connect()
                else:
                    await asyncio.wait_for(self._connection.fetchval("select 1"), seconds)
            except (OSError, _asyncpg.PostgresError, _asyncpg.InterfaceError):  # TimeoutError is an OSError
                if self._connection is not None:
                    self._connection.terminate()

    async def close(self) -> None:
        """End it, without ceremony."""
        if self._beating is not None:
            self._beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._beating
        if self._connection is not None:
            self._connection.terminate()
