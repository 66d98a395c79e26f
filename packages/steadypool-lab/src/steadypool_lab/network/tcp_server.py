"""A listening socket whose visitors are each served by a task; it can be closed and opened again on its port."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from collections.abc import Awaitable, Callable

from steadypool_lab.errors import LabError
from steadypool_lab.postgres.ports import HOST, listen, listen_anywhere

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""For SO_LINGER: the other end hears of a reset, not of an end."""

_LEFT = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR | select.POLLNVAL


class TCPServer:
    """Accepts connections on the loopback address.

    Args:
        serve: called with each accepted socket, in a task of its own; it owns the socket.
        port: where to listen; any free port by default.

    Example:
        >>> async def hang_up(visitor: socket.socket) -> None:
        ...     visitor.close()
        >>> async def main() -> None:
        ...     door = TCPServer(hang_up)
        ...     door.open()
        ...     await door.close()
    """

    def __init__(self, serve: Callable[[socket.socket], Awaitable[None]], port: int | None = None) -> None:
        self._serve = serve
        self._port = port or 0
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port; it stays the same once the doorway was open."""
        return self._port

    @property
    def is_open(self) -> bool:
        """Whether somebody listens."""
        return self._listener is not None

    def open(self) -> None:
        """Listen.

        Raises:
            LabError: the port is taken.
        """
        if self._listener is not None:
            return
        try:
            listener = listen(self._port) if self._port else listen_anywhere()
        except OSError as error:
            raise LabError(
                f"cannot listen on {HOST}:{self._port}: {error.strerror}. Choose another port."
            ) from error
        listener.setblocking(False)
        self._port = listener.getsockname()[1]
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    def shut(self) -> None:
        """Listen no more: new connections are refused. Those that exist go on."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None

    async def close(self) -> None:
        """Shut, and end every visit."""
        self.shut()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, listener: socket.socket) -> None:
        try:
            visitor, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        visitor.setblocking(False)
        visitor.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.get_running_loop().create_task(self._visit(visitor), name="doorway serves")
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._over(task, visitor))

    def _over(self, task: asyncio.Task[None], visitor: socket.socket) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            visitor.close()  # a task that is cancelled before its first step has not even seen it

    async def _visit(self, visitor: socket.socket) -> None:
        try:
            await self._serve(visitor)
        except (OSError, EOFError):
            visitor.close()  # the other end went away in the middle: nobody is left to be told


def reset(visitor: socket.socket) -> None:
    """Close with a reset (RST): to a client it is as if nobody had listened."""
    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    visitor.close()


def has_left(descriptor: int) -> bool:
    """Whether whoever is at the other end has closed it, or will send nothing more; also for a descriptor of -1.

    The kernel knows at once; the event loop tells only some turns later, and who counts visitors meanwhile counts
    one who has left beside the one who came in its place.
    """
    if descriptor < 0:
        return True
    poll = select.poll()
    poll.register(descriptor, _LEFT)
    return bool(poll.poll(0))
