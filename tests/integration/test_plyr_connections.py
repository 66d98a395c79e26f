"""What a client can take from plyr by HTTP itself: memory by heads, connections by waiting, descriptors by numbers."""

from __future__ import annotations

import asyncio
import re
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from backend.config import Settings
from backend.connections import Limits
from conditions import until
from processes import running_plyr

from .conftest import Plyr, serving, tone

pytestmark = pytest.mark.anyio

HEAD_BYTES = 4096
MIB = 1024 * 1024
HOST = b"Host: plyr\r\n"
GET = b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n"
CHUNKED = b"POST /tracks/ HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def driver() -> str:
    return "steadypool"  # no statement is sent here


@asynccontextmanager
async def plyr_with(settings: Settings, **bounds: object) -> AsyncIterator[tuple[str, int]]:
    """The service with these bounds; yields its address."""
    server = settings.server.model_copy(update={"max_head_bytes": HEAD_BYTES} | bounds)
    async with serving(settings.model_copy(update={"server": server})) as (url, _):
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        yield parts.hostname, parts.port


async def send(address: tuple[str, int], *parts: bytes) -> bytes:
    """Send the parts, with a turn of the server's loop after each; returns all that it answers before it closes."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
        except ConnectionError:
            pass  # refused and closed: the answer may be there all the same
        try:
            return await asyncio.wait_for(reader.read(), 30)
        except ConnectionError:
            return b""
    finally:
        writer.close()


# -- size ----------------------------------------------------------------------------------------------------

TOO_LARGE = {
    "one endless header": [GET[:-2] + b"X: ", *[b"x" * 1024] * 64],
    "endless headers": [GET[:-2], *[b"X-Header: value\r\n" * 64] * 64],
    "an endless name": [GET[:-2], *[b"x" * 1024] * 64],
    "an endless target": [b"GET /", *[b"x" * 1024] * 64],
    "a large head at once": [GET[:-2] + b"X: " + b"x" * HEAD_BYTES + b"\r\n\r\n"],
    "blank lines before it": [b"\r\n" * 512] * 64,
    "endless trailers": [CHUNKED + b"1\r\nx\r\n0\r\n", *[b"X-Trailer: value\r\n" * 64] * 64],
    "one endless trailer": [CHUNKED + b"1\r\nx\r\n0\r\nX: ", *[b"x" * 1024] * 64],
    "an endless chunk extension": [CHUNKED + b"1;", *[b"x" * 1024] * 64],
}


@pytest.mark.parametrize("case", TOO_LARGE)
async def test_a_head_or_trailer_beyond_its_bound_ends_the_connection(
    plyr_settings: Settings, case: str
) -> None:
    async with plyr_with(plyr_settings) as address:
        answer = await send(address, *TOO_LARGE[case])
        if "trailer" in case or "chunk" in case:  # 401 was answered already
            assert re.match(rb"HTTP/1.1 4(01|31) ", answer)
        else:
            assert answer.startswith(b"HTTP/1.1 431 "), answer
        assert b"connection: close" in answer.lower() or b"401" in answer
        assert (await send(address, GET[:-2] + b"Connection: close\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_what_is_within_the_bound_is_served(plyr_settings: Settings) -> None:
    close = b"Connection: close\r\n\r\n"
    async with plyr_with(plyr_settings) as address:
        head = GET[:-2] + b"X: " + b"x" * (HEAD_BYTES - 200) + b"\r\n"
        assert (await send(address, head + close)).startswith(b"HTTP/1.1 200 ")
        # The bound is of each request, and not of what a connection has sent.
        answers = await send(address, *[head + b"\r\n"] * 4, head + close)
        assert answers.count(b"HTTP/1.1 200 ") == 5


async def test_a_trailer_is_no_header_of_the_request(plyr_settings: Settings) -> None:
    trailer = b"Authorization: Bearer x\r\nConnection: close\r\n"
    async with plyr_with(plyr_settings, head_timeout=0.5) as address:
        answer = await send(address, CHUNKED, b"1\r\nx\r\n0\r\n" + trailer + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 401 ")


async def test_requests_in_one_flood_do_not_pile_up(plyr_settings: Settings) -> None:
    async with plyr_with(plyr_settings) as address:
        answers = await send(address, GET * 2000)
    assert answers.count(b"HTTP/1.1 200 ") <= 17


@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c"])
async def test_an_upgrade_leads_past_no_bound(plyr_settings: Settings, upgrade: bytes) -> None:
    head = GET[:-2] + b"Connection: Upgrade\r\nUpgrade: " + upgrade + b"\r\nSec-WebSocket-Version: 13\r\n"
    async with plyr_with(plyr_settings, head_timeout=0.5) as address:
        answer = await send(address, head + b"\r\n", *[b"x" * 1024] * 64)
        assert answer.startswith(b"HTTP/1.1 200 ")


EARLY = {
    "429": (b"", {"requests_per_address": 1}),
    "404, by the wish of the client": (b"Connection: close\r\n", {}),
    "404 for HTTP/1.0": (b"", {}),
}


@pytest.mark.parametrize("case", EARLY)
async def test_an_answer_to_an_unfinished_body_is_read(plyr: Plyr, case: str) -> None:
    """To close at once would reset the connection of a client that is still sending, which may never read it."""
    head, limits = EARLY[case]
    plyr.app.state.limits.__init__(plyr.settings.limits.model_copy(update=limits))
    await plyr.anonymous.get("/tracks/")
    version = b"1.0" if "1.0" in case else b"1.1"
    parts, answer = urlsplit(plyr.url), b""
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(
        b"POST /nowhere HTTP/" + version + b"\r\n" + HOST + head + b"Content-Length: 8388608\r\n\r\n"
    )
    for _ in range(64):  # as http.client and others do: first the body, then a look at the answer
        writer.write(bytes(64 * 1024))
        await writer.drain()
        await asyncio.sleep(0)
    answer = await asyncio.wait_for(reader.read(), 10)
    assert answer.startswith(b"HTTP/1.1 " + case[:3].encode()), answer
    assert b"connection: close" in answer.lower()
    writer.close()


async def test_who_goes_on_sending_behind_an_answer_is_cut_off(
    plyr_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.server.Limits", partial(Limits, drain_seconds=0.5))
    async with plyr_with(plyr_settings) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(
            b"POST /nowhere HTTP/1.1\r\n" + HOST + b"Connection: close\r\nContent-Length: 99999999\r\n\r\n"
        )
        assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                writer.write(bytes(1024))
                await writer.drain()
                await asyncio.sleep(0.01)


# -- time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begun", "status"),
    [
        (b"", b""),
        (b"G", b"HTTP/1.1 408 "),
        (GET[:-2], b"HTTP/1.1 408 "),
        (GET + b"GET /", b"HTTP/1.1 200 "),
    ],
)
async def test_an_unfinished_head_ends_in_time(plyr_settings: Settings, begun: bytes, status: bytes) -> None:
    async with plyr_with(plyr_settings, head_timeout=0.2) as address:
        assert (await send(address, begun)).startswith(status)


async def test_a_head_that_goes_on_byte_by_byte_ends_in_time(plyr_settings: Settings) -> None:
    async with plyr_with(plyr_settings, head_timeout=0.5) as address:
        reader, writer = await asyncio.open_connection(*address)
        answered = asyncio.create_task(reader.read(64))
        writer.write(GET[:-2])
        while not answered.done():
            writer.write(b"x")
            await asyncio.wait({answered}, timeout=0.05)
        assert (await answered).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_a_body_that_trickles_ends_in_time(
    plyr_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backend.services import artists

    async def somebody(*_: object) -> artists.Identity:
        return artists.Identity("did:plc:alice", "alice")

    monkeypatch.setattr(artists, "authenticate", somebody)
    head = b"PUT /queue/ HTTP/1.1\r\n" + HOST + b'Authorization: Bearer x\r\nIf-Match: "0"\r\n'
    head += b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
    monkeypatch.setattr("backend.server.Limits", partial(Limits, body_window=0.5))
    async with plyr_with(plyr_settings) as address:
        reader, writer = await asyncio.open_connection(*address)
        answered = asyncio.create_task(reader.read(64))
        writer.write(head)
        while not answered.done():
            writer.write(b" ")
            await asyncio.wait({answered}, timeout=0.05)
        assert (await answered).startswith(b"HTTP/1.1 408 ")
        writer.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.server.Limits", partial(Limits, write_seconds=0.5))


async def test_an_answer_that_is_never_read_ends_in_time(impatient: None, plyr: Plyr) -> None:
    track = await plyr.upload(tone(18))  # 288,000 bytes
    file_id = (await plyr.client.get(f"/tracks/{track}")).json()["file_id"]
    head = f"GET /audio/{file_id} HTTP/1.1\r\nHost: plyr\r\nAuthorization: Bearer {plyr.token}\r\n\r\n"
    parts = urlsplit(plyr.url)
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.setblocking(False)
        await asyncio.get_running_loop().sock_connect(lazy, (parts.hostname, parts.port))
        await asyncio.get_running_loop().sock_sendall(lazy, head.encode() * 16)  # more than sockets hold
        await until(lambda: lazy.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0, seconds=30)


# -- number --------------------------------------------------------------------------------------------------


async def test_those_who_wait_longest_make_room(plyr_settings: Settings) -> None:
    async with plyr_with(plyr_settings, max_connections=8, head_timeout=60) as address:
        waiting = [await asyncio.open_connection(*address) for _ in range(8)]
        for _, writer in waiting:
            writer.write(GET[:-2])
        assert (await send(address, GET[:-2] + b"Connection: close\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert await waiting[0][0].read() == b""  # the first of them, and only that
        assert not waiting[1][0].at_eof()
        for _, writer in waiting:
            writer.close()


async def test_without_a_place_the_answer_is_503(plyr_settings: Settings) -> None:
    watch = b"POST /tracks/ HTTP/1.1\r\n" + HOST + b"Authorization: Bearer x\r\nContent-Length: 99\r\n\r\n"
    settings = plyr_settings.model_copy(
        update={
            "database": plyr_settings.database.replace(
                url="postgresql://app@127.0.0.1:1/none", request_deadline=2
            )
        }
    )
    async with plyr_with(settings, max_connections=4) as address:
        busy = [await asyncio.open_connection(*address) for _ in range(4)]
        for _, writer in busy:
            writer.write(watch)  # waits for the database, which is not there
        await asyncio.sleep(0.2)
        answer = await send(address, GET)
        assert answer.startswith(b"HTTP/1.1 503 "), answer
        assert b"retry-after: 1" in answer
        for _, writer in busy:
            writer.close()


# -- as a process --------------------------------------------------------------------------------------------


@contextmanager
def many_descriptors(count: int) -> Iterator[None]:
    """This process itself may open so many files, where the machine allows it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(count, before[0]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def ask(address: tuple[str, int], seconds: float = 30.0) -> bytes:
    with socket.create_connection(address, timeout=seconds) as probe:
        probe.sendall(GET[:-2] + b"Connection: close\r\n\r\n")
        return probe.recv(64)


def rss(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def flood(address: tuple[str, int], begin: bytes, part: bytes, size: int) -> None:
    with socket.create_connection(address, timeout=60) as attacker:
        try:
            attacker.sendall(begin)
            for _ in range(size // len(part)):
                attacker.sendall(part)
        except ConnectionError:
            pass


def test_a_small_machine_survives_floods_of_heads_and_sockets(tmp_path: Path) -> None:
    """100 MiB of headers take no memory; with 1024 descriptors 1,100 half-open sockets stop nothing."""
    with running_plyr(tmp_path, descriptors=1024) as plyr, many_descriptors(2048):
        parts = urlsplit(plyr.url)
        assert parts.hostname is not None
        assert parts.port is not None
        address = parts.hostname, parts.port
        ask(address)
        before = rss(plyr.pid)
        flood(address, GET[:-2], b"X-Header: value\r\n" * 4096, 100 * MIB)
        flood(address, GET[:-2] + b"X: ", b"x" * 65536, 100 * MIB)
        flood(address, CHUNKED + b"1\r\nx\r\n0\r\n", b"X-Trailer: value\r\n" * 4096, 100 * MIB)
        assert rss(plyr.pid) - before < 16 * MIB
        with ExitStack() as half_open:
            for _ in range(1100):
                attacker = half_open.enter_context(socket.create_connection(address, timeout=30))
                attacker.sendall(GET[:-2])
            started = time.monotonic()
            assert ask(address).startswith(b"HTTP/1.1 200 ")
            assert time.monotonic() - started < 5
            assert len(list(Path(f"/proc/{plyr.pid}/fd").iterdir())) < 1024
        assert plyr.said.count("out of system resource") <= 1
        assert len(plyr.said) < 10_000
