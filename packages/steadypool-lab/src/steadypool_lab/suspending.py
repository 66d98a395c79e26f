"""A Postgres that scales to zero, on the desk: really stopped when idle, really started by the first connection.

It behaves as serverless providers' databases do, seen from a client:

- activity is a running statement or an open transaction; a connection that is merely open does not keep it awake;
- when it falls asleep, open connections are ended by the server (57P01), or, as plyr.fm met it, go silent;
- while it sleeps and wakes, connections are held, refused, or answered with 57P03: the `WakeMode`.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from steadypool_lab.network.relay import Relay
from steadypool_lab.network.startup import Client, greet, hang_up
from steadypool_lab.network.tcp_server import TCPServer, has_left, reset
from steadypool_lab.postgres.certificate import Certificate, self_signed
from steadypool_lab.postgres.embedded import EmbeddedPostgres
from steadypool_lab.postgres.ports import HOST

_STARTING_UP = ("57P03", "the database system is starting up")
_EXPECTED_START = 0.3


class WakeMode(StrEnum):
    """What a connection meets while the database is not awake. Every mode wakes it."""

    HOLD = "hold"
    """The connection is accepted and gets its answer once the database is awake."""
    REFUSE = "refuse"
    """The first one is reset as soon as it is accepted, since a closed port notices nobody; after that the port is
    closed until the database is awake."""
    REJECT = "reject"
    """The connection is answered by FATAL 57P03, "the database system is starting up"."""


class Suspend(StrEnum):
    """What becomes of open connections when the database falls asleep."""

    CLOSE = "close"
    """The server ends them, with 57P01."""
    SILENCE = "silence"
    """They stay open, and nobody answers on them any more."""


class PowerState(Enum):
    """Where the database is between asleep and awake."""

    AWAKE = "awake"
    FALLING_ASLEEP = "falling asleep"
    ASLEEP = "asleep"
    WAKING = "waking"


@dataclass
class ConnectionCounts:
    """What was counted since the start.

    Attributes:
        wakes: how often it was woken; an aborted wake-up counts.
        aborted: wake-ups that ended early because the connection that began them was closed.
        suspends: how often it fell asleep.
        connections: connections that were accepted at all.
        attempts: those that came while it was not awake.
        most_at_once: the most of these at the same time.
        held: connections that were held until it was awake, or until they gave up.
    """

    wakes: int = 0
    aborted: int = 0
    suspends: int = 0
    connections: int = 0
    attempts: int = 0
    most_at_once: int = 0
    held: int = 0


class SuspendingPostgres:
    """A real Postgres behind an address that any client can use, asleep after a while without activity.

    Args:
        sleep_after: seconds without activity after which it falls asleep; None for never by itself.
        wake: the least seconds that waking takes.
        mode: what connections meet while it is not awake.
        suspend: what becomes of open connections when it falls asleep.
        abort_wake_on_close: whether the wake-up is abandoned when the connection that began it is closed early, so
            that the next one held, or the next to come, begins from nothing. Only where connections are held, and
            not once the server is starting up.
        port: where clients connect; any free port by default.
        tls: whether it offers TLS, with a certificate of its own.
        data_dir: where the database is kept; by default in a temporary directory that is deleted at the end.
        settings: settings of postgresql.conf.
        on_change: is told when it falls asleep and wakes, in words for a person.

    Raises:
        LabError: from the start; the message says what happened and what to do.

    Example:
        async with SuspendingPostgres(sleep_after=300, wake=6) as server:
            await serve(server.url)
    """

    def __init__(
        self,
        *,
        sleep_after: float | None = 300.0,
        wake: float = 6.0,
        mode: WakeMode | str = WakeMode.HOLD,
        suspend: Suspend | str = Suspend.CLOSE,
        abort_wake_on_close: bool = False,
        port: int | None = None,
        tls: bool = False,
        data_dir: Path | None = None,
        settings: Mapping[str, str] | None = None,
        on_change: Callable[[str], None] | None = None,
    ) -> None:
        self.sleep_after = sleep_after
        self.wake = wake
        self.mode = WakeMode(mode)
        self.on_suspend = Suspend(suspend)
        self.abort_wake_on_close = abort_wake_on_close
        self.state = PowerState.AWAKE
        self.knocks = ConnectionCounts()
        self.certificate: Certificate | None = None
        self.server = (
            EmbeddedPostgres.temporary(settings=settings)
            if data_dir is None
            else EmbeddedPostgres(data_dir, settings=settings)
        )
        self._door = TCPServer(self._serve, port)
        self._offers_tls = tls
        self._tls: ssl.SSLContext | None = None
        self._certificates: Path | None = None
        self._say = on_change or _keep_quiet
        self._relays: set[Relay] = set()
        self._waiting: dict[Client, asyncio.Future[bool]] = {}
        self._opener: Client | None = None
        self._outside: set[socket.socket] = set()
        self._switch = asyncio.Lock()
        self._waking: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._moved = 0.0
        self._starting = False
        self._took = _EXPECTED_START

    def __repr__(self) -> str:
        return f"<SuspendingPostgres {HOST}:{self._door.port}, {self.state.value}>"

    @property
    def port(self) -> int:
        """The port on 127.0.0.1 that clients connect to."""
        return self._door.port

    @property
    def url(self) -> str:
        """`postgresql://user:password@127.0.0.1:port/postgres`; contains the password."""
        parts = urlsplit(self.server.url)
        return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{self.port}"))

    # Lifecycle

    async def __aenter__(self) -> Self:
        await self.server.start()
        try:
            if self._offers_tls:
                self._certificates = Path(tempfile.mkdtemp(prefix="steadypool-tls-"))
                self.certificate = self_signed(self._certificates)
                self._tls = self.certificate.server_context()
            self._door.open()
        except BaseException:  # also when cancelled: nobody would stop the server
            await self._put_away()
            raise
        self._touch()
        self._watching = asyncio.create_task(self._watch(), name="sleepy postgres watches")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        if self._waking is not None:
            if not self._starting:  # a server that starts cannot be called back, and is there in a moment
                self._waking.cancel()
            await asyncio.wait([self._waking])
        await self._door.close()
        await self._put_away()

    async def _put_away(self) -> None:
        await self.server.close()
        if self._certificates is not None:
            shutil.rmtree(self._certificates, ignore_errors=True)

    # Falling asleep

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self.sleep_after is None or self.state is not PowerState.AWAKE:
                await asyncio.sleep(0.05)
                continue
            if any(relay.busy for relay in self._relays):
                self._touch()
            moved = max([self._moved, *(relay.moved for relay in self._relays)])
            left = moved + self.sleep_after - loop.time()
            if left <= 0:
                await self.fall_asleep()
            else:
                await asyncio.sleep(min(left, max(0.02, self.sleep_after / 20)))

    def _touch(self) -> None:
        self._moved = asyncio.get_running_loop().time()

    async def fall_asleep(self) -> None:
        """Fall asleep now, whoever is connected. Nothing happens unless it is awake."""
        async with self._switch:
            if self.state is not PowerState.AWAKE:
                return
            self.state = PowerState.FALLING_ASLEEP
            if self.on_suspend is Suspend.SILENCE:
                for relay in tuple(self._relays):
                    relay.mute()
            await self.server.stop()
            self.state = PowerState.ASLEEP
            self.knocks.suspends += 1
            self._say("asleep")
        if self._waiting:
            self._wake_up()

    # Waking

    async def wake_up(self) -> None:
        """Wake it as a connection would, and wait until it is awake.

        Raises:
            LabError: the server did not start.
        """
        while self.state is not PowerState.AWAKE:
            async with self._switch:
                pass  # it may be falling asleep, and has to be there first
            self._wake_up()
            waking = self._waking
            if waking is not None:
                await asyncio.wait([waking])
                if not waking.cancelled():
                    waking.result()

    def _wake_up(self) -> None:
        if self.state is PowerState.ASLEEP:
            self.state = PowerState.WAKING
            self.knocks.wakes += 1
            self._say("waking")
            if self.mode is WakeMode.REFUSE:
                self._door.shut()
            self._opener = next(iter(self._waiting), None)
            self._waking = asyncio.create_task(self._start(), name="sleepy postgres wakes")
            self._waking.add_done_callback(self._woken)

    async def _start(self) -> None:
        """Start the server so that it is ready when the time is over, and not before: who aborts finds it asleep."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.wake
        await asyncio.sleep(max(0.0, self.wake - self._took - 0.1))
        async with self._switch:
            self._starting = True
            try:
                began = loop.time()
                await self.server.start()
                self._took = loop.time() - began
                await asyncio.sleep(max(0.0, end - loop.time()))
            finally:
                self._starting = False

    def _woken(self, waking: asyncio.Task[None]) -> None:
        self._opener = None
        failed = waking.cancelled() or waking.exception() is not None
        self.state = PowerState.ASLEEP if failed else PowerState.AWAKE
        if waking.cancelled():
            self.knocks.aborted += 1
            self._say("the wake-up was aborted")
            if self._waiting and self._watching is not None and not self._watching.done():
                self._wake_up()
            return
        self._say("it does not wake: the server did not start" if failed else "awake")
        self._door.open()
        self._touch()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_result(not failed)

    # Visitors

    async def _serve(self, visitor: socket.socket) -> None:
        self.knocks.connections += 1
        if self.state is PowerState.AWAKE:
            await self._let_in(await greet(visitor, self._tls))
            return
        self._outside.add(visitor)
        self.knocks.attempts += 1
        there = sum(not has_left(one.fileno()) for one in self._outside)
        self.knocks.most_at_once = max(self.knocks.most_at_once, there)
        try:
            client = await self._outside_the_door(visitor)
        finally:
            self._outside.discard(visitor)
        await self._let_in(client)

    async def _outside_the_door(self, visitor: socket.socket) -> Client | None:
        """What happens to a connection while the database is not awake; the client if it is to be let in."""
        if self.mode is WakeMode.REFUSE:
            reset(visitor)
            self._wake_up()
            return None
        client = await greet(visitor, self._tls)
        if client is None or client.is_cancel:
            return client
        if self.mode is WakeMode.REJECT:
            self._wake_up()
            await client.refuse(*_STARTING_UP)
            return None
        try:
            return client if await self._hold(client) else None
        except BaseException:  # the lab ends: nobody else knows this connection
            client.writer.transport.abort()
            raise

    async def _hold(self, client: Client) -> bool:
        """Keep it waiting until the database is awake; False when it has given up, or has been told why not."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        # A client that waits for its answer sends nothing: what can be read is its end.
        gone = asyncio.create_task(client.reader.read(1), name="sleepy postgres listens")
        self._waiting[client] = answer
        self.knocks.held += 1
        self._wake_up()
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._waiting[client]
            gone.cancel()
            await asyncio.wait([gone])
        if answer.done() and answer.result():
            return True
        if answer.done():
            await client.refuse("57P03", "the lab's Postgres did not start")
        else:
            self._gave_up(client)
            await hang_up(client.writer)
        return False

    def _gave_up(self, client: Client) -> None:
        if self._opener is client and self._waking is not None:
            self._opener = None
            if self.abort_wake_on_close and not self._starting:
                self._waking.cancel()

    async def _let_in(self, client: Client | None) -> None:
        if client is None:
            return
        relay = Relay(client)
        self._relays.add(relay)
        try:
            if self.state is PowerState.AWAKE:
                await relay.run(HOST, self.server.port)
        except OSError:
            client.writer.transport.abort()
        finally:
            self._relays.discard(relay)
            self._touch()
            await hang_up(client.writer)


def _keep_quiet(_message: str) -> None:
    return
