"""The shared way: statements of strangers on one connection, and what each of them never gets to feel."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg import errors as sql

from conditions import until
from steadypool import deadline, errors
from steadypool.connect.dsn import parse_url
from steadypool.connect.psycopg import open_psycopg
from steadypool.deadline import TimeLimit
from steadypool.events import AcquireFailed, ConnectionLost, StatementFinished, StatementsFinished
from steadypool.multiplex.multiplexer import Multiplexer
from steadypool.multiplex.options import MultiplexOptions
from steadypool.pipeline import Batch, PipelinedConnection, Result
from steadypool.pool import Pool
from steadypool.pool.lease import EntryState, PoolOptions
from steadypool_lab.network.proxy import FaultProxy, Mode
from steadypool_lab.testing import Observer

pytestmark = pytest.mark.anyio


class Pipes:
    """The driver of a pool of bare pipelined connections."""

    def __init__(self, url: str, **options: Any) -> None:
        self._target = parse_url(url)
        self._options = options
        self.opened: list[PipelinedConnection] = []

    async def open(self) -> PipelinedConnection:
        raw = await open_psycopg(self._target, timeout=10, autocommit=True)
        self.opened.append(PipelinedConnection(raw, **self._options))
        return self.opened[-1]

    async def ping(self, connection: PipelinedConnection) -> None:
        await connection.run(Batch([]))

    def needs_reset(self, connection: PipelinedConnection) -> bool:
        return False

    async def reset(self, connection: PipelinedConnection) -> None:
        raise AssertionError("nothing is left to reset")

    def is_open(self, connection: PipelinedConnection) -> bool:
        return not connection.closed

    def rest(self, connection: PipelinedConnection, lost: Callable[[], None]) -> None:
        connection.when_ended(lost)

    def abort(self, connection: PipelinedConnection) -> None:
        connection.abort()

    async def close(self, connection: PipelinedConnection) -> None:
        await connection.close()


class House:
    """A pool, and the shared way on it."""

    def __init__(
        self,
        url: str,
        *,
        size: int = 4,
        pooled: Callable[[], bool] = lambda: False,
        keeps_statements: bool = True,
        **options: Any,
    ) -> None:
        self.driver = Pipes(url, keeps_statements=keeps_statements)
        timeouts = {"pool_timeout": 5.0, "connect_timeout": 5.0}
        self.pool: Pool[PipelinedConnection] = Pool(
            self.driver, PoolOptions(size=size, max_overflow=0, **timeouts)
        )
        self.holds = False
        self.way = Multiplexer(
            self.pool,
            pipelined=lambda connection: connection,
            options=MultiplexOptions(**options),
            holds=lambda: self.holds,
            pooled=pooled,
        )

    async def ask(self, text: str, *args: Any, **options: Any) -> list[tuple[Any, ...]]:
        return (await self.way.run(text, args, **options)).rows()

    async def close(self) -> None:
        await self.way.close(2)
        await self.pool.close(2)


MakeHouse = Callable[..., House]


@pytest.fixture
async def make(database_url: str, anyio_backend: object) -> AsyncIterator[MakeHouse]:
    houses: list[House] = []

    def make(url: str = database_url, **options: Any) -> House:
        houses.append(House(url, **options))
        return houses[-1]

    yield make
    for house in houses:
        await house.close()


@pytest.fixture
async def house(make: MakeHouse) -> House:
    return make()


async def ends(*calls: Awaitable[Any]) -> list[Any]:
    return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)


# -- what strangers do to each other -----------------------------------------------------------------------------


async def test_a_thousand_callers_over_two_connections(make: MakeHouse, pg: Observer) -> None:
    house = make()
    rows = await ends(*(house.ask("select $1::int", number) for number in range(1000)))
    assert rows == [[(number,)] for number in range(1000)]
    assert len(await pg.backends()) <= 2
    stats = house.way.stats()
    assert (stats.statements, stats.queued, stats.in_flight, stats.collateral) == (1000, 0, 0, 0)


async def test_one_caller_needs_one_connection(house: House, pg: Observer) -> None:
    for _ in range(20):
        await house.ask("select 1")
    assert len(await pg.backends()) == 1


async def test_deferred_constraints_between_strangers(make: MakeHouse) -> None:
    house = make(connections=1)
    await house.ask("create table parent (id int primary key)")
    await house.ask(
        "create table child (parent int references parent deferrable initially deferred, mark int)"
    )
    calls = []
    for number in range(50):
        calls.append(house.ask("insert into child values ($1, $1) returning mark", number))
        calls.append(house.ask("select $1::text", f"caller {number}"))
    got = await ends(*calls)
    assert all(isinstance(end, sql.ForeignKeyViolation) for end in got[::2])
    assert got[1::2] == [[(f"caller {number}",)] for number in range(50)]


@pytest.mark.parametrize(
    "text",
    [
        "/* c */ begin",
        "select set_config('search_path', 'nowhere', false)",
        "select pg_advisory_lock(1)",
        "copy t from stdin",
    ],
)
async def test_what_strangers_would_feel_is_refused_unsent(house: House, text: str) -> None:
    with pytest.raises(errors.NotMultiplexable) as refused:
        await house.ask(text)
    assert not refused.value.maybe_executed
    assert "db.session()" in str(refused.value)
    assert house.way.stats().refused == 1


async def test_a_setting_changed_inside_a_function_ends_the_connection(make: MakeHouse) -> None:
    house = make(connections=1)
    await house.ask(
        "create function sly() returns text language sql as $$ select set_config('timezone', 'Asia/Tokyo', false) $$"
    )
    (before,) = (await house.ask("select current_setting('timezone')"))[0]
    await house.ask("select sly()")
    assert await house.ask("select current_setting('timezone')") == [(before,)]
    assert house.way.stats().offences == 1


async def test_a_lock_that_a_stranger_waits_for(make: MakeHouse, database_url: str) -> None:
    """The session that holds the lock must not queue behind the one who waits for it: nobody could ever go on."""
    house = make(connections=1, lock_timeout=20.0, statement_timeout=20.0)
    await house.ask("create table t (id int primary key, n int)")
    await house.ask("insert into t values (1, 0)")
    async with await psycopg.AsyncConnection.connect(database_url) as session:
        await session.execute("update t set n = 1 where id = 1")
        stranger = asyncio.create_task(house.ask("update t set n = n + 1 where id = 1 returning n"))
        await until(lambda: house.way.stats().in_flight == 1)
        house.holds = True
        async with asyncio.timeout(10):
            assert await house.ask("select 'not behind the stranger'")
        assert not stranger.done()
        await session.commit()
    assert await stranger == [(2,)]
    assert house.way.stats().alone == 1


async def test_a_lock_on_the_shared_way_has_a_limit(make: MakeHouse, database_url: str) -> None:
    house = make(lock_timeout=0.2)
    await house.ask("create table t (id int)")
    await house.ask("insert into t values (1)")
    async with await psycopg.AsyncConnection.connect(database_url) as session:
        await session.execute("select * from t for update")
        with pytest.raises(errors.StatementTimeout, match=r"waiting 0\.20s for a lock") as locked:
            await house.ask("update t set id = 2")
        assert isinstance(locked.value.__cause__, sql.LockNotAvailable)


# -- time --------------------------------------------------------------------------------------------------------


async def test_a_slow_statement_has_its_limit_and_the_connection_goes_on(make: MakeHouse) -> None:
    house = make(connections=1, statement_timeout=0.3)
    slow = asyncio.create_task(house.ask("select pg_sleep(5)"))
    await until(lambda: house.way.stats().in_flight == 1)
    assert await house.ask("select 'after'") == [("after",)]
    with pytest.raises(errors.StatementTimeout) as late:
        await slow
    assert not late.value.maybe_executed
    assert isinstance(late.value.__cause__, sql.QueryCanceled)
    assert len(house.driver.opened) == 1


async def test_a_call_may_have_less_time_than_the_others(house: House) -> None:
    with pytest.raises(errors.StatementTimeout):
        await house.ask("select pg_sleep(5)", timeout=0.2)
    assert await house.ask("select current_setting('statement_timeout')") == [("2s",)]


async def test_a_call_with_more_time_does_not_stand_in_the_way(make: MakeHouse) -> None:
    house = make(connections=1, statement_timeout=0.3)
    slow = asyncio.create_task(house.ask("select pg_sleep(0.8), 'done'", timeout=5))
    await until(lambda: house.pool.count(EntryState.LEASED) == 1)
    assert await house.ask("select 'meanwhile'") == [("meanwhile",)]
    assert not slow.done()
    assert await slow == [("", "done")]


async def test_others_go_elsewhere_while_the_head_is_slow(make: MakeHouse) -> None:
    house = make(connections=2, statement_timeout=20.0)
    slow = asyncio.create_task(house.ask("select pg_sleep(3)"))
    await until(lambda: house.way.stats().in_flight == 1)
    await asyncio.sleep(0.1)
    for _ in range(10):
        await house.ask("select 1")
    assert not slow.done()
    await slow


async def test_one_that_leaves_is_replaced_while_the_others_are_slow(make: MakeHouse) -> None:
    house = make(connections=2, rotate_after=0.3, statement_timeout=20.0)
    slow = [asyncio.create_task(house.ask("select pg_sleep(3), 'one'"))]
    await until(lambda: house.way.stats().in_flight == 1)
    await asyncio.sleep(0.1)
    await house.ask("select 1")
    slow.append(asyncio.create_task(house.ask("select pg_sleep(3), 'another'")))
    await until(lambda: house.way.stats().in_flight == 2)
    await asyncio.sleep(0.3)  # now they are to go back, and cannot yet
    assert await house.ask("select 2") == [(2,)]
    assert not any(task.done() for task in slow)
    await asyncio.gather(*slow)


async def test_what_is_often_slow_gets_a_connection_alone(house: House) -> None:
    for _ in range(3):
        await house.ask("select pg_sleep(0.08)")
    assert house.way.stats().alone == 2, "the first one showed that it is slow"
    assert await house.ask("select 1") == [(1,)]


async def test_giving_up_while_queued_is_not_executed(make: MakeHouse) -> None:
    house = make(connections=1, window=1)
    await house.ask("create table t (n int)")
    slow = asyncio.create_task(house.ask("select pg_sleep(1.5)"))
    await until(lambda: house.way.stats().in_flight == 1)
    with pytest.raises(errors.DeadlineExceeded) as unsent:
        with deadline(0.1):
            await house.ask("insert into t values (1)")
    cancelled = asyncio.create_task(house.ask("insert into t values (2)"))
    await asyncio.sleep(0)
    cancelled.cancel()
    await slow
    assert not unsent.value.maybe_executed
    assert unsent.value.phase is errors.Phase.WAITING
    assert await house.ask("select count(*) from t") == [(0,)]
    assert house.way.stats().withdrawn == 2


async def test_giving_up_what_was_sent_is_maybe_executed(make: MakeHouse) -> None:
    house = make(connections=1)
    await house.ask("create table t (n int)")
    with pytest.raises(errors.DeadlineExceeded) as sent:
        with deadline(0.5):
            await house.ask("insert into t select 1 from pg_sleep(1.5)")
    assert sent.value.maybe_executed
    assert sent.value.phase is errors.Phase.EXECUTING
    assert await house.ask("select count(*) from t") == [(1,)]


async def test_a_silent_server_ends_every_wait(make: MakeHouse, proxied_url: str, proxy: FaultProxy) -> None:
    house = make(proxied_url, connections=1, window=4, statement_timeout=0.3)
    await house.ask("select 1")
    proxy.mode = Mode.SILENT
    got = await ends(*(house.ask("select 1") for _ in range(4)))
    named = [type(end) for end in got]
    assert named.count(errors.StatementTimeout) == 1
    assert named.count(errors.ConnectionLost) == 3
    assert all(end.maybe_executed for end in got)
    stats = house.way.stats()
    assert (stats.offences, stats.collateral) == (1, 3)
    proxy.mode = Mode.PASS
    assert await house.ask("select 'again'") == [("again",)]


# -- the pool's connections --------------------------------------------------------------------------------------


async def test_sessions_get_the_shared_connections_when_they_need_them(make: MakeHouse) -> None:
    house = make(size=2)
    await ends(*(house.ask("select 1") for _ in range(50)))
    house.way.make_room()  # what the engine's pool does before a session would wait
    first = await house.pool.acquire(timeout=1)
    house.way.make_room()
    second = await house.pool.acquire(timeout=1)
    (shown,) = await second.connection.run(Batch([_show("statement_timeout")]))
    assert shown.rows() == [("0",)], "as it was before it was shared"
    waiting = asyncio.create_task(house.ask("select 'served when there is room'"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    first.release()
    assert await waiting == [("served when there is room",)]
    second.release()


async def test_a_busy_shared_connection_is_handed_over_when_it_has_answered(make: MakeHouse) -> None:
    house = make(size=1)
    running = asyncio.create_task(house.ask("select pg_sleep(0.2), 'finished'"))
    await until(lambda: house.way.stats().in_flight == 1)
    lease_task = asyncio.create_task(house.pool.acquire())
    await asyncio.sleep(0)
    house.way.make_room()
    later = asyncio.create_task(house.ask("select 'behind the session'"))
    assert await running == [("", "finished")]
    lease = await lease_task
    assert not later.done()
    lease.release()
    assert await later == [("behind the session",)]


async def test_the_limits_of_the_pool_hold(make: MakeHouse, pg: Observer) -> None:
    house = make(size=2, connections=5)
    held = await house.pool.acquire()
    await ends(*(house.ask("select pg_sleep(0.01)") for _ in range(60)))
    assert len(await pg.backends()) == 2
    held.release()


async def test_close_lets_those_on_their_way_finish(make: MakeHouse) -> None:
    house = make(connections=1, window=1)
    running = asyncio.create_task(house.ask("select pg_sleep(0.2), 'finished'"))
    await until(lambda: house.way.stats().in_flight == 1)
    queued = asyncio.create_task(house.ask("select 1"))
    await asyncio.sleep(0)
    await house.close()
    assert await running == [("", "finished")]
    with pytest.raises(errors.PoolClosed):
        await queued
    with pytest.raises(errors.PoolClosed):
        await house.ask("select 1")


# -- connections that die ----------------------------------------------------------------------------------------


async def test_an_idle_connection_is_asked_before_what_must_not_run_twice(
    make: MakeHouse, proxied_url: str, proxy: FaultProxy
) -> None:
    house = make(proxied_url, connections=1, prove_after=0.0)
    await house.ask("create table t (n int)")
    before = proxy.round_trips
    await house.ask("select 1", harmless=True)
    assert proxy.round_trips - before == 1
    before = proxy.round_trips
    await house.ask("insert into t values (1)")
    assert proxy.round_trips - before == 2
    proxy.links[0].lose_server()  # nobody tells us
    house.pool.options = replace(house.pool.options, leave_timeout=0.2)
    assert await house.ask("insert into t values (2)") is not None
    assert await house.ask("select count(*) from t") == [(2,)]


async def test_nobody_waits_for_a_silent_connection_beside_one_that_answers(
    make: MakeHouse, proxied_url: str, proxy: FaultProxy
) -> None:
    house = make(proxied_url, connections=2, prove_after=0.0)
    house.pool.options = replace(house.pool.options, leave_timeout=30.0)  # nobody waits for that long below
    await ends(*(house.ask("select pg_sleep(0.1)") for _ in range(3)))
    assert house.way.stats().connections == 2
    proxy.links[0].lose_server()  # nobody tells us
    assert await ends(*(house.ask("select $1::int", number) for number in range(20))) == [
        [(number,)] for number in range(20)
    ]


async def test_what_does_no_harm_is_sent_again(make: MakeHouse, pg: Observer) -> None:
    house = make(connections=1)
    safe = asyncio.create_task(house.ask("select 'safe' from pg_sleep(0.3)", harmless=True))
    unsafe = asyncio.create_task(house.ask("select 'unsafe' from pg_sleep(0.3)"))
    await until(lambda: house.way.stats().in_flight == 2)
    await pg.terminate()
    assert await safe == [("safe",)]
    with pytest.raises(errors.ConnectionLost) as lost:
        await unsafe
    assert lost.value.maybe_executed
    assert "57P01" in str(lost.value)
    assert house.way.stats().repeated == 1


async def test_a_result_that_is_too_large(make: MakeHouse) -> None:
    house = make(connections=1, result_limit=100_000)
    got = await ends(
        house.ask("select repeat('x', 1000) from generate_series(1, 10000)"), house.ask("select 'small'")
    )
    assert isinstance(got[0], errors.ResultTooLarge)
    assert got[1] == [("small",)]


# -- what must not run twice, and what must not be anybody else's -----------------------------------------------------


@pytest.mark.parametrize(
    "told",
    [
        "raise exception 'not supported' using errcode = '0A000'",
        "raise exception 'no such statement' using errcode = '26000'",
        "execute 'execute nobody_prepared_this'",
        "raise exception 'it is there' using errcode = '42P05'",
    ],
)
async def test_words_of_a_procedure_are_not_taken_for_a_stale_statement(make: MakeHouse, told: str) -> None:
    """It has committed half of its work when it says what a server says of a prepared statement that it has lost."""
    house = make(connections=1, slow_after=60.0)  # what is slow runs alone, which is not what this is about
    await house.ask("create table done (n int)")
    await house.ask(
        f"create procedure half() language plpgsql as $$ begin insert into done values (1); commit; {told}; end $$"
    )
    for times in range(1, 5):  # the later ones are prepared
        with pytest.raises(psycopg.Error):
            await house.ask("call half()")
        assert await house.ask("select count(*) from done") == [(times,)]
    assert len(house.driver.opened) == 1


@pytest.mark.parametrize("sql", ["call half()", "vacuum done", "create index concurrently on done (n)"])
async def test_what_runs_in_no_transaction_block(make: MakeHouse, sql: str) -> None:
    """It is slow, or has a limit of its own: no statement that sets the limit may be in one segment with it."""
    house = make(connections=1, slow_after=0.0)
    await house.ask("create table done (n int)")
    await house.ask(
        "create procedure half() language plpgsql as $$ begin insert into done values (1); commit; end $$"
    )
    for _ in range(3):
        await house.ask(sql)
    await house.ask(sql, timeout=5.0)
    assert house.way.stats().alone >= 1
    assert await house.ask("select current_setting('statement_timeout')") == [("2s",)]
    lease = await house.pool.acquire()
    limit = await lease.connection.execute("show statement_timeout")
    lease.release()
    assert limit.rows() == [("0",)]


@pytest.mark.parametrize("value", ["\ud800", object(), [1, "a"]], ids=lambda it: type(it).__name__)
async def test_what_cannot_be_sent_is_told_to_its_caller_alone(make: MakeHouse, value: Any) -> None:
    """Its turn comes while the answer to somebody else is being read."""
    house = make(connections=1, window=1)
    running = asyncio.create_task(house.ask("select 'first' from pg_sleep(0.1)"))
    await until(lambda: house.way.stats().in_flight == 1)
    got = await ends(house.ask("select $1", value), house.ask("select 'third'"))
    assert await running == [("first",)]
    assert isinstance(got[0], Exception)
    assert got[1] == [("third",)]
    assert len(house.driver.opened) == 1


async def test_too_many_parameters_are_told_to_their_caller_alone(make: MakeHouse) -> None:
    house = make(connections=1)
    many = ", ".join(f"${number}::int" for number in range(1, 65_537))
    got = await ends(
        house.ask("select 1 from pg_sleep(0.05)"), house.ask(f"select array[{many}]", *range(65_536))
    )
    assert got[0] == [(1,)]
    assert isinstance(got[1], psycopg.errors.ProgramLimitExceeded)
    assert len(house.driver.opened) == 1


async def test_a_result_goes_when_its_reader_does(house: House) -> None:
    await house.ask("select 1")
    gc.disable()
    try:
        before = _results()
        for _ in range(5):
            await house.ask("select 1")
        assert _results() <= before
    finally:
        gc.enable()


def _results() -> int:
    return sum(isinstance(it, Result) for it in gc.get_objects())


async def test_text_without_an_encoding_is_told_to_its_caller_alone(house: House) -> None:
    got = await ends(house.ask("select 1"), house.ask("select '\ud800'"), house.ask("select 3"))
    assert isinstance(got.pop(1), errors.InvalidText)
    assert got == [[(1,)], [(3,)]]


async def test_no_time_at_all_is_not_taken_for_no_limit(house: House) -> None:
    for nothing in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="seconds above 0"):
            await house.ask("select pg_sleep(1)", timeout=nothing)
    assert house.way.stats().statements == 0


# -- round trips -------------------------------------------------------------------------------------------------


async def test_a_statement_is_one_round_trip(make: MakeHouse, proxied_url: str, proxy: FaultProxy) -> None:
    house = make(proxied_url, prove_after=None)
    for _ in range(3):
        await house.ask("select $1::int", 1)
    proxy.delay = 0.01
    before = proxy.round_trips
    for number in range(5):
        assert await house.ask("select $1::int", number) == [(number,)]
    assert proxy.round_trips - before == 5


async def test_a_shared_connection_goes_back_now_and_then(make: MakeHouse) -> None:
    house = make(connections=1, rotate_after=0.1)
    await house.ask("select 1")
    await until(lambda: house.pool.count(EntryState.LEASED) == 0)
    assert await house.ask("select 2") == [(2,)]
    assert len(house.driver.opened) == 1


def _show(name: str) -> Any:
    from steadypool.pipeline import Statement

    return Statement(f"show {name}")


async def test_quick_statements_are_told_together_and_slow_or_failed_ones_by_themselves(house: House) -> None:
    told: list[Any] = []
    house.pool.events.subscribe(told.append, StatementFinished, StatementsFinished, slower_than=0.2)
    await asyncio.gather(*(house.ask("select generate_series(1, $1::int)", 3) for _ in range(40)))
    with pytest.raises(psycopg.Error):
        await house.ask("select 1 / $1::int", 0)
    await house.ask("select pg_sleep(0.4)")
    alone = [event for event in told if isinstance(event, StatementFinished)]
    assert [(event.fingerprint[11:], event.sqlstate) for event in alone] == [
        ("select ? / ?", "22012"),
        ("select pg_sleep(?)", None),
    ]
    together = [event for event in told if isinstance(event, StatementsFinished)]
    quick = [statement for event in together for statement in event.statements]
    assert len(quick) == 40 > len(together)
    assert all(one.fingerprint.endswith("select generate_series(?)") for one in quick)
    assert all(one.rows == 3 and one.seconds > 0 and one.waiting >= 0 for one in quick)


async def test_a_statement_that_was_given_up_is_told_once(house: House) -> None:
    told: list[Any] = []
    await house.ask("select 1")  # to connect may take longer than the deadline leaves
    house.pool.events.subscribe(told.append, StatementFinished, StatementsFinished, slower_than=60)
    with pytest.raises(errors.DeadlineExceeded), deadline(0.1):
        await house.ask("select pg_sleep(0.3)")
    await until(lambda: house.way.stats().in_flight == 0)
    assert [getattr(event, "error_type", event) for event in told] == ["DeadlineExceeded"]


async def test_a_deadline_that_lies_beyond_every_limit_starts_no_timer(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.ask("select 1")
    limits: list[float | None] = []
    entered = TimeLimit.__enter__

    def enter(limit: TimeLimit) -> TimeLimit:
        limits.append(limit.seconds)
        return entered(limit)

    monkeypatch.setattr(TimeLimit, "__enter__", enter)
    with deadline(60):
        await house.ask("select 1")
    assert limits == []
    with deadline(2.4):  # the statement's own limit is 2.5 s
        await house.ask("select 1")
    assert len(limits) == 1


async def test_a_statement_that_has_to_be_sent_again_keeps_to_its_deadline(make: MakeHouse) -> None:
    """It comes behind those then that were sent after it, and whose limits nobody had added up."""
    house = make(connections=1, statement_timeout=0.6, slow_after=5.0)
    await house.ask("create table t (n int)")
    for _ in range(3):
        await house.ask("select * from t")  # prepared by now
    await house.ask("alter table t add column more int")

    async def ask() -> Any:
        with deadline(1.3):  # the limit of one statement is 1.1 s
            return await house.ask("select * from t")

    told: list[Any] = []
    house.pool.events.subscribe(told.append, StatementFinished, StatementsFinished, slower_than=60)
    sleeps = [house.ask("select pg_sleep(0.4)") for _ in range(4)]
    first, *others = await ends(ask(), *sleeps)
    assert isinstance(first, errors.DeadlineExceeded), first
    assert others == [[("",)]] * 4
    await until(lambda: house.way.stats().in_flight == 0)
    assert house.way.stats().collateral == 0
    fingerprints = [event.fingerprint for event in told if isinstance(event, StatementFinished)]
    quick = [
        one.fingerprint for event in told if isinstance(event, StatementsFinished) for one in event.statements
    ]
    assert (len(fingerprints), len(quick)) == (1, 4)


async def test_a_statement_whose_caller_leaves_as_the_answer_comes_is_told_once(house: House) -> None:
    told: list[Any] = []
    house.pool.events.subscribe(told.append, StatementFinished, StatementsFinished, slower_than=60)
    asking = asyncio.create_task(house.ask("select 1"))
    unsubscribe = house.pool.events.subscribe(lambda _: asking.cancel(), StatementsFinished, slower_than=60)
    with pytest.raises(asyncio.CancelledError):
        await asking
    unsubscribe()
    assert [type(event) for event in told] == [StatementsFinished]
    assert await house.ask("select 2") == [(2,)]


async def test_every_statement_is_told_once(house: House) -> None:
    told: list[Any] = []
    house.pool.events.subscribe(told.append, StatementFinished)
    await asyncio.gather(*(house.ask("select generate_series(1, $1::int)", 3) for _ in range(10)))
    with pytest.raises(psycopg.Error):
        await house.ask("select 1 / $1::int", 0)
    with pytest.raises(errors.DeadlineExceeded), deadline(0.1):
        await house.ask("select pg_sleep(0.5), 'anna@example.org'")
    assert [(event.way, event.rows, event.sqlstate, event.error_type) for event in told] == [
        *[("shared", 3, None, None)] * 10,
        ("shared", None, "22012", "DivisionByZero"),
        ("shared", None, None, "DeadlineExceeded"),
    ]
    assert all(event.seconds > 0 and event.waiting >= 0 for event in told)
    assert told[-1].seconds + told[-1].waiting >= 0.05  # the deadline began a moment before the call
    assert "anna" not in repr(told)


async def test_a_statement_whose_connection_was_lost_is_told_once_and_as_lost(
    make: MakeHouse, pg: Observer
) -> None:
    house = make(connections=1)
    told: list[Any] = []
    lost: list[Any] = []
    house.pool.events.subscribe(told.append, StatementFinished, StatementsFinished, slower_than=60)
    house.pool.events.subscribe(lost.append, ConnectionLost)
    await house.ask("select 1")
    told.clear()
    asking = [asyncio.create_task(house.ask("select pg_sleep(1)")) for _ in range(2)]
    await until(lambda: house.way.stats().in_flight == 2)
    await pg.terminate()
    for task in asking:
        with pytest.raises(errors.ConnectionLost):
            await task
    assert [getattr(event, "error_type", event) for event in told] == ["ConnectionLost"] * 2
    assert [event.cause for event in lost] == ["57P01"]
    assert await house.ask("select 2") == [(2,)]
    await until(lambda: house.pool.count() == 1)


async def test_who_goes_without_a_connection_of_its_own_is_told_once(
    make: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool and the shared way look at the same deadline: here both find in one turn of the loop that it is over."""
    house = make(size=1)
    lease = await house.pool.acquire()
    house.holds = True
    limits: list[TimeLimit] = []
    entered = TimeLimit.__enter__

    def enter(limit: TimeLimit) -> TimeLimit:
        limits.append(limit)
        limit.seconds = 10.0  # the pool comes first
        return entered(limit)

    turned_away = house.pool._turn_away

    def turn_away(waiter: Any, now: float) -> None:
        turned_away(waiter, now)
        limits[0]._expire()

    without: list[Any] = []
    house.pool.events.subscribe(without.append, AcquireFailed)
    monkeypatch.setattr(TimeLimit, "__enter__", enter)
    monkeypatch.setattr(house.pool, "_turn_away", turn_away)
    with pytest.raises(errors.DeadlineExceeded), deadline(0.1):
        await house.ask("select 1")
    assert len(without) == 1
    lease.release()
