"""The tasks that publish uploads after their request was answered."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import uuid
from types import TracebackType
from typing import Self

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from backend.services import files, uploads
from backend.storage.base import Storage
from backend.utilities.database import UPLOADS
from steadypool import Database
from steadypool._clock import SYSTEM_CLOCK, Backoff, Clock
from steadypool._sqlstate import sqlstate_in
from steadypool.errors import (
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    PoolClosed,
    PoolTimeout,
    StatementTimeout,
    SteadypoolError,
)

log = logging.getLogger(__name__)

TRANSIENT = (SteadypoolError, OperationalError, InterfaceError)
"""Worth trying again: for as long as the process lives while the database is away, else `MAX_TRIES` times."""

MAX_TRIES = 10
"""Times that a database which answers is asked for the same: a lock, a deadlock or a slow statement may pass."""

AT_ONCE = 4
"""Uploads that are published at the same time: thousands may be left by an earlier process, and requests come first."""

_AWAY_CODES = ("08", "53", "57P", "25006")
_PASSING_CODES = (*_AWAY_CODES, "40", "55P03", "57014")


def is_transient(error: Exception) -> bool:
    """Whether trying again can help. asyncpg's deadlocks and refused locks are no OperationalError."""
    return isinstance(error, TRANSIENT) or (sqlstate_in(error) or "").startswith(_PASSING_CODES)


def is_away(error: Exception) -> bool:
    """Whether the database could not be asked, so that the error says nothing about what was asked."""
    if isinstance(error, SteadypoolError) and not isinstance(error, StatementTimeout):
        return isinstance(error, PoolTimeout | ConnectFailed | ConnectionLost | DeadlineExceeded | PoolClosed)
    code = sqlstate_in(error)
    if code is not None:
        return code.startswith(_AWAY_CODES)
    # asyncpg calls a value that it cannot encode an InterfaceError, too.
    return isinstance(error, DBAPIError) and (
        error.connection_invalidated or isinstance(error, OperationalError)
    )


class UploadJobs:
    """Publishes uploads, retrying while the database is away; `async with` begins and ends the work.

    What it leaves unfinished at its end is taken up by the next start, or by whoever asks for the progress.

    Args:
        database: where uploads are.
        storage: where the files of failed uploads are removed from; None leaves them.
        clock: what the pauses between two tries are taken from.
        grace: seconds that the end waits for what is running.
    """

    def __init__(
        self,
        database: Database,
        storage: Storage | None = None,
        *,
        clock: Clock = SYSTEM_CLOCK,
        grace: float = 5.0,
    ) -> None:
        self._database = database
        self._storage = storage
        self._free = asyncio.Semaphore(AT_ONCE)
        self._clock = clock
        self._grace = grace
        self._tasks: dict[uuid.UUID, asyncio.Task[None]] = {}
        self._resuming: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._resuming = asyncio.create_task(self._resume(), name="resume uploads")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._resuming is not None
        self._resuming.cancel()
        running = [self._resuming, *self._tasks.values()]
        _, late = await asyncio.wait(running, timeout=self._grace)
        for task in late:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def resumed(self) -> None:
        """Wait until everything that an earlier process left unfinished is taken up and done."""
        assert self._resuming is not None
        await asyncio.wait({self._resuming})
        if tasks := set(self._tasks.values()):
            await asyncio.wait(tasks)

    def start(self, upload_id: uuid.UUID) -> asyncio.Task[None]:
        """Publish an upload, unless that is going on already."""
        task = self._tasks.get(upload_id)
        if task is None:
            # An empty context: the deadline of the request that started this is not the job's.
            task = asyncio.get_running_loop().create_task(
                self._publish(upload_id), name=f"publish {upload_id}", context=contextvars.Context()
            )
            self._tasks[upload_id] = task
            task.add_done_callback(lambda _: self._tasks.pop(upload_id, None))
        return task

    async def finish(self, upload_id: uuid.UUID) -> None:
        """Wait until an upload is published or failed; who stops waiting does not stop the work."""
        await asyncio.wait({self.start(upload_id)})

    async def _publish(self, upload_id: uuid.UUID) -> None:
        """Bring an upload to its end: a track, or a failure with a reason, whatever is raised on the way."""
        backoff = Backoff(first=0.1, ceiling=10.0)
        tries, reason = 0, None
        while True:
            try:
                async with self._free, self._database.session(workload=UPLOADS) as session:
                    file_id = await self._attempt(session, upload_id, reason)
                    await session.commit()
                break
            except Exception as error:
                tries += not is_away(error)
                if is_transient(error) and tries < MAX_TRIES:
                    log.warning("upload %s is not published yet, trying again: %s", upload_id, error)
                elif reason is None:
                    log.exception("upload %s cannot be published", upload_id)
                    is_refused = isinstance(error, SteadypoolError | SQLAlchemyError)
                    reason = "the database refused the track" if is_refused else "no track can be made of it"
                    tries = 0
                    continue
                else:
                    log.exception("upload %s stays unfinished", upload_id)
                    return
            await self._clock.sleep(backoff.next_pause())
        if file_id is not None:
            await self._remove_file(file_id)

    async def _attempt(self, session: AsyncSession, upload_id: uuid.UUID, reason: str | None) -> str | None:
        """Publish, or note the reason why not; returns the file that nothing may need any more."""
        if reason is not None:
            return await uploads.fail(session, upload_id, reason)
        await uploads.publish(session, upload_id)
        return None

    async def _remove_file(self, file_id: str) -> None:
        if self._storage is None:
            return
        try:
            async with self._database.session(workload=UPLOADS) as session:
                await files.remove_if_unused(session, self._storage, file_id)
                await session.commit()
        except (SteadypoolError, SQLAlchemyError, OSError) as error:
            log.warning("the file %s of a failed upload was not removed: %s", file_id, error)

    async def _resume(self) -> None:
        backoff = Backoff(first=0.1, ceiling=10.0)
        while True:
            try:
                async with self._database.session(workload=UPLOADS, read_only=True) as session:
                    unfinished = await uploads.list_unfinished(session)
                break
            except TRANSIENT as error:
                log.warning("cannot look for unfinished uploads yet, trying again: %s", error)
            except Exception:
                log.exception("unfinished uploads are not taken up; asking for their progress does it")
                return
            await self._clock.sleep(backoff.next_pause())
        for upload_id in unfinished:
            self.start(upload_id)
