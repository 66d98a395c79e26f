"""The other libraries, each as its own documentation shows it."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import asyncpg
import psycopg
import sqlalchemy.ext.asyncio as stock
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import text

from . import work
from .work import Contestant

NUMBERED = {name: getattr(work, name).format("$1", "$2") for name in ("READ", "READ_100", "UPDATE", "INSERT")}
PERCENT = {
    name: getattr(work, name).format("%(a)s", "%(b)s") for name in ("READ", "READ_100", "UPDATE", "INSERT")
}
NAMED = {
    name: text(getattr(work, name).format(":a", ":b")) for name in ("READ", "READ_100", "UPDATE", "INSERT")
}
SLOW, LARGE = text(work.SLOW), text(work.LARGE)


class AsyncpgPool(Contestant):
    name = "asyncpg.Pool"

    async def open(self) -> None:
        self.pool: Any = await asyncpg.create_pool(self.url, min_size=1, max_size=self.size, **self.options())

    def options(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None:
        await self.pool.close()

    async def read(self, row: int) -> object:
        return await self.pool.fetchrow(NUMBERED["READ"], row)

    async def read_transaction(self, row: int) -> None:
        async with self.pool.acquire() as connection, connection.transaction(readonly=True):
            await connection.fetchrow(NUMBERED["READ"], row)
            await connection.fetchrow(NUMBERED["READ"], row + 1)
            await connection.fetchrow(NUMBERED["READ"], row + 2)

    async def write_transaction(self, row: int) -> None:
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.fetchrow(NUMBERED["READ"], row)
            await connection.execute(NUMBERED["UPDATE"], row)

    async def write(self, row: int) -> object:
        return await self.pool.execute(NUMBERED["UPDATE"], row)

    async def insert_100(self, row: int) -> object:
        return await self.pool.executemany(NUMBERED["INSERT"], [(row, "body")] * 100)

    async def read_100(self, row: int) -> object:
        return await self.pool.fetch(NUMBERED["READ_100"], row)

    async def slow(self, _row: int) -> object:
        return await self.pool.fetch(work.SLOW)

    async def large(self, _row: int) -> object:
        return await self.pool.fetchval(work.LARGE)


class AsyncpgPoolWithoutReset(AsyncpgPool):
    """What is given back is not cleaned: fast, and the next one may inherit a lock or a setting."""

    name = "asyncpg.Pool, no reset"

    def options(self) -> dict[str, Any]:
        async def leave_it(_connection: Any) -> None:
            return None

        return {"reset": leave_it}


class AsyncpgShared(Contestant):
    """One connection behind a lock: what people write who need no pool."""

    name = "asyncpg, one connection"
    size = 1

    async def open(self) -> None:
        self.connection: Any = await asyncpg.connect(self.url)
        self.lock = asyncio.Lock()

    async def close(self) -> None:
        await self.connection.close()

    async def read(self, row: int) -> object:
        async with self.lock:
            return await self.connection.fetchrow(NUMBERED["READ"], row)

    async def write(self, row: int) -> object:
        async with self.lock:
            return await self.connection.execute(NUMBERED["UPDATE"], row)

    async def read_100(self, row: int) -> object:
        async with self.lock:
            return await self.connection.fetch(NUMBERED["READ_100"], row)


class PsycopgPool(Contestant):
    name = "psycopg_pool"
    autocommit = False

    async def open(self) -> None:
        self.pool = AsyncConnectionPool[Any](
            self.url, min_size=1, max_size=self.size, open=False, kwargs={"autocommit": self.autocommit}
        )
        await self.pool.open(wait=True)

    async def close(self) -> None:
        await self.pool.close()

    async def read(self, row: int) -> object:
        async with self.pool.connection() as connection:
            return await (await connection.execute(PERCENT["READ"], {"a": row})).fetchone()

    async def read_transaction(self, row: int) -> None:
        async with self.pool.connection() as connection, connection.transaction():
            for more in range(3):
                await (await connection.execute(PERCENT["READ"], {"a": row + more})).fetchone()

    async def write_transaction(self, row: int) -> None:
        async with self.pool.connection() as connection, connection.transaction():
            await (await connection.execute(PERCENT["READ"], {"a": row})).fetchone()
            await connection.execute(PERCENT["UPDATE"], {"a": row})

    async def write(self, row: int) -> None:
        async with self.pool.connection() as connection:
            await connection.execute(PERCENT["UPDATE"], {"a": row})

    async def insert_100(self, row: int) -> None:
        async with self.pool.connection() as connection, connection.transaction():
            async with connection.cursor() as cursor:
                await cursor.executemany(PERCENT["INSERT"], [{"a": row, "b": "body"}] * 100)

    async def read_100(self, row: int) -> object:
        async with self.pool.connection() as connection:
            return await (await connection.execute(PERCENT["READ_100"], {"a": row})).fetchall()

    async def slow(self, _row: int) -> object:
        async with self.pool.connection() as connection:
            return await (await connection.execute(work.SLOW)).fetchall()

    async def large(self, _row: int) -> object:
        async with self.pool.connection() as connection:
            return await (await connection.execute(work.LARGE)).fetchall()


class PsycopgPoolAutocommit(PsycopgPool):
    name = "psycopg_pool, autocommit"
    autocommit = True


class PsycopgPipeline(Contestant):
    """psycopg's own pipeline mode on one connection, one block a request: its cursors wait for their own results."""

    name = "psycopg pipeline()"
    size = 1

    async def open(self) -> None:
        self.connection = await psycopg.AsyncConnection.connect(self.url, autocommit=True)
        self.block = self.connection.pipeline()
        self.pipeline = await self.block.__aenter__()

    async def close(self) -> None:
        await self.block.__aexit__(None, None, None)
        await self.connection.close()

    async def read(self, row: int) -> object:
        return await (await self.connection.execute(PERCENT["READ"], {"a": row})).fetchone()

    async def write(self, row: int) -> object:
        cursor = await self.connection.execute(PERCENT["UPDATE"], {"a": row})
        await self.pipeline.sync()
        return cursor.rowcount

    async def read_100(self, row: int) -> object:
        return await (await self.connection.execute(PERCENT["READ_100"], {"a": row})).fetchall()


class Sessions(Contestant):
    """SQLAlchemy's AsyncSession, whatever the engine."""

    engine: stock.AsyncEngine

    def session(self) -> stock.AsyncSession:
        return stock.AsyncSession(self.engine, expire_on_commit=False)

    async def close(self) -> None:
        await self.engine.dispose()

    async def read(self, row: int) -> object:
        async with self.session() as s:
            return (await s.execute(NAMED["READ"], {"a": row})).one()

    async def read_transaction(self, row: int) -> None:
        async with self.session() as s:
            for more in range(3):
                (await s.execute(NAMED["READ"], {"a": row + more})).one()

    async def write_transaction(self, row: int) -> None:
        async with self.session() as s:
            (await s.execute(NAMED["READ"], {"a": row})).one()
            await s.execute(NAMED["UPDATE"], {"a": row})
            await s.commit()

    async def write(self, row: int) -> None:
        async with self.session() as s:
            await s.execute(NAMED["UPDATE"], {"a": row})
            await s.commit()

    async def insert_100(self, row: int) -> None:
        async with self.session() as s:
            await s.execute(NAMED["INSERT"], [{"a": row, "b": "body"}] * 100)
            await s.commit()

    async def read_100(self, row: int) -> object:
        async with self.session() as s:
            return (await s.execute(NAMED["READ_100"], {"a": row})).all()

    async def slow(self, _row: int) -> object:
        async with self.session() as s:
            return (await s.execute(SLOW)).all()

    async def large(self, _row: int) -> object:
        async with self.session() as s:
            return (await s.execute(LARGE)).all()


class SqlAlchemyDefault(Sessions):
    name = "SQLAlchemy, defaults"

    async def open(self) -> None:
        self.engine = stock.create_async_engine(self.url.replace("postgresql://", "postgresql+asyncpg://"))


def seeds_settings() -> dict[str, Any]:
    """The engine's arguments as the seed document gives them."""
    return {
        "pool_size": 10,
        "max_overflow": 5,
        "pool_timeout": 10.0,
        "pool_recycle": 7200,
        "pool_pre_ping": True,
        "pool_use_lifo": True,
    }


class SeedsSettings(Sessions):
    name = "seed's settings"

    async def open(self) -> None:
        self.engine = stock.create_async_engine(
            self.url.replace("postgresql://", "postgresql+asyncpg://"),
            **seeds_settings(),
            connect_args={
                "prepared_statement_name_func": lambda: f"__asyncpg_{uuid.uuid4()}__",
                "statement_cache_size": 0,
                "prepared_statement_cache_size": 0,
                "command_timeout": 10.0,
                "timeout": 10.0,
            },
        )


class SeedsSettingsPsycopg(Sessions):
    name = "seed's settings, psycopg"

    async def open(self) -> None:
        self.engine = stock.create_async_engine(
            self.url.replace("postgresql://", "postgresql+psycopg://"),
            **seeds_settings(),
            connect_args={"connect_timeout": 10},
        )


PEERS: tuple[type[Contestant], ...] = (
    AsyncpgPool,
    AsyncpgPoolWithoutReset,
    AsyncpgShared,
    PsycopgPool,
    PsycopgPoolAutocommit,
    PsycopgPipeline,
    SqlAlchemyDefault,
    SeedsSettings,
    SeedsSettingsPsycopg,
)
