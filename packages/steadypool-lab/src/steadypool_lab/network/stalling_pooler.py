"""A pooler with a fault that real ones have had: it stops for ever at a second query before the first is answered."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Self

from steadypool_lab.network.relay import Relay
from steadypool_lab.network.startup import Client, greet, hang_up
from steadypool_lab.network.tcp_server import TCPServer

_QUERIES = b"QS"
"""What a ReadyForQuery answers: Query, and the Sync that ends a flight of the extended protocol."""

_TAKEN = b"ZG"
"""The server wants to hear of the client next: ReadyForQuery, and CopyInResponse, after which a Sync ends the copy."""


class StallingPooler:
    """Stands before a server like a pooler, and forgets each client that sends a second query too early.

    A query is too early while the one before it is unanswered. The earlier one is still answered; the client hears
    nothing more after that, not even an end, until it goes away, and its connection to the server stays until then.
    Clients that wait for each answer notice nothing, and neither does anybody who sends many statements with one
    Sync.

    Args:
        upstream_host: the server's name or address.
        upstream_port: the server's port.
        port: where to listen; any free port by default.

    Attributes:
        wedged: how many connections have come to that end so far.

    Example:
        async with StallingPooler("127.0.0.1", server.port) as pooler:
            await connect(f"postgresql://…@127.0.0.1:{pooler.port}/app")
    """

    def __init__(self, upstream_host: str, upstream_port: int, *, port: int | None = None) -> None:
        self.upstream = (upstream_host, upstream_port)
        self.wedged = 0
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
        client = await greet(visitor, None)
        if client is None:
            return
        try:
            await _OneAtATime(client, self._count).run(*self.upstream)
        except OSError:
            client.writer.transport.abort()
        finally:
            await hang_up(client.writer)

    def _count(self) -> None:
        self.wedged += 1


class _OneAtATime(Relay):
    """Passes on message by message, and nothing more of a client once it did not wait for its answer."""

    def __init__(self, client: Client, on_wedge: Callable[[], None]) -> None:
        super().__init__(client)
        self._on_wedge = on_wedge
        self._unanswered = False

    async def _up(self, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                message = await _message(self.client.reader)
                if message[0] in _QUERIES:
                    if self._unanswered:
                        self._on_wedge()
                        return await self._swallow()
                    self._unanswered = True
                writer.write(message)
                await writer.drain()
        except (OSError, EOFError):
            return  # either end went away, and the caller closes both

    async def _down(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                message = await _message(reader)
                if message[0] in _TAKEN:
                    self._unanswered = False
                self.client.writer.write(message)
                await self.client.writer.drain()
        except (OSError, EOFError):
            return  # either end went away, and the caller closes both


async def _message(reader: asyncio.StreamReader) -> bytes:
    """One message of the protocol: a byte that says which, its length, and the rest."""
    head = await reader.readexactly(5)
    return head + await reader.readexactly(int.from_bytes(head[1:], "big") - 4)
