"""A server that says too much: memory stays bounded, and the reason is named."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text

from conditions import until
from steadypool import ConnectionLost
from steadypool.connect.abort import abort_asyncpg
from steadypool.connect.asyncpg import open_asyncpg
from steadypool.connect.dsn import parse_url
from steadypool.connect.psycopg import open_psycopg
from steadypool.pipeline import ConnectionClosed, PipelinedConnection
from steadypool.pipeline.unread import MOST_NOTIFICATIONS, Flooded
from steadypool.sqlalchemy import create_async_engine

pytestmark = pytest.mark.anyio


async def test_notifications_that_are_not_read(database_url: str) -> None:
    engine = create_async_engine(database_url)
    async with engine.connect() as connection, engine.connect() as other:
        raw = (await connection.get_raw_connection()).driver_connection
        await connection.execute(text("listen flood"))
        await connection.commit()
        ended = asyncio.get_running_loop().create_future()
        raw.when_ended(lambda: ended.set_result(None))
        notify = text("select pg_notify('flood', n::text) from generate_series(1, :count) n")
        await other.execute(notify, {"count": MOST_NOTIFICATIONS})
        await other.commit()
        assert await connection.scalar(text("select 1")) == 1
        await connection.commit()  # in a transaction nothing is delivered
        await other.execute(notify, {"count": 1})
        await other.commit()
        await ended
        with pytest.raises(ConnectionLost, match=f"more than {MOST_NOTIFICATIONS:,} notifications"):
            await connection.execute(text("select 1"))
    await engine.dispose()


async def test_notifications_that_are_read_now_and_then(database_url: str) -> None:
    engine = create_async_engine(database_url)
    async with engine.connect() as connection, engine.connect() as other:
        raw = (await connection.get_raw_connection()).driver_connection
        await connection.execute(text("listen flood"))
        await connection.commit()
        await other.execute(text("notify flood, 'one'"))
        await other.commit()
        assert await connection.scalar(text("select 1")) == 1
        await connection.commit()
        async with raw.plain() as plain:
            async for notification in plain.notifies(timeout=5, stop_after=1):
                assert (notification.channel, notification.payload) == ("flood", "one")
                break
    await engine.dispose()


async def test_notifications_that_a_handler_takes(database_url: str) -> None:
    """Nothing waits, so any number may come, also over a connection that no statement uses."""
    engine = create_async_engine(database_url)
    taken: list[str] = []
    async with engine.connect() as connection, engine.connect() as other:
        raw = (await connection.get_raw_connection()).driver_connection
        await connection.execute(text("listen flood"))
        await connection.commit()
        raw.psycopg_connection.add_notify_handler(lambda notify: taken.append(notify.payload))
        count = 2 * MOST_NOTIFICATIONS
        notify = text("select pg_notify('flood', n::text) from generate_series(1, :count) n")
        await other.execute(notify, {"count": count})
        await other.commit()
        await until(lambda: len(taken) == count)
        assert await connection.scalar(text("select 1")) == 1
    await engine.dispose()


async def test_notifications_that_are_not_read_with_psycopg(database_url: str) -> None:
    engine = create_async_engine(
        database_url.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT"
    )
    async with engine.connect() as connection, engine.connect() as other:
        await connection.execute(text("listen flood"))
        notify = text("select pg_notify('flood', n::text) from generate_series(1, :count) n")
        await other.execute(notify, {"count": MOST_NOTIFICATIONS})
        assert await connection.scalar(text("select 1")) == 1
        await other.execute(notify, {"count": 1})
        with pytest.raises(ConnectionLost, match=f"more than {MOST_NOTIFICATIONS:,} notifications"):
            for _ in range(1_000):  # the notification may be slower than a few answers
                await connection.execute(text("select 1"))
    await engine.dispose()


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


READY = message(b"Z", b"I")
NOTICE = message(b"N", b"SNOTICE\0VNOTICE\0C00000\0M" + b"x" * 500 + b"\0\0")
PARAMETER = message(b"S", b"application_name\0" + b"x" * 500 + b"\0")
NOTIFICATION = message(b"A", struct.pack("!i", 1) + b"channel\0" + b"x" * 500 + b"\0")


@asynccontextmanager
async def flood(of: bytes, *, asked: bool, megabytes: int = 1_000) -> AsyncIterator[str]:
    """A server that says one thing again and again, after a statement or without one, and answers nothing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            (size,) = struct.unpack("!i", await reader.readexactly(4))
            await reader.readexactly(size - 4)
            parameters = message(b"S", b"server_version\x0018.0\0") + message(
                b"S", b"client_encoding\0UTF8\0"
            )
            key = message(b"K", struct.pack("!ii", 1, 2))
            writer.write(message(b"R", struct.pack("!i", 0)) + parameters + key + READY)
            if asked:
                await reader.read(1)
            for _ in range(megabytes):
                writer.write(of * (1_048_576 // len(of)))
                await writer.drain()
            writer.write(message(b"E", b"SFATAL\0VFATAL\0C57P01\0Mit is over\0\0"))
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has left
        finally:
            writer.close()

    running = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = running.sockets[0].getsockname()[1]
    try:
        yield f"postgresql://u@127.0.0.1:{port}/d?sslmode=disable&gssencmode=disable"
    finally:
        running.close()


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "steadypool"])
@pytest.mark.parametrize("of", [NOTICE, PARAMETER], ids=["notices", "parameters"])
async def test_a_statement_under_a_flood_keeps_nothing(driver: str, of: bytes) -> None:
    async with flood(of, asked=True, megabytes=48) as url:
        target = parse_url(url)
        connection: Any
        if driver == "asyncpg":
            connection = await open_asyncpg(target, timeout=5)
        else:
            connection = await open_psycopg(target, timeout=5, autocommit=True)
            connection = PipelinedConnection(connection) if driver == "steadypool" else connection
        before = resident()
        with pytest.raises(Exception, match=r"it is over|closed in the middle"):
            await connection.execute("select 1")
        assert resident() - before < 16 * 1_048_576
        (abort_asyncpg if driver == "asyncpg" else type(connection).abort)(connection)


@pytest.mark.parametrize("of", [NOTICE, PARAMETER], ids=["notices", "parameters"])
async def test_a_connection_that_nothing_is_asked_of(of: bytes) -> None:
    async with flood(of, asked=False) as url:
        connection = PipelinedConnection(await open_psycopg(parse_url(url), timeout=5, autocommit=True))
        ended = asyncio.get_running_loop().create_future()
        connection.when_ended(lambda: ended.set_result(None))
        await asyncio.wait_for(ended, 20)
        with pytest.raises(ConnectionClosed, match="went on sending what nothing had asked for"):
            await connection.execute("select 1")


async def test_notifications_in_the_middle_of_a_statement_with_psycopg() -> None:
    """libpq keeps them until they are taken, which psycopg does when the statement is over."""
    async with flood(NOTIFICATION, asked=True) as url:
        connection = await open_psycopg(parse_url(url), timeout=5, autocommit=True)
        with pytest.raises(Flooded, match=f"more than {MOST_NOTIFICATIONS:,} notifications"):
            await connection.execute("select 1")
        assert connection.closed
