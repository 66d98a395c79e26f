"""How listeners take faults: ours, asyncpg-listen, procrastinate's, and what asyncpg and psycopg give by themselves.

    uv sync --all-packages --group bench && python bench/listeners.py

Every listener hears the same sender, over a network of its own that can be broken. A dropped connection is dropped in
the kernel (a socket filter that lets nothing in), so that TCP's keepalives get no answer either. Prints a table, and
writes the numbers to bench/results/listeners.json. Takes about two and a half minutes.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import platform
import socket
import statistics
import struct
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import psycopg
from asyncpg_listen import Notification as Heard
from asyncpg_listen import NotificationListener, NotificationOrTimeout, connect_func
from procrastinate import PsycopgConnector
from psycopg.conninfo import make_conninfo

from steadypool import Database, DatabaseSettings
from steadypool.listener import Notification
from steadypool_lab import EmbeddedPostgres

CHANNEL = "bench"
EVERY = 0.1
"""Seconds between two notifications of the sender."""
RESULTS = Path(__file__).parent / "results" / "listeners.json"

Hear = Callable[[str], Awaitable[None]]
Tell = Callable[[str], None]
Listen = Callable[[str, Hear, Tell], Awaitable[None]]


# -- who is compared -----------------------------------------------------------------------------------------------


async def steadypool_listen(url: str, hear: Hear, tell: Tell) -> None:
    settings = DatabaseSettings(url=url)
    async with Database(settings) as db, db.listen(CHANNEL) as notifications:
        async for heard in notifications:
            if isinstance(heard, Notification):
                await hear(heard.payload)
            else:
                tell(f"Gap: {heard.reason}")


async def asyncpg_listen(url: str, hear: Hear, _tell: Tell) -> None:
    async def handle(notification: NotificationOrTimeout) -> None:
        if isinstance(notification, Heard):
            await hear(notification.payload or "")

    await NotificationListener(connect_func(url)).run({CHANNEL: handle})


async def procrastinate_listen(url: str, hear: Hear, _tell: Tell) -> None:
    async def on_notification(*, channel: str, payload: str) -> None:
        await hear(payload)

    connector = PsycopgConnector(conninfo=url)
    await connector.open_async()
    try:
        await connector.listen_notify(on_notification, [CHANNEL])
    finally:
        await connector.close_async()


async def plain_asyncpg(url: str, hear: Hear, _tell: Tell) -> None:
    waiting: asyncio.Queue[str] = asyncio.Queue()
    connection = await asyncpg.connect(url)
    try:
        await connection.add_listener(CHANNEL, lambda *heard: waiting.put_nowait(str(heard[3])))
        while True:
            await hear(await waiting.get())
    finally:
        connection.terminate()


async def plain_psycopg(url: str, hear: Hear, _tell: Tell) -> None:
    tuned = make_conninfo(
        url, keepalives_idle=2, keepalives_interval=2, keepalives_count=3, tcp_user_timeout=8000
    )
    async with await psycopg.AsyncConnection.connect(tuned, autocommit=True) as connection:
        await connection.execute(f"listen {CHANNEL}")
        async for heard in connection.notifies():
            await hear(heard.payload)


LISTENERS: dict[str, Listen] = {
    "steadypool": steadypool_listen,
    "asyncpg-listen": asyncpg_listen,
    "procrastinate": procrastinate_listen,
    "plain asyncpg": plain_asyncpg,
    "plain psycopg, tuned keepalives": plain_psycopg,
}


# -- the network ---------------------------------------------------------------------------------------------------


class Road:
    """Takes connections to the server; the ones that are open can be made to vanish."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._server: asyncio.Server | None = None
        self._accepted: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port or None)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def close(self) -> None:
        await self.refuse()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def drop(self) -> None:
        """From now on no packet of the open connections arrives; nobody is told."""
        for accepted in self._accepted:
            if accepted.fileno() != -1:
                client = accepted.getpeername()
                _let_nothing_in(accepted)
                _let_nothing_in(_own_socket(client))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._accepted.append(writer.get_extra_info("socket")._sock)
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            writer.transport.abort()
            return
        try:
            await asyncio.wait(
                {
                    asyncio.create_task(_pump(reader, up_writer)),
                    asyncio.create_task(_pump(up_reader, writer)),
                },
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            writer.close()
            up_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()


_SO_ATTACH_FILTER = 26
_RETURN_NOTHING = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))


def _own_socket(address: object) -> socket.socket:
    """The socket of this process that has this address: the listener's end."""
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found = socket.socket(fileno=os.dup(int(descriptor)))
            if found.family == socket.AF_INET and found.getsockname() == address:
                return found
            found.close()
    raise LookupError(f"no socket has the address {address}")


def _let_nothing_in(accepted: socket.socket) -> None:
    program = struct.pack("HP", 1, ctypes.addressof(_RETURN_NOTHING))
    accepted.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


# -- what is measured ----------------------------------------------------------------------------------------------


@dataclass
class Ear:
    """One listener, and what it heard."""

    name: str
    heard: list[tuple[float, int]] = field(default_factory=list)
    told: list[tuple[float, str]] = field(default_factory=list)

    async def hear(self, payload: str) -> None:
        self.heard.append((time.monotonic(), int(payload)))

    def tell(self, what: str) -> None:
        self.told.append((time.monotonic(), what))

    async def run(self, listen: Listen, url: str) -> None:
        try:
            await listen(url, self.hear, self.tell)
        except Exception as error:  # noqa: BLE001 - that it raised is the result
            self.tell(f"raised {type(error).__name__}")


@dataclass
class Sender:
    """Says a number every tenth of a second, straight to the server."""

    url: str
    sent: list[tuple[float, int]] = field(default_factory=list)

    async def run(self) -> None:
        number = 0
        while True:
            with suppress(psycopg.OperationalError):
                async with await psycopg.AsyncConnection.connect(
                    self.url, autocommit=True, application_name="sender"
                ) as connection:
                    while True:
                        at = time.monotonic()
                        await connection.execute("select pg_notify(%s, %s)", (CHANNEL, str(number)))
                        self.sent.append((at, number))
                        number += 1
                        await asyncio.sleep(EVERY)
            await asyncio.sleep(EVERY)


@dataclass
class Outcome:
    """How one listener took one fault; seconds since the fault (or its end: the server is back), None for never."""

    hears_again: float | None
    told_after: float | None
    told: str
    missed: int


Fault = Callable[[list[Road], EmbeddedPostgres], Awaitable[None]]


async def under(
    server: EmbeddedPostgres, fault: Fault, seconds: float, *, running: bool = True
) -> dict[str, Outcome]:
    """All listeners at once, and one fault to all of them."""
    roads = [Road(server.port) for _ in LISTENERS]
    ears = [Ear(name) for name in LISTENERS]
    for road in roads:
        await road.open()
        if not running:
            await road.refuse()
    sender = Sender(server.url)
    listening = [
        asyncio.create_task(ear.run(listen, _through(server.url, road)))
        for ear, listen, road in zip(ears, LISTENERS.values(), roads, strict=True)
    ]
    sending = asyncio.create_task(sender.run())
    await asyncio.sleep(3.0)
    begun = time.monotonic()
    await fault(roads, server)
    at = time.monotonic()
    await asyncio.sleep(seconds)
    for task in (*listening, sending):
        task.cancel()
    await asyncio.wait({*listening, sending})
    for road in roads:
        await road.close()
    return {ear.name: _outcome(ear, sender, begun, at) for ear in ears}


def _outcome(ear: Ear, sender: Sender, begun: float, at: float) -> Outcome:
    after = [number for moment, number in sender.sent if moment > at]
    times = {number: moment for moment, number in ear.heard}
    # Heard again: the first that was said after the fault and heard, after the longest stretch of those that were not.
    missed = [number for number in after[:-5] if number not in times]
    if not after or after[-6] not in times:
        again = None
    else:
        first = next(
            (number for number in after if number > (missed[-1] if missed else -1) and number in times), None
        )
        again = None if first is None else max(0.0, times[first] - at)
    told = next(((max(0.0, moment - at), what) for moment, what in ear.told if moment > begun), None)
    before = next((what for moment, what in ear.told if moment <= begun), "")
    return Outcome(
        hears_again=_rounded(again),
        told_after=None if told is None else _rounded(told[0]),
        told=before if told is None else told[1],
        missed=len(missed),
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)


def _through(url: str, road: Road) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{road.port}").geturl()


async def dropped(roads: list[Road], _server: EmbeddedPostgres) -> None:
    for road in roads:
        road.drop()


async def restarted(_roads: list[Road], server: EmbeddedPostgres) -> None:
    await server.restart()


async def killed(_roads: list[Road], server: EmbeddedPostgres) -> None:
    async with await psycopg.AsyncConnection.connect(server.url, autocommit=True) as connection:
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where backend_type = 'client backend' and pid <> pg_backend_pid() and application_name <> 'sender'"
        )


async def opened(roads: list[Road], _server: EmbeddedPostgres) -> None:
    for road in roads:
        await road.open()


@dataclass
class Load:
    """How one listener took many notifications."""

    sent: int
    heard: int
    in_order: bool
    told: str
    median_ms: float | None = None
    p99_ms: float | None = None
    kept_mb: float | None = None


async def rate(
    server: EmbeddedPostgres, listen: Listen, per_second: int = 10_000, seconds: float = 5.0
) -> Load:
    """So many a second, for some seconds; the payload is when it was said."""
    heard: list[tuple[float, float]] = []
    told: list[str] = []

    async def hear(payload: str) -> None:
        heard.append((float(payload), time.monotonic()))

    listening = asyncio.create_task(listen(server.url, hear, told.append))
    await asyncio.sleep(1.0)
    batch = per_second // 50
    async with await psycopg.AsyncConnection.connect(server.url, autocommit=True) as connection:
        begun = time.monotonic()
        for number in range(int(seconds * 50)):
            await asyncio.sleep(max(0.0, begun + number / 50 - time.monotonic()))
            # distinct within a transaction, or the server sends only one of them
            base = time.monotonic()
            await connection.execute(
                "select pg_notify(%s, to_char(%s::float8 + n * 1e-9, 'FM999999999.000000000'))"
                " from generate_series(1, %s) n",
                (CHANNEL, base, batch),
            )
    await asyncio.sleep(1.5)
    listening.cancel()
    await asyncio.wait({listening})
    late = sorted((arrived - said) * 1000 for said, arrived in heard)
    return Load(
        sent=batch * int(seconds * 50),
        heard=len(heard),
        in_order=[said for said, _ in heard] == sorted(said for said, _ in heard),
        told=told[0] if told else "",
        median_ms=round(statistics.median(late), 1) if late else None,
        p99_ms=round(late[int(len(late) * 0.99)], 1) if late else None,
    )


async def slow(server: EmbeddedPostgres, listen: Listen, count: int = 50_000) -> Load:
    """A consumer that stands still while so many are said, of 100 bytes each; then it takes what there is."""
    heard: list[int] = []
    told: list[str] = []
    goes_on = asyncio.Event()

    async def hear(payload: str) -> None:
        heard.append(int(payload.split(maxsplit=1)[0]))
        await goes_on.wait()

    listening = asyncio.create_task(listen(server.url, hear, told.append))
    await asyncio.sleep(1.0)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    async with await psycopg.AsyncConnection.connect(server.url, autocommit=True) as connection:
        for begin in range(0, count, 1000):
            await connection.execute(
                "select pg_notify(%s, n || ' ' || repeat('x', 94)) from generate_series(%s::int, %s::int) n",
                (CHANNEL, begin + 1, begin + 1000),
            )
    await asyncio.sleep(1.0)
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    goes_on.set()
    await asyncio.sleep(2.0)
    listening.cancel()
    await asyncio.wait({listening})
    return Load(
        count, len(heard), heard == sorted(heard), told[0] if told else "", kept_mb=round(kept / 1e6, 1)
    )


# -- the run -------------------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[Fault, float, bool]] = {
    "connection silently dropped": (dropped, 40.0, True),
    "backend killed": (killed, 12.0, True),
    "server restarted": (restarted, 15.0, True),
    "started without the server": (opened, 12.0, False),
}


async def main() -> None:
    logging.disable(logging.ERROR)
    begun = time.monotonic()
    results: dict[str, dict[str, Outcome | Load]] = {}
    async with EmbeddedPostgres.temporary() as server:
        for name, (fault, seconds, running) in FAULTS.items():
            print(f"{name} …", flush=True)
            results[name] = {**await under(server, fault, seconds, running=running)}
        for name, measure in (("slow consumer", slow), ("10,000 a second", rate)):
            print(f"{name} …", flush=True)
            results[name] = {
                listener: await measure(server, listen) for listener, listen in LISTENERS.items()
            }
    RESULTS.parent.mkdir(exist_ok=True)
    facts = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "seconds": round(time.monotonic() - begun),
        "results": {fault: {name: asdict(o) for name, o in rows.items()} for fault, rows in results.items()},
    }
    RESULTS.write_text(json.dumps(facts, indent=2) + "\n")
    print(table(results))


def table(results: dict[str, dict[str, Outcome | Load]]) -> str:
    """Markdown: a row a fault, a column a listener."""
    lines = ["| | " + " | ".join(LISTENERS) + " |", "| --- |" + " --- |" * len(LISTENERS)]
    for fault, rows in results.items():
        lines.append(f"| {fault} | " + " | ".join(_cell(rows[name]) for name in LISTENERS) + " |")
    return "\n".join(lines)


def _cell(outcome: Outcome | Load) -> str:
    if isinstance(outcome, Outcome):
        again = (
            "never hears again" if outcome.hears_again is None else f"hears after {outcome.hears_again:.1f} s"
        )
        after = "" if outcome.told_after is None else f" after {outcome.told_after:.1f} s"
        told = f"{outcome.told.partition(':')[0]}{after}" if outcome.told else "says nothing"
        return f"{again}; {outcome.missed} missed; {told}"
    parts = [f"{outcome.heard:,} of {outcome.sent:,}"]
    if outcome.median_ms is not None:
        parts.append(f"median {outcome.median_ms:g} ms, p99 {outcome.p99_ms:g} ms")
    if outcome.kept_mb is not None:
        parts.append(f"{outcome.kept_mb:g} MB kept")
    if not outcome.in_order:
        parts.append("out of order")
    parts.append(outcome.told.partition(":")[0] or ("" if outcome.heard == outcome.sent else "says nothing"))
    return "; ".join(part for part in parts if part)


if __name__ == "__main__":
    asyncio.run(main())
