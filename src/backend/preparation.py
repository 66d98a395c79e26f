"""What has to be done to the database before requests are served from it: as soon as it lets us in, and not before.

A database that is asleep, or not there yet, is no reason not to start: it is asked until it answers. Only what will not
change by itself ends the start, such as a wrong password.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from backend.config import Settings
from backend.migrations.upgrade import MigrationError, upgrade
from backend.services.demo import ensure_demo
from backend.start_error import StartError, one_line
from backend.storage.base import StorageError
from backend.storage.local import LocalStorage
from backend.utilities.database import build_database
from steadypool import Database
from steadypool._clock import SYSTEM_CLOCK
from steadypool.connect.failure import classify_connect_error
from steadypool.deadline import deadline
from steadypool.errors import ConnectFailed, ConnectionLost, DeadlineExceeded, PoolTimeout

LOOK = 1.0
"""Seconds after which it is said that the database does not answer. The pool goes on with the connect that is on its
way, so nothing is lost by that."""
PAUSE = 0.1
"""Seconds between two looks; how often a server that refuses is asked is the pool's business."""


class _Away(RuntimeError):
    """The database was there, and is not any more."""


async def _look(database: Database) -> None:
    with deadline(LOOK):
        async with database.session(read_only=True) as session:
            await session.execute(text("SELECT 1"))


class Preparation:
    """Migrations, and the demo of an empty database.

    Args:
        settings: of the service.
        say: told when something takes a moment.

    Attributes:
        done: set when requests may be served: the tables are there.
        known: set as soon as it is done, has failed or has to wait.
    """

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self._said: str | None = None
        self.done = asyncio.Event()
        self.known = asyncio.Event()

    async def run(self) -> str | None:
        """Prepare the database, as soon as it is there; returns the demo artist's token, if there is a demo.

        Raises:
            StartError: it cannot be prepared, and that will not change by itself.
        """
        try:
            async with build_database(self._settings) as database:
                while True:
                    try:
                        token = await self._prepare(database)
                    except (_Away, ConnectFailed, ConnectionLost, DeadlineExceeded, PoolTimeout) as error:
                        if isinstance(error, ConnectFailed) and error.final:
                            raise self._unusable(str(error)) from error
                        self._wait_for_it(error)
                        await SYSTEM_CLOCK.sleep(PAUSE)
                    else:
                        return token
        finally:
            self.known.set()

    async def _prepare(self, database: Database) -> str | None:
        if self._settings.database.direct_url is None:
            await _look(database)
        else:  # that is where the migrations go
            url = self._settings.database.require_direct_url()
            async with build_database(
                self._settings.model_copy(update={"database": self._settings.database.replace(url=url)})
            ) as direct:
                await _look(direct)
        await self._migrate()
        self.done.set()
        self.known.set()
        return await self._demo(database)

    async def _migrate(self) -> None:
        try:
            if await asyncio.to_thread(upgrade, self._settings.database):
                self._say("the database is set up")
        except MigrationError as error:
            raise StartError(str(error)) from error
        except (psycopg.Error, DBAPIError) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            if isinstance(reason, psycopg.OperationalError) and not classify_connect_error(reason).final:
                raise _Away(str(reason)) from error  # it let us in a moment ago, and will again
            raise self._unusable(reason) from error

    async def _demo(self, database: Database) -> str | None:
        settings = self._settings
        storage = LocalStorage(settings.storage.audio_dir, settings.storage.max_upload_bytes)
        try:
            return await ensure_demo(database, storage, settings.server.data_dir / "demo-token", self._say)
        except StorageError as error:
            raise StartError(
                f"the demo tracks cannot be kept in {settings.storage.audio_dir}: {error}"
            ) from error

    def _wait_for_it(self, error: Exception) -> None:
        self.known.set()
        reason = one_line(error)
        if type(error).__name__ != self._said:
            self._said = type(error).__name__
            self._say(f"the database {self._settings.database.safe_url} is awaited: {reason}")

    def _unusable(self, reason: object) -> StartError:
        return StartError(
            f"the database {self._settings.database.safe_url} cannot be used: {one_line(reason)}. "
            "Check DATABASE_URL: host, port, user, password, and that the database exists. "
            "Without DATABASE_URL plyr starts a Postgres of its own"
        )
