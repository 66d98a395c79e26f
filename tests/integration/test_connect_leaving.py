"""Aborting a connection in the middle of a statement, and learning when the server has let go of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import psycopg
import pytest
import uvloop

from steadypool.connect.abort import abort_asyncpg, abort_psycopg, socket_descriptor, take_farewell
from steadypool.connect.psycopg_connection import SteadyAsyncConnection

pytestmark = pytest.mark.anyio

CHECK = "client_connection_check_interval=500ms"
SLEEP = "select pg_sleep(30)"


class Driver:
    """The same few steps for both drivers."""

    def __init__(self, name: str, url: str) -> None:
        self.name, self.url = name, url

    async def open(self) -> Any:
        if self.name == "asyncpg":
            return await asyncpg.connect(
                self.url, server_settings={"client_connection_check_interval": "500ms"}
            )
        return await SteadyAsyncConnection.connect(self.url, options=f"-c {CHECK}", autocommit=True)

    async def run(self, connection: Any, statement: str) -> Any:
        if self.name == "asyncpg":
            return await connection.fetchval(statement)
        row = await (await connection.execute(statement)).fetchone()
        return row[0]

    def pid(self, connection: Any) -> int:
        return connection.get_server_pid() if self.name == "asyncpg" else connection.info.backend_pid

    def abort(self, connection: Any) -> None:
        (abort_asyncpg if self.name == "asyncpg" else abort_psycopg)(connection)

    def descriptor(self, connection: Any) -> int:
        if self.name == "asyncpg":
            return connection._transport.get_extra_info("socket").fileno()
        return connection.pgconn.socket


@pytest.fixture(params=["asyncpg", "psycopg"])
def driver(request: pytest.FixtureRequest, database_url: str) -> Driver:
    return Driver(request.param, database_url)


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return ("asyncio", {"loop_factory": uvloop.new_event_loop}) if request.param == "uvloop" else "asyncio"


@pytest.fixture
async def observer(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def backend_state(observer: asyncpg.Connection, pid: int) -> str | None:
    return await observer.fetchval("select state from pg_stat_activity where pid = $1", pid)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    """Ask again and again; the interval only limits how often."""
    end = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.02)
    return True


async def sleeping(driver: Driver, observer: asyncpg.Connection) -> tuple[Any, asyncio.Task[Any], int]:
    """A connection in the middle of a long statement."""
    connection = await driver.open()
    pid = driver.pid(connection)
    task = asyncio.create_task(driver.run(connection, SLEEP))

    async def active() -> bool:
        return await backend_state(observer, pid) == "active"

    assert await until(active, 5)
    return connection, task, pid


async def test_an_aborted_statement_ends_on_the_server_and_the_farewell_says_when(
    driver: Driver, observer: asyncpg.Connection
) -> None:
    connection, task, pid = await sleeping(driver, observer)
    farewell = take_farewell(connection)
    driver.abort(connection)
    assert farewell is not None
    started = time.monotonic()
    with pytest.raises((OSError, psycopg.OperationalError, asyncpg.PostgresError, asyncpg.InterfaceError)):
        await asyncio.wait_for(task, 1)
    assert await farewell.wait(10)
    assert time.monotonic() - started < 5  # the statement would have slept for 30

    async def gone() -> bool:
        return await backend_state(observer, pid) is None

    assert await until(gone, 2)


async def test_a_statement_between_two_steps_of_asyncpg_is_told_of_the_abort(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = asyncpg.Connection._get_statement

    async def prepare_and_lose(connection: asyncpg.Connection, *args: Any, **options: Any) -> Any:
        prepared = await prepare(connection, *args, **options)
        abort_asyncpg(connection)
        return prepared

    connection = await asyncpg.connect(database_url)
    monkeypatch.setattr(asyncpg.Connection, "_get_statement", prepare_and_lose)
    with pytest.raises(asyncpg.ConnectionDoesNotExistError, match="aborted"):
        await connection.fetch("select 1")
    assert connection.is_closed()


async def test_a_cancelled_statement_comes_back_at_once(driver: Driver, observer: asyncpg.Connection) -> None:
    connection, task, pid = await sleeping(driver, observer)
    started = time.monotonic()
    task.cancel()
    driver.abort(connection)
    done, _ = await asyncio.wait([task], timeout=10)
    assert done
    assert time.monotonic() - started < 5
    with contextlib.suppress(asyncio.CancelledError, Exception):
        task.result()

    async def gone() -> bool:
        return await backend_state(observer, pid) is None

    assert await until(gone, 5)


async def test_abort_may_come_twice_and_from_a_callback(driver: Driver, observer: asyncpg.Connection) -> None:
    connection, task, _ = await sleeping(driver, observer)
    loop = asyncio.get_running_loop()
    loop.call_soon(driver.abort, connection)
    loop.call_soon(driver.abort, connection)
    done, _ = await asyncio.wait([task], timeout=10)
    assert done
    assert task.exception() is not None
    driver.abort(connection)
    assert take_farewell(connection) is None


async def test_an_abort_closes_the_descriptor(driver: Driver, observer: asyncpg.Connection) -> None:
    connection, task, _ = await sleeping(driver, observer)
    descriptor = driver.descriptor(connection)
    driver.abort(connection)
    await asyncio.wait([task], timeout=10)
    task.exception()

    async def closed() -> bool:
        try:
            os.fstat(descriptor)
        except OSError:
            return True
        return False

    assert await until(closed, 2)


async def test_a_farewell_of_an_idle_connection_ends_at_once(driver: Driver) -> None:
    connection = await driver.open()
    farewell = take_farewell(connection)
    driver.abort(connection)
    assert farewell is not None
    assert await farewell.wait(10)
    assert await farewell.wait(0)


async def test_a_farewell_that_is_cancelled_leaves_nothing_open() -> None:
    farewell, other = _farewell_of_a_silent_peer()
    waiting = asyncio.create_task(farewell.wait(60))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    other.setblocking(True)
    assert other.recv(1) == b""
    other.close()


async def test_a_silent_peer_is_reset_after_the_timeout() -> None:
    farewell, other = _farewell_of_a_silent_peer()
    assert not await farewell.wait(0.05)
    other.setblocking(True)
    assert other.recv(1) == b""  # the shutdown came first
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        other.send(b"x")
    other.close()


def _farewell_of_a_silent_peer() -> tuple[Any, socket.socket]:
    from steadypool.connect.abort import CloseWaiter

    with socket.create_server(("127.0.0.1", 0)) as server:
        mine = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    farewell = CloseWaiter(os.dup(mine.fileno()))
    mine.close()
    return farewell, other


async def test_psycopg_marks_what_was_interrupted_and_refuses_to_use_it(
    database_url: str, observer: asyncpg.Connection
) -> None:
    connection, task, _ = await sleeping(Driver("psycopg", database_url), observer)
    started = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started < 5  # psycopg's own would send a cancel request and wait for it
    assert connection.interrupted
    with pytest.raises(psycopg.OperationalError, match="given up in the middle"):
        await connection.execute("select 1")
    abort_psycopg(connection)


async def test_psycopg_cancelled_between_statements_stays_usable(database_url: str) -> None:
    connection = await SteadyAsyncConnection.connect(database_url)

    async def wait_for_ever() -> None:
        await connection.execute("select 1")
        await asyncio.Event().wait()

    task = asyncio.create_task(wait_for_ever())
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not connection.interrupted
    assert (await (await connection.execute("select 2")).fetchone()) == (2,)
    await connection.close()


async def test_psycopg_large_results_copy_and_notifications_work(database_url: str) -> None:
    connection = await SteadyAsyncConnection.connect(database_url, autocommit=True)
    rows = await (
        await connection.execute("select repeat('x', 1000) from generate_series(1, 5000)")
    ).fetchall()
    assert len(rows) == 5000
    await connection.execute("create table t (a int, b text)")
    async with connection.cursor().copy("copy t from stdin") as copy:
        for number in range(20_000):
            await copy.write_row((number, "y" * 100))
    assert await (await connection.execute("select count(*), max(a) from t")).fetchone() == (20_000, 19_999)
    await connection.execute("listen c")
    await connection.execute("notify c, 'hello'")
    assert [n.payload async for n in connection.notifies(timeout=10, stop_after=1)] == ["hello"]
    assert [n async for n in connection.notifies(timeout=0.05)] == []
    await connection.execute("notify c, 'again'")
    assert [n.payload async for n in connection.notifies(timeout=0)] == ["again"]
    async with connection.pipeline():
        cursor = await connection.execute("select 3")
    assert await cursor.fetchone() == (3,)
    await connection.close()


async def test_psycopg_closed_while_somebody_waits_for_notifications(database_url: str) -> None:
    connection = await SteadyAsyncConnection.connect(database_url, autocommit=True)
    await connection.execute("listen c")
    descriptor = connection.pgconn.socket

    async def listen() -> None:
        async for _ in connection.notifies(timeout=30):
            pass

    task = asyncio.create_task(listen())
    await asyncio.sleep(0.1)
    await connection.close()
    # the number of the descriptor is free now; whoever gets it must keep its reader when the waiter ends
    one, two = socket.socketpair()
    with one, two:
        assert one.fileno() == descriptor
        heard = asyncio.Event()
        asyncio.get_running_loop().add_reader(one, heard.set)
        with pytest.raises(psycopg.OperationalError):
            await asyncio.wait_for(task, 5)
        two.send(b"x")
        await asyncio.wait_for(heard.wait(), 5)
        asyncio.get_running_loop().remove_reader(one)


def test_asyncpg_can_be_aborted_when_its_loop_is_closed(database_url: str) -> None:
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(database_url))
    assert socket_descriptor(connection._transport) is not None
    abort_asyncpg(connection)
    abort_asyncpg(connection)
    assert connection.is_closed()
    assert socket_descriptor(connection._transport) is None, (
        "and nothing warns of a socket that was left open"
    )
