"""Code of the application that runs in the middle of a connect, and is wrong: a bug, and no outage."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event

from steadypool import Database, errors
from steadypool.connect import sockets
from steadypool.events import BreakerChanged, ConnectStarted, Event
from steadypool.pool.circuit_breaker import BreakerState
from steadypool.sqlalchemy.errors import sqlstate_of
from steadypool_lab import FaultProxy

from .conftest import MakeDatabase
from .kit import ask, assert_named, at_once, rests, serves, timed

pytestmark = pytest.mark.anyio


class Seen:
    """What a pool told: how often it connected, and what its breaker thinks."""

    def __init__(self, db: Database) -> None:
        self.connects = 0
        self.breaker: list[str] = []
        db.events.subscribe(self)

    def __call__(self, event: Event) -> None:
        self.connects += isinstance(event, ConnectStarted)
        if isinstance(event, BreakerChanged):
            self.breaker.append(event.after)


def assert_a_bug(error: BaseException | None, cause: type[BaseException]) -> None:
    assert_named(error, errors.HookFailed)
    assert isinstance(error, errors.HookFailed)
    assert not isinstance(error, errors.ConnectFailed)
    assert not error.retryable
    assert error.phase is errors.Phase.CONNECTING
    assert isinstance(error.__cause__, cause), repr(error.__cause__)
    assert type(error.__cause__).__name__ in str(error)


@pytest.mark.parametrize(
    "kind", [TypeError, AttributeError, ValueError, FileNotFoundError, errors.PoolTimeout]
)
async def test_a_bug_in_on_connect_is_told_as_what_it_is(
    make_db: MakeDatabase, proxied_url: str, kind: type[Exception]
) -> None:
    async def on_connect(_connection: Any) -> None:
        raise kind("what the hook said")

    db = make_db(proxied_url, on_connect=on_connect)
    seen = Seen(db)
    for outcome in await at_once(5, lambda: ask(db)):
        assert_a_bug(outcome.error, kind)
        assert "on_connect" in str(outcome.error)
        assert "what the hook said" in str(outcome.error)
    assert 1 <= seen.connects <= 5
    assert not seen.breaker
    assert db.stats().breaker is BreakerState.CLOSED
    await rests(db)


@pytest.mark.parametrize(
    ("sql", "state"),
    [
        ("this is a typo", "42601"),
        ("select * from no_such_table", "42P01"),
        ("select no_such_function()", "42883"),
        ("create table no_such_schema.t ()", "3F000"),
        ("select 1/0", "22012"),
        ("set role no_such_role", "22023"),
    ],
)
async def test_what_the_server_says_to_sql_of_on_connect_is_said_by_itself(
    make_db: MakeDatabase, proxied_url: str, sql: str, state: str
) -> None:
    async def on_connect(connection: Any) -> None:
        await connection.execute(sql)

    db = make_db(proxied_url, on_connect=on_connect)
    seen = Seen(db)

    async def session() -> None:
        async with db.session() as session:
            await session.connection()

    async def connection() -> None:
        async with db.connection():
            pass

    for use in (session, connection, db.warm_up, lambda: db.fetchval("select 1")):
        error = (await timed(use())).error
        assert sqlstate_of(error) == state, repr(error)
        assert not isinstance(error, errors.SteadypoolError)
    assert not seen.breaker
    await rests(db)


async def test_a_bug_in_a_handler_of_sqlalchemys_events(db: Database) -> None:
    @event.listens_for(db.engine.sync_engine, "connect")
    def wrong(_connection: Any, _record: Any) -> None:
        {}.no_such_attribute  # type: ignore[attr-defined]  # noqa: B018

    seen = Seen(db)
    assert_a_bug((await timed(ask(db))).error, AttributeError)
    assert not seen.breaker


async def test_a_bug_of_our_own_is_no_outage_either(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> None:
        raise TypeError("what our code said")

    monkeypatch.setattr(sockets, "guard_socket", wrong)
    monkeypatch.setattr("steadypool.connect.psycopg._started", wrong)
    seen = Seen(db)
    assert_a_bug((await timed(ask(db))).error, TypeError)
    assert not seen.breaker
    monkeypatch.undo()
    await serves(db)


async def test_the_others_are_served_while_a_hook_fails_now_and_then(
    make_db: MakeDatabase, proxied_url: str
) -> None:
    runs = 0

    async def on_connect(_connection: Any) -> None:
        nonlocal runs
        runs += 1
        if runs > 1:
            raise TypeError("the second time it is wrong")

    db = make_db(proxied_url, on_connect=on_connect, ping_after_idle=60)
    seen = Seen(db)
    async with db.connection() as connection:
        assert_a_bug((await timed(ask(db))).error, TypeError)
        assert await connection.fetchval("select 1") == 1
    assert seen.connects == runs == 2  # one attempt for the caller who got the error, and none after it
    assert await ask(db) == 1


async def test_a_connection_that_is_lost_under_the_hook_is_an_outage(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy
) -> None:
    async def on_connect(connection: Any) -> None:
        proxy.drop_all(reset=True)
        await connection.execute("select 1")

    db = make_db(proxied_url, on_connect=on_connect)
    seen = Seen(db)
    assert_named((await timed(ask(db))).error, errors.ConnectFailed)
    assert seen.breaker[0] == BreakerState.OPEN.value
