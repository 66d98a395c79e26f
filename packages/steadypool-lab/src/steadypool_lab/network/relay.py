"""Passing on what a client and its server say, once the greeting is over; and a TLS front made of it."""

from __future__ import annotations

import asyncio
import socket
from types import TracebackType
from typing import Self

from steadypool_lab.network.startup import Client, greet, hang_up
from steadypool_lab.network.tcp_server import TCPServer
from steadypool_lab.postgres.certificate import Certificate

_READY = b"Z\0\0\0\x05"
"""ReadyForQuery; the byte after it is the transaction's state."""

_CHUNK = 65_536


class Relay:
    """One client and its connection to the server.

    Attributes:
        busy: whether a statement is running or a transaction is open: what Neon takes as activity.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.busy = True
        self.moved = asyncio.get_running_loop().time()
        self._tail = b""
        self._muted = asyncio.Event()

    def mute(self) -> None:
        """Go silent: the server's side ends, the client hears of nothing, not even of that."""
        self._muted.set()

    async def run(self, host: str, port: int) -> None:
        """Connect and pass on until either side ends.

        Raises:
            OSError: the server cannot be reached.
        """
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(self.client.startup)
            await self._both(reader, writer)
        finally:
            await hang_up(writer)
        if self._muted.is_set():
            await self._swallow()

    async def _both(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ways = {
            asyncio.create_task(self._up(writer), name="relay to the server"),
            asyncio.create_task(self._down(reader), name="relay to the client"),
            asyncio.create_task(self._until_muted(), name="relay until it is muted"),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)

    async def _until_muted(self) -> None:
        await self._muted.wait()

    async def _swallow(self) -> None:
        try:
            while await self.client.reader.read(_CHUNK):
                continue
        except OSError:
            return  # reset by the client: that is its end, too

    async def _up(self, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await self.client.reader.read(_CHUNK):
                self.busy = True
                self._moved()
                writer.write(data)
                await writer.drain()
        except OSError:
            return  # either end went away, and the caller closes both

    async def _down(self, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(_CHUNK):
                self._look(data)
                self._moved()
                self.client.writer.write(data)
                await self.client.writer.drain()
        except OSError:
            return  # either end went away, and the caller closes both

    def _look(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-6:]
        if self._tail[:5] == _READY:
            self.busy = self._tail[5:] != b"I"

    def _moved(self) -> None:
        self.moved = asyncio.get_running_loop().time()


class TlsFront:
    """TLS before a server that has none, as a provider's proxy offers it.

    Args:
        upstream_host: the server's name or address.
        upstream_port: the server's port.
        certificate: what is shown to clients.
        port: where to listen; any free port by default.

    Example:
        async with TlsFront("127.0.0.1", server.port, self_signed(folder)) as front:
            await connect(f"postgresql://…@localhost:{front.port}/app?sslmode=verify-full&sslrootcert=…")
    """

    def __init__(
        self, upstream_host: str, upstream_port: int, certificate: Certificate, *, port: int | None = None
    ) -> None:
        self.upstream = (upstream_host, upstream_port)
        self._context = certificate.server_context()
        self._door = TCPServer(self._serve, port)

    @property
    def port(self) -> int:
        """The port on 127.0.0.1 that clients connect to."""
        return self._door.port

    async def __aenter__(self) -> Self:
        self._door.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._door.close()

    async def _serve(self, visitor: socket.socket) -> None:
        client = await greet(visitor, self._context)
        if client is None:
            return
        try:
            await Relay(client).run(*self.upstream)
        except OSError:
            client.writer.transport.abort()
        finally:
            await hang_up(client.writer)
