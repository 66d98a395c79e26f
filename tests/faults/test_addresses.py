"""Many addresses, some of them silent: one timeout for all, one log-in at a time, the one that worked comes first."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
import uvloop

from steadypool.connect.abort import abort_asyncpg, abort_psycopg
from steadypool.connect.addresses import HESITATION, AddressBook
from steadypool.connect.asyncpg import open_asyncpg
from steadypool.connect.dsn import parse_url
from steadypool.connect.psycopg import open_psycopg
from steadypool.connect.resolver import Address
from steadypool.errors import ConnectFailed, ConnectTimeout
from steadypool.events import ConnectStarted, Event

from .conftest import MakeDatabase
from .kit import MARGIN, T, ask, assert_all_named, assert_served, at_once, rests

pytestmark = pytest.mark.anyio

on_both_loops = pytest.mark.parametrize(
    "anyio_backend",
    ["asyncio", pytest.param(("asyncio", {"loop_factory": uvloop.new_event_loop}), id="uvloop")],
)

PROMPT = 0.5 + 0.3
"""Seconds for two silent addresses before a good one: half a second, and what a busy machine adds."""


class Book:
    """A name server that tests write into. `gate` is closed where it hangs, `down` where it answers nothing."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.down = False
        self.asked = 0
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, name: str, port: int) -> list[Address]:
        self.asked += 1
        assert self.gate.wait(30)
        if self.down or name not in self.names:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [
            (socket.AF_INET6, (address, port, 0, 0)) if ":" in address else (socket.AF_INET, (address, port))
            for address in self.names[name]
        ]


@pytest.fixture
def book() -> Iterator[Book]:
    book = Book()
    yield book
    book.gate.set()


@pytest.fixture
def network(book: Book) -> AddressBook:
    return AddressBook(book)


Open = Callable[..., Any]


@pytest.fixture(params=["asyncpg", "psycopg"])
def opened(request: pytest.FixtureRequest, network: AddressBook) -> Open:
    """Opens a connection for the length of a block. The pipelined driver's are opened as psycopg's are."""
    driver = request.param

    @contextlib.asynccontextmanager
    async def opened(url: str, timeout: float = 3.0) -> AsyncIterator[Any]:
        function = open_asyncpg if driver == "asyncpg" else open_psycopg
        connection = await function(parse_url(url), timeout=timeout, network=network)
        try:
            yield connection
        finally:
            (abort_asyncpg if driver == "asyncpg" else abort_psycopg)(connection)

    return opened


def at(url: str, *hosts: str, query: str = "") -> str:
    """The URL with other hosts."""
    old = urlsplit(url)
    netloc = f"{old.username}:{old.password}@{','.join(hosts)}"
    return urlunsplit(old._replace(netloc=netloc, query=query))


def named(url: str, **more: str) -> str:
    return at(url, f"db:{port_of(url)}", **more)


def port_of(url: str) -> int:
    return urlsplit(url).port or 0


@contextlib.contextmanager
def silent(*addresses: str, port: int) -> Iterator[None]:
    """Addresses that do not even complete the handshake of TCP: their queue is full."""
    with contextlib.ExitStack() as stack:
        for address in addresses:
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen(0)
            for _ in range(4):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex((address, port))
        yield


class Mute:
    """Addresses that accept connections and never answer; knows who said something and who hung up."""

    def __init__(self, *addresses: str, reset: bool = False) -> None:
        self.reset = reset
        self.talking: list[str] = []
        self.most_talking = 0
        self.spoken_to: list[str] = []
        self.accepted = 0
        self._addresses = addresses
        self._servers: list[asyncio.Server] = []
        self.port = 0

    async def __aenter__(self) -> Mute:
        for address in self._addresses:
            server = await asyncio.start_server(self._serve, address, self.port)
            self.port = server.sockets[0].getsockname()[1]
            self._servers.append(server)
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = writer.get_extra_info("sockname")[0]
        self.accepted += 1
        try:
            if await reader.read(1):
                self.spoken_to.append(address)
                self.talking.append(address)
                self.most_talking = max(self.most_talking, len(self.talking))
                try:
                    if self.reset:
                        linger = struct.pack("ii", 1, 0)
                        writer.get_extra_info("socket").setsockopt(
                            socket.SOL_SOCKET, socket.SO_LINGER, linger
                        )
                        return
                    while await reader.read(1000):
                        pass
                finally:
                    self.talking.remove(address)
        except OSError:
            pass  # a reset says the same as an end of file
        finally:
            writer.transport.abort()


def open_sockets() -> int:
    count = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
    return count


async def closes_down_to(count: int) -> None:
    end = time.monotonic() + 5
    while open_sockets() > count:
        assert time.monotonic() < end, f"{open_sockets()} sockets, {count} before"
        await asyncio.sleep(0.005)


TWELVE = [f"127.0.0.{number}" for number in range(2, 14)]


# -- silence ---------------------------------------------------------------------------------------------------


@on_both_loops
async def test_two_of_three_silent_is_half_a_second_once_and_nothing_the_next_time(
    opened: Open, book: Book, database_url: str
) -> None:
    book.names["db"] = ["127.0.0.2", "127.0.0.3", "127.0.0.1"]
    with silent("127.0.0.2", "127.0.0.3", port=port_of(database_url)):
        before = open_sockets()
        started = time.monotonic()
        async with opened(named(database_url)):
            first = time.monotonic() - started
            assert open_sockets() == before + 1  # the losers are closed
        later: list[float] = []
        for _ in range(5):
            started = time.monotonic()
            async with opened(named(database_url)):
                later.append(time.monotonic() - started)
    assert first < PROMPT, first
    assert min(later) < 0.2, later  # a busy machine only adds to it


async def test_twelve_silent_addresses_cost_one_timeout_and_each_is_named(
    opened: Open, book: Book, database_url: str
) -> None:
    book.names["db"] = TWELVE
    port = port_of(database_url)
    with silent(*TWELVE, port=port):
        before = open_sockets()
        started = time.monotonic()
        with pytest.raises(ConnectTimeout) as caught:
            async with opened(named(database_url), timeout=0.8):
                pass
        assert time.monotonic() - started < 0.8 + MARGIN
        await closes_down_to(before)
    for address in TWELVE:
        assert f"{address}:{port}: no answer within " in str(caught.value)


async def test_the_last_of_twelve_is_reached_however_short_the_time(
    opened: Open, book: Book, database_url: str
) -> None:
    book.names["db"] = [*TWELVE[:11], "127.0.0.1"]
    with silent(*TWELVE[:11], port=port_of(database_url)):
        async with opened(named(database_url), timeout=3.0):
            pass


@on_both_loops
async def test_what_each_address_said_is_in_the_error(opened: Open, book: Book, database_url: str) -> None:
    book.names["db"] = ["127.0.0.2", "::1", "127.0.0.3"]
    port = port_of(database_url)
    with silent("127.0.0.2", port=port), pytest.raises(ConnectTimeout) as caught:
        async with opened(named(database_url), timeout=0.5):
            pass
    said = str(caught.value)
    assert f"127.0.0.2:{port}: no answer within 0." in said
    assert f"127.0.0.3:{port}: Connection refused" in said
    assert f"[::1]:{port}: " in said


async def test_all_refusing_fails_at_once(opened: Open, book: Book, database_url: str) -> None:
    book.names["db"] = TWELVE
    started = time.monotonic()
    with pytest.raises(ConnectFailed) as caught:
        async with opened(named(database_url), timeout=10):
            pass
    assert time.monotonic() - started < MARGIN
    assert not isinstance(caught.value, ConnectTimeout)
    assert not caught.value.final
    assert str(caught.value).count("Connection refused") == 12


async def test_the_hosts_of_a_url_race_as_well(opened: Open, book: Book, database_url: str) -> None:
    port = port_of(database_url)
    book.names |= {"a": ["127.0.0.2", "127.0.0.3"], "b": ["127.0.0.4", "127.0.0.1"]}
    with silent("127.0.0.2", "127.0.0.3", "127.0.0.4", port=port):
        started = time.monotonic()
        async with opened(at(database_url, f"a:{port}", f"b:{port}"), timeout=10):
            assert time.monotonic() - started < 0.6 + MARGIN


# -- log-ins ---------------------------------------------------------------------------------------------------


async def test_one_logs_in_and_is_given_all_the_time(opened: Open, book: Book) -> None:
    """A database that is woken holds the connection: to go on to the next address would begin anew."""
    book.names["db"] = TWELVE
    async with Mute(*TWELVE) as server:
        with pytest.raises(ConnectTimeout, match=r"while waiting for 127\.0\.0\.2:\d+ to let us in"):
            async with opened(f"postgresql://u:p@db:{server.port}/d", timeout=1.0):
                pass
        assert server.spoken_to == ["127.0.0.2"]
        assert server.accepted <= 2  # with the runner-up, if the machine was slow


@on_both_loops
async def test_an_address_that_breaks_off_leaves_the_log_in_to_the_next_one_after_the_other(
    opened: Open, book: Book
) -> None:
    book.names["db"] = TWELVE[:4]
    async with Mute(*TWELVE[:4], reset=True) as server:
        with pytest.raises(ConnectFailed) as caught:
            async with opened(f"postgresql://u:p@db:{server.port}/d?sslmode=disable", timeout=5):
                pass
    assert sorted(server.spoken_to) == TWELVE[:4]
    assert server.most_talking == 1
    assert all(address in str(caught.value) for address in TWELVE[:4])


async def test_a_hanging_log_in_makes_the_next_attempt_begin_elsewhere(
    opened: Open, network: AddressBook, book: Book
) -> None:
    """So the hedge of a stuck probe does not knock at the same door."""
    book.names["db"] = ["127.0.0.2", "127.0.0.3"]
    async with Mute("127.0.0.2", "127.0.0.3") as server:
        url = f"postgresql://u:p@db:{server.port}/d"

        async def attempt() -> None:
            with pytest.raises(ConnectTimeout):
                async with opened(url, timeout=0.9):
                    pass

        first = asyncio.create_task(attempt())
        while not server.talking:
            await asyncio.sleep(0.005)
        await asyncio.sleep(1.5 * HESITATION)
        hedge = asyncio.create_task(attempt())
        await asyncio.gather(first, hedge)
        assert server.spoken_to == ["127.0.0.2", "127.0.0.3"]


async def test_a_role_is_looked_for_behind_every_address(opened: Open, book: Book, database_url: str) -> None:
    book.names["db"] = ["127.0.0.2", "127.0.0.1"]
    with pytest.raises(ConnectFailed, match=r"127\.0\.0\.1:\d+: is not standby") as caught:
        async with opened(named(database_url, query="target_session_attrs=standby")):
            pass
    assert not caught.value.final
    async with opened(named(database_url, query="target_session_attrs=prefer-standby")):
        pass
    async with opened(named(database_url, query="target_session_attrs=primary&load_balance_hosts=random")):
        pass


# -- names -----------------------------------------------------------------------------------------------------


@on_both_loops
async def test_the_last_good_answer_serves_while_the_name_server_is_down_or_hangs(
    opened: Open, book: Book, database_url: str
) -> None:
    book.names["db"] = ["127.0.0.1"]
    async with opened(named(database_url)):
        pass
    book.down = True
    async with opened(named(database_url)):
        pass
    book.gate.clear()
    started = time.monotonic()
    async with opened(named(database_url)):
        assert time.monotonic() - started < 0.25 + MARGIN
    asked = book.asked
    later: list[float] = []
    for _ in range(5):
        started = time.monotonic()
        async with opened(named(database_url)):
            later.append(time.monotonic() - started)
    assert min(later) < 0.25, later  # that it hangs is known by now; a busy machine only adds to it
    assert book.asked == asked  # one look-up at a time


async def test_a_name_server_that_hangs_ends_with_the_attempt_and_holds_nobody_up(
    opened: Open, book: Book, database_url: str
) -> None:
    book.gate.clear()
    started = time.monotonic()
    with pytest.raises(ConnectTimeout, match="while looking up db"):
        async with opened(named(database_url), timeout=0.3):
            pass
    assert time.monotonic() - started < 0.3 + MARGIN
    port = port_of(database_url)
    async with opened(at(database_url, f"db:{port}", f"127.0.0.1:{port}"), timeout=10):
        assert time.monotonic() - started < 0.6 + MARGIN


# -- the pool --------------------------------------------------------------------------------------------------


async def test_a_race_is_one_attempt_of_the_pool(
    make_db: MakeDatabase, network: AddressBook, book: Book, database_url: str
) -> None:
    book.names["db"] = ["127.0.0.2", "127.0.0.3", "127.0.0.1"]
    db = make_db(named(database_url), pool_timeout=10, connection_timeout=10, pool_size=4, max_overflow=0)
    db.pool.dialect.guards.network = network
    started: list[Event] = []
    db.events.subscribe(lambda event: started.append(event) if isinstance(event, ConnectStarted) else None)
    with silent("127.0.0.2", "127.0.0.3", port=port_of(database_url)):
        outcomes = await at_once(30, lambda: ask(db))
    assert_served(outcomes)
    # The first one; the others follow as fast as the machine connects.
    assert min(outcome.seconds for outcome in outcomes) < 0.4 + MARGIN
    assert len(started) <= 4
    await rests(db)


async def test_thirty_requests_before_twelve_silent_addresses_end_in_time(
    make_db: MakeDatabase, network: AddressBook, book: Book, database_url: str
) -> None:
    book.names["db"] = TWELVE
    db = make_db(named(database_url), connection_timeout=T, pool_timeout=T)
    db.pool.dialect.guards.network = network
    with silent(*TWELVE, port=port_of(database_url)):
        assert_all_named(await at_once(30, lambda: ask(db)), within=T + MARGIN)


# -- cancellation ----------------------------------------------------------------------------------------------


@on_both_loops
async def test_cancelled_at_any_step_nothing_stays_open(
    opened: Open, network: Any, book: Book, database_url: str
) -> None:
    """After so many turns of the event loop or milliseconds: in the look-up, the race, the log-in, just after it."""
    url = named(database_url, query="sslmode=disable")

    async def attempt() -> None:
        async with opened(url):
            pass

    def cancelled_after(turns: int, seconds: float) -> asyncio.Task[None]:
        task = asyncio.create_task(attempt())

        async def cancel() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            await asyncio.sleep(seconds)
            task.cancel()

        cancelling.append(asyncio.create_task(cancel()))
        return task

    with silent("127.0.0.2", port=port_of(database_url)):
        for first, steps in (
            ("127.0.0.1", [(turns, 0.0) for turns in range(16)]),
            ("127.0.0.1", [(0, 0.002 * number) for number in range(1, 12)]),
            ("127.0.0.2", [(0, 0.195 + 0.003 * number) for number in range(10)]),
        ):
            for step in steps:
                book.names["db"] = list(dict.fromkeys([first, "127.0.0.1"]))
                cancelling: list[asyncio.Task[None]] = []
                network._best.clear()  # else the race would begin with the address that worked in the last step
                network._experience.clear()
                before = open_sockets()
                result = (await asyncio.gather(cancelled_after(*step), return_exceptions=True))[0]
                assert result is None or isinstance(result, asyncio.CancelledError), result
                await asyncio.gather(*cancelling)
                await closes_down_to(before)


@on_both_loops
async def test_cancelled_while_sockets_are_on_their_way(opened: Open, book: Book, database_url: str) -> None:
    book.names["db"] = TWELVE
    with silent(*TWELVE, port=port_of(database_url)):
        before = open_sockets()

        async def attempt() -> None:
            async with opened(named(database_url)):
                pass

        task = asyncio.create_task(attempt())
        while open_sockets() < before + 3:
            await asyncio.sleep(0.005)
        task.cancel()
        started = time.monotonic()
        await asyncio.wait({task})
        assert time.monotonic() - started < 0.1 + MARGIN / 2
        assert open_sockets() <= before
