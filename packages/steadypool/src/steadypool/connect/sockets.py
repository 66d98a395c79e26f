"""Plain sockets on the event loop, as far as connecting needs them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Generator, Mapping

from steadypool.connect.addresses import Candidate
from steadypool.connect.session_settings import guard_socket


class SocketDial:
    """A socket of our own on its way to an address.

    Args:
        candidate: where to; it has an address.
        options: libpq's `keepalives*` and `tcp_user_timeout`.

    Raises:
        OSError: it failed at once.
    """

    def __init__(self, candidate: Candidate, options: Mapping[str, str]) -> None:
        assert candidate.address is not None
        family, address = candidate.address
        self._taken = False
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setblocking(False)
            guard_socket(self._socket, options)
            result = self._socket.connect_ex(address)
            if result not in (0, errno.EINPROGRESS):
                raise OSError(result, os.strerror(result))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Its descriptor."""
        return self._socket.fileno()

    def established(self) -> None:
        """Raises OSError where the connection failed."""
        result = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if result:
            raise OSError(result, os.strerror(result))

    def take(self) -> socket.socket | None:
        """The socket, once; who takes it closes it."""
        if self._taken:
            return None
        self._taken = True
        return self._socket

    def close(self) -> None:
        """Close it, unless it was taken."""
        if not self._taken:
            self._socket.close()


async def connected_socket(candidate: Candidate, options: Mapping[str, str]) -> socket.socket:
    """A connected socket to one address; whoever asked closes it. Raises OSError."""
    dial = SocketDial(candidate, options)
    try:
        await socket_ready(dial.fileno(), writing=True)
        dial.established()
        taken = dial.take()
    finally:  # also when cancelled: nobody else knows this socket
        dial.close()
    assert taken is not None
    return taken


async def socket_ready(descriptor: int, *, writing: bool) -> None:
    """Wait until a descriptor can be written to, or read from."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    (loop.add_writer if writing else loop.add_reader)(descriptor, wake)
    try:
        await ready
    finally:
        (loop.remove_writer if writing else loop.remove_reader)(descriptor)


@contextlib.contextmanager
def borrowed(descriptor: int) -> Generator[socket.socket]:
    """A socket object for a descriptor that belongs to somebody else, and stays open."""
    sock = socket.socket(fileno=descriptor)
    try:
        yield sock
    finally:
        sock.detach()
