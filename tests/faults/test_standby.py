"""A primary and its streaming standby: who listens where, and what a failover looks like."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from steadypool import Database, DatabaseSettings
from steadypool.listener import ListenerState
from steadypool.sqlalchemy.errors import ConnectionLost
from steadypool_lab import EmbeddedPostgres, FaultProxy, StandbyPostgres

from .kit import ask
from .listening import QUICK, States, gap, listening, until_heard

pytestmark = pytest.mark.anyio


CREATE = "create table kept (id int)"


@pytest.fixture(scope="module")
def primary() -> Iterator[EmbeddedPostgres]:
    """It stays one: for tests that stop nothing."""
    server = EmbeddedPostgres.temporary()
    server.blocking.start()
    with psycopg.connect(server.url) as connection:
        connection.execute(CREATE)
    yield server
    server.blocking.close()


@pytest.fixture(scope="module")
def standby(primary: EmbeddedPostgres) -> Iterator[StandbyPostgres]:
    """It stays one."""
    server = StandbyPostgres(primary)
    server.blocking.start()
    yield server
    server.blocking.close()


@pytest.fixture(autouse=True)
def emptied(primary: EmbeddedPostgres) -> None:
    with psycopg.connect(primary.url) as connection:
        connection.execute("truncate kept")


def both(*servers: EmbeddedPostgres) -> str:
    """One URL with all of them; the role decides."""
    parts = urlsplit(servers[0].url)
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    return f"postgresql://{parts.username}:{parts.password}@{hosts}/postgres?target_session_attrs=primary"


INSERT = text("insert into kept values (1)")


async def write(db: Database) -> None:
    async with db.session() as session:
        await session.execute(INSERT)
        await session.commit()


async def rows(url: str) -> int:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        row = await (await connection.execute("select count(*) from kept")).fetchone()
        assert row is not None
        return row[0]


async def test_the_listener_waits_for_a_standby_to_be_promoted(primary: EmbeddedPostgres) -> None:
    async with StandbyPostgres(primary) as standby, listening(standby.url) as db:
        with psycopg.connect(primary.url) as connection:
            connection.execute("insert into kept values (1)")
        async with asyncio.timeout(60):
            while not await rows(standby.url):  # it streams
                await asyncio.sleep(0.01)
        for statement in ("insert into kept values (2)", "listen changes", "notify changes"):
            with pytest.raises(DBAPIError, match=r"read-only transaction|during recovery"):
                await ask(db, statement)
        async with db.listen("changes") as notifications:
            assert db.listener.state is ListenerState.STARTING
            assert "is not primary" in (db.listener.stats().last_error or "")
            await standby.promote()
            await gap(notifications)
            await until_heard(db, notifications, "changes", "promoted")


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "steadypool"])
async def test_pool_and_listener_follow_the_primary(private_server: EmbeddedPostgres, driver: str) -> None:
    with psycopg.connect(private_server.url) as connection:
        connection.execute(CREATE)
    async with StandbyPostgres(private_server) as standby:
        await _fail_over(private_server, standby, driver)


async def _fail_over(primary: EmbeddedPostgres, standby: StandbyPostgres, driver: str) -> None:
    servers = (primary, standby) if driver == "asyncpg" else (standby, primary)
    settings = DatabaseSettings(
        url=both(*servers).replace("postgresql://", f"postgresql+{driver}://"), connection_timeout=2.0
    )
    async with Database(settings, listener=QUICK) as db, db.listen("changes") as notifications:
        states = States(db)
        await db.warm_up(3)
        await until_heard(db, notifications, "changes", "before")
        assert await ask(db, "select inet_server_port()") == primary.port
        await primary.stop("immediate")
        await states.reach(ListenerState.RECONNECTING)
        await standby.promote()
        told = await gap(notifications, 40)
        assert told.until > told.since
        await until_heard(db, notifications, "changes", "after")
        await asyncio.gather(*(write(db) for _ in range(5)))
        assert await ask(db, "select inet_server_port()") == standby.port
    assert await rows(standby.url) == 5


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "steadypool"])
async def test_a_pool_on_the_wrong_server_goes_to_the_right_one(
    primary: EmbeddedPostgres, standby: StandbyPostgres, driver: str
) -> None:
    """An address that was late to follow the primary: its connections are fine, and every write on them would fail."""
    async with FaultProxy("127.0.0.1", standby.port) as address:
        url = primary.url.replace(f":{primary.port}/", f":{address.port}/")
        async with Database(
            DatabaseSettings(url=url.replace("postgresql://", f"postgresql+{driver}://"))
        ) as db:
            assert await db.warm_up(4) == 4
            async with db.session(read_only=True) as session:
                with pytest.raises(DBAPIError, match="read-only"):
                    await session.execute(INSERT)
            assert await ask(db, "select pg_is_in_recovery()")
            assert db.pool.checkedin() == 4  # that was our own wish
            address.upstream = ("127.0.0.1", primary.port)
            with pytest.raises(DBAPIError, match="read-only") as refused:
                await write(db)
            assert refused.value.connection_invalidated
            assert not isinstance(refused.value, ConnectionLost)  # it had no effect, and that is known
            assert db.pool.checkedin() == 0
            await asyncio.gather(*(write(db) for _ in range(5)))
    assert await rows(primary.url) == 5


async def test_a_lone_standby_costs_one_connection_a_write(standby: StandbyPostgres) -> None:
    url = standby.url.replace("postgresql://", "postgresql+asyncpg://")
    async with Database(DatabaseSettings(url=url)) as db:
        await db.warm_up(4)
        with pytest.raises(DBAPIError, match="read-only"):
            await write(db)
        await db.warm_up(4)
        for left in (3, 2):
            with pytest.raises(DBAPIError, match="read-only"):
                await write(db)
            assert db.pool.checkedin() == left
        assert await ask(db) == 1
