"""A network between client and server that can be made to fail, on the loopback address.

What it counts is what the client sees: a round trip is complete when the first byte of an answer goes out to the
client, so with a little `delay` statements that were sent in one go count as one trip, whatever the server's timing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from dataclasses import replace
from enum import Enum, StrEnum
from types import TracebackType
from typing import Self, cast

from steadypool_lab.network.link import Direction
from steadypool_lab.network.tcp_server import RESET_ON_CLOSE, has_left
from steadypool_lab.postgres.ports import HOST, listen, listen_anywhere


class Mode(StrEnum):
    """What the network does."""

    PASS = "pass"
    """Everything goes through, after `delay`."""
    SILENT = "silent"
    """Connections are accepted and read, and nothing is forwarded, in neither direction, not even an end of
    stream. Back in another mode, what was held back goes on its way."""
    REFUSE = "refuse"
    """Nobody listens: new connections are refused. Those that exist go on."""
    RESET = "reset"
    """Every connection is reset: those that exist now, later ones once they are accepted."""
    HALF_OPEN = "half-open"
    """The connections that exist now lose their server, which is told so, while their clients hear nothing, ever
    again. Later ones pass."""


class FaultProxy:
    """A TCP proxy whose network can be broken at run time.

    Args:
        upstream_host: the server's name or address.
        upstream_port: the server's port.

    Attributes:
        accepted: connections accepted so far.
        most_open: the most connections that clients had open at the same time.
        bytes_up, bytes_down: bytes read from clients, and bytes delivered to them.
        round_trips: how often a client has sent something and then been answered, over all connections.

    Example:
        async with FaultProxy("127.0.0.1", 5432) as proxy:
            connection = await connect(port=proxy.port)
            proxy.mode = Mode.SILENT
    """

    def __init__(self, upstream_host: str, upstream_port: int) -> None:
        self.upstream = (upstream_host, upstream_port)
        self._up = Direction()
        self._down = Direction()
        self.accepted = 0
        self.most_open = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.round_trips = 0
        self._mode = Mode.PASS
        self._listener: socket.socket | None = None
        self._port = 0
        self._links: dict[Link, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<FaultProxy {HOST}:{self._port} to {self.upstream[0]}:{self.upstream[1]}, {self._mode}>"

    @property
    def port(self) -> int:
        """The port on 127.0.0.1 that clients connect to; it stays the same in every mode."""
        return self._port

    @property
    def open(self) -> int:
        """Connections that clients have open now."""
        return sum(link.is_open for link in self._links)

    @property
    def links(self) -> tuple[Link, ...]:
        """The connections, the oldest first; each can be treated on its own."""
        return tuple(self._links)

    @property
    def up(self) -> Direction:
        """What happens to bytes on their way to the server, on every connection without a direction of its own."""
        return self._up

    @up.setter
    def up(self, value: Direction) -> None:
        self._up = value
        self._flush()

    @property
    def down(self) -> Direction:
        """What happens to bytes on their way to the client, on every connection without a direction of its own."""
        return self._down

    @down.setter
    def down(self, value: Direction) -> None:
        self._down = value
        self._flush()

    @property
    def delay(self) -> float:
        """Seconds that every byte spends on the way, each way; setting it keeps what else is set."""
        return self._down.delay

    @delay.setter
    def delay(self, seconds: float) -> None:
        self._up, self._down = replace(self._up, delay=seconds), replace(self._down, delay=seconds)

    @property
    def mode(self) -> Mode:
        """What the network does; set it to change that from one moment to the next."""
        return self._mode

    @mode.setter
    def mode(self, value: Mode | str) -> None:
        self._mode = Mode(value)
        if self._mode is Mode.REFUSE:
            self._stop_listening()
        elif self._listener is None:
            self._listen()
        if self._mode is Mode.RESET:
            self.drop_all(reset=True)
        if self._mode is Mode.HALF_OPEN:
            for link in tuple(self._links):
                link.lose_server()
        self._flush()

    def _flush(self) -> None:
        """Something has changed: send what may go now."""
        for link in tuple(self._links):
            link.flush()
        self._wake_waiting()

    def drop_all(self, *, reset: bool = False) -> None:
        """End every connection on both sides, orderly (FIN) or with a reset (RST), ahead of all that is on its way."""
        for link in tuple(self._links):
            link.end(reset=reset)

    async def __aenter__(self) -> Self:
        self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_listening()
        self.drop_all(reset=True)
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _listen(self) -> None:
        listener = listen(self._port) if self._port else listen_anywhere()
        listener.setblocking(False)
        self._port = listener.getsockname()[1]
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        try:
            accepted, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        self.accepted += 1
        if self._mode is Mode.RESET:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            accepted.close()
            return
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = Link(self, self.accepted)
        self._links[link] = None
        task = asyncio.get_running_loop().create_task(
            self._connect(link, accepted), name="fault proxy connects"
        )
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._over(task, accepted))

    def _over(self, task: asyncio.Task[None], accepted: socket.socket) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            accepted.close()  # a task that is cancelled before its first step has not even seen it

    async def _connect(self, link: Link, accepted: socket.socket) -> None:
        """Put a link between the client and the server; a silent network connects once it is silent no more."""
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: link.client_side, accepted)
            while (self._mode is Mode.SILENT or link.lost_server) and link.is_open:
                await self._changed.wait()
            if not link.is_open:
                # Given up by the client before the network came back: the server never hears of it.
                link.end(reset=True)
            else:
                await loop.create_connection(lambda: link.server_side, *self.upstream)
        except OSError:
            # The server refuses: a proxy that has accepted already can only take it back.
            link.end(reset=True)
        except asyncio.CancelledError:
            link.end(reset=True)
            raise

    def _wake_waiting(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def forget(self, link: Link) -> None:
        """A link is over."""
        self._links.pop(link, None)
        self._wake_waiting()


class _Sign(Enum):
    """What can be on its way besides bytes."""

    END = "end of stream"
    RESET = "reset"


class _Side(asyncio.Protocol):
    """One socket of a link: what comes in goes into the other side's queue, what is in ours goes out when due."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.transport: asyncio.Transport | None = None
        self.ended = False
        """Its peer will send nothing more."""
        self.finished = False
        """Its peer has been told that nothing more will come."""
        self.arrived = 0
        """Bytes delivered to its peer."""
        self._pending: deque[tuple[float, bytes | _Sign]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def other(self) -> _Side:
        return self.link.server_side if self is self.link.client_side else self.link.client_side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self.link.closed:
            self.transport.abort()
        else:
            self.link.proxy.most_open = max(self.link.proxy.most_open, self.link.proxy.open)
            self.deliver()

    def data_received(self, data: bytes) -> None:
        self.link.read(self, len(data))
        self.other.queue(data)

    @property
    def way(self) -> Direction:
        """What happens to the bytes that are delivered here."""
        return self.link.up if self is self.link.server_side else self.link.down

    def eof_received(self) -> bool:
        self.ended = True
        if self.link.lost_server:
            self.link.end(reset=False)  # nobody is left who could be told
            return False
        self.other.queue(_Sign.END)
        return True  # keeps the other direction open: there may still be something to say

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if exc is not None and not self.ended:
            self.other.queue(_Sign.RESET)
        self.ended = True
        self.link.check_over()

    def pause_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.resume_reading()

    def queue(self, what: bytes | _Sign) -> None:
        if self.link.lost_server:
            return
        due = self.way.arrival(asyncio.get_running_loop().time())
        # Never before what was sent earlier, also when the delay has become shorter since.
        if self._pending:
            due = max(due, self._pending[-1][0])
        if isinstance(what, bytes):
            self._pending.extend(self.way.pieces(what, due))
        else:
            self._pending.append((due, what))
        self.deliver()

    def deliver(self) -> None:
        """Send what is due; come back for the rest."""
        self.forget_timer()
        loop = asyncio.get_running_loop()
        while self._pending and not self.link.closed and not self._is_silent():
            due, what = self._pending[0]
            if self.transport is None:
                return
            if due > loop.time():
                self._timer = loop.call_at(due, self.deliver)
                return
            self._pending.popleft()
            self._send(self.transport, what)

    def _is_silent(self) -> bool:
        return self.link.proxy.mode is Mode.SILENT or self.way.silent

    def _send(self, transport: asyncio.Transport, what: bytes | _Sign) -> None:
        if isinstance(what, bytes):
            limit = self.way.cut_after
            if limit is not None:
                what = what[: max(0, limit - self.arrived)]
            self.arrived += len(what)
            self.link.delivered(self, len(what))
            if (
                not transport.is_closing()
            ):  # the peer may be gone, and asyncio would complain of what it cannot send
                transport.write(what)
            if limit is not None and self.arrived >= limit:
                self.link.end(reset=False)
        elif what is _Sign.RESET:
            self.link.end(reset=True)
        else:
            self.finished = True
            if not transport.is_closing():
                # The peer may be gone, and asyncio may not have noticed yet.
                with contextlib.suppress(OSError):
                    transport.write_eof()
            self.link.check_over()

    def forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def drop_pending(self) -> None:
        self._pending.clear()
        self.forget_timer()

    def end(self, *, reset: bool) -> None:
        self.drop_pending()
        if self.transport is None:
            return
        if reset:
            peer: socket.socket | None = self.transport.get_extra_info("socket")
            # uvloop has closed it already where it was cancelled while it connected.
            if peer is not None and peer.fileno() >= 0:
                # The peer may be gone already, and then the option is refused.
                with contextlib.suppress(OSError):
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self.transport.abort()
        else:
            self.transport.close()


class Link:
    """One client's connection and its counterpart to the server; see `FaultProxy.links`.

    `number` counts the accepted connections, from 1.
    """

    def __init__(self, proxy: FaultProxy, number: int) -> None:
        self.proxy = proxy
        self.number = number
        self.closed = False
        self.lost_server = False
        """Its server is gone, and its client does not know."""
        self._own_up: Direction | None = None
        self._own_down: Direction | None = None
        self.client_side = _Side(self)
        self.server_side = _Side(self)
        self._unanswered = False

    @property
    def up(self) -> Direction:
        """What happens to its bytes on their way to the server; None sets what is true for all of them again."""
        return self._own_up or self.proxy.up

    @up.setter
    def up(self, value: Direction | None) -> None:
        self._own_up = value
        self.flush()

    @property
    def down(self) -> Direction:
        """What happens to its bytes on their way to the client; None sets what is true for all of them again."""
        return self._own_down or self.proxy.down

    @down.setter
    def down(self, value: Direction | None) -> None:
        self._own_down = value
        self.flush()

    @property
    def is_open(self) -> bool:
        """Whether the client has it open."""
        transport = self.client_side.transport
        if self.closed or transport is None or self.client_side.ended:
            return False
        return not has_left(transport.get_extra_info("socket").fileno())

    def read(self, side: _Side, count: int) -> None:
        """Bytes came in."""
        if side is self.client_side:
            self.proxy.bytes_up += count
            self._unanswered = True

    def delivered(self, side: _Side, count: int) -> None:
        """Bytes go out."""
        if side is self.client_side:
            self.proxy.bytes_down += count
            if self._unanswered:
                self._unanswered = False
                self.proxy.round_trips += 1

    def flush(self) -> None:
        """The mode has changed: send what may go now."""
        self.client_side.deliver()
        self.server_side.deliver()

    def lose_server(self) -> None:
        """Half-open: the server's side is reset, the client hears nothing of it, nor anything else."""
        self.lost_server = True
        self.server_side.end(reset=True)
        self.client_side.drop_pending()
        if self.client_side.ended:
            self.end(reset=False)

    def end(self, *, reset: bool) -> None:
        """Close both sides now."""
        self.closed = True
        self.client_side.end(reset=reset)
        self.server_side.end(reset=reset)
        self.check_over()

    def check_over(self) -> None:
        """Close what both sides have finished with, and forget a link without sockets."""
        if not self.closed and self.client_side.finished and self.server_side.finished:
            self.end(reset=False)
        elif self.client_side.transport is None and self.server_side.transport is None:
            self.closed = True
            self.proxy.forget(self)
