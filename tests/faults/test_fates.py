"""Errors of statements that say something about the server (rule 10), with a real server and every driver."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from conditions import until
from steadypool import Database, events
from steadypool.pool.circuit_breaker import BreakerState
from steadypool_lab import EmbeddedPostgres, FaultProxy, StandbyPostgres

from .conftest import MakeDatabase
from .kit import ask, rests, serves

pytestmark = pytest.mark.anyio


def raising(code: str, words: str) -> str:
    return f"do $$ begin raise exception '{words}' using errcode = '{code}'; end $$"


PATIENCE = [("57P03", "shutting down"), ("53300", "too many clients"), ("08P01", "query_wait_timeout")]


@pytest.mark.parametrize(("code", "words"), PATIENCE)
@pytest.mark.parametrize("way", ["session", "dedicated"])
async def test_a_server_that_asks_for_patience_gets_it_and_the_connection_stays(
    make_db: MakeDatabase, database_url: str, way: str, code: str, words: str
) -> None:
    db = make_db(database_url, ping_after_idle=60, pool_timeout=5, connection_timeout=5)
    changes: list[events.BreakerChanged] = []
    db.events.subscribe(lambda e: changes.append(e) if isinstance(e, events.BreakerChanged) else None)
    assert await ask(db) == 1
    (before,) = db.pool.core.connections().connections
    with pytest.raises(Exception, match=words):
        if way == "session":
            await ask(db, raising(code, words))
        else:
            async with db.connection() as connection:
                await connection.execute(raising(code, words))
    assert db.stats().breaker is BreakerState.OPEN
    assert [(change.after, change.reason) for change in changes] == [("open", f"the server said {code}")]
    assert await ask(db) == 1  # live connections are not gated
    (after,) = db.pool.core.connections().connections
    assert (after.number, after.leases) == (before.number, before.leases + 2)
    async with db.session() as session:
        await session.execute(text("select 1"))
        assert await ask(db) == 1  # one more connection was needed: it comes after a moment
    assert db.stats().breaker is BreakerState.CLOSED


async def test_what_an_application_raises_is_not_the_server_s(db: Database) -> None:
    for code, words in (("08P01", "no such thing"), ("23505", "query_wait_timeout"), ("40001", "again")):
        with pytest.raises(Exception, match=words):
            await ask(db, raising(code, words))
    assert db.stats().breaker is BreakerState.CLOSED


async def test_a_host_that_takes_no_writes_is_left_for_another(
    make_db: MakeDatabase, restartable: EmbeddedPostgres
) -> None:
    with psycopg.connect(restartable.url, autocommit=True) as admin:
        admin.execute("create table if not exists kept (id int)")
        async with (
            FaultProxy("127.0.0.1", restartable.port) as first,
            FaultProxy("127.0.0.1", restartable.port) as second,
        ):
            both = f"127.0.0.1:{first.port},127.0.0.1:{second.port}/"
            url = restartable.url.replace(f"127.0.0.1:{restartable.port}/", both)
            assert both in url
            db = make_db(url, ping_after_idle=60, pool_timeout=5, connection_timeout=5)
            assert await db.warm_up(3) == 3
            assert (first.accepted, second.accepted) == (3, 0)
            async with db.session() as in_use:
                await in_use.execute(text("select 1"))
                admin.execute("alter system set default_transaction_read_only = on")
                admin.execute("select pg_reload_conf()")
                await _told(db)
                with pytest.raises(DBAPIError, match="read-only"):
                    await ask(db, "insert into kept values (1) returning id")
                await until(
                    lambda: db.pool.checkedin() == 0
                )  # the idle ones at once, one that is reset after it
                assert db.pool.checkedout() == 1
            await rests(db)
            assert not db.pool.core.count()  # this one when it came back
            assert await ask(db) == 1
            assert (first.accepted, second.accepted) == (3, 1)
            # There is no primary to go to: that is not tried again with every write.
            assert await db.warm_up(2) == 2
            with pytest.raises(DBAPIError, match="read-only"):
                await ask(db, "insert into kept values (1) returning id")
            assert db.pool.checkedin() == 1
            admin.execute("alter system reset default_transaction_read_only")
            admin.execute("select pg_reload_conf()")
            await serves(db)
            await db.close(0)


async def _told(db: Database) -> None:
    """Each idle connection hears of a setting with the answer to its next statement."""
    async with asyncio.timeout(60):
        while await ask(db, "show default_transaction_read_only") != "on":
            await asyncio.sleep(0.01)


async def test_a_read_only_transaction_of_one_s_own_drains_nothing(db: Database) -> None:
    await db.warm_up(3)
    async with db.session() as session:
        await session.execute(text("set transaction read only"))
        with pytest.raises(DBAPIError, match="read-only"):
            await session.execute(text("create table kept (id int)"))
    async with db.connection() as connection:
        await connection.execute("begin read only")
        with pytest.raises(Exception, match="read-only"):
            await connection.execute("create table kept (id int)")
        await connection.execute("rollback")
    assert db.pool.checkedin() == 3


async def test_a_standby_that_was_left_is_as_good_as_any_when_it_was_promoted(
    make_db: MakeDatabase, restartable: EmbeddedPostgres
) -> None:
    async with StandbyPostgres(restartable) as standby:
        db = make_db(
            standby.url, ping_after_idle=60, pool_timeout=5, connection_timeout=5, statement_timeout=5
        )
        network = db.pool.dialect.guards.network
        async with db.session(read_only=True) as reader:
            await reader.execute(text("select 1"))
            with pytest.raises(DBAPIError, match="read-only"):
                await ask(db, "create table promoted (id int)")
            place = network.place_of(next(iter(db.pool.core._slots)).connection.driver_connection)  # type: ignore[union-attr]
            assert place is not None
            assert network._experience[place].doubted
            await standby.promote()
            async with asyncio.timeout(60):
                while (await reader.execute(text("select pg_is_in_recovery()"))).scalar():
                    await asyncio.sleep(0.01)
        assert not network._experience[place].doubted
        await rests(db)
        async with db.session() as writer:
            await writer.execute(text("create table promoted (id int)"))
