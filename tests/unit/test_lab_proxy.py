"""The fault proxy does to a connection what it says, and counts what the client sees."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import uvloop

from conditions import until
from steadypool_lab import FaultProxy, Mode, StallingPooler

pytestmark = pytest.mark.anyio


class Echo:
    """A server that answers every line with the same line, and knows who is connected."""

    def __init__(self) -> None:
        self.port = 0
        self.open = 0
        self.resets = 0
        self.lines: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while line := await reader.readline():
                self.lines.append(line)
                writer.write(line)
                await writer.drain()
        except ConnectionError:
            self.resets += 1
        finally:
            self.open -= 1
            writer.close()


@pytest.fixture
async def echo(anyio_backend: str) -> AsyncIterator[Echo]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    yield echo
    server.close()
    await until(lambda: echo.open == 0)


@pytest.fixture
async def link(echo: Echo) -> AsyncIterator[FaultProxy]:
    async with FaultProxy("127.0.0.1", echo.port) as proxy:
        yield proxy


class Client:
    """One connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, line: bytes) -> None:
        self.writer.write(line)

    async def answer(self, seconds: float = 5.0) -> bytes:
        return await asyncio.wait_for(self.reader.readline(), seconds)

    async def ask(self, line: bytes) -> bytes:
        self.send(line)
        return await self.answer()

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            return


Connect = Callable[[], Awaitable[Client]]


@pytest.fixture
async def connect(link: FaultProxy) -> AsyncIterator[Connect]:
    clients: list[Client] = []

    async def connect() -> Client:
        clients.append(Client(*await asyncio.open_connection("127.0.0.1", link.port)))
        return clients[-1]

    yield connect
    for client in clients:
        await client.close()


async def stays(condition: Callable[[], bool], seconds: float = 0.1) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        assert condition()
        await asyncio.sleep(0.005)


async def test_passes_and_counts(link: FaultProxy, connect: Connect) -> None:
    first, second = await connect(), await connect()
    assert await first.ask(b"one\n") == b"one\n"
    assert await first.ask(b"two\n") == b"two\n"
    assert await second.ask(b"three\n") == b"three\n"
    assert (link.accepted, link.open, link.round_trips) == (2, 2, 3)
    assert (link.bytes_up, link.bytes_down) == (14, 14)
    await first.close()
    await until(lambda: link.open == 1)
    assert link.accepted == 2


async def test_a_client_that_has_left_is_not_counted_beside_the_next(link: FaultProxy) -> None:
    first = socket.create_connection(("127.0.0.1", link.port))
    await until(lambda: link.open == 1)
    first.close()  # and the next one comes before the proxy has had a turn in which to notice
    with socket.create_connection(("127.0.0.1", link.port)):
        await until(lambda: link.accepted == 2 and link.open == 1)
    assert link.most_open == 1


async def test_large_answers_arrive_whole(echo: Echo, connect: Connect) -> None:
    client = await connect()
    line = b"x" * 60_000 + b"\n"
    for _ in range(50):
        client.send(line)
    for _ in range(50):
        assert await client.answer() == line


async def test_a_flight_is_one_round_trip_however_it_is_cut(link: FaultProxy, connect: Connect) -> None:
    client = await connect()
    assert await client.ask(b"hello\n") == b"hello\n"
    link.delay = 0.05
    before = link.round_trips
    for part in (b"be", b"gin\n", b"select\n", b"sync\n"):
        client.send(part)
        await asyncio.sleep(0.002)
    assert [await client.answer() for _ in range(3)] == [b"begin\n", b"select\n", b"sync\n"]
    assert link.round_trips - before == 1


async def test_delay_holds_each_way_and_keeps_the_order(link: FaultProxy, connect: Connect) -> None:
    client = await connect()
    assert await client.ask(b"connected\n") == b"connected\n"
    loop = asyncio.get_running_loop()
    link.delay = 0.1
    began = loop.time()
    client.send(b"slow\n")
    await asyncio.sleep(0.02)
    link.delay = 0.0
    client.send(b"fast\n")
    assert await client.answer() == b"slow\n"
    assert await client.answer() == b"fast\n"
    assert loop.time() - began >= 0.1
    link.delay = 0.1
    began = loop.time()
    assert await client.ask(b"both\n") == b"both\n"
    assert loop.time() - began >= 0.2


async def test_silence_freezes_both_ways_and_then_all_goes_on(
    link: FaultProxy, echo: Echo, connect: Connect
) -> None:
    old = await connect()
    assert await old.ask(b"before\n") == b"before\n"
    link.mode = Mode.SILENT
    new = await connect()
    old.send(b"old\n")
    new.send(b"new\n")
    await stays(lambda: echo.lines == [b"before\n"] and echo.open == 1)
    assert link.accepted == 2
    link.mode = Mode.PASS
    assert await old.answer() == b"old\n"
    assert await new.answer() == b"new\n"


async def test_silence_hides_the_end_of_a_connection(link: FaultProxy, echo: Echo, connect: Connect) -> None:
    client = await connect()
    assert await client.ask(b"before\n") == b"before\n"
    link.mode = Mode.SILENT
    await client.close()
    await until(lambda: link.open == 0)
    await stays(lambda: echo.open == 1)
    link.mode = Mode.PASS
    await until(lambda: echo.open == 0)


async def test_who_gives_up_during_silence_never_reaches_the_server(
    link: FaultProxy, echo: Echo, connect: Connect
) -> None:
    link.mode = Mode.SILENT
    client = await connect()
    client.send(b"anybody?\n")
    await until(lambda: link.open == 1)
    await client.close()
    await until(lambda: link.open == 0)
    link.mode = Mode.PASS
    after = await connect()
    assert await after.ask(b"after\n") == b"after\n"
    assert echo.lines == [b"after\n"]


async def test_refusing_lets_nobody_in_and_leaves_the_others(link: FaultProxy, connect: Connect) -> None:
    client = await connect()
    port = link.port
    link.mode = Mode.REFUSE
    with pytest.raises(ConnectionRefusedError):
        await connect()
    assert await client.ask(b"still\n") == b"still\n"
    link.mode = Mode.PASS
    assert link.port == port
    assert await (await connect()).ask(b"again\n") == b"again\n"
    assert link.accepted == 2


async def test_reset_ends_the_old_and_the_new_at_once(link: FaultProxy, echo: Echo, connect: Connect) -> None:
    client = await connect()
    assert await client.ask(b"before\n") == b"before\n"
    link.mode = Mode.RESET
    with pytest.raises(ConnectionResetError):
        await client.answer()
    await until(lambda: echo.resets == 1)
    with pytest.raises(ConnectionResetError):
        await (await connect()).ask(b"later\n")
    assert (link.accepted, link.open) == (2, 0)
    assert echo.lines == [b"before\n"]


async def test_drop_all_ends_orderly(link: FaultProxy, echo: Echo, connect: Connect) -> None:
    client = await connect()
    assert await client.ask(b"before\n") == b"before\n"
    link.drop_all()
    assert await client.answer() == b""
    await until(lambda: echo.open == 0)
    assert (echo.resets, link.open) == (0, 0)


async def test_a_clients_reset_reaches_the_server(link: FaultProxy, echo: Echo, connect: Connect) -> None:
    client = await connect()
    assert await client.ask(b"before\n") == b"before\n"
    client.writer.transport.get_extra_info("socket").setsockopt(1, 13, b"\x01\0\0\0\0\0\0\0")
    client.writer.transport.abort()
    await until(lambda: echo.resets == 1)
    await until(lambda: link.open == 0)


async def test_the_servers_end_reaches_the_client(link: FaultProxy, connect: Connect) -> None:
    async def goodbye(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye\n")
        writer.close()

    async with await asyncio.start_server(goodbye, "127.0.0.1", 0) as server:
        link.upstream = ("127.0.0.1", server.sockets[0].getsockname()[1])
        client = await connect()
        assert await client.answer() == b"bye\n"
        assert await client.answer() == b""
        await client.close()
        await until(lambda: link.open == 0)


async def test_a_server_that_is_not_there_is_a_reset(link: FaultProxy, connect: Connect) -> None:
    async with await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0) as server:
        link.upstream = ("127.0.0.1", server.sockets[0].getsockname()[1])
    client = await connect()
    with pytest.raises(ConnectionResetError):
        await client.ask(b"anybody?\n")
    await until(lambda: link.open == 0)


async def test_leaving_ends_everything(echo: Echo) -> None:
    async with FaultProxy("127.0.0.1", echo.port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        proxy.mode = Mode.SILENT
        _, waiting = await asyncio.open_connection("127.0.0.1", proxy.port)
        await until(lambda: proxy.open == 2)
    with pytest.raises(ConnectionResetError):
        await reader.readline()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", proxy.port)
    for end in (writer, waiting):
        end.close()
    await until(lambda: echo.open == 0)


async def test_an_unknown_mode_is_refused(link: FaultProxy) -> None:
    with pytest.raises(ValueError, match="is not a valid Mode"):
        link.mode = "lossy"  # type: ignore[assignment]
    link.mode = "silent"  # type: ignore[assignment]
    assert link.mode is Mode.SILENT


@pytest.mark.parametrize(
    "anyio_backend",
    ["asyncio", pytest.param(("asyncio", {"loop_factory": uvloop.new_event_loop}), id="uvloop")],
)
@pytest.mark.parametrize("turns", range(5))
@pytest.mark.parametrize("kind", [FaultProxy, StallingPooler])
async def test_who_comes_at_the_last_moment_is_not_left_hanging(
    echo: Echo, kind: type[FaultProxy] | type[StallingPooler], turns: int
) -> None:
    """After two turns of the loop the connection is accepted, and the task that is to serve it has not begun."""
    async with kind("127.0.0.1", echo.port) as between:
        visitor = socket.create_connection(("127.0.0.1", between.port), timeout=5)
        for _ in range(turns):
            await asyncio.sleep(0)
    with visitor, contextlib.suppress(ConnectionError):
        assert visitor.recv(1) == b""
    gc.collect()  # a socket that nobody closed would complain now
