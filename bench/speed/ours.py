"""steadypool, by its three ways, with all guards on."""

from __future__ import annotations

import os

import sqlalchemy.ext.asyncio as stock

from steadypool import Database, DatabaseSettings

from . import work
from .peers import NUMBERED, Sessions
from .work import Contestant, Kind, Request

DRIVER = os.environ.get("BENCH_DRIVER", "steadypool")


class Ours(Contestant):
    driver = DRIVER

    async def open(self) -> None:
        self.db = Database(
            DatabaseSettings(url=self.url.replace("postgresql://", f"postgresql+{self.driver}://"))
        )
        await self.db.open()

    async def close(self) -> None:
        await self.db.close()


class Shared(Ours):
    name = "steadypool shared"
    size = 2

    def requests(self) -> dict[Kind, Request]:
        db = self.db

        async def read(row: int) -> object:
            return await db.fetchrow(NUMBERED["READ"], row)

        async def write(row: int) -> object:
            return await db.execute(NUMBERED["UPDATE"], row)

        async def read_100(row: int) -> object:
            return await db.fetch(NUMBERED["READ_100"], row)

        return {Kind.READ: read, Kind.WRITE: write, Kind.READ_100: read_100, Kind.MIXED: read}

    async def slow(self, _row: int) -> object:
        return await self.db.fetch(work.SLOW)

    async def large(self, _row: int) -> object:
        return await self.db.fetchval(work.LARGE)


class Dedicated(Ours):
    name = "steadypool dedicated"

    def requests(self) -> dict[Kind, Request]:
        db = self.db

        async def read(row: int) -> object:
            async with db.connection() as connection:
                return await connection.fetchrow(NUMBERED["READ"], row)

        async def read_transaction(row: int) -> None:
            async with db.connection() as connection, connection.transaction():
                for more in range(3):
                    await connection.fetchrow(NUMBERED["READ"], row + more)

        async def write_transaction(row: int) -> None:
            async with db.connection() as connection, connection.transaction():
                await connection.fetchrow(NUMBERED["READ"], row)
                await connection.execute(NUMBERED["UPDATE"], row)

        async def write(row: int) -> None:
            async with db.connection() as connection:
                await connection.execute(NUMBERED["UPDATE"], row)

        async def read_100(row: int) -> object:
            async with db.connection() as connection:
                return await connection.fetch(NUMBERED["READ_100"], row)

        return {
            Kind.READ: read,
            Kind.READ_TRANSACTION: read_transaction,
            Kind.WRITE_TRANSACTION: write_transaction,
            Kind.WRITE: write,
            Kind.READ_100: read_100,
            Kind.MIXED: read,
        }

    async def slow(self, _row: int) -> object:
        async with self.db.connection() as connection:
            return await connection.fetch(work.SLOW)

    async def large(self, _row: int) -> object:
        async with self.db.connection() as connection:
            return await connection.fetch(work.LARGE)


class Session(Sessions):
    name = "steadypool session"
    driver = DRIVER

    async def open(self) -> None:
        self.db = Database(
            DatabaseSettings(url=self.url.replace("postgresql://", f"postgresql+{self.driver}://"))
        )
        await self.db.open()
        self.engine = self.db.engine

    async def close(self) -> None:
        await self.db.close()

    def session(self) -> stock.AsyncSession:
        return stock.AsyncSession(self.engine, expire_on_commit=False)


class SessionAsyncpg(Session):
    name = "steadypool session, asyncpg"
    driver = "asyncpg"


class SessionPsycopg(Session):
    name = "steadypool session, psycopg"
    driver = "psycopg"


OURS: tuple[type[Contestant], ...] = (Shared, Dedicated, Session, SessionAsyncpg, SessionPsycopg)
