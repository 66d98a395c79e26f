"""The scale-to-zero Postgres: a real server, really stopped when idle, really started by the first to come."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psycopg
import pytest

from conditions import until
from steadypool_lab import (
    EmbeddedPostgres,
    FaultProxy,
    Suspend,
    SuspendingPostgres,
    TlsFront,
    WakeMode,
    self_signed,
)
from steadypool_lab.postgres.cluster import Cluster
from steadypool_lab.suspending import PowerState

pytestmark = pytest.mark.anyio

WAKE = 0.6


async def ask(url: str, sql: str = "select 42") -> int:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One data directory for all of them: making one takes longer than each of these tests."""
    home = tmp_path_factory.mktemp("sleepy") / "data"
    yield home
    Cluster(home).remove()


async def test_it_is_stopped_when_idle_and_started_by_the_first_connection(home: Path) -> None:
    async with SuspendingPostgres(data_dir=home, sleep_after=0.3, wake=WAKE) as sleepy:
        open_but_idle = await asyncpg.connect(sleepy.url)
        assert await open_but_idle.fetchval("select 1") == 1
        # A statement that runs keeps it awake, for longer than sleep_after.
        await open_but_idle.execute("select pg_sleep(0.7)")
        assert sleepy.knocks.suspends == 0
        await until(lambda: sleepy.state is PowerState.ASLEEP, seconds=60)
        assert not sleepy.server.is_running
        with pytest.raises((asyncpg.AdminShutdownError, asyncpg.InterfaceError, ConnectionError)):
            await open_but_idle.fetchval("select 1")
        began = time.monotonic()
        assert await asyncio.gather(*(ask(sleepy.url) for _ in range(5))) == [42] * 5
        assert time.monotonic() - began >= WAKE
        assert sleepy.server.is_running
        knocks = sleepy.knocks
        assert (knocks.wakes, knocks.attempts, knocks.most_at_once, knocks.held) == (1, 5, 5, 5)
        open_but_idle.terminate()


async def test_a_visitor_who_has_left_is_not_counted_beside_the_one_who_comes_next(home: Path) -> None:
    def knock(port: int) -> socket.socket:
        visitor = socket.create_connection(("127.0.0.1", port))
        visitor.sendall(struct.pack("!II", 8, 196608))
        return visitor

    async with SuspendingPostgres(data_dir=home, sleep_after=None, wake=30.0) as sleepy:
        await sleepy.fall_asleep()
        visitors = [knock(sleepy.port), knock(sleepy.port)]
        await until(lambda: sleepy.knocks.held == 2, seconds=60)
        visitors[0].close()  # and the next one comes before the lab has had a turn in which to notice
        visitors.append(knock(sleepy.port))
        await until(lambda: sleepy.knocks.held == 3, seconds=60)
        for visitor in visitors[1:]:
            visitor.close()
        assert sleepy.knocks.most_at_once == 2


async def test_an_open_transaction_keeps_it_awake(home: Path) -> None:
    async with SuspendingPostgres(data_dir=home, sleep_after=0.2, wake=0.0) as sleepy:
        async with await psycopg.AsyncConnection.connect(sleepy.url) as connection:
            await connection.execute("select 1")
            await asyncio.sleep(0.5)
            assert sleepy.state is PowerState.AWAKE
        await until(lambda: sleepy.state is PowerState.ASLEEP, seconds=60)


async def test_woken_while_it_falls_asleep(home: Path) -> None:
    async with SuspendingPostgres(data_dir=home, sleep_after=None, wake=0.1) as sleepy:
        falling = asyncio.create_task(sleepy.fall_asleep())
        await asyncio.sleep(0)
        assert sleepy.state is PowerState.FALLING_ASLEEP
        assert await ask(sleepy.url) == 42
        await falling
        await sleepy.fall_asleep()
        falling = asyncio.create_task(sleepy.fall_asleep())
        await sleepy.wake_up()
        await falling
        assert sleepy.server.is_running


async def test_refused_until_it_is_awake(home: Path) -> None:
    async with SuspendingPostgres(data_dir=home, sleep_after=None, wake=WAKE, mode=WakeMode.REFUSE) as sleepy:
        await sleepy.fall_asleep()
        with pytest.raises(ConnectionError):
            await ask(sleepy.url)
        with pytest.raises(ConnectionRefusedError):
            await ask(sleepy.url)
        await until(lambda: sleepy.state is PowerState.AWAKE, seconds=60)
        assert await ask(sleepy.url) == 42


async def test_rejected_until_it_is_awake(home: Path) -> None:
    async with SuspendingPostgres(data_dir=home, sleep_after=None, wake=WAKE, mode="reject") as sleepy:
        await sleepy.fall_asleep()
        for _ in range(2):
            with pytest.raises(asyncpg.CannotConnectNowError, match="starting up"):
                await ask(sleepy.url)
        await until(lambda: sleepy.state is PowerState.AWAKE, seconds=60)
        assert await ask(sleepy.url) == 42
        assert (sleepy.knocks.wakes, sleepy.knocks.attempts) == (1, 2)


@pytest.mark.parametrize("aborts", [True, False])
async def test_closing_the_connection_that_wakes_it(home: Path, aborts: bool) -> None:
    async with SuspendingPostgres(
        data_dir=home, sleep_after=None, wake=1.2, abort_wake_on_close=aborts
    ) as sleepy:
        await sleepy.fall_asleep()
        with pytest.raises(TimeoutError):
            await asyncpg.connect(sleepy.url, timeout=0.2)
        if aborts:
            await until(lambda: sleepy.state is PowerState.ASLEEP, seconds=60)
            assert not sleepy.server.is_running
        began = time.monotonic()
        assert await ask(sleepy.url) == 42
        assert (time.monotonic() - began >= 1.2) is aborts
        assert (sleepy.knocks.wakes, sleepy.knocks.aborted) == ((2, 1) if aborts else (1, 0))


async def test_connections_go_silent_when_it_falls_asleep(home: Path) -> None:
    async with SuspendingPostgres(
        data_dir=home, sleep_after=None, wake=0.1, suspend=Suspend.SILENCE
    ) as sleepy:
        connection = await asyncpg.connect(sleepy.url)
        await sleepy.fall_asleep()
        assert not connection.is_closed()
        with pytest.raises(TimeoutError):
            await connection.fetchval("select 1", timeout=0.3)
        assert await ask(sleepy.url) == 42
        connection.terminate()


async def test_tls_and_cancel_requests(home: Path) -> None:
    async with SuspendingPostgres(data_dir=home, sleep_after=None, wake=0.1, tls=True) as sleepy:
        assert sleepy.certificate is not None
        verified = f"{sleepy.url}?sslmode=verify-full&sslrootcert={sleepy.certificate.path}"
        for direct in ("", "&sslnegotiation=direct"):
            async with await psycopg.AsyncConnection.connect(verified + direct) as connection:
                assert connection.pgconn.ssl_in_use
        async with await psycopg.AsyncConnection.connect(f"{sleepy.url}?sslmode=disable") as plain:
            assert not plain.pgconn.ssl_in_use
        connection = await asyncpg.connect(verified)
        with pytest.raises(TimeoutError):  # asyncpg sends a cancel request then
            await connection.fetchval("select pg_sleep(20)", timeout=0.2)
        assert await connection.fetchval("select 1", timeout=5) == 1
        await connection.close()
        await sleepy.fall_asleep()
        assert await ask(verified) == 42


async def test_a_tls_front_behind_a_bad_network(server: EmbeddedPostgres, tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    url = f"{server.url.rpartition(':')[0]}:%d/postgres?sslmode=verify-full&sslrootcert={certificate.path}"
    async with TlsFront("127.0.0.1", server.port, certificate) as front:
        async with FaultProxy("127.0.0.1", front.port) as proxy:
            connection = await asyncpg.connect(url % proxy.port)
            assert await connection.fetchval("select 42") == 42
            proxy.drop_all(reset=True)
            with pytest.raises((ConnectionError, asyncpg.PostgresConnectionError)):
                await connection.fetchval("select 42")
            connection.terminate()
