"""The tasks that publish uploads after their request was answered."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import uuid
from types import TracebackType
from typing import Self

from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from backend.services import uploads
from backend.utilities.database import UPLOADS
from steadypool import Database
from steadypool.clock import SYSTEM_CLOCK, Backoff, Clock
from steadypool.errors import SteadypoolError

log = logging.getLogger(__name__)

TRANSIENT = (SteadypoolError, OperationalError, InterfaceError)
"""The database is away or slow: worth trying again, for as long as the process lives."""


class UploadJobs:
    """Publishes uploads, retrying while the database is away; `async with` begins and ends the work.

    What it leaves unfinished at its end is taken up by the next start, or by whoever asks for the progress.

    Args:
        database: where uploads are.
        clock: what the pauses between two tries are taken from.
        grace: seconds that the end waits for what is running.
    """

    def __init__(self, database: Database, *, clock: Clock = SYSTEM_CLOCK, grace: float = 5.0) -> None:
        self._database = database
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
        backoff = Backoff(first=0.1, ceiling=10.0)
        while True:
            try:
                async with self._database.session(workload=UPLOADS) as session:
                    await uploads.publish(session, upload_id)
                    await session.commit()
                return
            except TRANSIENT as error:
                log.warning("upload %s is not published yet, trying again: %s", upload_id, error)
            except SQLAlchemyError as error:
                log.error("upload %s cannot be published: %s", upload_id, error)
                await self._fail(upload_id)
                return
            await self._clock.sleep(backoff.next_pause())

    async def _fail(self, upload_id: uuid.UUID) -> None:
        try:
            async with self._database.session(workload=UPLOADS) as session:
                await uploads.fail(session, upload_id, "the database refused the track")
                await session.commit()
        except TRANSIENT as error:
            log.error("upload %s stays unfinished: %s", upload_id, error)

    async def _resume(self) -> None:
        backoff = Backoff(first=0.1, ceiling=10.0)
        while True:
            try:
                async with self._database.session(workload=UPLOADS, read_only=True) as session:
                    unfinished = await uploads.list_unfinished(session)
                break
            except TRANSIENT as error:
                log.warning("cannot look for unfinished uploads yet, trying again: %s", error)
            await self._clock.sleep(backoff.next_pause())
        for upload_id in unfinished:
            self.start(upload_id)
