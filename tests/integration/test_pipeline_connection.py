"""The pipelined connection on a real server: whose rows are whose, what fails whom, and what every type becomes."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import uvloop
from psycopg import errors as sql
from psycopg.pq import TransactionStatus

from steadypool import WrongEventLoop
from steadypool.connect.dsn import parse_url
from steadypool.connect.psycopg import open_psycopg
from steadypool.pipeline import (
    Batch,
    BatchTimeout,
    ConnectionClosed,
    PipelinedConnection,
    Result,
    ResultTooLarge,
    SessionModified,
    Statement,
)
from steadypool_lab import EmbeddedPostgres, TlsFront, self_signed
from steadypool_lab.network.proxy import FaultProxy, Mode
from steadypool_lab.testing import Observer

pytestmark = pytest.mark.anyio

on_both_loops = pytest.mark.parametrize(
    "anyio_backend",
    ["asyncio", pytest.param(("asyncio", {"loop_factory": uvloop.new_event_loop}), id="uvloop")],
)
Connect = Callable[..., Awaitable[PipelinedConnection]]


@pytest.fixture
async def connect(database_url: str, anyio_backend: object) -> AsyncIterator[Connect]:
    opened: list[PipelinedConnection] = []

    async def connect(url: str = database_url, **options: Any) -> PipelinedConnection:
        raw = await open_psycopg(parse_url(url), timeout=10, autocommit=True)
        opened.append(PipelinedConnection(raw, **options))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.abort()


@pytest.fixture
async def connection(connect: Connect) -> PipelinedConnection:
    return await connect()


async def ask(connection: PipelinedConnection, text: str, *parameters: Any) -> list[tuple[Any, ...]]:
    (result,) = await connection.run(Batch([Statement(text, parameters)]))
    return result.rows()


def begin(text: str, *parameters: Any, **options: Any) -> Batch:
    return Batch([Statement("BEGIN", prepare=False), Statement(text, parameters)], prelude=1, **options)


async def settled(*futures: asyncio.Future[list[Result]]) -> list[Any]:
    """Rows of the last statement, or the error, of each."""
    ends = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 10)
    return [end if isinstance(end, BaseException) else end[-1].rows() if end else [] for end in ends]


# -- whose answer is whose ---------------------------------------------------------------------------------------


async def test_a_deferred_constraint_fails_its_own_segment_alone(connection: PipelinedConnection) -> None:
    await ask(connection, "create table parent (id int primary key)")
    await ask(
        connection,
        "create table child (parent int references parent deferrable initially deferred, mark int)",
    )
    insert = "insert into child values ($1::int, $2::int) returning mark"
    futures = [
        connection.send(Batch([Statement("select 'before'")])),
        connection.send(Batch([Statement(insert, (404, 1))])),
        connection.send(Batch([Statement("select 'after'")])),
        connection.send(Batch([Statement(insert, (405, 2))])),
        connection.send(Batch([Statement("select 'last'")])),
    ]
    ends = await settled(*futures)
    assert [ends[0], ends[2], ends[4]] == [[("before",)], [("after",)], [("last",)]]
    assert isinstance(ends[1], sql.ForeignKeyViolation)
    assert isinstance(ends[3], sql.ForeignKeyViolation)
    assert await ask(connection, "select count(*) from child") == [(0,)]


async def test_a_serialization_failure_at_commit_fails_its_own_segment_alone(connect: Connect) -> None:
    one, other = await connect(), await connect()
    await ask(one, "create table t (id int primary key, n int)")
    await ask(one, "insert into t values (1, 0), (2, 0)")
    for connection in (one, other):
        await ask(connection, "set default_transaction_isolation = serializable")
    await other.run(begin("select sum(n) from t"))
    await one.run(begin("select sum(n) from t"))
    await one.run(Batch([Statement("update t set n = 1 where id = 1")]))
    await other.run(Batch([Statement("update t set n = 1 where id = 2")]))
    await one.run(Batch([Statement("COMMIT", prepare=False)]))
    failed, rows = await settled(
        other.send(Batch([Statement("COMMIT", prepare=False)])),
        other.send(Batch([Statement("select 'a stranger''s'")])),
    )
    assert isinstance(failed, sql.SerializationFailure)
    assert rows == [("a stranger's",)]


async def test_an_error_stops_the_rest_of_its_segment_and_nothing_else(
    connection: PipelinedConnection,
) -> None:
    await ask(connection, "create table t (n int)")
    failing = Batch(
        [
            Statement("insert into t values (1)"),
            Statement("select 1 / $1::int", (0,)),
            Statement("insert into t values (2)"),
        ]
    )
    failed, rows = await settled(
        connection.send(failing), connection.send(Batch([Statement("select count(*) from t")]))
    )
    assert isinstance(failed, sql.DivisionByZero)
    assert failing.failed_at == 1
    assert failing.answered
    assert rows == [(0,)], "outside a transaction a segment is one of its own"
    assert connection.transaction_status == TransactionStatus.IDLE


async def test_a_thousand_callers_get_their_own_rows(connection: PipelinedConnection) -> None:
    async def call(number: int) -> None:
        if number % 7 == 0:
            with pytest.raises(sql.DivisionByZero):
                await ask(connection, "select 1 / ($1::int - $1::int)", number)
        elif number % 5 == 0:
            assert await ask(connection, "select g from generate_series(1, $1) g", number) == [
                (n + 1,) for n in range(number)
            ]
        else:
            assert await ask(connection, "select $1::int, repeat($2, 50)", number, "x") == [
                (number, "x" * 50)
            ]

    await asyncio.gather(*(call(number) for number in range(1, 1000)))
    assert connection.pending == 0


async def test_a_bare_sync_proves_the_connection(connection: PipelinedConnection) -> None:
    assert await connection.run(Batch([])) == []


async def test_the_answer_to_begin_comes_before_its_statement_ends(
    connection: PipelinedConnection, pg: Observer
) -> None:
    slow = begin("select pg_sleep(0.5)", ping=True)
    future = connection.send(slow)
    await pg.wait_until(lambda: _is(slow.answered))
    assert not future.done()
    await future


async def _is(value: bool) -> bool:
    return value


# -- transactions ------------------------------------------------------------------------------------------------


async def test_an_unwaited_rollback_goes_before_the_next_begin(connection: PipelinedConnection) -> None:
    await ask(connection, "create table t (n int)")
    await connection.run(begin("insert into t values (1)"))
    connection.post(Batch([Statement("ROLLBACK", prepare=False)]))
    (_, rows) = await connection.run(begin("select count(*) from t"))
    assert rows.rows() == [(0,)]
    assert connection.transaction_status == TransactionStatus.INTRANS


async def test_what_travels_with_the_next_is_not_late_before_it_has_gone_out(
    connection: PipelinedConnection,
) -> None:
    """The program keeps the event loop busy in between, for longer than the answer may take."""
    for pause in (0, 0.01):
        await ask(connection, "begin")
        connection.post(Batch([Statement("ROLLBACK", prepare=False)], limit=0.2), lingers=True)
        time.sleep(0.3)  # noqa: ASYNC251 - that is the fault
        await asyncio.sleep(pause)
        assert await ask(connection, "select 1") == [(1,)]
        assert connection.transaction_status == TransactionStatus.IDLE


async def test_sending_from_a_thread_without_an_event_loop_says_so(connection: PipelinedConnection) -> None:
    with pytest.raises(WrongEventLoop, match="another event loop"):
        await asyncio.to_thread(connection.send, Batch([]))
    assert await ask(connection, "select 1") == [(1,)]


async def test_what_nobody_waits_for_ends_the_connection_where_it_fails(
    connection: PipelinedConnection,
) -> None:
    connection.post(Batch([Statement("no such command", prepare=False)]))
    (after,) = await settled(connection.send(Batch([Statement("select 1")])))
    assert isinstance(after, ConnectionClosed)
    assert connection.closed


async def test_commit_of_a_failed_transaction_says_rollback(connection: PipelinedConnection) -> None:
    await settled(connection.send(begin("select 1/0")))
    (result,) = await connection.run(Batch([Statement("COMMIT", prepare=False)]))
    assert result.tag == "ROLLBACK"


# -- prepared statements -----------------------------------------------------------------------------------------


async def prepared(connection: PipelinedConnection) -> int:
    ((count,),) = await ask(
        connection, "select count(*) from pg_prepared_statements where statement like '%/*m' || '*/%'"
    )
    return count


async def test_a_statement_is_prepared_when_it_comes_again(connection: PipelinedConnection) -> None:
    counts = []
    for _ in range(3):
        await ask(connection, "select 1 /*m*/")
        counts.append(await prepared(connection))
    assert counts == [0, 1, 1]


async def test_the_least_used_are_forgotten_on_the_server_too(connect: Connect) -> None:
    connection = await connect(statements=5)
    for number in range(20):
        for _ in range(2):
            await ask(connection, f"select {number} /*m*/")
    assert 1 <= await prepared(connection) <= 5
    assert len(connection.statements) == 5


async def test_behind_a_transaction_pooler_nothing_is_prepared(connect: Connect) -> None:
    connection = await connect(keeps_statements=False)
    for _ in range(3):
        await ask(connection, "select 1 /*m*/")
    assert await prepared(connection) == 0


@pytest.mark.parametrize("inside", [False, True])
async def test_ddl_under_a_prepared_statement(connection: PipelinedConnection, inside: bool) -> None:
    await ask(connection, "create table t (a int)")
    await ask(connection, "insert into t values (1)")
    for _ in range(3):
        assert await ask(connection, "select * from t") == [(1,)]
    await ask(connection, "alter table t add b text default 'new'")
    if inside:
        results = await connection.run(begin("select * from t"))
        assert results[1].rows() == [(1, "new")]
        assert connection.transaction_status == TransactionStatus.INTRANS
    else:
        assert await ask(connection, "select * from t") == [(1, "new")]


async def test_ddl_between_the_first_execution_and_the_second(connection: PipelinedConnection) -> None:
    await ask(connection, "create type colour as enum ('red')")
    await ask(connection, "create table t (a int)")
    assert await ask(connection, "select a from t") == []
    await ask(connection, "alter table t alter a type colour using 'red'")
    await ask(connection, "insert into t values ('red')")
    for _ in range(3):
        assert await ask(connection, "select a from t") == [("red",)]


async def test_ddl_in_the_middle_of_a_transaction_is_an_error_and_nothing_is_repeated(
    connection: PipelinedConnection,
) -> None:
    await ask(connection, "create table t (a int)")
    for _ in range(2):
        await ask(connection, "select * from t")
    await connection.run(begin("alter table t add b int"))
    with pytest.raises(sql.FeatureNotSupported):
        await ask(connection, "select * from t")
    await ask(connection, "rollback")
    assert await ask(connection, "select * from t") == []


async def test_a_statement_that_the_server_forgot_is_prepared_anew(connection: PipelinedConnection) -> None:
    for _ in range(2):
        await ask(connection, "select 1 /*m*/")
    async with connection.plain() as raw:
        await raw.execute("discard all")
    connection.refused_tags = frozenset({b"BEGIN"})  # a shared one: nothing of a segment has taken effect
    rows = await settled(*(connection.send(Batch([Statement("select 1 /*m*/")])) for _ in range(3)))
    assert rows == [[(1,)]] * 3
    assert await prepared(connection) == 1


async def test_a_parse_that_fails_registers_nothing(connection: PipelinedConnection) -> None:
    for _ in range(3):
        with pytest.raises(sql.UndefinedTable):
            await ask(connection, "select * from later")
    await ask(connection, "create table later (n int)")
    assert await ask(connection, "select * from later") == []


EVERY_TYPE = """
    select 1::int2, 2::int4, 3::int8, 1.5::float4, 2.5::float8, 1.10::numeric, 'nan'::numeric, true, 'text',
    'v'::varchar,
    'c'::char(3), 'n'::name, 'k'::"char", '\\x00ff'::bytea, '2026-01-02'::date, '03:04:05.6'::time,
    '03:04:05+02'::timetz,
    '2026-01-02 03:04:05'::timestamp, '2026-01-02 03:04:05+00'::timestamptz, '1 year 2 days 3 s'::interval,
    '12345678-1234-5678-1234-567812345678'::uuid, '{"a": [1]}'::json, '{"b": null}'::jsonb, '10.0.0.1'::inet,
    '10.0.0.0/8'::cidr, '{1,2,null}'::int[], '{a,"b c"}'::text[], '[1,5)'::int4range, '{[1,2),[5,9)}'::int4multirange,
    row(1, 'x'), null, 'red'::colour, '{red}'::colour[], 1::oid, '(1,2)'::point, '101'::bit(3),
    '12.5'::money, 'pg_class'::regclass, 'fat & rat'::tsquery, '16/B374D848'::pg_lsn
"""


async def test_every_type_is_the_same_on_every_execution(connection: PipelinedConnection) -> None:
    await ask(connection, "create type colour as enum ('red', 'green')")
    rows = [await ask(connection, EVERY_TYPE) for _ in range(3)]
    assert repr(rows[1]) == repr(rows[0])  # by text: a NaN is not equal to itself
    assert repr(rows[2]) == repr(rows[0])
    assert [type(value) for value in rows[2][0]] == [type(value) for value in rows[0][0]]
    assert rows[0][0][31:33] == ("red", "{red}")


async def test_a_loader_of_the_users_own_is_used_on_every_execution(connection: PipelinedConnection) -> None:
    async with connection.plain() as raw:
        raw.adapters.register_loader("numeric", psycopg.types.numeric.FloatLoader)
    for _ in range(3):
        ((value,),) = await ask(connection, "select 1.5::numeric")
        assert type(value) is float


async def test_parameters_of_every_kind(connection: PipelinedConnection) -> None:
    values = (7, 2**40, 1.5, "text", None, b"\0bytes", [1, 2], True)
    text = "select $1::int, $2::bigint, $3::float8, $4::text, $5::text, $6::bytea, $7::int[], $8::bool"
    for _ in range(3):
        assert await ask(connection, text, *values) == [values]


async def test_what_cannot_be_adapted_is_not_sent(connection: PipelinedConnection) -> None:
    with pytest.raises(psycopg.ProgrammingError):
        await ask(connection, "select $1", object())
    assert await ask(connection, "select 1") == [(1,)]


# -- large results -----------------------------------------------------------------------------------------------


async def test_two_hundred_megabytes_are_refused_without_being_held(connection: PipelinedConnection) -> None:
    big = Batch([Statement("select repeat('x', 20000) from generate_series(1, 10000)")], byte_limit=2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused, rows = await asyncio.wait_for(
        asyncio.gather(
            connection.send(big),
            connection.send(Batch([Statement("select 'next'")], byte_limit=2**24)),
            return_exceptions=True,
        ),
        30,
    )
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert isinstance(refused, ResultTooLarge)
    assert isinstance(rows, list)
    assert rows[0].rows() == [("next",)]
    assert grown < 100, f"{grown:.0f} MB for a limit of 16"


async def test_rows_below_the_limit_are_all_there(connection: PipelinedConnection) -> None:
    for count in (0, 1, 63, 64, 65, 128, 1000):
        statement = Statement("select g, 'x' as x from generate_series(1, $1::int) g", (count,))
        (first, second) = await connection.run(Batch([statement, statement], byte_limit=2**24))
        assert first.rows() == second.rows() == [(n + 1, "x") for n in range(count)]
        assert first.names == ("g", "x")
        assert first.tag == f"SELECT {count}"


async def test_an_error_after_half_of_the_rows(connection: PipelinedConnection) -> None:
    text = "select 1 / (500 - g) from generate_series(1, 1000) g"
    failed, rows = await settled(
        connection.send(Batch([Statement(text)], byte_limit=2**24)),
        connection.send(Batch([Statement("select 1")], byte_limit=2**24)),
    )
    assert isinstance(failed, sql.DivisionByZero)
    assert rows == [(1,)]


@on_both_loops
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
async def test_no_answer_gets_stuck(
    connect: Connect, server: EmbeddedPostgres, database_url: str, tmp_path: Path, encrypted: bool
) -> None:
    """Answers of all sizes, so that some end in the middle of a TLS record; a stall would be a timeout here."""
    async with AsyncExitStack() as stack:
        url = database_url
        if encrypted:
            front = await stack.enter_async_context(TlsFront("127.0.0.1", server.port, self_signed(tmp_path)))
            url = database_url.replace(f":{server.port}/", f":{front.port}/") + "?sslmode=require"
        connection = await connect(url)
        assert bool(connection.pgconn.ssl_in_use) is encrypted

        async def call(number: int) -> None:
            size = (number * 7919) % 200_000 if number % 10 == 0 else number % 3000
            ((text,),) = await ask(connection, "select repeat('x', $1::int)", size)
            assert len(text) == size

        async with asyncio.timeout(60):
            for start in range(0, 1200, 40):
                await asyncio.gather(*(call(number) for number in range(start, start + 40)))
            echo = "y" * 3_000_000  # larger than any buffer: both directions at once
            assert await ask(connection, "select $1::text", echo) == [(echo,)]


# -- psycopg's own connection ------------------------------------------------------------------------------------


@on_both_loops
async def test_copy_and_cursors_between_segments(connection: PipelinedConnection) -> None:
    await ask(connection, "create table t (n int)")
    before = connection.send(Batch([Statement("select pg_sleep(0.05)")]))
    async with connection.plain() as raw:
        assert before.done()
        meanwhile = connection.send(Batch([Statement("select count(*) from t")]))
        async with raw.cursor() as cursor, cursor.copy("copy t from stdin") as copy:
            for number in range(100):
                await copy.write_row((number,))
        assert not meanwhile.done()
    assert (await meanwhile)[0].rows() == [(100,)]
    assert await ask(connection, "select max(n) from t") == [(99,)]


async def test_a_block_that_ends_in_the_middle_of_a_copy_ends_the_connection(
    connection: PipelinedConnection,
) -> None:
    await ask(connection, "create table t (n int)")
    async with connection.plain() as raw:
        raw.pgconn.send_query(b"select pg_sleep(10)")
        raw.pgconn.flush()
        waiting = connection.send(Batch([Statement("select 1")]))
    assert connection.closed
    (end,) = await settled(waiting)
    assert isinstance(end, ConnectionClosed)
    assert not end.sent


async def test_a_cancel_hits_what_runs_and_not_what_comes_next(connection: PipelinedConnection) -> None:
    for _ in range(20):
        running = connection.send(Batch([Statement("select pg_sleep(10)")]))
        cancelling = asyncio.create_task(connection.cancel(5))
        await asyncio.sleep(0)
        after = connection.send(Batch([Statement("select 'untouched' from pg_sleep(0.002)")]))
        await cancelling
        first, second = await settled(running, after)
        assert isinstance(first, sql.QueryCanceled)
        assert second == [("untouched",)]


# -- the end of a connection -------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize("how", ["fin", "reset", "terminated", "abort"])
async def test_every_future_is_settled(
    connect: Connect, proxied_url: str, proxy: FaultProxy, pg: Observer, how: str
) -> None:
    connection = await connect(proxied_url)
    ended: list[str] = []
    connection.when_ended(lambda: ended.append("told"))
    futures = [connection.send(Batch([Statement("select pg_sleep(10)")])) for _ in range(5)]
    await pg.wait_until(lambda: _sleeping(pg))
    match how:
        case "terminated":
            await pg.terminate()
        case "abort":
            connection.abort()
        case _:
            proxy.drop_all(reset=how == "reset")
    ends = await settled(*futures)
    assert all(isinstance(end, ConnectionClosed) and end.sent for end in ends)
    if how == "terminated":
        assert {end.sqlstate for end in ends} == {"57P01"}
    assert ended == ["told"]
    assert connection.closed
    with pytest.raises(ConnectionClosed) as late:
        await ask(connection, "select 1")
    assert not late.value.sent


async def _sleeping(pg: Observer) -> bool:
    return any("pg_sleep" in backend.query for backend in await pg.backends())


@on_both_loops
async def test_an_idle_connection_notices_its_end_at_once(
    connect: Connect, proxied_url: str, proxy: FaultProxy
) -> None:
    connection = await connect(proxied_url)
    told = asyncio.Event()
    connection.when_ended(told.set)
    proxy.drop_all()
    await asyncio.wait_for(told.wait(), 5)
    assert connection.closed


async def test_what_was_answered_before_the_end_counts(
    connect: Connect, proxied_url: str, proxy: FaultProxy
) -> None:
    connection = await connect(proxied_url)
    await ask(connection, "select 1")
    proxy.links[0].down = proxy.links[0].up.__class__(delay=0.1)
    first = connection.send(Batch([Statement("select repeat('x', 100000)")]))
    second = connection.send(Batch([Statement("select pg_terminate_backend(pg_backend_pid())")]))
    rows, gone = await settled(first, second)
    assert rows == [("x" * 100000,)]
    assert isinstance(gone, ConnectionClosed)
    assert gone.sqlstate == "57P01"


async def test_a_silent_server_is_given_up_at_the_limit_of_the_head(
    connect: Connect, proxied_url: str, proxy: FaultProxy
) -> None:
    connection = await connect(proxied_url)
    proxy.mode = Mode.SILENT
    futures = [connection.send(Batch([Statement("select 1")], limit=0.2)) for _ in range(3)]
    first, *others = await settled(*futures)
    assert isinstance(first, BatchTimeout)
    assert all(isinstance(end, ConnectionClosed) and not isinstance(end, BatchTimeout) for end in others)


async def test_the_clock_of_a_segment_starts_when_it_is_at_the_head(connection: PipelinedConnection) -> None:
    ends = await settled(
        *(connection.send(Batch([Statement("select pg_sleep(0.3)")], limit=0.8)) for _ in range(4))
    )
    assert ends == [[("",)]] * 4


async def test_a_command_that_strangers_would_feel_ends_the_connection(
    connection: PipelinedConnection,
) -> None:
    connection.refused_tags = frozenset({b"BEGIN"})
    before, offender, after = await settled(
        connection.send(Batch([Statement("select 'before'")])),
        connection.send(Batch([Statement("/* hidden */ begin")])),
        connection.send(Batch([Statement("select 'after'")])),
    )
    assert before == [("before",)]
    assert isinstance(offender, SessionModified)
    assert isinstance(after, ConnectionClosed)
    assert not isinstance(after, SessionModified)


async def test_copy_in_a_pipeline_ends_the_connection_and_not_the_program(
    connection: PipelinedConnection,
) -> None:
    await ask(connection, "create table t (n int)")
    for text in ("copy t from stdin", "copy t to stdout"):
        (end,) = await settled(connection.send(Batch([Statement(text)])))
        assert isinstance(end, psycopg.Error)
        if connection.closed:
            break
    assert connection.closed


async def test_a_cancelled_caller_leaves_the_others_their_answers(connection: PipelinedConnection) -> None:
    first = asyncio.create_task(connection.run(Batch([Statement("select pg_sleep(0.1), 'first'")])))
    second = asyncio.create_task(connection.run(Batch([Statement("select 'second'")])))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second)[0].rows() == [("second",)]
    with pytest.raises(asyncio.CancelledError):
        await first


# -- what raises while a connection ends ---------------------------------------------------------------------------


async def test_a_creators_plain_connection_that_the_server_ends_settles_its_statement(
    database_url: str, pg: Observer
) -> None:
    raw = await psycopg.AsyncConnection.connect(database_url, autocommit=True)
    connection = PipelinedConnection(raw)
    running = connection.send(Batch([Statement("select pg_sleep(30)")]))
    behind = connection.send(Batch([Statement("select 1")]))
    await pg.wait_until(lambda: _is_active(pg))
    await pg.terminate(connection.pgconn.backend_pid)
    for end in await settled(running, behind):
        assert isinstance(end, ConnectionClosed)
        assert end.sqlstate == "57P01"
    assert raw.closed
    connection.abort()


async def _is_active(pg: Observer) -> bool:
    return any(backend.state == "active" for backend in await pg.backends())


def _fail(*_args: object) -> Any:
    raise RuntimeError("injected")


def _leaving_the_loop(connection: PipelinedConnection, _segment: Batch) -> None:
    leave = connection._leave_loop

    def fail() -> None:
        leave()
        _fail()

    connection._leave_loop = fail  # type: ignore[method-assign]


def _the_driver(connection: PipelinedConnection, _segment: Batch) -> None:
    raw: Any = connection.psycopg_connection
    abort = raw.abort

    def fail() -> None:
        abort()
        _fail()

    raw.abort = fail


def _a_callback(_connection: PipelinedConnection, segment: Batch) -> None:
    segment.on_settled = _fail


def _a_listener(connection: PipelinedConnection, _segment: Batch) -> None:
    connection.when_ended(_fail)


def _what_looks_at_answers(connection: PipelinedConnection, _segment: Batch) -> None:
    connection.after_answers = _fail


@pytest.mark.parametrize(
    "raises", [_leaving_the_loop, _the_driver, _a_callback, _a_listener, _what_looks_at_answers]
)
async def test_whatever_raises_while_a_connection_ends_every_statement_is_settled(
    connection: PipelinedConnection, pg: Observer, raises: Callable[[PipelinedConnection, Batch], None]
) -> None:
    reported = _reports()
    first, ended = Batch([Statement("select pg_sleep(30)")]), []
    raises(connection, first)
    connection.when_ended(lambda: ended.append(True))
    futures = [connection.send(first), connection.send(Batch([Statement("select 1")]))]
    await pg.wait_until(lambda: _is_active(pg))
    await pg.terminate(connection.pgconn.backend_pid)
    assert all(isinstance(end, ConnectionClosed) for end in await settled(*futures))
    assert ended == [True], "who waits for the end is told of it"
    assert set(map(str, reported)) == {"injected"}, "and what raised is not lost"


async def test_an_answer_that_cannot_be_taken_ends_the_connection_and_settles_what_is_on_it(
    connection: PipelinedConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steadypool.pipeline.in_flight.InFlightBatch.take", _fail)
    futures = [connection.send(Batch([Statement(f"select {n}")])) for n in range(2)]
    for end in await settled(*futures):
        assert isinstance(end, ConnectionClosed)
        assert str(end.__cause__) == "injected"
    assert connection.closed


async def test_a_statement_that_cannot_be_sent_again_is_settled(
    connection: PipelinedConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        await ask(connection, "select 1 as one")
    await connection.execute("do $$ begin execute 'deallocate all'; end $$")  # which the tag does not tell
    put = connection._put

    def once(segment: Batch, *, roll_back: bool = False) -> None:
        _fail() if segment.repeated else put(segment, roll_back=roll_back)

    monkeypatch.setattr(connection, "_put", once)
    (end,) = await settled(connection.send(Batch([Statement("select 1 as one")])))
    assert str(end) == "injected"
    assert await ask(connection, "select 2") == [(2,)]


async def test_what_was_held_back_is_settled_where_the_connection_cannot_go_on(
    connection: PipelinedConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connection.plain():
        held = connection.send(Batch([Statement("select 1")]))
        monkeypatch.setattr(connection, "_enter", _fail)
    (end,) = await settled(held)
    assert isinstance(end, ConnectionClosed)
    assert connection.closed


async def test_what_looks_at_answers_may_raise_and_the_next_statement_is_answered(
    connection: PipelinedConnection,
) -> None:
    reported = _reports()
    connection.after_answers = _fail
    assert await ask(connection, "select 1") == [(1,)]
    assert await settled(*(connection.send(Batch([Statement(f"select {n}")])) for n in range(2))) == [
        [(0,)],
        [(1,)],
    ]
    assert set(map(str, reported)) == {"injected"}


def _reports() -> list[Any]:
    """The exceptions that the event loop is told of."""
    reported: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: reported.append(context.get("exception")))
    return reported
