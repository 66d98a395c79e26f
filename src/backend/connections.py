"""HTTP connections with bounds: heads and trailers in size, heads and bodies in time, and connections in number.

uvicorn's httptools protocol keeps headers without limit and waits for unfinished requests for ever. This one is the
same protocol, which counts what it is fed. Times are checked by one sweep a second over all connections, so a request
pays for a few counters and no timer.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NoReturn, cast

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from backend.process_limits import LINGERING

MAX_PIPELINED = 16
"""Requests of one connection that wait for the answer to an earlier one."""
LINGER = 1.0
"""Seconds that a refused client may go on sending, unread: a reset at once would take the answer away."""


_RESET = struct.pack("ii", 1, 0)


class _Refused(Exception):
    """Raised in a callback of the parser: the request exceeds a bound."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may use.

    Args:
        connections: open at once.
        head_bytes: of the request line with its headers, and of the trailers.
        head_seconds: from the beginning of a connection, or from the first byte of a later request, to the last header.
        body_rate: bytes per second that a body must bring at least, on average over `body_window`.
        body_window: seconds.
        drain_seconds: how long the rest of a body that was answered before its end is read and thrown away.
        write_seconds: how long a client may leave what was sent to it unread; a paused player reconnects.
    """

    connections: int
    head_bytes: int = 32 * 1024
    head_seconds: float = 10.0
    body_rate: int = 1024
    body_window: float = 10.0
    drain_seconds: float = 30.0
    write_seconds: float = 300.0


class _OpenToTheEnd:
    """A transport as a response sees it: `close()` lets the client first finish what it is sending."""

    __slots__ = ("_protocol", "_transport")

    def __init__(self, protocol: BoundedProtocol, transport: asyncio.Transport) -> None:
        self._protocol = protocol
        self._transport = transport

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._protocol.end_answering()


class Connections:
    """The connections of one server: creates the protocol of each, bounds their number and ends what takes too long.

    Args:
        limits: what a client may use.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.count = 0  # those that have a place
        self.lingering = 0
        self.now = time.monotonic()  # of the last sweep: exact enough, and a request asks no clock
        self.waiting: dict[BoundedProtocol, None] = {}
        """Those without a request in progress, the longest waiting first: they make room for others."""

    def create_protocol(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> BoundedProtocol:
        """Create the protocol of a new connection; uvicorn calls this where it would call the class."""
        return BoundedProtocol(self, config, server_state, app_state, _loop)

    def admit(self) -> bool:
        """Give a new connection a place, if need be that of the one that has waited longest; False if there is none.

        Connections with a request in progress are never ended for another.
        """
        if self.count >= self.limits.connections:
            longest = next(iter(self.waiting), None)
            if longest is None:
                return False
            longest.end()
        self.count += 1
        return True

    def sweep(self, connections: Iterable[object]) -> None:
        """End the connections whose client takes too long; called once a second.

        Args:
            connections: all open ones.
        """
        self.now = time.monotonic()
        for connection in list(connections):
            if isinstance(connection, BoundedProtocol):
                connection.check_time(self.now)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 on httptools, within `Limits`.

    A connection is waiting (no request, or an unfinished head), receiving (the head is complete, the body is not) or
    answering (the body is complete, the response is not).
    """

    def __init__(
        self,
        owner: Connections,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._owner = owner
        self._limits = owner.limits
        self._since = 0.0  # when the connection began to wait, or the head to arrive
        self._in_head = False
        self._in_body = False
        self._parts = 0  # how often the parser has completed something
        self._unfinished = 0  # bytes that completed nothing
        self._head_size = 0
        self._body_size = 0  # in this window
        self._window_start = 0.0
        self._unsent = 0
        self._unsent_since = 0.0
        self._has_place = False
        self._refused = False
        self._refusal = HTTPStatus.BAD_REQUEST
        self._draining = False

    # -- what arrives ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection if there is room; otherwise answer 503 and close it."""
        super().connection_made(transport)
        self._has_place = self._owner.admit()
        if self._has_place:
            self._wait()
        else:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data, and bound what the parser keeps of parts that are not complete."""
        if self._refused or self._draining:
            return
        before = self._parts
        super().data_received(data)
        if self._parts != before:
            self._unfinished = 0
            return
        self._unfinished += len(data)
        if self._unfinished > self._limits.head_bytes and not self._refused:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed; uvicorn calls this for every error of the parser."""
        self._refuse(self._refusal)

    # -- callbacks of the parser -------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a head: it has its time from here, and what came before in this chunk is not of it."""
        super().on_message_begin()
        self._parts += 1
        self._in_head = True
        self._head_size = 0
        self._since = self._owner.now

    def on_url(self, url: bytes) -> None:
        """Count a part of the request's target, which the parser hands over as it comes."""
        self._head_size += len(url)
        if self._head_size > self._limits.head_bytes:
            self._head_too_large()
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; a trailer is counted and dropped: headers of the request do not change after its head."""
        self._parts += 1
        self._head_size += len(name) + len(value) + 4  # ": " and the end of the line
        if self._head_size > self._limits.head_bytes:
            self._head_too_large()
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin the request."""
        self._parts += 1
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _Refused  # 400
        super().on_headers_complete()
        self.cycle.transport = cast("asyncio.Transport", _OpenToTheEnd(self, self.transport))
        self._owner.waiting.pop(self, None)
        self._in_head = False
        self._in_body = True
        self._head_size = 0  # from here: of the trailers
        self._begin_window(self._owner.now)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._parts += 1
        self._body_size += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request; wait for the next if it has been answered already."""
        self._parts += 1
        self._in_body = False
        super().on_message_complete()
        if self.cycle.response_complete:
            self._wait()

    def on_response_complete(self) -> None:
        """End the response; a connection whose request has not ended yet makes room for others, too."""
        super().on_response_complete()
        if self.cycle.response_complete:  # none is pipelined behind it
            self._wait()
        if self._draining:
            self._unset_keepalive_if_required()

    def end_answering(self) -> None:
        """Close the connection, whose response is complete or broken off.

        Where the client is still sending the body, what it sends is thrown away until it stops, for `drain_seconds` at
        most: to close at once would reset the connection, and the client might never read the answer.
        """
        if self.transport.is_closing() or not (self._in_body and self.cycle.response_complete):
            self.transport.close()
        elif not self._draining:
            self._draining = True
            self.transport.write_eof()
            self.flow.resume_reading()

    def _head_too_large(self) -> NoReturn:
        self._refusal = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        raise _Refused

    # -- time --------------------------------------------------------------------------------------------------

    def check_time(self, now: float) -> None:
        """End the connection if its client takes too long."""
        if self._stalls(now):
            # Reset, or the kernel would keep what is unsent for minutes more.
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()
        elif self._refused or self.transport.is_closing():
            return
        elif self._in_body:
            self._check_body(now)
        elif (self._in_head or self in self._owner.waiting) and now - self._since > self._limits.head_seconds:
            self.end(HTTPStatus.REQUEST_TIMEOUT if self._in_head else None)

    def end(self, status: HTTPStatus | None = None) -> None:
        """Close a connection whose request has not begun; with this answer, if one was begun."""
        if status is not None:
            self._refuse(status)
        else:
            self._leave()
            self.transport.close()

    def _wait(self) -> None:
        if not self._in_head:
            self._since = self._owner.now
        self._owner.waiting[self] = None

    def _leave(self) -> None:
        """Give the place to others."""
        self._owner.waiting.pop(self, None)
        self._owner.count -= self._has_place
        self._has_place = False

    def _begin_window(self, now: float) -> None:
        self._window_start, self._body_size = now, 0

    def _check_body(self, now: float) -> None:
        if self.cycle.response_complete:
            if now - self._since > self._limits.drain_seconds:
                self.transport.close()
        elif self.flow.read_paused or self.cycle.waiting_for_100_continue:
            self._begin_window(now)  # the application is not ready to read: that is not the client's time
        elif now - self._window_start >= self._limits.body_window:
            if self._body_size < self._limits.body_rate * (now - self._window_start):
                self._refuse(HTTPStatus.REQUEST_TIMEOUT)
            self._begin_window(now)

    def _stalls(self, now: float) -> bool:
        """Whether the client has read nothing for too long of what waits to be sent to it."""
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
            return False
        return now - self._unsent_since > self._limits.write_seconds

    # -- refusing ----------------------------------------------------------------------------------------------

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer with this status and close; without an answer where another response is on its way."""
        self._refused = True
        self._leave()
        self._unset_keepalive_if_required()
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None before the first request
        self.pipeline.clear()
        answering = cycle is not None and cycle.response_started and not cycle.response_complete
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        if answering or self.transport.is_closing():
            self.transport.close()
            return
        self.transport.write(_response(status))
        if self._owner.lingering >= LINGERING:
            self.transport.close()
            return
        self._owner.lingering += 1
        self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(LINGER, self._end_lingering)

    def _end_lingering(self) -> None:
        self._owner.lingering -= 1
        self.transport.abort()


def _response(status: HTTPStatus) -> bytes:
    text = status.phrase.encode()
    retry = b"retry-after: 1\r\n" if status is HTTPStatus.SERVICE_UNAVAILABLE else b""
    return (
        b"HTTP/1.1 %d %s\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n%s"
        b"x-content-type-options: nosniff\r\nconnection: close\r\n\r\n%s"
    ) % (status, text, len(text), retry, text)
