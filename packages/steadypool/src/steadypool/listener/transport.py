"""One libpq connection that listens: commands go out one at a time, notifications come in whenever they like."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from psycopg import OperationalError
from psycopg.errors import Diagnostic
from psycopg.pq import ConnStatus, ExecStatus

from steadypool.connect.abort import abort_psycopg, disown, hang_up
from steadypool.connect.psycopg_connection import SteadyConnection
from steadypool.listener.buffer import Notification

_SLICE = 0.1
"""Seconds after which whoever waits for an answer looks whether the event loop was free to hear it."""

_LAST_WORDS = frozenset({"FATAL", "PANIC"})
_ERRORS = frozenset({ExecStatus.FATAL_ERROR, ExecStatus.BAD_RESPONSE})


class Transport:
    """Drives the connection by the event loop's callbacks; psycopg's own waiting would hold it for itself.

    Args:
        connection: an idle one in autocommit, owned by this wire from now on.
        deliver: called with each notification, on the event loop.
    """

    def __init__(self, connection: SteadyConnection, deliver: Callable[[Notification], None]) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._descriptor = self._pgconn.socket
        self._commands: deque[tuple[str, asyncio.Future[None]]] = deque()
        """What was asked for and is not answered yet; the first one is on its way."""
        self._error: OperationalError | None = None
        self._last_words = ""
        self.received = 0
        """Notifications so far."""
        self.lost: asyncio.Future[BaseException] = self._loop.create_future()
        """Done when the connection is gone, with what it died of."""
        connection.add_notice_handler(self._noticed)
        self._loop.add_reader(self._descriptor, self._readable)

    @property
    def pid(self) -> int:
        """The backend's process id."""
        return self._pgconn.backend_pid

    async def run(self, sql: str) -> None:
        """Send one command, after those before it, and wait for its end.

        A caller who stops waiting does not stop the command; its answer is taken off the wire all the same.

        Raises:
            OperationalError: the server refused it, or the connection is gone.
        """
        await self.submit(sql)

    async def wait_for(self, future: asyncio.Future[None], seconds: float) -> bool:
        """Wait for `future` until nothing was heard for so many seconds; returns whether it is done.

        What counts is time in which this event loop could hear: while it was blocked, or the machine stood still, the
        answer may long have been there. As long as notifications come, the connection is not silent, only late.

        Raises:
            OperationalError: the connection was lost.
        """
        silent = 0.0
        while silent < seconds and not future.done() and not self.lost.done():
            received, started = self.received, self._loop.time()
            piece = min(_SLICE, seconds - silent)
            await asyncio.wait({future, self.lost}, timeout=piece)
            elapsed = self._loop.time() - started
            silent = (
                0.0 if self.received != received else silent + max(piece, min(elapsed, piece + _SLICE / 2))
            )
        if not future.done() and not self.lost.done():
            self._readable()  # some event loops run timers before they look at sockets
        if not future.done() and self.lost.done():
            raise self.lost.result()
        return future.done()

    def submit(self, sql: str) -> asyncio.Future[None]:
        """Like `run`, without waiting."""
        answer: asyncio.Future[None] = self._loop.create_future()
        answer.add_done_callback(_retrieve)
        if self.lost.done():
            answer.set_exception(OperationalError(f"the listening connection is gone: {self.lost.result()}"))
            return answer
        self._commands.append((sql, answer))
        if len(self._commands) == 1:
            self._send_first()
        return answer

    def _send_first(self) -> None:
        try:
            self._pgconn.send_query(self._commands[0][0].encode())
            self._flush()
        except OperationalError as error:
            self.close(error)

    def _flush(self) -> None:
        """Write what there is to write; commands are short, so the socket hardly ever asks to wait."""
        if self._pgconn.flush():
            self._loop.add_writer(self._descriptor, self._writable)
        else:
            self._loop.remove_writer(self._descriptor)

    def _writable(self) -> None:
        try:
            self._flush()
        except OperationalError as error:
            self.close(error)

    def _readable(self) -> None:
        try:
            self._pgconn.consume_input()
            self._take_notifications()
            self._take_results()
        except OperationalError as error:
            self.close(error)
            return
        if not self.lost.done() and self._pgconn.status == ConnStatus.BAD:
            self.close(OperationalError("the server ended the listening connection"))

    def _take_notifications(self) -> None:
        while not self.lost.done() and (notify := self._pgconn.notifies()) is not None:
            self.received += 1
            self._deliver(Notification(_text(notify.relname), _text(notify.extra), notify.be_pid))

    def _noticed(self, notice: Diagnostic) -> None:
        """A server that ends a connection says why before it does."""
        if notice.severity_nonlocalized in _LAST_WORDS:
            self._last_words = (
                f"the server ended the connection: {notice.message_primary} ({notice.sqlstate})"
            )

    def _take_results(self) -> None:
        while self._commands and not self.lost.done() and not self._pgconn.is_busy():
            result = self._pgconn.get_result()
            if result is None:
                self._answer_first()
            elif result.status in _ERRORS:
                self._error = OperationalError(result.get_error_message().strip())

    def _answer_first(self) -> None:
        (_, answer), error = self._commands.popleft(), self._error
        self._error = None
        if not answer.done():
            answer.set_result(None) if error is None else answer.set_exception(error)
        if self._commands:
            self._send_first()

    def close(self, error: BaseException | None = None) -> None:
        """Cut it off now. Never waits, and a second call does nothing."""
        if self.lost.done():
            return
        if self._last_words:
            error = OperationalError(self._last_words)
        error = error or OperationalError("the listening connection was closed")
        if self._loop.is_closed():
            abort_psycopg(self._connection)  # there is nobody left to be told
            return
        self.lost.set_result(error)
        self._loop.remove_reader(self._descriptor)  # before its number can be another socket's
        self._loop.remove_writer(self._descriptor)
        abort_psycopg(self._connection)
        while self._commands:
            _, answer = self._commands.popleft()
            if not answer.done():
                answer.set_exception(OperationalError(f"the listening connection was lost: {error}"))

    def hang_up(self) -> None:
        """End it for the server, from another thread."""
        hang_up(self._connection)

    def disown(self) -> None:
        """It is the parent process's: close the descriptor, and send nothing."""
        disown(self._connection)


def _text(value: bytes) -> str:
    """In a database without an encoding (SQL_ASCII) anything can be in it, and it must not stop what follows."""
    return value.decode("utf-8", "surrogateescape")


def _retrieve(answer: asyncio.Future[None]) -> None:
    """Nobody has to look at an answer: what it says of the connection is in `lost` as well."""
    if not answer.cancelled():
        answer.exception()
