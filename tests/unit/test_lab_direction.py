"""The fault proxy, one direction and one connection at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from steadypool_lab import Direction, FaultProxy, Mode

pytestmark = pytest.mark.anyio


class Echo:
    def __init__(self) -> None:
        self.open = 0
        self.heard = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while data := await reader.read(65_536):
                self.heard += data
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self.open -= 1
            writer.close()


@pytest.fixture
async def echo(anyio_backend: str) -> Echo:
    return Echo()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[FaultProxy]:
    async with await asyncio.start_server(echo.serve, "127.0.0.1", 0) as server:
        async with FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
            yield proxy
        await settled(lambda: echo.open == 0)


async def settled(condition) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


async def connect(proxy: FaultProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"hello")
    assert await asyncio.wait_for(reader.readexactly(5), 5) == b"hello"
    return reader, writer


async def test_tiny_pieces_arrive_whole(proxy: FaultProxy) -> None:
    proxy.up = proxy.down = Direction(slice=1, slice_pause=0.002)
    reader, writer = await connect(proxy)
    writer.write(b"x" * 100)
    pieces = []
    while sum(map(len, pieces)) < 100:
        pieces.append(await asyncio.wait_for(reader.read(100), 5))
    assert len(pieces) > 5
    writer.close()


async def test_a_rate_limits_one_direction(proxy: FaultProxy) -> None:
    reader, writer = await connect(proxy)
    proxy.down = Direction(rate=10_000)
    began = time.monotonic()
    writer.write(b"x" * 3_000)
    assert await asyncio.wait_for(reader.readexactly(3_000), 5) == b"x" * 3_000
    assert time.monotonic() - began >= 0.3
    writer.close()


async def test_jitter_keeps_the_order(proxy: FaultProxy) -> None:
    proxy.up = Direction(delay=0.02, jitter=0.02)
    reader, writer = await connect(proxy)
    sent = b"".join(b"%04d" % i for i in range(100))
    for i in range(100):
        writer.write(b"%04d" % i)
        await asyncio.sleep(0)
    assert await asyncio.wait_for(reader.readexactly(400), 5) == sent
    writer.close()


async def test_cut_at_a_byte(proxy: FaultProxy, echo: Echo) -> None:
    proxy.down = Direction(cut_after=8)
    reader, writer = await connect(proxy)
    writer.write(b" world")
    assert await asyncio.wait_for(reader.read(), 5) == b" wo"
    await settled(lambda: echo.open == 0)
    assert echo.heard == b"hello world"
    writer.close()


async def test_one_direction_of_one_connection_is_silent(proxy: FaultProxy, echo: Echo) -> None:
    bad, good = await connect(proxy), await connect(proxy)
    proxy.links[0].down = Direction(silent=True)
    for _, writer in (bad, good):
        writer.write(b"again")
    assert await asyncio.wait_for(good[0].readexactly(5), 5) == b"again"
    await settled(lambda: echo.heard == b"hello" * 2 + b"again" * 2)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bad[0].read(1), 0.1)
    proxy.links[0].down = None
    assert await asyncio.wait_for(bad[0].readexactly(5), 5) == b"again"
    for _, writer in (bad, good):
        writer.close()


async def test_half_open(proxy: FaultProxy, echo: Echo) -> None:
    reader, writer = await connect(proxy)
    proxy.mode = Mode.HALF_OPEN
    await settled(lambda: echo.open == 0)
    writer.write(b"anybody?")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.1)
    later = await connect(proxy)
    proxy.mode = Mode.PASS
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.1)
    for end in (writer, later[1]):
        end.close()
    await settled(lambda: proxy.open == 0 and not proxy.links)
    assert echo.heard == b"hellohello"


async def test_silent_connections_may_stay_so(proxy: FaultProxy, echo: Echo) -> None:
    """Opened while the network is silent, and forgotten by it: the server never hears of them."""
    proxy.mode = Mode.SILENT
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    await settled(lambda: proxy.open == 1)
    proxy.mode = Mode.HALF_OPEN
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.1)
    writer.close()
    await settled(lambda: not proxy.links)
    assert (echo.open, echo.heard) == (0, b"")


@pytest.mark.parametrize("wrong", [{"delay": -1.0}, {"slice": 0}, {"rate": 0.0}, {"cut_after": -1}])
def test_numbers_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Direction(**wrong)  # type: ignore[arg-type]
