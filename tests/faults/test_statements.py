"""Statements that take too long, and what may be said about them: limits, deadlines, phases, secrets."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import traceback
from typing import Any

import pytest
from sqlalchemy import exc, text

from steadypool import Database, deadline, errors
from steadypool.pool.lease import EntryState
from steadypool.sqlalchemy import create_async_engine
from steadypool_lab.network.proxy import FaultProxy, Mode
from steadypool_lab.testing import Observer

from .conftest import MakeDatabase
from .kit import (
    CONNECTS_WITHIN,
    MARGIN,
    STATEMENT_GRACE,
    T,
    ask,
    assert_named,
    assert_served,
    at_once,
    everything_said,
    nothing_strays,
    password_of,
    reached,
    rests,
    serves,
    timed,
    until,
)

pytestmark = pytest.mark.anyio

SECRET = "anna@example.org"
"""What stands in rows, literals and bind values, and nowhere else."""


async def pid_of(db: Database) -> int:
    return await ask(db, "select pg_backend_pid()")


# -- the statement's own limit -----------------------------------------------------------------------------------


async def test_a_slow_statement_dies_on_the_server_and_the_connection_lives(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy, pg: Observer
) -> None:
    db = make_db(proxied_url, connection_timeout=5)
    db.workload("reports", statement_timeout=0.2)
    pid = await pid_of(db)
    for _ in range(3):
        async with db.session(workload="reports") as session:
            outcome = await timed(
                session.execute(text("select pg_sleep(30), :secret, 'literal-secret'"), {"secret": SECRET})
            )
            error = outcome.error
            assert_named(error, errors.StatementTimeout)
            assert isinstance(error, errors.StatementTimeout)
            assert isinstance(error, exc.OperationalError)
            assert 0.2 <= outcome.seconds < 0.2 + STATEMENT_GRACE
            assert 0.2 <= error.elapsed.executing < 0.2 + STATEMENT_GRACE
            assert not error.maybe_executed
            assert "'reports'" in str(error)
            assert "pg_sleep" in str(error)
            assert not [backend for backend in await pg.backends() if backend.state == "active"]
    assert await pid_of(db) == pid
    assert proxy.accepted == 1
    assert db.stats().totals.statement_timeouts == 3
    await nothing_strays(pg, db)


async def test_a_slow_statement_on_a_dedicated_connection(db: Database, proxy: FaultProxy) -> None:
    async with db.connection() as connection:
        pid = await connection.fetchval("select pg_backend_pid()")
        with pytest.raises(errors.StatementTimeout) as caught:
            await connection.fetch("select pg_sleep(30), $1::text, 'literal-secret'", SECRET)
        assert_named(caught.value)
        assert T <= caught.value.elapsed.executing < T + STATEMENT_GRACE
        assert SECRET not in everything_said(caught.value)
        # Inside a transaction the connection goes on after a rollback, as after any other error of SQL.
        with pytest.raises(errors.StatementTimeout):
            async with connection.transaction():
                await connection.fetch("select pg_sleep(30)")
        assert await connection.fetchval("select pg_backend_pid()") == pid
    assert await pid_of(db) == pid
    assert proxy.accepted == 1
    assert db.stats().totals.statement_timeouts == 2


async def test_silence_from_the_beginning_of_a_transaction_has_its_name(
    db: Database, proxy: FaultProxy, pg: Observer
) -> None:
    """BEGIN may travel with what follows: then it is the BEGIN that is late, and the statement that is told so."""

    async def call() -> None:
        async with db.connection() as connection:
            await connection.fetch("select 1")
            proxy.mode = Mode.SILENT
            async with connection.transaction():
                await connection.fetch("select 1")

    outcome = await timed(call())
    proxy.mode = Mode.PASS
    assert isinstance(outcome.error, errors.StatementTimeout)
    assert_named(outcome.error)
    assert T <= outcome.error.elapsed.executing < T + STATEMENT_GRACE + MARGIN
    await rests(db)
    await nothing_strays(pg, db)


async def test_a_begin_that_nothing_followed_leaves_no_transaction(db: Database, pg: Observer) -> None:
    async with db.connection() as connection:
        await connection.transaction().__aenter__()
    async with db.connection() as connection:
        await connection.execute("set local work_mem = '4321kB'")  # outside of a transaction it does nothing
        assert await connection.fetchval("show work_mem") != "4321kB"
    await nothing_strays(pg, db)


async def test_a_cancel_by_somebody_else_is_not_a_timeout(
    make_db: MakeDatabase, proxied_url: str, pg: Observer
) -> None:
    db = make_db(proxied_url, statement_timeout=20)
    caller = asyncio.create_task(timed(ask(db, "select pg_sleep(30)")))

    async def running() -> object:
        # Not just active: it is that too while asyncpg prepares it.
        return await pg.fetch(
            "select 1 from pg_stat_activity where datname = %s and wait_event = 'PgSleep'", pg.database
        )

    await pg.wait_until(running)
    await pg.fetch("select pg_cancel_backend(pid) from pg_stat_activity where datname = %s", pg.database)
    outcome = await caller
    assert isinstance(outcome.error, exc.DBAPIError)
    assert not isinstance(outcome.error, errors.SteadypoolError)
    await serves(db)


async def test_the_drivers_own_timeout_has_a_name(driver: str, proxied_url: str) -> None:
    """asyncpg's `command_timeout` raises a TimeoutError that says nothing."""
    arguments: dict[str, Any] = (
        {"command_timeout": 0.3, "timeout": 5} if driver == "asyncpg" else {"connect_timeout": 5}
    )
    engine = create_async_engine(
        proxied_url.replace("postgresql://", f"postgresql+{driver}://"),
        connect_args=arguments,
        **({} if driver == "asyncpg" else {"statement_timeout": 0.3}),
    )
    async with engine.connect() as connection:
        with pytest.raises(errors.StatementTimeout) as caught:
            await connection.execute(text("select pg_sleep(30)"))
        assert_named(caught.value)
    async with engine.connect() as connection:
        assert (await connection.execute(text("select 1"))).scalar() == 1
    await engine.dispose()


async def test_whoever_catches_the_limit_on_a_dedicated_connection_cannot_use_it_on(
    db: Database, proxy: FaultProxy, pg: Observer
) -> None:
    """A statement that was given up may answer later: its connection is nobody's any more."""
    async with db.connection() as connection:
        await connection.fetch("select 1")
        proxy.mode = Mode.SILENT
        outcome = await timed(connection.fetch("select 2"))
        assert_named(outcome.error, errors.StatementTimeout)
        again = await timed(connection.fetch("select 3"))
        assert_named(again.error, errors.ConnectionLost)
        assert again.seconds < MARGIN
    proxy.mode = Mode.PASS
    await rests(db)
    await serves(db)
    await nothing_strays(pg, db)


@pytest.mark.parametrize("way", ["session", "dedicated"])
async def test_a_limit_set_by_the_caller_around_a_statement(
    make_db: MakeDatabase, proxied_url: str, pg: Observer, way: str
) -> None:
    """`asyncio.wait_for` cancels the statement, and its caller goes on in the same block."""
    db = make_db(proxied_url, statement_timeout=20)

    async def use() -> None:
        if way == "dedicated":
            async with db.connection() as connection:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(connection.fetch("select pg_sleep(30)"), 0.2)
        else:
            async with db.session() as session:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(session.execute(text("select pg_sleep(30)")), 0.2)

    outcome = await timed(use())
    assert outcome.error is None
    assert outcome.seconds < 0.2 + MARGIN
    await rests(db)
    await nothing_strays(pg, db)
    await serves(db)


async def test_the_error_inside_a_transaction_is_the_one_that_is_seen(
    db: Database, proxy: FaultProxy
) -> None:
    async def call() -> None:
        async with db.connection() as connection, connection.transaction():
            await connection.fetch("select 1")
            proxy.mode = Mode.SILENT
            raise KeyError("the caller's own")

    outcome = await timed(call())
    assert isinstance(outcome.error, KeyError)
    proxy.mode = Mode.PASS
    await rests(db)


async def test_rows_that_stop_coming(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy, pg: Observer
) -> None:
    """A server-side cursor crosses the network for each batch; those waits end too."""
    db = make_db(proxied_url)

    async def call() -> None:
        async with db.engine.connect() as connection:
            result = await connection.stream(text("select generate_series(1, 100000)"))
            async for _ in result:
                proxy.mode = Mode.SILENT

    outcome = await timed(asyncio.wait_for(call(), 20))
    gc.collect()  # a cursor that was left open would complain here
    assert_named(outcome.error, errors.StatementTimeout)
    assert "generate_series" in str(outcome.error)
    assert outcome.seconds < T + STATEMENT_GRACE + T + MARGIN
    proxy.mode = Mode.PASS
    await rests(db)
    await serves(db)
    await nothing_strays(pg, db)


@pytest.mark.parametrize("how", ["break", "cancel"])
async def test_a_stream_that_is_left_early_on_a_silent_network(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy, pg: Observer, how: str
) -> None:
    """psycopg says CLOSE to the cursor at its end, and asyncpg nothing."""
    db = make_db(proxied_url, statement_timeout=20)
    seen = asyncio.Event()

    async def call() -> None:
        async with db.engine.connect() as connection:
            result = await connection.stream(text("select generate_series(1, 100000)"))
            async for _ in result:
                proxy.mode = Mode.SILENT
                seen.set()
                if how == "break":
                    break
            await result.close()

    task = asyncio.create_task(timed(call()))
    await reached(seen, task)
    if how == "cancel":
        await asyncio.sleep(0.05)
        task.cancel()
    done, _ = await asyncio.wait([task], timeout=3 * T + MARGIN)
    assert done
    del task, done
    gc.collect()
    proxy.mode = Mode.PASS
    await rests(db)
    await nothing_strays(pg, db)
    await serves(db)


# -- deadlines -----------------------------------------------------------------------------------------------------


async def test_a_deadline_while_waiting(make_db: MakeDatabase, proxied_url: str) -> None:
    db = make_db(proxied_url, pool_size=1, max_overflow=0, pool_timeout=20)
    async with db.connection():
        with deadline(0.2):
            outcome = await timed(ask(db))
    error = outcome.error
    assert isinstance(error, errors.DeadlineExceeded)
    assert isinstance(error, TimeoutError)
    assert error.phase is errors.Phase.WAITING
    assert error.elapsed.waiting >= 0.2 - 0.01
    assert error.elapsed.connecting == error.elapsed.executing == 0
    assert error.deadline == 0.2
    assert not error.maybe_executed
    assert error.pool is not None
    assert error.pool.leased == 1


async def test_a_deadline_while_connecting(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy
) -> None:
    db = make_db(proxied_url, pool_timeout=20, connection_timeout=20)
    proxy.mode = Mode.SILENT
    with deadline(0.2):
        outcome = await timed(ask(db))
    error = outcome.error
    assert isinstance(error, errors.DeadlineExceeded)
    assert error.phase is errors.Phase.CONNECTING
    assert error.elapsed.connecting >= 0.2 - 0.01
    assert error.elapsed.waiting == error.elapsed.executing == 0
    assert not error.maybe_executed


async def test_a_deadline_while_executing(make_db: MakeDatabase, proxied_url: str, pg: Observer) -> None:
    db = make_db(proxied_url, statement_timeout=20, connection_timeout=5)
    await ask(db)

    async def call() -> None:
        with deadline(0.3):
            await ask(db, "select pg_sleep(30)")

    outcome = await timed(call())
    error = outcome.error
    assert isinstance(error, errors.DeadlineExceeded)
    assert error.phase is errors.Phase.EXECUTING
    assert 0.2 <= error.elapsed.executing < 0.3 + MARGIN
    assert error.maybe_executed
    assert error.deadline == 0.3
    assert outcome.seconds < 0.3 + MARGIN
    # The server is not left with it: nothing runs on two seconds later.
    await nothing_strays(pg, db, seconds=2.5)


async def test_a_deadline_that_passed_starts_nothing(db: Database, proxy: FaultProxy, pg: Observer) -> None:
    await ask(db, "select 1")
    with deadline(0.0):
        outcome = await timed(ask(db, "create table never (a int)"))
        assert_named(outcome.error, errors.DeadlineExceeded)
    assert await ask(db, "select to_regclass('never') is null")


async def test_nested_deadlines_and_inherited_ones(make_db: MakeDatabase, proxied_url: str) -> None:
    db = make_db(proxied_url, statement_timeout=20, connection_timeout=5)
    await ask(db)

    async def sleep() -> None:
        await ask(db, "select pg_sleep(30)")

    with deadline(0.3), deadline(60.0):
        outer = await timed(sleep())
    with deadline(60.0), deadline(0.3):
        inner = await timed(sleep())
    with deadline(0.3):
        task = asyncio.create_task(timed(sleep()))
    inherited = await task
    for outcome in (outer, inner, inherited):
        assert isinstance(outcome.error, errors.DeadlineExceeded)
        assert outcome.error.deadline == 0.3
        assert outcome.seconds < 0.3 + MARGIN
    await rests(db)


async def test_the_phases_add_up_to_one_deadline(make_db: MakeDatabase, proxied_url: str) -> None:
    """Waiting for the pool and running share the same end of time; it is not given out twice."""
    db = make_db(proxied_url, pool_size=1, max_overflow=0, pool_timeout=20, statement_timeout=20)
    held = asyncio.Event()

    async def hold() -> None:
        async with db.connection():
            held.set()
            await asyncio.sleep(0.4)

    holder = asyncio.create_task(hold())
    await reached(held, holder)

    async def call() -> None:
        with deadline(0.8):
            await ask(db, "select pg_sleep(30)")

    outcome = await timed(call())
    await holder
    assert isinstance(outcome.error, errors.DeadlineExceeded)
    assert outcome.error.phase is errors.Phase.EXECUTING
    assert outcome.error.elapsed.executing < 0.6
    assert outcome.seconds < 0.8 + MARGIN


async def test_a_connect_outlives_the_deadline_of_the_caller_who_needed_it(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy
) -> None:
    db = make_db(proxied_url, connection_timeout=10, pool_timeout=10)
    proxy.mode = Mode.SILENT
    with deadline(0.2):
        assert_named((await timed(ask(db))).error, errors.DeadlineExceeded)
    assert db.pool.core.count(EntryState.OPENING) >= 1
    patient = asyncio.create_task(ask(db))
    await asyncio.sleep(0.05)
    proxy.mode = Mode.PASS
    assert await patient == 1
    assert proxy.accepted <= 2  # a probe and its hedge


@pytest.mark.parametrize("how", ["deadline", "cancel"])
async def test_many_rows_in_one_statement_end_like_any_other(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy, pg: Observer, how: str
) -> None:
    """psycopg sends them in a pipeline, and replaces what ended it by what it finds when it leaves the pipeline."""
    db = make_db(proxied_url, statement_timeout=20)

    async def call() -> None:
        with deadline(0.3 if how == "deadline" else 20.0):
            async with db.engine.begin() as connection:
                await connection.execute(text("create temporary table many (a int)"))
                proxy.mode = Mode.SILENT
                await connection.execute(
                    text("insert into many values (:a)"), [{"a": number} for number in range(50)]
                )

    task = asyncio.create_task(timed(call()))
    if how == "cancel":
        await until(lambda: proxy.mode is Mode.SILENT)
        await asyncio.sleep(0.05)
        task.cancel()
    await asyncio.wait([task], timeout=0.3 + MARGIN)
    if how == "cancel":
        assert task.cancelled()
    else:
        assert_named(task.result().error, errors.DeadlineExceeded)
    proxy.mode = Mode.PASS
    await rests(db)
    await nothing_strays(pg, db)


# -- where a pool is at home --------------------------------------------------------------------------------------


async def test_another_event_loop(db: Database) -> None:
    assert await ask(db) == 1

    def elsewhere() -> Any:
        return asyncio.run(timed(ask(db)))

    outcome = await asyncio.to_thread(elsewhere)
    assert isinstance(outcome.error, errors.WrongEventLoop)
    assert "event loop" in str(outcome.error)
    assert await ask(db) == 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_forked_child(db: Database, pg: Observer) -> None:
    assert await ask(db) == 1
    backends = await pg.backends()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        verdict = b"nothing"
        try:
            # What asyncio sees of the parent's loop in the child is not running there; a new one is.
            asyncio.events._set_running_loop(None)  # type: ignore[attr-defined]
            try:
                asyncio.run(ask(db))
                verdict = b"served"
            except errors.WrongEventLoop as error:
                verdict = str(error).encode()
        except BaseException as error:  # noqa: BLE001 - the child reports and ends, whatever happened
            verdict = repr(error).encode()
        finally:
            os.write(write, verdict)
            os._exit(0)
    os.close(write)
    verdict = b""
    try:
        while not verdict:
            verdict = await asyncio.wait_for(asyncio.to_thread(os.read, read, 1000), 10)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)  # noqa: ASYNC222 - it was killed, so this does not wait
        os.close(read)
    assert b"belongs to another" in verdict
    # The child has not touched the parent's connection.
    assert await ask(db) == 1
    assert [backend.pid for backend in await pg.backends()] == [backend.pid for backend in backends]


# -- what is said, and what is not ----------------------------------------------------------------------------------


def all_texts(error: BaseException) -> str:
    return everything_said(error) + "".join(traceback.format_exception(error))


@pytest.mark.parametrize("what", ["timeout", "deadline", "lost"])
@pytest.mark.parametrize("way", ["session", "dedicated"])
async def test_errors_of_ours_show_no_values(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy, pg: Observer, what: str, way: str
) -> None:
    db = make_db(proxied_url, statement_timeout=0.3 if what == "timeout" else 20)

    async def run() -> None:
        if way == "session":
            async with db.session() as session:
                await session.execute(
                    text("select pg_sleep(30), :a, 'anna@' || 'example.org'"), {"a": SECRET}
                )
        else:
            async with db.connection() as connection:
                await connection.fetch(f"select pg_sleep(30), $1::text, '{SECRET}'", SECRET)

    async def call() -> None:
        if what == "deadline":
            with deadline(0.3):
                await run()
        else:
            await run()

    async def running() -> bool:
        return any(backend.state == "active" for backend in await pg.backends())

    caller = asyncio.create_task(timed(call()))
    if what == "lost":
        await pg.wait_until(running)
        await pg.terminate()
    error = (await caller).error
    assert_named(error)
    assert error is not None
    said = everything_said(error)
    assert SECRET not in said
    assert "example.org" not in said
    assert password_of(proxied_url) not in all_texts(error)
    assert not hasattr(error, "params") or error.params is None


async def test_errors_of_sql_show_no_parameters(make_db: MakeDatabase, proxied_url: str) -> None:
    """SQLAlchemy would print them; the server's DETAIL, which quotes the row, is the driver's own text."""
    db = make_db(proxied_url, statement_timeout=5, connection_timeout=5)
    async with db.session() as session:
        await session.execute(text("create table people (mail text unique)"))
        await session.execute(text("insert into people values (:mail)"), {"mail": SECRET})
        await session.commit()
    with pytest.raises(exc.IntegrityError) as caught:
        await ask(db, "insert into people values (:mail)", mail=SECRET)
    assert SECRET not in str(caught.value).replace(str(caught.value.orig), "")


@pytest.mark.parametrize("fault", ["refuse", "silent", "password", "terminated", "reset"])
async def test_the_log_is_free_of_secrets(
    make_db: MakeDatabase,
    proxied_url: str,
    proxy: FaultProxy,
    pg: Observer,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = password_of(proxied_url)
    url = proxied_url
    if fault == "password":
        secret = "wrong-password-of-somebody"
        url = proxied_url.replace(password_of(proxied_url), secret)
    db = make_db(url)
    if fault in ("terminated", "reset"):
        await ask(db)
    if fault == "terminated":
        await pg.terminate()
    elif fault != "password":
        proxy.mode = {"refuse": Mode.REFUSE, "silent": Mode.SILENT, "reset": Mode.RESET}[fault]
    outcomes = await at_once(3, lambda: ask(db, "select :a", a=SECRET))
    for outcome in outcomes:
        if outcome.error is not None:
            assert_named(outcome.error)
            assert secret not in all_texts(outcome.error)
    proxy.mode = Mode.PASS
    await until(lambda: db.pool.checkedout() == 0)
    await db.close()
    assert secret not in caplog.text
    assert SECRET not in caplog.text
    assert secret not in repr(db.settings)
    assert secret not in repr(db.engine)
    assert secret not in repr(db.stats())
    assert secret not in db.engine.pool.status()


@pytest.mark.parametrize("what", [pytest.param("hangs", marks=pytest.mark.hedges), "raises"])
async def test_a_password_function_that_fails(make_db: MakeDatabase, proxied_url: str, what: str) -> None:
    """The service that hands out tokens is a dependency too: bounded, named, and asked again."""
    secret, asked = password_of(proxied_url), 0

    async def password() -> str:
        nonlocal asked
        asked += 1
        if asked > 1:
            return secret
        if what == "hangs":
            await asyncio.Event().wait()
        raise OSError("the token service is down")

    db = make_db(proxied_url.replace(f":{secret}@", "@"), password=password)
    # Where it hangs, the hedge asks again; where it raises, the next attempt does.
    outcome = await timed(ask(db)) if what == "hangs" else None
    if outcome is not None and outcome.error is not None:
        assert_named(outcome.error, errors.ConnectTimeout)
        assert outcome.seconds < CONNECTS_WITHIN + MARGIN
    await serves(db, callers=1)
    assert asked == 2


async def test_a_workloads_limit_ends_with_its_use(db: Database) -> None:
    """Also when the use ended by an error, and the connection is kept."""
    db.workload("quick", statement_timeout=0.2)
    async with db.connection() as connection:
        before = await connection.fetchrow("select pg_backend_pid(), current_setting('statement_timeout')")
    with pytest.raises(errors.StatementTimeout):
        async with db.connection(workload="quick") as connection, connection.transaction():
            await connection.fetch("select pg_sleep(30)")
    with pytest.raises(KeyError):
        async with db.connection(workload="quick") as connection:
            raise KeyError
    async with db.connection() as connection:
        after = await connection.fetchrow("select pg_backend_pid(), current_setting('statement_timeout')")
    assert tuple(before or ()) == tuple(after or ())


async def test_a_dedicated_connection_is_nobodys_after_its_block(db: Database) -> None:
    async with db.connection() as connection:
        pass
    async with db.connection():
        with pytest.raises(RuntimeError, match="has ended"):
            await connection.fetch("select 1")


# -- everything at once ----------------------------------------------------------------------------------------------


async def test_random_faults_while_it_works(
    make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy, pg: Observer
) -> None:
    """Everything at once: whatever the network does, callers end in time with a name, and the pool recovers."""
    db = make_db(proxied_url)
    rng = random.Random(11)
    going = True
    outcomes = []

    async def call() -> None:
        with deadline(rng.choice([0.2, 0.6, 5.0])):
            if rng.random() < 0.5:
                await ask(db, "select pg_sleep(0.01)")
            else:
                async with db.connection() as connection, connection.transaction():
                    await connection.fetch("select pg_sleep(0.01)")

    async def user() -> None:
        while going:
            task = asyncio.create_task(timed(call()))
            if rng.random() < 0.1:
                await asyncio.sleep(rng.uniform(0, 0.05))
                task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                outcomes.append(task.result())
            await asyncio.sleep(0.01)

    users = [asyncio.create_task(user()) for _ in range(20)]
    for _ in range(12):
        fault = rng.choice([Mode.SILENT, Mode.RESET, Mode.REFUSE, "drop", "terminate"])
        if fault == "drop":
            proxy.drop_all(reset=rng.random() < 0.5)
        elif fault == "terminate":
            await pg.terminate()
        else:
            proxy.mode = Mode(fault)
        assert db.pool.core.count() <= db.pool.core.options.limit
        await asyncio.sleep(rng.uniform(0.05, 0.4))
        proxy.mode = Mode.PASS
        await asyncio.sleep(rng.uniform(0.0, 0.2))
    going = False
    await asyncio.gather(*users)
    for outcome in outcomes:
        if outcome.error is not None:
            assert_named(outcome.error)
    assert max(outcome.seconds for outcome in outcomes) < 5.0 + MARGIN
    assert_served([outcome for outcome in outcomes if outcome.error is None])
    await rests(db)
    await serves(db)
    await nothing_strays(pg, db)
