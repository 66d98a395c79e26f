"""What a Postgres client says first: whether it wants TLS, and its start-up message.

A server that only looks like Postgres from outside (a TLS front, a database that sleeps) has to take part in this much
of the protocol. What follows after it is passed on unread.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from dataclasses import dataclass

_SSL_REQUEST = struct.pack("!II", 8, 80877103)
_GSS_REQUEST = struct.pack("!II", 8, 80877104)
_CANCEL_CODE = struct.pack("!I", 80877102)
_TLS_HANDSHAKE = 0x16
_LONGEST_STARTUP = 10_000  # Postgres' own limit
_GOODBYE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Client:
    """A client whose start-up message has been read, and is still to be passed on."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    startup: bytes

    @property
    def is_cancel(self) -> bool:
        """Whether it only asks to cancel somebody's statement."""
        return self.startup[4:8] == _CANCEL_CODE

    async def refuse(self, sqlstate: str, message: str) -> None:
        """Answer with a FATAL error, as a server does that lets nobody in, and close."""
        fields = b"".join(
            kind + text.encode() + b"\0"
            for kind, text in ((b"S", "FATAL"), (b"V", "FATAL"), (b"C", sqlstate), (b"M", message))
        )
        self.writer.write(b"E" + struct.pack("!I", len(fields) + 5) + fields + b"\0")
        await hang_up(self.writer)


async def greet(visitor: socket.socket, tls: ssl.SSLContext | None) -> Client | None:
    """Agree on TLS or not, and read the start-up message; None if the client went away first.

    Both ways into TLS are known: the SSLRequest of old, and the direct handshake of PostgreSQL 17. A client may
    still choose to go without.

    Args:
        visitor: the accepted, non-blocking socket.
        tls: what to answer with to those who want TLS; None: they are told that there is none.

    Raises:
        OSError, EOFError: the connection broke, or what came was not a Postgres client.
    """
    loop = asyncio.get_running_loop()
    while True:
        first = await _peek(visitor)
        if first == _GSS_REQUEST or (first == _SSL_REQUEST and tls is None):
            visitor.recv(8)
            await loop.sock_sendall(visitor, b"N")
        elif first == _SSL_REQUEST:
            visitor.recv(8)
            await loop.sock_sendall(visitor, b"S")
            return await _read_startup(visitor, tls)
        elif not first:
            visitor.close()
            return None
        else:
            return await _read_startup(visitor, tls if first[0] == _TLS_HANDSHAKE else None)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close orderly, but not for long: over TLS the other end would have to answer."""
    writer.close()
    try:
        async with asyncio.timeout(_GOODBYE_SECONDS):
            await writer.wait_closed()
    except OSError:
        return  # the other end was faster; TimeoutError is one of these
    finally:
        writer.transport.abort()


async def _peek(visitor: socket.socket) -> bytes:
    """The first eight bytes, left where they are; fewer only when there will be no more."""
    loop = asyncio.get_running_loop()
    # Readable means eight bytes or the end: otherwise a client that sends single bytes would make this spin.
    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 8)
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(visitor.fileno(), lambda: readable.done() or readable.set_result(None))
    try:
        await readable
        first = visitor.recv(8, socket.MSG_PEEK)
        return first if len(first) == 8 else b""
    except BaseException:  # also when cancelled: nobody else knows this socket
        loop.remove_reader(visitor.fileno())
        visitor.close()
        raise
    finally:
        if visitor.fileno() >= 0:
            loop.remove_reader(visitor.fileno())
            visitor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


async def _read_startup(visitor: socket.socket, tls: ssl.SSLContext | None) -> Client:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, visitor, ssl=tls)
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    try:
        length = await reader.readexactly(4)
        (count,) = struct.unpack("!I", length)
        if not 8 <= count <= _LONGEST_STARTUP:
            raise ConnectionAbortedError("not a Postgres client")
        return Client(reader, writer, length + await reader.readexactly(count - 4))
    except BaseException:  # also when cancelled: nobody else knows this connection
        transport.abort()
        raise
