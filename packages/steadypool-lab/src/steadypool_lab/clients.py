"""The ways to use Postgres that the lab compares, each configured as its own documentation says.

A peer is what an application would write: it borrows a connection, runs a statement and gives it back, with the limits
that the library offers. No peer gets help that its users would not have.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import asyncpg  # pyright: ignore[reportMissingTypeStubs]
import psycopg
import sqlalchemy.ext.asyncio as stock
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import QueuePool, text

from steadypool import deadline
from steadypool.database.database import Database
from steadypool.pool.lease import EntryState
from steadypool.settings.database import DatabaseSettings

_asyncpg: Any = asyncpg  # it has no type stubs


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer is configured with; times in seconds. None: the setting is not made, the library's default holds."""

    connect: float | None = 2.0
    pool: float | None = 2.0
    statement: float | None = 2.0
    size: int = 10
    overflow: int = 5
    close_grace: float = 2.0

    @property
    def most(self) -> int:
        """The most connections."""
        return self.size + self.overflow


class Client(ABC):
    """One library, used as its documentation says."""

    name: ClassVar[str]
    has_deadlines: ClassVar[bool] = False
    """Whether its users set an end of time for each request; the others rely on its timeouts."""

    def __init__(self, url: str, limits: Limits) -> None:
        self.url = url
        self.limits = limits

    @abstractmethod
    async def open(self) -> None:
        """Make the pool."""

    @abstractmethod
    async def ask(self, sql: str = "select 1") -> Any:
        """Borrow a connection, run one statement, give it back."""

    @abstractmethod
    async def transact(self, statements: Sequence[str]) -> None:
        """Run the statements in one transaction."""

    @abstractmethod
    async def undo(self, statements: Sequence[str], *, by_block: bool) -> None:
        """Run the statements in a transaction that is rolled back: by its block's end, or by a call."""

    @abstractmethod
    def held(self) -> int:
        """Connections that are not free: borrowed, or on their way in or out."""

    @abstractmethod
    async def close(self) -> None:
        """Close the pool, as its documentation says."""

    async def leave(self) -> None:
        """Let go of all connections, from another event loop than that of `open`."""
        await self.close()

    async def leave_in_child(self) -> None:
        """The same in a forked child, which must not touch its parent's connections."""
        await self.leave()

    async def warm(self, connections: int) -> None:
        """Open that many."""
        await asyncio.gather(*(self.ask("select pg_sleep(0.2)") for _ in range(connections)))

    @asynccontextmanager
    async def within(self, seconds: float) -> AsyncGenerator[None]:
        """The end of time of a request, as this library's users would set it."""
        async with asyncio.timeout(seconds):
            yield


class _Undo(Exception):
    """Ends a block that is to be rolled back."""


async def _run_in(session: stock.AsyncSession, statements: Sequence[str], *, rolls_back: bool) -> None:
    for statement in statements:
        await session.execute(text(statement))
    if rolls_back:
        await session.rollback()


class AsyncpgPool(Client):
    """asyncpg's own pool: `create_pool(timeout=…, command_timeout=…)`, `acquire(timeout=…)`."""

    name = "asyncpg"

    async def open(self) -> None:
        """No connections at the start: a pool with some raises when the database is not there."""
        self._pool: Any = await _asyncpg.create_pool(
            self.url,
            min_size=0,
            max_size=self.limits.most,
            command_timeout=self.limits.statement,
            **({} if self.limits.connect is None else {"timeout": self.limits.connect}),
        )

    async def ask(self, sql: str = "select 1") -> Any:
        """`pool.acquire()`, `fetchval()`."""
        async with self._pool.acquire(timeout=self.limits.pool) as connection:
            return await connection.fetchval(sql)

    async def transact(self, statements: Sequence[str]) -> None:
        """`connection.transaction()`."""
        async with self._pool.acquire(timeout=self.limits.pool) as connection, connection.transaction():
            for statement in statements:
                await connection.execute(statement)

    async def undo(self, statements: Sequence[str], *, by_block: bool) -> None:
        """`connection.transaction()` left by an exception, or its `rollback()`."""
        async with self._pool.acquire(timeout=self.limits.pool) as connection:
            transaction = connection.transaction()
            if by_block:
                with contextlib.suppress(_Undo):
                    async with transaction:
                        for statement in statements:
                            await connection.execute(statement)
                        raise _Undo
            else:
                await transaction.start()
                for statement in statements:
                    await connection.execute(statement)
                await transaction.rollback()

    def held(self) -> int:
        """By the pool's own count."""
        return self._pool.get_size() - self._pool.get_idle_size()

    async def close(self) -> None:
        """`pool.close()`."""
        await self._pool.close()


class PsycopgPool(Client):
    """psycopg_pool's AsyncConnectionPool with its defaults: no `check`."""

    name = "psycopg_pool"

    async def open(self) -> None:
        """`open()` without waiting, as in its examples for web applications."""
        given: dict[str, Any] = {}
        if self.limits.connect is not None:
            given["connect_timeout"] = max(
                2, math.ceil(self.limits.connect)
            )  # whole seconds, 2 at least: libpq's rule
        if self.limits.statement is not None:
            given["options"] = f"-c statement_timeout={int(self.limits.statement * 1000)}"
        self._pool = AsyncConnectionPool[psycopg.AsyncConnection[Any]](
            self.url,
            kwargs=given,
            min_size=self.limits.size,
            max_size=self.limits.most,
            timeout=self.limits.pool or 30.0,
            open=False,
            check=self._check(),
        )
        await self._pool.open()

    def _check(self) -> Any:
        return None

    async def ask(self, sql: str = "select 1") -> Any:
        """`pool.connection()`, `execute()`."""
        async with self._pool.connection() as connection:
            row = await (await connection.execute(sql.encode())).fetchone()
            return None if row is None else row[0]

    async def transact(self, statements: Sequence[str]) -> None:
        """`pool.connection()` commits at its end."""
        async with self._pool.connection() as connection:
            for statement in statements:
                await connection.execute(statement.encode())

    async def undo(self, statements: Sequence[str], *, by_block: bool) -> None:
        """`connection.transaction(force_rollback=True)`, or `connection.rollback()`."""
        async with self._pool.connection() as connection:
            if by_block:
                async with connection.transaction(force_rollback=True):
                    for statement in statements:
                        await connection.execute(statement.encode())
            else:
                for statement in statements:
                    await connection.execute(statement.encode())
                await connection.rollback()

    async def warm(self, connections: int) -> None:
        """It opens its own."""
        await self._pool.wait()

    def held(self) -> int:
        """By the pool's own count."""
        stats = self._pool.get_stats()
        return stats.get("pool_size", 0) - stats.get("pool_available", 0)

    async def close(self) -> None:
        """`pool.close()`."""
        await self._pool.close()


class PsycopgPoolChecked(PsycopgPool):
    """The same with `check=AsyncConnectionPool.check_connection`."""

    name = "psycopg_pool+check"

    def _check(self) -> Any:
        return AsyncConnectionPool.check_connection


class StockSqlAlchemy(Client):
    """SQLAlchemy's own engine on asyncpg, as the seed document configures it."""

    name = "sqlalchemy"

    async def open(self) -> None:
        """The pool and the `connect_args` of the seed document."""
        connect_args: dict[str, Any] = {
            "prepared_statement_name_func": lambda: f"__asyncpg_{uuid.uuid4()}__",
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
        }
        if self.limits.statement is not None:
            connect_args["command_timeout"] = self.limits.statement
        if self.limits.connect is not None:
            connect_args["timeout"] = self.limits.connect
        self.engine = self._engine(self.url.replace("postgresql://", "postgresql+asyncpg://"), connect_args)

    def _engine(self, url: str, connect_args: dict[str, Any]) -> stock.AsyncEngine:
        return stock.create_async_engine(
            url,
            pool_size=self.limits.size,
            max_overflow=self.limits.overflow,
            pool_timeout=30.0 if self.limits.pool is None else self.limits.pool,
            pool_recycle=7200,
            pool_pre_ping=True,
            pool_use_lifo=True,
            connect_args=connect_args,
        )

    async def ask(self, sql: str = "select 1") -> Any:
        """An AsyncSession."""
        async with stock.AsyncSession(self.engine) as session:
            return (await session.execute(text(sql))).scalar()

    async def transact(self, statements: Sequence[str]) -> None:
        """An AsyncSession and `commit()`."""
        async with stock.AsyncSession(self.engine) as session:
            for statement in statements:
                await session.execute(text(statement))
            await session.commit()

    async def undo(self, statements: Sequence[str], *, by_block: bool) -> None:
        """The end of an AsyncSession without `commit()`, or its `rollback()`."""
        async with stock.AsyncSession(self.engine) as session:
            await _run_in(session, statements, rolls_back=not by_block)

    def held(self) -> int:
        """By the pool's own count."""
        return cast(QueuePool, self.engine.pool).checkedout()

    async def leave_in_child(self) -> None:
        """`engine.dispose(close=False)`, as its documentation says for `os.fork()`."""
        await self.engine.dispose(close=False)

    async def close(self) -> None:
        """`engine.dispose()`."""
        await self.engine.dispose()


class StockSqlAlchemyPsycopg(StockSqlAlchemy):
    """SQLAlchemy's own engine on psycopg, which was plyr.fm's default driver, without further protection."""

    name = "sqlalchemy+psycopg"

    async def open(self) -> None:
        """No `connect_args` but the connect timeout, in whole seconds."""
        connect = self.limits.connect
        given: dict[str, Any] = {} if connect is None else {"connect_timeout": max(2, math.ceil(connect))}
        self.engine = self._engine(self.url.replace("postgresql://", "postgresql+psycopg://"), given)


class Steadypool(Client):
    """steadypool's Database; subclasses choose the driver."""

    driver: ClassVar[str]
    has_deadlines = True

    async def open(self) -> None:
        """Settings by name; nothing is connected yet."""
        limits = self.limits
        given: dict[str, Any] = {
            "connection_timeout": limits.connect,
            "pool_timeout": limits.pool,
            "statement_timeout": limits.statement,
            "close_grace": limits.close_grace,
        }
        self.db = Database(
            DatabaseSettings(
                url=self.url.replace("postgresql://", f"postgresql+{self.driver}://"),
                pool_size=limits.size,
                max_overflow=limits.overflow,
                **{name: value for name, value in given.items() if value is not None},
            )
        )
        await self.db.open()

    async def ask(self, sql: str = "select 1") -> Any:
        """`db.session()`."""
        async with self.db.session() as session:
            return (await session.execute(text(sql))).scalar()

    async def transact(self, statements: Sequence[str]) -> None:
        """`db.session()` and `commit()`."""
        async with self.db.session() as session:
            for statement in statements:
                await session.execute(text(statement))
            await session.commit()

    async def undo(self, statements: Sequence[str], *, by_block: bool) -> None:
        """The end of `db.session()` without `commit()`, or its `rollback()`."""
        async with self.db.session() as session:
            await _run_in(session, statements, rolls_back=not by_block)

    async def leave(self) -> None:
        """`db.engine.dispose()`, and `db.close()` for what else it has."""
        await self.db.engine.dispose()
        await self.db.close()

    async def warm(self, connections: int) -> None:
        """`db.warm_up()`."""
        await self.db.warm_up(connections)

    def held(self) -> int:
        """By the pool's own count."""
        core = self.db.pool.core
        return core.count() - core.count(EntryState.IDLE)

    async def close(self) -> None:
        """`db.close()`."""
        await self.db.close()

    @asynccontextmanager
    async def within(self, seconds: float) -> AsyncGenerator[None]:
        """`deadline()`."""
        with deadline(seconds):
            yield


class SteadypoolAsyncpg(Steadypool):
    """steadypool on asyncpg."""

    name = "steadypool/asyncpg"
    driver = "asyncpg"


class SteadypoolPsycopg(Steadypool):
    """steadypool on psycopg."""

    name = "steadypool/psycopg"
    driver = "psycopg"


class SteadypoolPipelined(Steadypool):
    """steadypool on its own driver."""

    name = "steadypool/steadypool"
    driver = "steadypool"


DRIVERS: dict[str, type[Steadypool]] = {
    peer.driver: peer for peer in (SteadypoolAsyncpg, SteadypoolPsycopg, SteadypoolPipelined)
}
"""steadypool by the name of its driver."""

PEERS: dict[str, type[Client]] = {
    peer.name: peer
    for peer in (
        AsyncpgPool,
        PsycopgPool,
        PsycopgPoolChecked,
        StockSqlAlchemy,
        *DRIVERS.values(),
    )
}
"""By name; steadypool's are the last."""
