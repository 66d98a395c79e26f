"""Servers that ask too much of a log-in: refused by name before a driver computes anything, with or without TLS."""

from __future__ import annotations

import asyncio
import base64
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from steadypool.connect.asyncpg import open_asyncpg
from steadypool.connect.dsn import parse_url
from steadypool.connect.psycopg import open_psycopg
from steadypool.errors import ConnectFailed, ConnectTimeout

pytestmark = pytest.mark.anyio

OPENERS = {"asyncpg": open_asyncpg, "psycopg": open_psycopg}  # postgresql+steadypool:// opens psycopg's


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": uvloop.new_event_loop} if request.param == "uvloop" else {}


@pytest.fixture(params=OPENERS)
def driver(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "certificate.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def asks(code: int, body: bytes = b"") -> bytes:
    return message(b"R", struct.pack("!i", code) + body)


REFUSED = message(b"E", b"SFATAL\0VFATAL\0C28P01\0Mwrong password\0\0")
Pieces = Callable[[bytes], list[bytes]]


def whole(data: bytes) -> list[bytes]:
    return [data]


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def in_the_number(data: bytes) -> list[bytes]:
    at = data.index(b",i=") + 4
    return [data[:at], data[at:]]


def after_the_kind(data: bytes) -> list[bytes]:
    return [data[:4], data[4:]]


class Server:
    """Asks for SCRAM with so many rounds, then refuses.

    Args:
        rounds: as they stand in the challenge.
        pieces: how the challenge is cut; each piece is a packet and, over TLS, a record.
        tls: with what TLS is spoken, None for none.
        before: what is said before the offer of SCRAM.
        ahead: how many bytes of the challenge come together with the offer.
    """

    def __init__(
        self,
        rounds: str,
        pieces: Pieces = whole,
        tls: ssl.SSLContext | None = None,
        *,
        before: bytes = b"",
        ahead: int = 0,
    ) -> None:
        self._rounds, self._pieces, self._tls = rounds, pieces, tls
        self._before, self._ahead = before, ahead
        self.answered = 0
        """How often a client computed the hash."""

    @asynccontextmanager
    async def url(self) -> AsyncIterator[str]:
        listening = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        mode = "require" if self._tls else "prefer"
        try:
            yield f"postgresql://u:secret@localhost:{port}/d?sslmode={mode}&gssencmode=disable"
        finally:
            listening.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(8)  # asks for TLS
            writer.write(b"N" if self._tls is None else b"S")
            if self._tls is not None:
                await writer.start_tls(self._tls)
            await reader.readexactly(struct.unpack("!i", await reader.readexactly(4))[0] - 4)
            beginning = self._challenge(b"r=" + b"n" * 24)[: self._ahead]  # as long as libpq's and asyncpg's
            writer.write(self._before + asks(10, b"SCRAM-SHA-256\0\0") + beginning)
            first = await self._said(reader)
            for piece in self._pieces(self._challenge(first[first.index(b"r=") :])[self._ahead :]):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.001)  # a packet of its own
            await self._said(reader)
            self.answered += 1
            writer.write(REFUSED)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass  # the client has turned away
        finally:
            writer.transport.abort()

    def _challenge(self, nonce: bytes) -> bytes:
        salt = base64.b64encode(b"salt" * 4)
        return asks(11, nonce + b"server,s=" + salt + b",i=" + self._rounds.encode())

    async def _said(self, reader: asyncio.StreamReader) -> bytes:
        kind, size = struct.unpack("!ci", await reader.readexactly(5))
        assert kind == b"p"
        return await reader.readexactly(size - 4)


async def opened(driver: str, url: str, timeout: float = 20) -> Any:
    return await OPENERS[driver](parse_url(url), timeout=timeout)


def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
    return context


@pytest.mark.parametrize("pieces", [whole, bytewise, in_the_number, after_the_kind])
@pytest.mark.parametrize("encrypted", [False, True])
async def test_too_many_rounds_are_refused(
    driver: str, pieces: Pieces, encrypted: bool, certificate: Path
) -> None:
    server = Server("2147483647", pieces, tls=server_context(certificate) if encrypted else None)
    async with server.url() as url:
        with pytest.raises(
            ConnectFailed, match=r"asks for 2147483647 rounds .* more than 1,000,000 are"
        ) as caught:
            await opened(driver, url)
    assert caught.value.final
    assert server.answered == 0


@pytest.mark.parametrize("pieces", [whole, bytewise, in_the_number])
@pytest.mark.parametrize("encrypted", [False, True])
async def test_what_may_be_asked_for_is_computed(
    driver: str, pieces: Pieces, encrypted: bool, certificate: Path
) -> None:
    notice = (
        message(b"N", b"SNOTICE\0C00000\0Mhello\0\0") if driver == "asyncpg" else b""
    )  # libpq takes none here
    server = Server("4096", pieces, server_context(certificate) if encrypted else None, before=notice)
    async with server.url() as url:
        with pytest.raises(ConnectFailed, match=r"wrong password.*28P01"):
            await opened(driver, url)
    assert server.answered == 1


@pytest.mark.parametrize("rounds", ["+2147483647", " 2147483647", "2147483647,x=", "4096,i=2147483647"])
async def test_a_challenge_of_another_form_is_refused(driver: str, rounds: str) -> None:
    server = Server(rounds)
    async with server.url() as url:
        with pytest.raises(ConnectFailed, match="challenge is malformed"):
            await opened(driver, url)
    assert server.answered == 0


@pytest.mark.parametrize(
    "said",
    [
        b"R\xff\xff\xff\xfb" + b"x" * 100,  # of length -5
        b"E\x35\xa4\xe9\x00Ssorry",  # of 900 MB
        b"R\x7f\xff\xff\xff\0\0\0\0",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"Ecould not fork new process\0",
    ],
)
async def test_what_is_no_message_of_a_log_in(driver: str, said: bytes) -> None:
    """libpq and asyncpg do not get to see it; another try may help, as where a server could not start a process."""

    server = Server("1", before=said)
    async with server.url() as url:
        with pytest.raises(ConnectFailed, match="does not speak Postgres's protocol") as caught:
            await opened(driver, url)
    assert not caught.value.final


@pytest.mark.parametrize("ahead", [1, 4, 5, 9, 11])
@pytest.mark.parametrize("encrypted", [False, True])
async def test_the_beginning_of_a_challenge_comes_ahead(
    driver: str, ahead: int, encrypted: bool, certificate: Path
) -> None:
    """Such that what comes next is the end of it, or looks like another message."""
    server = Server("2147483647", tls=server_context(certificate) if encrypted else None, ahead=ahead)
    async with server.url() as url:
        with pytest.raises((ConnectFailed, ConnectTimeout)):
            await opened(driver, url, timeout=0.5)
    assert server.answered == 0
