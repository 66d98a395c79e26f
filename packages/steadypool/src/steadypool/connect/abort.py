"""Letting go of a connection at once, and learning when the server has let go of it too.

A polite close needs an answer, and the reason to abort is often that no answer comes. So an abort closes the
client's socket and waits for nothing. The server's backend may live on for a while (until it looks at its socket,
see `client_connection_check_interval`) and counts against the server's limits as long; a `CloseWaiter` tells when it
is gone: it keeps a second descriptor of the same socket, says "no more from me" and reads until the server closes.

    farewell = take_farewell(connection)
    abort_asyncpg(connection)
    if farewell is not None:
        await farewell.wait(5.0)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from steadypool.errors import SteadypoolError

if TYPE_CHECKING:
    from steadypool.connect.psycopg_connection import SteadyAsyncConnection

_CHUNK = 65_536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class CloseWaiter:
    """A second descriptor of a connection's socket, to see the server close its end.

    It keeps the socket open until `wait()` or `close()` ends, so one of them must be called.
    """

    def __init__(self, descriptor: int) -> None:
        """Take over `descriptor`, a duplicate that belongs to nobody else."""
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)

    def begin(self) -> None:
        """Tell the server that nothing more will come; done by `wait()` unless it was done before."""
        if self._socket.fileno() != -1:
            # an error means that the other end is gone already: exactly what is waited for
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    async def wait(self, timeout: float) -> bool:
        """Wait until the server has closed the connection, at most `timeout` seconds; then close the descriptor.

        Returns:
            Whether the server let go. If it did not, the connection is reset, so that a server which is busy
            sending notices too.
        """
        if self._socket.fileno() == -1:
            return True
        self.begin()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        descriptor = self._socket.fileno()
        loop.add_reader(descriptor, self._discard, ended)
        try:
            async with asyncio.timeout(timeout):
                await ended
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(descriptor)
            if not ended.done() or ended.cancelled():  # also when whoever waits here is cancelled
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.close()
        return True

    def _discard(self, ended: asyncio.Future[None]) -> None:
        """Read one chunk of what the server still says; end of file, or a broken connection, ends the wait."""
        try:
            data = self._socket.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data and not ended.done():
            ended.set_result(None)

    def close(self) -> None:
        """Close the descriptor without waiting; safe to call twice."""
        self._socket.close()


def take_farewell(connection: Any) -> CloseWaiter | None:
    """Prepare to watch a connection end; call it before the abort.

    Args:
        connection: an asyncpg or psycopg connection.

    Returns:
        None where the connection has no open socket any more.
    """
    descriptor = _descriptor(connection)
    if descriptor is None or descriptor < 0:
        return None
    try:
        return CloseWaiter(os.dup(descriptor))
    except OSError:
        return None  # closed in the meantime, or no descriptor left: then there is nothing to watch with


def _descriptor(connection: Any) -> int | None:
    pgconn = getattr(connection, "pgconn", None)
    if pgconn is not None:
        return None if connection.closed else pgconn.socket
    return socket_descriptor(getattr(connection, "_transport", None))


def socket_descriptor(transport: asyncio.BaseTransport | None) -> int | None:
    """The descriptor under a transport of asyncio or uvloop, TLS or not; None when it is closed."""
    under = None if transport is None else transport.get_extra_info("socket")
    descriptor = -1 if under is None else under.fileno()
    return None if descriptor < 0 else descriptor


def abort_asyncpg(connection: Any) -> None:
    """Close an `asyncpg.Connection`'s socket now; a statement on its way fails in its caller.

    Awaits nothing, may be called from a callback of the loop, where that loop does not run any more, and twice.
    """
    loop, transport = connection._loop, connection._transport
    if loop.is_running():
        connection.terminate()
    elif not connection._aborted:
        connection._aborted = True  # asyncpg's own mark; it would warn about an open connection otherwise
        close_transport(transport)
    # asyncpg has forgotten how to talk; a statement that was between two of its steps would fail with
    # AttributeError, as if it were a bug.
    connection._protocol = _Aborted()


def close_transport(transport: Any) -> None:
    """Close a transport whose event loop does not run: `abort` alone leaves that to the loop's next turn."""
    descriptor = socket_descriptor(transport)
    if descriptor is not None:
        _shut(descriptor)
    under = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None) or transport
    close_now = getattr(under, "_call_connection_lost", None)  # asyncio's own; uvloop closes with its loop
    if close_now is not None:
        under._call_connection_lost = _nothing  # what `abort` leaves to the loop
    with contextlib.suppress(RuntimeError):  # the loop is closed, and takes nothing more
        transport.abort()
    if close_now is not None and getattr(under, "_sock", None) is not None:
        with contextlib.suppress(
            Exception
        ):  # of the protocol, which tells a closed loop; the socket is closed then
            close_now(None)


def _nothing(_error: Exception | None) -> None:
    """It was closed."""


def _shut(descriptor: int) -> None:
    """End a connection for both ends; its descriptor stays with whoever has it."""
    # an error means that it has ended already
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as under:
        under.shutdown(socket.SHUT_RDWR)


def hang_up(connection: Any) -> None:
    """End a connection for the server, from another thread than its own.

    Nothing of its event loop is touched: that reads an end of file, and closes the descriptor.

    Args:
        connection: an asyncpg, psycopg or pipelined connection.
    """
    descriptor = _descriptor(connection)
    if descriptor is not None and descriptor >= 0:
        _shut(descriptor)


def disown(connection: Any) -> None:
    """In a forked child, close the descriptor of a connection of the parent's; the server hears nothing of it.

    The number of the descriptor leads to nowhere from then on, so whatever is done with the connection here, by
    libpq, an event loop or the garbage collector, does not reach the parent's socket.
    """
    descriptor = _descriptor(connection)
    if descriptor is None or descriptor < 0:
        return
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(nowhere, descriptor, inheritable=False)
    finally:
        os.close(nowhere)
    pgconn = getattr(connection, "pgconn", None)
    if pgconn is not None:
        connection._closed = True  # what close() sets, of psycopg's connections and of ours
        pgconn.finish()
    else:
        connection._aborted = True  # asyncpg's own mark; it would warn about an open connection otherwise


class _Aborted:
    """In the place of an aborted asyncpg connection's protocol: any use raises why it was aborted."""

    def __getattr__(self, name: str) -> NoReturn:
        from asyncpg import ConnectionDoesNotExistError  # pyright: ignore[reportMissingTypeStubs]

        cancellation = current_cancellation()
        if cancellation is not None:
            raise cancellation
        raise ConnectionDoesNotExistError("the connection was aborted in the middle of an operation")


def current_cancellation() -> BaseException | None:
    """The exception by which the current task leaves an operation that was cut short; None if it does not.

    A driver's clean-up (`transaction()`, a cursor's `close()`) still uses a connection that was given up. It raises
    this exception, so that a failed clean-up never replaces a cancellation, or what a time limit made of one.
    """
    handled = sys.exception()
    if isinstance(handled, asyncio.CancelledError | TimeoutError | SteadypoolError):
        return handled
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return None
    # The exception may be handled in a greenlet, where it is not seen from here.
    return asyncio.CancelledError() if task is not None and task.cancelling() else None


def abort_psycopg(connection: SteadyAsyncConnection[Any]) -> None:
    """Close a psycopg connection's socket now; a statement on its way fails in its caller.

    Awaits nothing, may be called from a callback of the loop, and twice.
    """
    connection.abort()
