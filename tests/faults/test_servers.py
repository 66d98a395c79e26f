"""Servers that reset, restart, die, come late, refuse the password or have no room."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from steadypool import Database, deadline, errors
from steadypool.pool.circuit_breaker import BreakerState
from steadypool_lab import EmbeddedPostgres
from steadypool_lab.network.proxy import FaultProxy, Mode
from steadypool_lab.testing import Observer

from .conftest import MakeDatabase
from .kit import (
    MARGIN,
    Outcome,
    T,
    ask,
    assert_all_named,
    assert_named,
    assert_served,
    at_once,
    everything_said,
    failures,
    nothing_strays,
    password_of,
    rests,
    serves,
    timed,
    until,
)

pytestmark = pytest.mark.anyio


# -- idle connections that are gone ------------------------------------------------------------------------------


@pytest.mark.parametrize("pinged", [True, False])
@pytest.mark.parametrize("how", ["reset", "closed", "terminated"])
async def test_idle_connections_die(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy, pg: Observer, how: str, pinged: bool
) -> None:
    db = make_db(
        proxied_url,
        connection_timeout=5,
        pool_timeout=5,
        statement_timeout=20,
        ping_after_idle=0.0 if pinged else 60.0,
    )
    assert await db.warm_up(5) == 5
    if how == "terminated":
        await pg.terminate()
        await pg.wait_until(pg.is_quiet)
    else:
        proxy.drop_all(reset=how == "reset")
    # What is gone is known once the event loop has looked at the sockets; a request that came before may meet it.
    await asyncio.sleep(0.05)
    outcomes = await at_once(20, lambda: ask(db))
    assert_served(outcomes)
    await rests(db)
    await nothing_strays(pg, db)


# -- the server restarts, or dies ------------------------------------------------------------------------------


class Load:
    """Tasks that ask without a pause, and what became of each request."""

    def __init__(self, db: Database, tasks: int = 50) -> None:
        self.db = db
        self.outcomes: list[Outcome] = []
        self.in_flight = 0
        self._going = True
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(tasks)]

    async def _ask(self) -> None:
        while self._going:
            self.outcomes.append(await timed(self._request()))
            await asyncio.sleep(0)

    async def _request(self) -> Any:
        with deadline(20.0):
            async with self.db.session() as session:
                return (await session.execute(text("select 1"))).scalar()

    async def stop(self) -> list[Outcome]:
        self._going = False
        await asyncio.gather(*self._tasks)
        return self.outcomes


@pytest.mark.parametrize("how", ["fast", "immediate", "kill"])
async def test_server_restarts_under_load(
    make_db: MakeDatabase, restartable: EmbeddedPostgres, how: str
) -> None:
    db = make_db(restartable.url, connection_timeout=5, pool_timeout=20, statement_timeout=20, close_grace=5)
    load = Load(db)
    await until(lambda: len(load.outcomes) > 100)
    if how == "kill":
        await restartable.kill()
        await restartable.start()
    else:
        await restartable.restart("fast" if how == "fast" else "immediate")
    served = len(load.outcomes)
    await until(lambda: len(load.outcomes) > served + 100, seconds=60)
    outcomes = await load.stop()
    failed = failures(outcomes)
    for error in failed:
        # What was in flight was lost. Nobody who only waited, or was to connect, fails: there was time left.
        assert_named(error, errors.ConnectionLost)
        assert isinstance(error, errors.ConnectionLost)
        assert error.maybe_executed
    assert len(failed) <= db.pool.core.options.limit
    await rests(db)
    assert db.pool.core.breaker.state is BreakerState.CLOSED
    await serves(db)


async def test_sessions_that_were_open_while_the_server_died_end_quietly(
    make_db: MakeDatabase, restartable: EmbeddedPostgres
) -> None:
    db = make_db(restartable.url, connection_timeout=5, pool_timeout=5)
    async with db.session() as session, db.connection() as connection:
        await session.execute(text("create table t (a int)"))
        await connection.fetch("select 1")
        await restartable.kill()
        await restartable.start()
        # Both leave without having noticed: nothing was asked since.
    await rests(db)
    await serves(db)


# -- the server comes late ---------------------------------------------------------------------------------------


async def test_refused_for_a_while_and_then_up(
    db: Database, make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy
) -> None:
    db = make_db(proxied_url, connection_timeout=T, pool_timeout=20.0)
    proxy.mode = Mode.REFUSE
    callers = asyncio.create_task(at_once(50, lambda: ask(db)))
    await asyncio.sleep(2 * T)  # longer than one connect may take
    assert not callers.done()
    proxy.mode = Mode.PASS
    outcomes = await callers
    assert_served(outcomes)
    # The first one; how fast the others follow is a matter of how fast the machine connects.
    assert min(outcome.seconds for outcome in outcomes) < 2 * T + 0.5 + MARGIN
    await rests(db)


async def test_refused_callers_without_time_left_get_the_reason(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy
) -> None:
    db = make_db(proxied_url, connection_timeout=T, pool_timeout=T)
    proxy.mode = Mode.REFUSE
    outcomes = await at_once(30, lambda: ask(db))
    assert_all_named(outcomes, T + MARGIN, errors.ConnectFailed)
    for outcome in outcomes:
        assert "refused" in str(outcome.error).lower()


async def test_attempts_do_not_storm_a_server_that_refuses(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy
) -> None:
    """Reset at once counts as refused, and lets the attempts be counted."""
    db = make_db(proxied_url, connection_timeout=T, pool_timeout=1.2)
    proxy.mode = Mode.RESET
    outcomes = await at_once(30, lambda: ask(db))
    assert_all_named(outcomes, 1.2 + MARGIN, errors.ConnectFailed)
    # Pauses of 0-50, 0-100, …, 0-500 ms: eight on the average, and not one per caller and millisecond.
    assert 3 <= proxy.accepted <= 30
    before = proxy.accepted
    await asyncio.sleep(T)
    assert proxy.accepted <= before + 1  # nobody waits any more


async def test_opened_before_its_database(make_db: MakeDatabase) -> None:
    server = EmbeddedPostgres.temporary()
    await server.start()
    try:
        db = await make_db(server.url, connection_timeout=5, pool_timeout=15).open()
        await server.kill()
        with deadline(0.3):
            outcome = await timed(ask(db))
        assert_named(outcome.error, errors.DeadlineExceeded, errors.ConnectFailed)
        assert outcome.seconds < 0.3 + MARGIN
        began = time.monotonic()
        waiting = asyncio.create_task(at_once(20, lambda: ask(db)))
        await asyncio.sleep(0.1)
        await server.start()
        started = time.monotonic()
        outcomes = await waiting
        assert_served(outcomes)
        first = began + min(outcome.seconds for outcome in outcomes)
        assert first - started < 0.6 + MARGIN
        await rests(db)
        await db.close()
    finally:
        await server.close()


async def test_half_of_the_log_in(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy, pg: Observer
) -> None:
    """The network goes silent between the first and the last byte of a log-in."""
    db = make_db(proxied_url, connection_timeout=T, pool_timeout=T)
    proxy.delay = T / 4  # the log-in takes several round trips, so it is in the middle when the silence comes
    caller = asyncio.create_task(timed(ask(db)))
    await until(lambda: proxy.round_trips >= 1)
    proxy.mode = Mode.SILENT
    outcome = await caller
    assert_named(outcome.error, errors.ConnectTimeout)
    assert outcome.seconds < T + MARGIN
    proxy.delay = 0.0
    proxy.mode = Mode.PASS
    await rests(db)  # the hedge may have got through in the meantime; then it is in the pool
    await nothing_strays(pg, db)
    await serves(db)


# -- the server does not want us ---------------------------------------------------------------------------------


@pytest.fixture
async def admin(database_url: str, anyio_backend: str) -> Any:
    connection = await psycopg.AsyncConnection.connect(database_url, autocommit=True)
    yield connection
    await connection.close()


_roles = itertools.count(1)


@pytest.fixture
async def role(admin: Any) -> Any:
    """A role that may log in, with the password `right-secret`; gone afterwards."""
    name = f"fault_role_{id(admin)}_{next(_roles)}"
    await admin.execute(f"create role {name} login password 'right-secret'")
    yield name
    await admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", [name])
    await admin.execute(f"drop owned by {name}")
    await admin.execute(f"drop role {name}")


def as_role(url: str, role: str, password: str) -> str:
    return f"postgresql://{role}:{password}@{url.rpartition('@')[2]}"


async def test_wrong_password(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy, role: str, admin: Any
) -> None:
    db = make_db(as_role(proxied_url, role, "wrong-secret"), connection_timeout=5, pool_timeout=5)
    outcomes = await at_once(30, lambda: ask(db))
    assert_all_named(outcomes, MARGIN, errors.ConnectFailed)
    for error in failures(outcomes):
        assert isinstance(error, errors.ConnectFailed)
        assert error.final
        assert role in str(error)
        assert "wrong-secret" not in everything_said(error)
    assert proxy.accepted <= 2
    before = proxy.accepted
    await asyncio.sleep(2 * T)
    assert proxy.accepted == before  # not hammered while nobody asks
    await admin.execute(f"alter role {role} password 'wrong-secret'")
    await serves(db)
    await rests(db)


async def test_no_such_database(make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy) -> None:
    db = make_db(proxied_url.rpartition("/")[0] + "/nowhere", connection_timeout=5, pool_timeout=5)
    outcomes = await at_once(30, lambda: ask(db))
    assert_all_named(outcomes, MARGIN, errors.ConnectFailed)
    for error in failures(outcomes):
        assert isinstance(error, errors.ConnectFailed)
        assert error.final
        assert "nowhere" in str(error)
        assert password_of(proxied_url) not in everything_said(error)
    assert proxy.accepted <= 2


async def test_a_password_that_changes_does_not_hurt_who_is_connected(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy, role: str, admin: Any
) -> None:
    db = make_db(as_role(proxied_url, role, "right-secret"), pool_size=2, max_overflow=2, pool_timeout=20)
    assert await db.warm_up(2) == 2
    await admin.execute(f"alter role {role} password 'another-secret'")
    outcomes = await at_once(20, lambda: ask(db))
    assert_served(outcomes)
    assert proxy.accepted <= 2 + 2 * 20


async def test_role_without_room_for_more(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy, role: str, admin: Any
) -> None:
    await admin.execute(f"alter role {role} connection limit 3")
    db = make_db(
        as_role(proxied_url, role, "right-secret"),
        connection_timeout=20,
        pool_timeout=20,
        statement_timeout=20,
    )
    outcomes = await at_once(60, lambda: ask(db, "select 1 from pg_sleep(0.02)"))
    assert_served(outcomes)
    assert db.pool.core.count() == 3
    # Three that are let in, and some that learn that there is no room, with pauses in between.
    assert proxy.accepted <= 3 + 20
    await rests(db)


async def test_role_without_any_room(make_db: MakeDatabase, proxied_url: str, role: str, admin: Any) -> None:
    await admin.execute(f"alter role {role} connection limit 0")
    db = make_db(as_role(proxied_url, role, "right-secret"), connection_timeout=T, pool_timeout=T)
    outcomes = await at_once(10, lambda: ask(db))
    assert_all_named(outcomes, T + MARGIN, errors.ConnectFailed)
    for error in failures(outcomes):
        assert isinstance(error, errors.ConnectFailed)
        assert not error.final
        assert "too many connections" in str(error)
    await admin.execute(f"alter role {role} connection limit 3")
    await serves(db, callers=3)


# -- errors of statements are nobody's fault but theirs -----------------------------------------------------------


async def test_errors_of_sql_cost_no_connection(db: Database, proxy: FaultProxy) -> None:
    await ask(db)

    async def call() -> None:
        await ask(db, "select 1/0")

    for _ in range(5):
        with pytest.raises(DBAPIError):
            await call()
    assert proxy.accepted == 1
    assert db.pool.checkedin() == 1


async def test_an_idle_connection_that_ends_is_let_go_at_once(
    make_db: MakeDatabase, database_url: str, pg: Observer
) -> None:
    """Nobody has to come and meet it: what the pool says is what the server says."""
    db = make_db(database_url, ping_after_idle=60.0)
    assert await db.warm_up(3) == 3
    async with db.session() as session:
        await session.execute(text("select 1"))
    assert db.engine.pool.checkedin() == 3
    await pg.terminate()

    async def none_is_counted() -> bool:
        return db.engine.pool.checkedin() == 0

    await pg.wait_until(none_is_counted)
    assert await ask(db)
