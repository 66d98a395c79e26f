"""TLS on a real server: the URL of Neon's console as it is, channel binding that bites, verify-full.

The embedded Postgres has no TLS, so this runs Debian's (PostgreSQL 15 or later).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
import uvloop

from steadypool.connect.abort import abort_asyncpg, abort_psycopg, take_farewell
from steadypool.connect.addresses import AddressBook
from steadypool.connect.asyncpg import open_asyncpg
from steadypool.connect.channel_binding import ProvenCertificates
from steadypool.connect.dsn import parse_url
from steadypool.connect.psycopg import open_psycopg
from steadypool.errors import ConfigurationError, ConnectFailed

pytestmark = pytest.mark.anyio

PASSWORD = "pä ss,w=rd/@"
ENCODED = "p%C3%A4%20ss%2Cw%3Drd%2F%40"
NEON = "?sslmode=require&channel_binding=require"


def debian_binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if not found or shutil.which("openssl") is None:
        pytest.fail(
            "these tests need a Postgres that speaks TLS, and openssl: "
            "apt-get install postgresql openssl (the service need not run)"
        )
    return found[-1].parent


class Authority:
    """A certificate authority and what it signs, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                 "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.crt")  # fmt: skip

    def run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)

    def issue(self, name: str, key: tuple[str, ...], digest: str) -> None:
        """A certificate for `localhost`, signed with that digest by its own key's algorithm."""
        self.run(
            "req", "-x509" if key[0] == "rsa:2048" else "-new", *self._self_or_request(name, key, digest)
        )
        if key[0] != "rsa:2048":
            extensions = self.folder / "san.ext"
            extensions.write_text("subjectAltName=DNS:localhost\n")
            self.run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-days", "2",
                     f"-{digest}", "-extfile", "san.ext", "-out", f"{name}.crt")  # fmt: skip

    def _self_or_request(self, name: str, key: tuple[str, ...], digest: str) -> list[str]:
        common = ["-newkey", key[0], *key[1:], "-nodes", "-subj", "/CN=localhost", "-keyout", f"{name}.key"]
        if key[0] == "rsa:2048":
            return [
                *common,
                "-days",
                "2",
                f"-{digest}",
                "-addext",
                "subjectAltName=DNS:localhost",
                "-out",
                f"{name}.crt",
            ]
        return [*common, "-out", f"{name}.csr"]

    def context(self, name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        return context


EC = ("ec", "-pkeyopt", "ec_paramgen_curve:P-256")
RSA = ("rsa:2048",)


@dataclass
class TlsServer:
    """Debian's Postgres on a port of its own."""

    folder: Path
    binaries: Path
    port: int
    authority: Authority
    owner: pwd.struct_passwd | None
    process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def as_owner(self, *command: str | Path) -> None:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, check=False, cwd=self.folder,
            user=None if self.owner is None else self.owner.pw_uid,
            group=None if self.owner is None else self.owner.pw_gid,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()

    def use_certificate(self, name: str) -> None:
        for kind in ("crt", "key"):
            to = self.data / f"server.{kind}"
            shutil.copy(self.authority.folder / f"{name}.{kind}", to)
            to.chmod(0o600)
            if self.owner is not None:
                os.chown(to, self.owner.pw_uid, self.owner.pw_gid)

    def start(self) -> None:
        self.process = subprocess.Popen(
            [self.binaries / "postgres", "-D", self.data, "-p", str(self.port), "-k", self.folder,
             "-c", "ssl=on", "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "max_connections=30",
             "-c", "shared_buffers=16MB"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder,
            user=None if self.owner is None else self.owner.pw_uid,
            group=None if self.owner is None else self.owner.pw_gid,
            preexec_fn=end_with_the_tests,
        )  # fmt: skip
        end = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            assert self.process.poll() is None, "the server did not start"
            assert time.monotonic() < end, "the server is not reachable"
            time.sleep(0.05)

    def rotate(self, name: str) -> None:
        """Another certificate, without a restart."""
        self.use_certificate(name)
        self.as_owner(self.binaries / "pg_ctl", "-D", self.data, "reload")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)

    def url(self, options: str = "", port: int | None = None) -> str:
        return f"postgresql://app:{ENCODED}@localhost:{port or self.port}/postgres{options}"


def end_with_the_tests() -> None:
    """Let the kernel end this process with the one that started it, also when that is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def tls_server() -> Iterator[TlsServer]:
    binaries = debian_binaries()
    owner = pwd.getpwnam("postgres" if _exists("postgres") else "nobody") if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="steadypool-tls-") as name:
        folder = Path(name)
        (folder / "certificates").mkdir()
        authority = Authority(folder / "certificates")
        for certificate, key, digest in (
            ("ec", EC, "sha256"), ("ec384", EC, "sha384"), ("rsa512", RSA, "sha512"), ("middle", EC, "sha256"),
        ):  # fmt: skip
            authority.issue(certificate, key, digest)
        server = TlsServer(folder, binaries, free_port(), authority, owner)
        if owner is not None:
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        (folder / "password").write_text("unused")
        server.as_owner(binaries / "initdb", "-D", server.data, "-U", "root", "-A", "trust", "-N", "--no-instructions",
                        "-E", "UTF8", "--locale", "C.UTF-8")  # fmt: skip
        (server.data / "pg_hba.conf").write_text(
            "local all root trust\n"
            "hostssl all app 127.0.0.1/32 scram-sha-256\n"
            "hostssl all plain 127.0.0.1/32 password\n"
            "hostssl all anyone 127.0.0.1/32 trust\n"
            "host all nossl 127.0.0.1/32 scram-sha-256\n"
        )
        server.use_certificate("ec")
        try:
            server.start()
            roles = "; ".join(
                f"create role {role} login password '{PASSWORD}'"
                for role in ("app", "plain", "anyone", "nossl")
            )
            _psql(server, roles)
            yield server
        finally:
            server.stop()


def _exists(user: str) -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(user))
    return False


def _psql(server: TlsServer, statements: str) -> None:
    end = time.monotonic() + 20
    command = [server.binaries / "psql", "-h", server.folder, "-p", str(server.port), "-U", "root", "-d", "postgres",
               "-v", "ON_ERROR_STOP=1", "-qc", statements]  # fmt: skip
    while (done := subprocess.run(command, capture_output=True, check=False)).returncode != 0:
        assert time.monotonic() < end, done.stderr.decode()
        time.sleep(0.1)


@pytest.fixture(autouse=True)
async def with_the_first_certificate(tls_server: TlsServer) -> AsyncIterator[None]:
    yield
    tls_server.rotate("ec")
    await shown(tls_server, "ec")


async def shown(server: TlsServer, name: str) -> None:
    """Wait until new connections are shown that certificate."""
    wanted = ssl.PEM_cert_to_DER_cert((server.authority.folder / f"{name}.crt").read_text())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with asyncio.timeout(60):
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(struct.pack("!ii", 8, 80877103))
            await reader.readexactly(1)
            await writer.start_tls(context)
            seen = writer.get_extra_info("ssl_object").getpeercert(True)
            writer.transport.abort()
            if seen == wanted:
                return


@dataclass
class Middle:
    """A man in the middle: ends TLS with its own certificate and passes on what it hears."""

    server: TlsServer
    certificate: str | None = None
    """Whose certificate is shown; None passes the bytes through untouched."""
    strip_plus: bool = False
    heard: bytearray = field(default_factory=bytearray)
    connections: int = 0
    port: int = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Middle]:
        listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            listener.close()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=2)
            for writer in self._clients:  # of a test that failed: their clients are still there
                writer.transport.abort()

    def __post_init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._clients: list[asyncio.StreamWriter] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        to_server: asyncio.StreamWriter | None = None
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self.server.port)
            if self.certificate is not None:
                await reader.readexactly(8)
                writer.write(b"S")
                await writer.start_tls(self.server.authority.context(self.certificate))
                to_server.write(struct.pack("!ii", 8, 80877103))
                await from_server.readexactly(1)
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                await to_server.start_tls(context)
            self._clients.append(writer)
            relays = [
                asyncio.create_task(self._relay(reader, to_server, self.heard)),
                asyncio.create_task(self._relay(from_server, writer, None)),
            ]
            await asyncio.wait(relays, return_when=asyncio.FIRST_COMPLETED)
            for relay in relays:
                relay.cancel()
            await asyncio.wait(relays)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client turned away
        finally:
            writer.transport.abort()
            if to_server is not None:
                to_server.transport.abort()

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: bytearray | None
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if heard is not None:
                    heard += data
                if self.strip_plus:
                    data = _without_plus(data)
                writer.write(data)


def _without_plus(data: bytes) -> bytes:
    mechanisms = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"
    if mechanisms not in data:
        return data
    body = struct.pack("!i", 10) + b"SCRAM-SHA-256\0\0"
    return b"R" + struct.pack("!i", len(body) + 4) + body


@dataclass
class Driver:
    """The same few steps for both drivers."""

    name: str
    proven: ProvenCertificates = field(default_factory=ProvenCertificates)

    async def open(self, url: str, **more: Any) -> Any:
        target = parse_url(url)
        if self.name == "psycopg":
            return await open_psycopg(target, timeout=15, **more)
        return await open_asyncpg(target, timeout=15, proven=self.proven, **more)

    def close(self, connection: Any) -> None:
        (abort_asyncpg if self.name == "asyncpg" else abort_psycopg)(connection)

    async def try_out(self, url: str, **more: Any) -> bool:
        """Open, ask whether TLS is on, close."""
        connection = await self.open(url, **more)
        try:
            statement = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"
            if self.name == "asyncpg":
                return await connection.fetchval(statement)
            return (await (await connection.execute(statement)).fetchone())[0]
        finally:
            self.close(connection)


@pytest.fixture(params=["asyncpg", "psycopg"])
def driver(request: pytest.FixtureRequest) -> Driver:
    return Driver(request.param)


@pytest.mark.parametrize(
    "anyio_backend",
    ["asyncio", pytest.param(("asyncio", {"loop_factory": uvloop.new_event_loop}), id="uvloop")],
)
@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+asyncpg", "postgresql+psycopg", "postgres"])
async def test_the_url_of_neons_console_works_as_it_is(
    tls_server: TlsServer, driver: Driver, scheme: str
) -> None:
    assert await driver.try_out(tls_server.url(NEON).replace("postgresql:", f"{scheme}:")) is True


async def test_a_man_in_the_middle_gets_through_without_binding(
    tls_server: TlsServer, driver: Driver
) -> None:
    """The attack works; otherwise the next tests would prove nothing."""
    async with Middle(tls_server, "middle").running() as middle:
        options = "?sslmode=require&channel_binding=disable"
        assert await driver.try_out(tls_server.url(options, middle.port)) is True
        assert b"SCRAM-SHA-256" in middle.heard


async def test_a_man_in_the_middle_is_refused_with_binding(tls_server: TlsServer, driver: Driver) -> None:
    async with Middle(tls_server, "middle").running() as middle:
        with pytest.raises(ConnectFailed) as caught:
            await driver.open(tls_server.url(NEON, middle.port))
        assert not isinstance(caught.value, TimeoutError)
        assert PASSWORD not in str(caught.value)
        assert caught.value.final


async def test_one_whose_certificate_is_signed_by_the_trusted_authority_is_refused_too(
    tls_server: TlsServer, driver: Driver
) -> None:
    trusted = f"sslmode=verify-full&sslrootcert={tls_server.authority.folder}/ca.crt"
    async with Middle(tls_server, "middle").running() as middle:
        assert await driver.try_out(tls_server.url(f"?{trusted}&channel_binding=disable", middle.port))
        with pytest.raises(ConnectFailed) as caught:
            await driver.open(tls_server.url(f"?{trusted}&channel_binding=require", middle.port))
        assert caught.value.final


async def test_one_who_hides_the_offer_of_binding_is_refused(tls_server: TlsServer, driver: Driver) -> None:
    async with Middle(tls_server, "middle", strip_plus=True).running() as middle:
        said = "offers no log-in with channel binding" if driver.name == "asyncpg" else "channel binding"
        with pytest.raises(ConnectFailed, match=said) as caught:
            await driver.open(tls_server.url(NEON, middle.port))
        assert caught.value.final


async def test_asyncpg_says_nothing_to_an_unproven_certificate(tls_server: TlsServer) -> None:
    driver = Driver("asyncpg")
    async with Middle(tls_server, None).running() as middle:
        assert await driver.try_out(tls_server.url(NEON, middle.port))
        middle.certificate = "middle"
        middle.heard.clear()
        with pytest.raises(ConnectFailed) as caught:
            await driver.open(tls_server.url(NEON, middle.port))
        # asyncpg's start-up tells its client_encoding; only the proof's start-up, which does not, was said
        assert b"client_encoding" not in middle.heard
        assert b"SCRAM-SHA-256-PLUS" in middle.heard
        assert caught.value.final


@pytest.mark.parametrize("certificate", ["ec384", "rsa512"])
async def test_binding_works_with_other_signatures(
    tls_server: TlsServer, driver: Driver, certificate: str
) -> None:
    tls_server.rotate(certificate)
    await shown(tls_server, certificate)
    assert await driver.try_out(tls_server.url(NEON)) is True


async def test_a_new_certificate_proves_itself_once(tls_server: TlsServer) -> None:
    driver = Driver("asyncpg")
    async with Middle(tls_server, None).running() as counter:
        for expected in (2, 3, 4):  # the proof and the connection, then connections alone
            assert await driver.try_out(tls_server.url(NEON, counter.port))
            assert counter.connections == expected
        tls_server.rotate("rsa512")
        await shown(tls_server, "rsa512")
        assert await driver.try_out(tls_server.url(NEON, counter.port))
        assert counter.connections == 7  # refused in the handshake, proof, connection
        assert await driver.try_out(tls_server.url(NEON, counter.port))
        assert counter.connections == 8


async def test_binding_needs_scram(tls_server: TlsServer, driver: Driver) -> None:
    for user in ("plain", "anyone"):
        url = tls_server.url(NEON).replace("app:", f"{user}:")
        with pytest.raises(ConnectFailed) as caught:
            await driver.open(url)
        assert caught.value.final
        assert await driver.try_out(url.replace("channel_binding=require", "channel_binding=prefer"))


async def test_binding_without_tls_is_refused(tls_server: TlsServer, driver: Driver) -> None:
    with pytest.raises(ConfigurationError, match="without TLS"):
        await driver.open(tls_server.url("?sslmode=disable&channel_binding=require"))
    url = f"postgresql://app:{ENCODED}@/postgres?host={tls_server.folder}&port={tls_server.port}"
    with pytest.raises(ConnectFailed):
        await driver.open(url + "&channel_binding=require")


async def test_a_wrong_password_is_final_and_named_by_its_code(tls_server: TlsServer, driver: Driver) -> None:
    with pytest.raises(ConnectFailed, match="28P01") as caught:
        await driver.open(tls_server.url(NEON).replace(ENCODED, "wrong"))
    assert caught.value.final


async def test_a_password_function_is_asked_again_when_the_token_was_replaced(
    tls_server: TlsServer, driver: Driver
) -> None:
    tokens = iter(["expired", PASSWORD])

    async def token() -> str:
        return next(tokens)

    url = tls_server.url(NEON).replace(f":{ENCODED}", "")
    assert await driver.try_out(url, password=token) is True


async def test_verify_full_accepts_the_right_name_and_no_other(tls_server: TlsServer, driver: Driver) -> None:
    options = f"?sslmode=verify-full&sslrootcert={tls_server.authority.folder}/ca.crt"
    assert await driver.try_out(tls_server.url(options)) is True
    with pytest.raises(ConnectFailed) as caught:
        await driver.open(tls_server.url(options).replace("@localhost", "@127.0.0.1"))
    assert caught.value.final
    # the name is what counts, also where the address is given
    assert await driver.try_out(tls_server.url(options + "&hostaddr=127.0.0.1")) is True


async def test_verify_full_refuses_a_stranger(tls_server: TlsServer, driver: Driver) -> None:
    tls_server.rotate("rsa512")  # signed by itself
    await shown(tls_server, "rsa512")
    with pytest.raises(ConnectFailed) as caught:
        await driver.open(
            tls_server.url(f"?sslmode=verify-full&sslrootcert={tls_server.authority.folder}/ca.crt")
        )
    assert caught.value.final
    assert await driver.try_out(tls_server.url("?sslmode=require")) is True


async def test_the_name_is_what_tls_checks_also_when_its_addresses_race(
    tls_server: TlsServer, driver: Driver
) -> None:
    """One address is silent, one refuses; the host's name goes to TLS, and so does its channel binding."""

    def resolve(name: str, port: int) -> list[Any]:
        assert name in ("localhost", "other.example")
        return [(socket.AF_INET, (f"127.0.0.{number}", port)) for number in (2, 3, 1)]

    options = f"?sslmode=verify-full&sslrootcert={tls_server.authority.folder}/ca.crt"
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.2", tls_server.port))
        listener.listen(0)
        for _ in range(4):  # its queue is full: it does not even complete TCP's handshake
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.2", tls_server.port))
        network = AddressBook(resolve)
        assert await driver.try_out(tls_server.url(options), network=network) is True
        assert await driver.try_out(
            tls_server.url(options + "&channel_binding=require"), network=AddressBook(resolve)
        )
        with pytest.raises(ConnectFailed) as caught:
            other = tls_server.url(options).replace("@localhost", "@other.example")
            await driver.open(other, network=network)
        assert caught.value.final


async def test_a_handshake_that_breaks_off_is_no_refusal(tls_server: TlsServer, driver: Driver) -> None:
    """The network's fault and not the certificate's: another try may help."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"S")
        await reader.read(1)
        writer.transport.abort()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    with pytest.raises(ConnectFailed) as caught:
        await driver.open(tls_server.url("?sslmode=require", port))
    assert not caught.value.final
    listener.close()


async def test_the_systems_certificates_can_be_used(
    tls_server: TlsServer, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tls_server.url("?sslmode=verify-full&sslrootcert=system")
    with pytest.raises(ConnectFailed):
        await driver.open(url)
    monkeypatch.setenv("SSL_CERT_FILE", f"{tls_server.authority.folder}/ca.crt")
    assert await driver.try_out(url) is True


async def test_an_abort_over_tls_ends_the_statement_on_the_server(
    tls_server: TlsServer, driver: Driver
) -> None:
    connection = await driver.open(tls_server.url(NEON), guards={"client_connection_check_interval": "500"})
    statement = "select pg_sleep(30)"
    task: asyncio.Future[Any] = asyncio.ensure_future(
        connection.fetchval(statement) if driver.name == "asyncpg" else connection.execute(statement)
    )
    await asyncio.sleep(0.2)
    farewell = take_farewell(connection)
    driver.close(connection)
    assert farewell is not None
    started = time.monotonic()
    assert await farewell.wait(10)
    assert time.monotonic() - started < 5
    with pytest.raises((OSError, psycopg.Error, asyncpg.PostgresError, asyncpg.InterfaceError)):
        await task


async def test_sslmode_prefer_and_disable(tls_server: TlsServer, driver: Driver) -> None:
    assert await driver.try_out(tls_server.url()) is True
    assert await driver.try_out(tls_server.url("?sslmode=prefer")) is True
    assert await driver.try_out(tls_server.url("?sslmode=disable").replace("app:", "nossl:")) is False


async def test_a_server_that_falls_silent_after_tls_leaves_no_socket_behind(
    tls_server: TlsServer, driver: Driver
) -> None:
    silent = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.readexactly(8)
        writer.write(b"S")
        await writer.start_tls(tls_server.authority.context("middle"))
        await reader.readexactly(8)
        writer.transport.pause_reading()  # from here on not even the end of TLS is answered
        silent.set()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    before = open_sockets()
    task = asyncio.create_task(driver.open(tls_server.url("?sslmode=require", port)))
    await silent.wait()
    assert open_sockets() == before + 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    end = time.monotonic() + 5  # a polite end of TLS would wait half a minute for an answer
    while open_sockets() > before + 1:
        assert time.monotonic() < end
        await asyncio.sleep(0.01)
    writers[0].transport.abort()
    listener.close()


def open_sockets() -> int:
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
    return found
