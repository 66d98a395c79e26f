"""steadypool, by its three ways, with all guards on."""

from __future__ import annotations

from typing import Any

from steadypool import Database, DatabaseSettings

from . import work
from .peers import NUMBERED, Sessions
from .work import Contestant


class Ours(Contestant):
    driver = "steadypool"
    window: int | None = None
    """Statements on their way on a shared connection, where that is not what the settings say by themselves."""

    async def open(self) -> None:
        more: dict[str, Any] = {} if self.window is None else {"shared_window": self.window}
        self.db = Database(
            DatabaseSettings(url=self.url.replace("postgresql://", f"postgresql+{self.driver}://"), **more)
        )
        await self.db.open()

    async def close(self) -> None:
        await self.db.close()


class Shared(Ours):
    name = "steadypool shared"
    size = 2

    async def read(self, row: int) -> object:
        return await self.db.fetchrow(NUMBERED["READ"], row)

    async def write(self, row: int) -> object:
        return await self.db.execute(NUMBERED["UPDATE"], row)

    async def read_100(self, row: int) -> object:
        return await self.db.fetch(NUMBERED["READ_100"], row)

    async def slow(self, _row: int) -> object:
        return await self.db.fetch(work.SLOW)

    async def large(self, _row: int) -> object:
        return await self.db.fetchval(work.LARGE)


class SharedWide(Ours):
    """With a window that fits a distance of some milliseconds: more may wait behind a slow one."""

    name = "steadypool shared, window 64"
    size = 2
    window = 64

    async def read(self, row: int) -> object:
        return await self.db.fetchrow(NUMBERED["READ"], row)


class Dedicated(Ours):
    name = "steadypool dedicated"

    async def read(self, row: int) -> object:
        async with self.db.connection() as connection:
            return await connection.fetchrow(NUMBERED["READ"], row)

    async def read_transaction(self, row: int) -> None:
        async with self.db.connection() as connection, connection.transaction():
            for more in range(3):
                await connection.fetchrow(NUMBERED["READ"], row + more)

    async def write_transaction(self, row: int) -> None:
        async with self.db.connection() as connection, connection.transaction():
            await connection.fetchrow(NUMBERED["READ"], row)
            await connection.execute(NUMBERED["UPDATE"], row)

    async def write(self, row: int) -> None:
        async with self.db.connection() as connection:
            await connection.execute(NUMBERED["UPDATE"], row)

    async def read_100(self, row: int) -> object:
        async with self.db.connection() as connection:
            return await connection.fetch(NUMBERED["READ_100"], row)

    async def slow(self, _row: int) -> object:
        async with self.db.connection() as connection:
            return await connection.fetch(work.SLOW)

    async def large(self, _row: int) -> object:
        async with self.db.connection() as connection:
            return await connection.fetch(work.LARGE)


class Session(Ours, Sessions):
    name = "steadypool session"

    async def open(self) -> None:
        await super().open()
        self.engine = self.db.engine


class SessionAsyncpg(Session):
    name = "steadypool session, asyncpg"
    driver = "asyncpg"


class SessionPsycopg(Session):
    name = "steadypool session, psycopg"
    driver = "psycopg"


OURS: tuple[type[Contestant], ...] = (Shared, SharedWide, Dedicated, Session, SessionAsyncpg, SessionPsycopg)
