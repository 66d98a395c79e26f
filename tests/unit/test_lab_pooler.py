"""The pooler of the lab serves who waits for answers, and forgets who sends a second query before that."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from conditions import until
from steadypool_lab import StallingPooler

pytestmark = pytest.mark.anyio

STARTUP = b"\0\0\0\x08\0\x03\0\0"
READY, SYNC, QUERY, PARSE = b"Z\0\0\0\x05I", b"S\0\0\0\x04", b"Q\0\0\0\x06x\0", b"P\0\0\0\x04"
COPY_IN, COPY_DONE = b"G\0\0\0\x07\0\0\0", b"c\0\0\0\x04"


class Server:
    """Greets, keeps what it is sent, and answers when a test says so."""

    def __init__(self) -> None:
        self.port = 0
        self.open = 0
        self.heard = b""
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        assert await reader.readexactly(len(STARTUP)) == STARTUP
        writer.write(READY)
        self.writers.append(writer)
        while data := await reader.read(1024):
            self.heard += data
        self.open -= 1
        writer.close()

    async def gets(self, *messages: bytes) -> None:
        await until(lambda: self.heard == b"".join(messages))
        self.heard = b""

    def answer(self, message: bytes) -> None:
        self.writers[-1].write(message)


class Client:
    """One connection through the pooler, already greeted."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, *messages: bytes) -> None:
        self.writer.write(b"".join(messages))

    async def gets(self, message: bytes) -> None:
        async with asyncio.timeout(60):
            assert await self.reader.readexactly(len(message)) == message


@pytest.fixture
async def server(anyio_backend: str) -> AsyncIterator[Server]:
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    yield server
    listening.close()
    await until(lambda: server.open == 0)


@pytest.fixture
async def pooler(server: Server) -> AsyncIterator[StallingPooler]:
    async with StallingPooler("127.0.0.1", server.port) as pooler:
        yield pooler


@pytest.fixture
async def clients() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as clients:
        yield clients


async def connect(pooler: StallingPooler, clients: AsyncExitStack) -> Client:
    client = Client(*await asyncio.open_connection("127.0.0.1", pooler.port))
    clients.callback(client.writer.close)
    client.send(STARTUP)
    await client.gets(READY)
    return client


async def test_who_waits_for_each_answer_is_served(
    server: Server, pooler: StallingPooler, clients: AsyncExitStack
) -> None:
    client = await connect(pooler, clients)
    for sent in ((QUERY,), (PARSE, PARSE, SYNC), (QUERY,)):
        client.send(*sent)
        await server.gets(*sent)
        server.answer(READY)
        await client.gets(READY)
    client.send(PARSE, SYNC)
    await server.gets(PARSE, SYNC)
    server.answer(COPY_IN)
    await client.gets(COPY_IN)
    client.send(COPY_DONE, SYNC)
    await server.gets(COPY_DONE, SYNC)
    server.answer(READY)
    await client.gets(READY)
    assert pooler.wedged == 0


@pytest.mark.parametrize("second", [QUERY, SYNC])
async def test_a_second_query_is_the_last_thing_it_hears(
    server: Server, pooler: StallingPooler, clients: AsyncExitStack, second: bytes
) -> None:
    client = await connect(pooler, clients)
    client.send(PARSE, SYNC, PARSE, second, QUERY)
    await until(lambda: pooler.wedged)
    await server.gets(PARSE, SYNC, PARSE)
    server.answer(READY)
    await client.gets(READY)
    client.send(QUERY)

    other = await connect(pooler, clients)
    other.send(QUERY)
    await server.gets(QUERY)
    server.answer(READY)
    await other.gets(READY)
    assert (pooler.wedged, server.open) == (1, 2)
    assert not client.reader.at_eof()
    client.writer.close()
    await until(lambda: server.open == 1)


async def test_it_leaves_nothing_behind(server: Server, clients: AsyncExitStack) -> None:
    """In whatever state its connections are: just accepted, half greeted, idle, waiting, wedged, left."""
    async with StallingPooler("127.0.0.1", server.port) as pooler:
        stuck, waiting, left, idle = [await connect(pooler, clients) for _ in range(4)]
        stuck.send(QUERY, QUERY)
        waiting.send(QUERY)
        left.writer.close()
        await until(lambda: pooler.wedged and server.open == 3)
        half = Client(*await asyncio.open_connection("127.0.0.1", pooler.port))
        clients.callback(half.writer.close)
        half.send(STARTUP[:4])
        fresh = Client(*await asyncio.open_connection("127.0.0.1", pooler.port))
        clients.callback(fresh.writer.close)
    for client in (stuck, waiting, idle, half, fresh):
        async with asyncio.timeout(60):
            with pytest.raises((EOFError, ConnectionError)):
                await client.reader.readexactly(1)
    await until(lambda: server.open == 0)
    gc.collect()  # a socket that nobody closed would complain now
