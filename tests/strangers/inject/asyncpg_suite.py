"""A pytest plugin for asyncpg's pool tests: `create_pool` makes a pool that is ours, with asyncpg's interface.

The connections are asyncpg's, in asyncpg's own proxies; every decision about them is our engine's. The hooks and the
sizes of asyncpg's pool (setup, init, min_size …) have no effect.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator
from typing import Any

import asyncpg
from asyncpg import _testbase
from asyncpg.pool import Pool, PoolConnectionProxy
from sqlalchemy import URL
from sqlalchemy.util import greenlet_spawn

from steadypool.sqlalchemy import create_async_engine


class Holder:
    """One connection in use: what asyncpg's proxy wants to know of its place in the pool."""

    def __init__(self, pool: EnginePool, fairy: Any) -> None:
        self.pool, self.fairy = pool, fairy


class Acquiring:
    """What `acquire()` returns: awaited or entered, as asyncpg's."""

    def __init__(self, pool: EnginePool, timeout: float | None) -> None:
        self._pool, self._timeout = pool, timeout

    def __await__(self) -> Generator[Any, None, PoolConnectionProxy]:
        return self._pool.take(self._timeout).__await__()

    async def __aenter__(self) -> PoolConnectionProxy:
        self._taken = await self._pool.take(self._timeout)
        return self._taken

    async def __aexit__(self, *_error: object) -> None:
        await self._pool.release(self._taken)


class EnginePool(Pool):
    """asyncpg's pool, by our engine."""

    __slots__ = ("_ended", "engine")
    _maintenance_task = None  # the suite's tear-down asks for it

    def __init__(self, *, max_size: int = 10, database: str | None = None, **_others: Any) -> None:
        environ = os.environ
        url = URL.create(
            "postgresql+asyncpg",
            environ["PGUSER"],
            environ["PGPASSWORD"],
            environ["PGHOST"],
            int(environ["PGPORT"]),
            database or environ["PGDATABASE"],
        )
        self.engine = create_async_engine(url, pool_size=max_size, max_overflow=0)
        self._ended = False

    def __del__(self) -> None:
        """Not asyncpg's, which looks at what this pool has not."""

    async def _itself(self) -> EnginePool:
        return self

    def __await__(self) -> Generator[Any, None, EnginePool]:
        return self._itself().__await__()

    async def __aenter__(self) -> EnginePool:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def acquire(self, *, timeout: float | None = None) -> Any:
        return Acquiring(self, timeout)

    async def take(self, timeout: float | None) -> PoolConnectionProxy:
        async with asyncio.timeout(timeout):
            fairy = await greenlet_spawn(self.engine.sync_engine.raw_connection)
        return PoolConnectionProxy(Holder(self, fairy), fairy.driver_connection)  # type: ignore[arg-type]

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:
        if not isinstance(connection, PoolConnectionProxy) or connection._holder.pool is not self:
            raise asyncpg.InterfaceError(f"{connection!r} is not a member of this pool")
        if connection._con is None:
            return
        raw = connection._detach()
        if not raw.is_closed():
            raw._on_release()  # asyncpg's own books: what was made by the proxy is not usable any more
        async with asyncio.timeout(timeout):
            await greenlet_spawn(connection._holder.fairy.close)

    async def close(self) -> None:
        if not self._ended:
            self._ended = True
            await self.engine.pool.close(grace=60.0)

    def terminate(self) -> None:
        if not self._ended:
            self._ended = True
            self.engine.sync_engine.dispose()

    def is_closing(self) -> bool:
        return self._ended

    def get_size(self) -> int:
        return self.engine.pool.checkedin() + self.engine.pool.checkedout()

    def get_idle_size(self) -> int:
        return self.engine.pool.checkedin()

    async def _through(self, name: str, *args: Any, **options: Any) -> Any:
        async with self.acquire() as connection:
            return await getattr(connection, name)(*args, **options)


def _by_name(name: str) -> Any:
    async def method(self: EnginePool, *args: Any, **options: Any) -> Any:
        return await self._through(name, *args, **options)

    return method


for _name in ("execute", "executemany", "fetch", "fetchrow", "fetchval"):
    setattr(EnginePool, _name, _by_name(_name))


def create_pool(*_args: Any, pool_class: type[Pool] = EnginePool, **options: Any) -> Pool:
    """In place of `asyncpg._testbase.create_pool`."""
    return EnginePool(**options)


if os.environ["SUITE_ENGINE"] == "ours":
    _testbase.create_pool = create_pool
