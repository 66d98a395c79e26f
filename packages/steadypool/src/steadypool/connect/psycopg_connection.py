"""A psycopg connection that can be let go of in the middle of a statement.

psycopg answers the cancellation of a task with a cancel request and up to ten seconds of waiting for its effect.
A pool whose every wait has an end cannot use that: here a cancelled statement ends at once, and the connection is
marked so that nobody uses it again. Whoever owns it aborts it.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from psycopg import (
    AsyncConnection,
    AsyncCursor,
    AsyncPipeline,
    AsyncServerCursor,
    AsyncTransaction,
    OperationalError,
    errors,
)
from psycopg._queries import PostgresQuery
from psycopg.abc import Params, PQGen, Query
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import Row
from psycopg.waiting import Ready, Wait

from steadypool._sql.texts import check_nul
from steadypool.connect.abort import current_cancellation
from steadypool.pipeline.unread import Flooded, check_unread

Result = TypeVar("Result")
Block = TypeVar("Block")

_BUSY = 0.005
"""Seconds after which a connection that never has to wait lets the other tasks run."""

_EVENTS = {Wait.R: select.POLLIN, Wait.W: select.POLLOUT, Wait.RW: select.POLLIN | select.POLLOUT}


class _Cursor(AsyncCursor[Any]):
    """psycopg's; a text that would be cut off is refused."""

    def _convert_query(self, query: Query, params: Params | None = None) -> PostgresQuery:
        converted = super()._convert_query(query, params)
        if b"\0" in converted.query:
            check_nul(converted.query.decode("latin1"))
        return converted


class _ServerCursor(AsyncServerCursor[Any], _Cursor):
    """psycopg's; it ends with a connection that was given up, without an error or a warning."""

    async def close(self) -> None:
        """As psycopg's."""
        if getattr(self.connection, "interrupted", False):
            await AsyncCursor.close(self)
        else:
            await super().close()

    def __del__(self, *_warn: Any) -> None:
        # Otherwise it has ended with its connection, and there is nothing to warn of.
        if not self.connection.closed:
            super().__del__()


class SteadyAsyncConnection(AsyncConnection[Row]):
    """`psycopg.AsyncConnection` whose waits end at once, by cancellation or by `abort()`."""

    interrupted: bool = False
    """Whether a statement was given up half-way, so that the connection can only be aborted."""

    _waiter: asyncio.Future[None] | None = None
    _watched: int = -1
    _watching: asyncio.AbstractEventLoop | None = None
    """The loop that looks at the descriptor."""
    _yielded: float = 0.0

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.cursor_factory = _Cursor
        self.server_cursor_factory = _ServerCursor

    def abort(self) -> None:
        """Close the socket now, whatever the server is doing; a statement on its way raises `OperationalError`.

        Awaits nothing, may be called from a callback of the loop, and twice.
        """
        self._closed = True  # what psycopg's own close() sets: no warning when the object goes
        self._forget_socket()
        self.pgconn.finish()
        waiter = self._waiter
        if waiter is not None and not waiter.done() and not waiter.get_loop().is_closed():
            waiter.set_exception(OperationalError("the connection was aborted"))

    async def close(self) -> None:
        """Close the connection; whoever still waits on it gets `OperationalError`."""
        if not self.closed:
            self.abort()

    def watch(self, tell: Callable[[], None]) -> None:
        """While nobody uses the connection: call `tell`, once, when the server ends it or says something unasked."""
        if self.closed or self._watched != -1:
            return

        def readable() -> None:
            self.unwatch()
            tell()

        self._watched, self._watching = self.pgconn.socket, asyncio.get_running_loop()
        self._watching.add_reader(self._watched, readable)

    def unwatch(self) -> None:
        """Somebody is going to use the connection, or to close it."""
        self._forget_socket()

    async def wait(self, gen: PQGen[Result], interval: float = 0.1, timeout: float | None = None) -> Result:
        """Drive one of psycopg's generators until it ends; see the class for what differs.

        Args:
            gen: what psycopg wants done.
            interval: not used; psycopg's is for Ctrl-C.
            timeout: seconds; given by psycopg where running out of them is an ordinary end.
        """
        if self.interrupted:
            raise current_cancellation() or OperationalError(
                "the connection was given up in the middle of a statement"
            )
        self.unwatch()
        self._take_notifications()
        try:
            return await self._drive(gen, None if timeout is None else time.monotonic() + timeout)
        except asyncio.CancelledError:
            self.interrupted = self.interrupted or self._in_the_middle()
            raise

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncGenerator[AsyncTransaction]:
        """As psycopg's; a cancellation inside stays one."""
        async with self._outcome_kept(super().transaction(savepoint_name, force_rollback)) as transaction:
            yield transaction

    @asynccontextmanager
    async def pipeline(self) -> AsyncGenerator[AsyncPipeline]:
        """As psycopg's; a cancellation inside stays one."""
        async with self._outcome_kept(super().pipeline()) as pipeline:
            yield pipeline

    @asynccontextmanager
    async def _pipeline_nolock(self) -> AsyncGenerator[AsyncPipeline]:
        """As psycopg's, which `executemany` uses; a cancellation inside stays one."""
        async with self._outcome_kept(super()._pipeline_nolock()) as pipeline:
            yield pipeline

    @asynccontextmanager
    async def _outcome_kept(self, block: AbstractAsyncContextManager[Block]) -> AsyncGenerator[Block]:
        """Enter one of psycopg's blocks; that it cannot be left on a connection given up replaces no exception."""
        before = interrupted = self.interrupted
        raised: BaseException | None = None
        try:
            async with block as inside:
                try:
                    yield inside
                except BaseException as error:
                    raised = error
                    raise
                finally:
                    interrupted = self.interrupted
        except OperationalError as error:
            if error is raised or before or not self.interrupted:
                raise
            if raised is not None:
                raise raised  # noqa: B904 - psycopg's error is already the consequence of this one
            if not interrupted:  # it was cancelled while it was left
                raise asyncio.CancelledError from error
            raise

    def _in_the_middle(self) -> bool:
        return (
            self.pgconn.transaction_status in (TransactionStatus.ACTIVE, TransactionStatus.UNKNOWN)
            or self.pgconn.pipeline_status != PipelineStatus.OFF
        )

    async def _drive(self, gen: PQGen[Result], end: float | None) -> Result:
        try:
            wanted = next(gen)
            while True:
                ready = self._ready_now(wanted) if wanted & Wait.W else 0
                if ready:
                    await self._let_others_run()
                wanted = gen.send(Ready(ready or await self._ready(wanted, end)))
                self._take_notifications()
                if end is not None and time.monotonic() >= end:
                    raise errors._WaitTimeout("no more to wait for")  # pyright: ignore[reportPrivateUsage]  # what psycopg catches
        except StopIteration as stop:
            result: Result = stop.value
        finally:
            gen.close()
        await self._let_others_run()
        return result

    def _take_notifications(self) -> None:
        """Pass on what has come. psycopg does it when a statement is over, and until then libpq keeps all of it."""
        handler = self.pgconn.notify_handler
        if handler is None or self._notifies_backlog is None:  # None: `notifies()` takes them itself
            return
        while (notification := self.pgconn.notifies()) is not None:
            handler(notification)
        try:
            check_unread(self)
        except Flooded:
            self.abort()
            raise

    async def _let_others_run(self) -> None:
        if time.monotonic() - self._yielded >= _BUSY:
            await asyncio.sleep(0)
            self._yielded = time.monotonic()

    def _ready_now(self, wanted: Wait) -> int:
        """What the socket is ready for, without asking the event loop; it nearly always can be written to."""
        poll = select.poll()
        poll.register(self.pgconn.socket, _EVENTS[wanted])
        ready = 0
        for _, event in poll.poll(0):
            # an error or a hang-up counts as readable: reading tells what it is
            ready |= Ready.W if event & select.POLLOUT else 0
            ready |= Ready.R if event & ~select.POLLOUT else 0
        return ready

    async def _ready(self, wanted: Wait, end: float | None) -> int:
        """Wait until the socket is ready, or until `end`; `abort()` may end it from outside."""
        if self._closed:
            raise OperationalError("the connection is closed")
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        ready = 0

        def wake(what: Ready = Ready.NONE) -> None:
            nonlocal ready
            ready |= what
            if not waiter.done():
                waiter.set_result(None)

        self._watched, self._watching = self.pgconn.socket, loop
        self._waiter = waiter
        if wanted & Wait.R:
            loop.add_reader(self._watched, wake, Ready.R)
        if wanted & Wait.W:
            loop.add_writer(self._watched, wake, Ready.W)
        timer = None if end is None else loop.call_later(max(0.0, end - time.monotonic()), wake)
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            self._waiter = None
            self._yielded = time.monotonic()
            self._forget_socket()
        return ready

    def _forget_socket(self) -> None:
        """Take the descriptor from the loop while it is still ours: after the close its number may be another's."""
        descriptor, self._watched = self._watched, -1
        if descriptor == -1:
            return
        loop, self._watching = self._watching, None
        if loop is not None and not loop.is_closed():
            loop.remove_reader(descriptor)
            loop.remove_writer(descriptor)


SteadyConnection = SteadyAsyncConnection[Any]
