"""Servers that end, stutter or miscount: the pipelined connection never gives anybody what is not theirs."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from steadypool.connect.dsn import parse_url
from steadypool.connect.psycopg import open_psycopg
from steadypool.pipeline import Batch, ConnectionClosed, PipelinedConnection, Statement

pytestmark = pytest.mark.anyio


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


READY = message(b"Z", b"I")
PARSED, BOUND = message(b"1"), message(b"2")
DONE = message(b"C", b"SELECT 1\0")
COLUMN = message(b"T", struct.pack("!h", 1) + b"n\0" + struct.pack("!ihihih", 0, 0, 25, -1, -1, 0))


def row(text: str) -> bytes:
    value = text.encode()
    return COLUMN + message(b"D", struct.pack("!hi", 1, len(value)) + value)


def answer(text: str) -> bytes:
    return PARSED + BOUND + row(text) + DONE


def last_words(code: str = "57P01") -> bytes:
    return message(b"E", b"SFATAL\0VFATAL\0C" + code.encode() + b"\0Mending\0\0")


@asynccontextmanager
async def server(*said: bytes, pause: float = 0.0, syncs: int = 1, ends: bool = True) -> AsyncIterator[str]:
    """A server that lets everybody in, waits for so many Syncs, says its piece, and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            (size,) = struct.unpack("!i", await reader.readexactly(4))
            await reader.readexactly(size - 4)
            writer.write(
                message(b"R", struct.pack("!i", 0)) + message(b"K", struct.pack("!ii", 1, 2)) + READY
            )
            seen = 0
            while seen < syncs:
                kind = await reader.readexactly(1)
                (size,) = struct.unpack("!i", await reader.readexactly(4))
                await reader.readexactly(size - 4)
                seen += kind == b"S"
            for piece in said:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
            if not ends:
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has left, which is what some tests want to see
        finally:
            writer.close()

    running = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = running.sockets[0].getsockname()[1]
    try:
        yield f"postgresql://u@127.0.0.1:{port}/d?sslmode=disable&gssencmode=disable"
    finally:
        running.close()


async def ends_of(url: str, count: int, limit: float | None = 0.5) -> tuple[list[Any], PipelinedConnection]:
    """What becomes of that many statements sent at once."""
    connection = PipelinedConnection(await open_psycopg(parse_url(url), timeout=5, autocommit=True))
    futures = [connection.send(Batch([Statement(f"select {n}")], limit=limit)) for n in range(count)]
    ends = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 10)
    connection.abort()
    return [end if isinstance(end, BaseException) else end[0].rows() for end in ends], connection


def gone(end: object) -> bool:
    return isinstance(end, ConnectionClosed)


async def test_answers_in_order() -> None:
    async with server(answer("a") + READY + answer("b") + READY, syncs=2) as url:
        ends, _ = await ends_of(url, 2)
    assert ends == [[("a",)], [("b",)]]


async def test_frames_that_come_byte_by_byte() -> None:
    stream = answer("a") + READY + answer("b") + READY
    async with server(*(stream[i : i + 1] for i in range(len(stream))), syncs=2) as url:
        ends, _ = await ends_of(url, 2, limit=5)
    assert ends == [[("a",)], [("b",)]]


@pytest.mark.parametrize("words", [1, 2])
async def test_fatal_once_or_twice(words: int) -> None:
    async with server(answer("a") + READY + last_words() * words, syncs=3) as url:
        ends, connection = await ends_of(url, 3)
    assert ends[0] == [("a",)]
    assert all(gone(end) and end.sqlstate == "57P01" for end in ends[1:])
    assert connection.closed


async def test_fatal_without_a_hang_up() -> None:
    async with server(last_words("25P03"), syncs=2, ends=False) as url:
        ends, _ = await ends_of(url, 2, limit=None)
    assert [end.sqlstate for end in ends] == ["25P03"] * 2


async def test_rows_without_their_sync_are_nobodys() -> None:
    """The commit may still fail: who got its rows early would have seen what never was."""
    async with server(answer("a"), syncs=1) as url:
        (end,), _ = await ends_of(url, 1)
    assert gone(end)


async def test_a_sync_too_few() -> None:
    async with server(answer("a") + answer("b") + READY, syncs=2, ends=False) as url:
        ends, connection = await ends_of(url, 2)
    assert all(gone(end) for end in ends)
    assert connection.closed


@pytest.mark.parametrize(
    "said",
    [READY + answer("a") + READY, answer("a") + READY + READY + answer("b") + READY],
    ids=["before", "between"],
)
async def test_a_sync_too_many(said: bytes) -> None:
    async with server(said, syncs=2, ends=False) as url:
        ends, connection = await ends_of(url, 2)
    assert [("b",)] not in ends[:1]
    assert ends[0] == [("a",)] or gone(ends[0])
    assert gone(ends[1])
    assert connection.closed


async def test_a_sync_too_many_while_idle() -> None:
    async with server(answer("a") + READY + READY, ends=False) as url:
        connection = PipelinedConnection(await open_psycopg(parse_url(url), timeout=5, autocommit=True))
        ended = asyncio.Event()
        connection.when_ended(ended.set)
        results = await connection.run(Batch([Statement("select 1")]))
        assert results[0].rows() == [("a",)]
        later = connection.send(Batch([Statement("select 2")], limit=0.3))
        (end,) = await asyncio.gather(later, return_exceptions=True)
        assert gone(end)
        await asyncio.wait_for(ended.wait(), 5)


@pytest.mark.parametrize(
    "cut",
    [lambda s: s[:1], lambda s: s[: len(s) // 2], lambda s: s[:-1]],
    ids=["first", "half", "all but one"],
)
async def test_the_end_in_the_middle_of_a_frame(cut: Callable[[bytes], bytes]) -> None:
    async with server(answer("a") + READY + cut(answer("b") + READY), syncs=2) as url:
        ends, _ = await ends_of(url, 2)
    assert ends[0] == [("a",)]
    assert gone(ends[1])


async def test_garbage() -> None:
    async with server(b"\xff" * 100, syncs=2, ends=False) as url:
        ends, connection = await ends_of(url, 2)
    assert all(gone(end) for end in ends)
    assert connection.closed
