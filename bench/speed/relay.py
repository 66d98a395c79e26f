"""A distance: a relay that hands on every piece `delay` seconds later, in order, and counts what crosses it.

    python -m speed.relay HOST PORT DELAY        prints its own port; runs until its standard input ends

It runs in a process of its own, so that its work is not the client's. Asked for a pass without delay, it counts
only: a connection's round trips (a message of the client's after one of the server's), and the statements that the
client had the server execute (Query and Execute messages).
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

import uvloop

_QUERY, _EXECUTE = ord("Q"), ord("E")


@dataclass
class Counts:
    """Of all connections together."""

    round_trips: int = 0
    statements: int = 0


class Statements:
    """Counts the messages in a client's half of a conversation that make the server execute something."""

    def __init__(self) -> None:
        self.started = False
        self._rest = bytearray()

    def feed(self, data: bytes) -> int:
        """How many there are in what came, pieces of messages put together."""
        self._rest += data
        executed = 0
        at = 0
        while True:
            header = 1 if self.started else 0
            if len(self._rest) < at + header + 4:
                break
            length = int.from_bytes(self._rest[at + header : at + header + 4])
            if len(self._rest) < at + header + length:
                break
            if not self.started:
                code = int.from_bytes(self._rest[at + 4 : at + 8])
                self.started = code == 196608  # the start-up message; before it a request for TLS may come
            elif self._rest[at] in (_QUERY, _EXECUTE):
                executed += 1
            at += header + length
        del self._rest[:at]
        return executed


class Side(asyncio.Protocol):
    """One end of a relayed connection."""

    def __init__(self, delay: float, counts: Counts, server: tuple[str, int] | None) -> None:
        self.delay = delay
        self.counts = counts
        self.server = server
        self.other: Side | None = None
        self.transport: Any = None
        self.answered = True
        self.statements = Statements()
        self.early: list[bytes] = []
        self.late: deque[tuple[float, bytes]] = deque()
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.server is not None:
            self.task = self.loop.create_task(self.reach(*self.server))

    async def reach(self, host: str, port: int) -> None:
        other = Side(self.delay, self.counts, None)
        other.other = self
        await self.loop.create_connection(lambda: other, host, port)
        self.other = other
        for data in self.early:
            self.pass_on(data)

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.early.append(data)
        else:
            self.pass_on(data)

    def pass_on(self, data: bytes) -> None:
        assert self.other is not None
        if self.server is not None:
            self.counts.statements += self.statements.feed(data)
            if self.answered:
                self.counts.round_trips += 1
            self.answered = False
        else:
            self.other.answered = True
        if not self.delay:
            self.other.transport.write(data)
            return
        self.late.append((self.loop.time() + self.delay, data))
        if len(self.late) == 1:
            self.loop.call_later(self.delay, self.hand_over)

    def hand_over(self) -> None:
        """Everything that is due, in the order in which it came."""
        now = self.loop.time()
        while self.late and self.late[0][0] <= now + 0.00002:
            _, data = self.late.popleft()
            if self.other is not None and not self.other.transport.is_closing():
                self.other.transport.write(data)
        if self.late:
            self.loop.call_at(self.late[0][0], self.hand_over)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


async def serve(host: str, port: int, delay: float) -> None:
    loop = asyncio.get_running_loop()
    counts = Counts()
    server = await loop.create_server(lambda: Side(delay, counts, (host, port)), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        print(json.dumps(asdict(counts)), flush=True)
    server.close()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
