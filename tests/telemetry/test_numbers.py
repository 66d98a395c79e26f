"""Every number equals what the test did, and what pg_stat_activity says, in every destination."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from conditions import until
from steadypool import Database, DatabaseSettings, deadline, errors
from steadypool.events import StatementFinished
from steadypool.sqlalchemy import create_async_engine, source_of
from steadypool.telemetry.prometheus import PoolCollector
from steadypool.telemetry.tally import MOST_KINDS
from steadypool_lab import FaultProxy
from steadypool_lab.network.proxy import Mode
from steadypool_lab.testing import Observer

from .conftest import MakeDatabase, Seen

pytestmark = pytest.mark.anyio

NOTHING = {"used": 0, "idle": 0, "opening": 0, "closing": 0}


async def ask(db: Database, sql: str = "select 1", **options: Any) -> None:
    async with db.session(**options) as session:
        await session.execute(text(sql))


async def agrees(seen: Seen, pg: Observer) -> dict[str, float]:
    """What is reported, when the server says the same: it lets go of connections a moment after we do."""
    counts = NOTHING

    async def equal() -> bool:
        nonlocal counts
        counts = seen.connections
        open_now = counts["used"] + counts["idle"]
        return (
            counts["opening"] + counts["closing"] == 0
            and len(await pg.backends()) == open_now
            and seen.connections == counts
        )

    await pg.wait_until(equal)
    return counts


async def test_all_nine_metrics_of_the_conventions_are_there(db: Database, seen: Seen) -> None:
    await ask(db)
    data: Any = seen.reader.get_metrics_data()
    units = {
        metric.name: metric.unit
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    conventions = {
        "db.client.connection.count": "{connection}",
        "db.client.connection.idle.max": "{connection}",
        "db.client.connection.idle.min": "{connection}",
        "db.client.connection.max": "{connection}",
        "db.client.connection.pending_requests": "{request}",
        "db.client.connection.timeouts": "{timeout}",
        "db.client.connection.create_time": "s",
        "db.client.connection.wait_time": "s",
        "db.client.connection.use_time": "s",
        "db.client.operation.duration": "s",
    }
    assert units.items() >= conventions.items()
    assert seen.value("db.client.connection.timeouts") == 0
    assert {point.value for name, point in seen.points() if name == "db.client.connection.timeouts"} == {0}
    assert seen.value("db.client.connection.idle.max") == 2
    assert seen.value("db.client.connection.idle.min") == 0
    assert seen.value("db.client.connection.max") == 3


async def test_connections_by_state(db: Database, seen: Seen, pg: Observer) -> None:
    assert await agrees(seen, pg) == NOTHING
    async with db.session() as one, db.connection():
        await one.execute(text("select 1"))
        assert await agrees(seen, pg) == NOTHING | {"used": 2}
        async with db.connection():
            assert await agrees(seen, pg) == NOTHING | {"used": 3}
            assert seen.value("steadypool.pool.utilization") == 1.5
        assert await agrees(seen, pg) == NOTHING | {"used": 2, "idle": 1}
    assert await agrees(seen, pg) == NOTHING | {"idle": 2}
    assert seen.value("db.client.connection.create_time") == 3
    assert seen.value("db.client.connection.wait_time") == 3
    assert seen.value("db.client.connection.use_time") == 3


async def test_after_a_detach(db: Database, seen: Seen, pg: Observer) -> None:
    async with db.engine.connect() as connection:
        raw: Any = await connection.get_raw_connection()
        raw.detach()
        assert len(await pg.backends()) == 1
        await asyncio.sleep(0)
        # It is the caller's own from now on.
        assert seen.connections["used"] == seen.connections["idle"] == 0
    assert await agrees(seen, pg) == NOTHING


async def test_after_a_dispose_with_one_out(db: Database, seen: Seen, pg: Observer) -> None:
    async with db.connection(), db.session() as session:
        await session.execute(text("select 1"))
        await db.engine.dispose()
        assert await agrees(seen, pg) == NOTHING | {"used": 2}
        await session.commit()
        assert await agrees(seen, pg) == NOTHING | {"used": 1}
        async with db.connection():
            assert await agrees(seen, pg) == NOTHING | {"used": 2}
    await agrees(seen, pg)
    assert seen.connections["used"] == 0
    await ask(db)
    assert await agrees(seen, pg) == NOTHING | {"idle": 1}


async def test_after_the_server_killed_backends(db: Database, seen: Seen, pg: Observer) -> None:
    async with db.connection() as one, db.connection(), db.connection():
        await pg.terminate()
        with pytest.raises(errors.ConnectionLost):
            await one.fetch("select 1")
    assert await agrees(seen, pg) == NOTHING
    async with db.connection(), db.connection():
        pass
    assert await agrees(seen, pg) == NOTHING | {"idle": 2}
    # Those that nobody used when they died were found dead, or were seen to be when they came back.
    idle = seen.value("steadypool.connection.lost", steadypool__cause="idle")
    await pg.terminate()
    assert await agrees(seen, pg) == NOTHING
    assert seen.value("steadypool.connection.lost", steadypool__cause="idle") == idle + 2
    assert seen.value("steadypool.connection.lost") == idle + 3
    assert db.stats().totals.connections_lost == 1


async def test_two_pools_on_one_url(
    db: Database, seen: Seen, make_db: MakeDatabase, database_url: str, pg: Observer
) -> None:
    other = make_db(database_url)
    stop = seen.watch(other.source)
    async with db.connection(), other.connection(), other.connection():
        used = [
            seen.value("db.client.connection.count", pool=pool, db__client__connection__state="used")
            for pool in ("main", "main-2")
        ]
        assert used == [1, 2]
        assert len(await pg.backends()) == 3
    await other.close()
    stop()
    assert seen.value("db.client.connection.count", pool="main-2") == 0


async def test_those_who_wait_and_those_who_gave_up(db: Database, seen: Seen) -> None:
    async with db.connection(), db.connection(), db.connection():
        waiting = [asyncio.create_task(ask(db)) for _ in range(4)]
        while db.stats().pool.waiting < 4:
            await asyncio.sleep(0)
        assert seen.value("db.client.connection.pending_requests") == 4
        waiting[0].cancel()
        waiting[1].cancel()
        await asyncio.wait(waiting[:2])
        assert seen.value("db.client.connection.pending_requests") == 2
        results = await asyncio.gather(*waiting[2:], return_exceptions=True)
        assert all(isinstance(result, errors.PoolTimeout) for result in results)
    assert seen.value("db.client.connection.pending_requests") == 0
    assert seen.value("db.client.connection.timeouts") == 2
    assert seen.value("db.client.connection.timeouts", error__type="PoolTimeout") == 2
    assert seen.value("steadypool.acquire.failures") == 2
    assert db.stats().totals.pool_timeouts == 2


async def test_each_way_to_go_without_is_counted_by_its_name(
    make_db: MakeDatabase, database_url: str, seen: Seen
) -> None:
    db = make_db(database_url, pool_size=1, max_overflow=0, max_waiting=1)
    stop = seen.watch(db.source)
    async with db.connection():
        for _ in range(3):
            with pytest.raises(errors.DeadlineExceeded), deadline(0.02):
                await ask(db)
        waiting = asyncio.create_task(ask(db))
        while not db.stats().pool.waiting:
            await asyncio.sleep(0)
        for _ in range(2):
            with pytest.raises(errors.PoolQueueFull):
                await ask(db)
        with pytest.raises(errors.PoolTimeout):
            await waiting
    by_name = {"DeadlineExceeded": 3, "PoolQueueFull": 2, "PoolTimeout": 1}
    for name, number in by_name.items():
        assert seen.value("steadypool.acquire.failures", error__type=name) == number
    assert seen.value("db.client.connection.timeouts") == 4
    stop()


async def test_statements_by_how_they_ended(db: Database, seen: Seen) -> None:
    db.workload("strict", statement_timeout=0.1)
    await ask(db, "create table t (id int primary key)")  # rolled back
    async with db.connection() as connection:
        await connection.execute("create table t (id int primary key)")
    for _ in range(3):
        async with db.session() as session:
            await session.execute(text("insert into t values (1) on conflict do nothing"))
            await session.commit()
    for _ in range(2):
        with pytest.raises(IntegrityError):
            await ask(db, "insert into t values (1)")
    for _ in range(2):
        with pytest.raises(errors.StatementTimeout):
            await ask(db, "select pg_sleep(3)", workload="strict")
    duration = "db.client.operation.duration"
    assert seen.value(duration, db__operation__name="INSERT", db__query__summary="INSERT t") == 5
    assert seen.value(duration, db__response__status_code="23505", error__type="IntegrityError") == 2
    assert seen.value(duration, error__type="StatementTimeout", steadypool__workload="strict") == 2
    assert seen.value(duration, db__operation__name="COMMIT") == 3
    assert seen.value(duration, steadypool__way="dedicated") == 1
    assert seen.value("steadypool.statement.timeouts", steadypool__workload="strict") == 2
    assert db.stats().totals.statement_timeouts == 2


async def test_failed_connects_by_cause(
    make_db: MakeDatabase, database_url: str, proxied_url: str, proxy: FaultProxy, seen: Seen
) -> None:
    cases = {
        "password": database_url.replace(":", ":x", 2).replace("postgresql:x", "postgresql:"),
        "no such database": database_url + "_that_is_not_there",
        "name": "postgresql://a:b@no-such-host.invalid/x",
        "refused": proxied_url,
    }
    proxy.mode = Mode.REFUSE
    for cause, url in cases.items():
        db = make_db(url, pool_timeout=0.3, connection_timeout=0.3)
        stop = seen.watch(db.source)
        for _ in range(2):
            with pytest.raises(errors.ConnectFailed):
                await ask(db)
        attempts = db.stats().totals.connect_failures
        assert attempts > 0
        assert seen.value("steadypool.connect.failures", steadypool__cause=cause) == attempts, cause
        assert seen.value("steadypool.connect.failures") == attempts
        assert seen.value("steadypool.acquire.failures") == 2
        assert seen.value("steadypool.breaker.open") == 1
        assert seen.value("steadypool.breaker.changes", steadypool__cause="open") == 1
        await db.close()
        stop()


async def test_leaks_are_counted(make_db: MakeDatabase, database_url: str, seen: Seen) -> None:
    db = make_db(database_url, leak_after=0.05)
    stop = seen.watch(db.source)
    async with db.connection(), db.connection():
        while db.stats().totals.leaks < 2:
            await asyncio.sleep(0.01)
    assert seen.value("steadypool.leaks") == 2
    stop()


async def test_the_listener_is_reported(db: Database, seen: Seen, pg: Observer) -> None:
    assert seen.value("steadypool.listener.connected") == 0
    async with db.listen("changes") as notifications:
        async with asyncio.timeout(60):
            while not seen.value("steadypool.listener.connected"):
                await asyncio.sleep(0.01)
            await pg.terminate()
            await anext(aiter(notifications))
        assert seen.value("steadypool.listener.gaps") == db.stats().listener.gaps == 1  # type: ignore[union-attr]


async def test_an_engine_without_a_database(driver: str, database_url: str, seen: Seen, pg: Observer) -> None:
    engine = create_async_engine(
        database_url.replace("postgresql://", f"postgresql+{driver}://"), pool_name="own"
    )
    stop = seen.watch(source_of(engine))
    async with engine.connect() as connection:
        await connection.execute(text("select 1"))
        assert seen.value("db.client.connection.count", pool="own", db__client__connection__state="used") == 1
        assert seen.value("db.client.operation.duration", pool="own") == 1
    await engine.dispose()
    assert seen.value("db.client.connection.count", pool="own") == 0
    stop()


async def test_attributes_have_few_values(db: Database, seen: Seen) -> None:
    async with db.connection() as connection:
        for number in range(150):
            await connection.execute(f"create temporary table t{number} (a int)")
    data = seen.collector.render().decode()
    names = {line.partition('db_query_summary="')[2].partition('"')[0] for line in data.splitlines()}
    assert len(names) <= 102  # 100, `other` and the lines that have none
    assert seen.value("db.client.operation.duration", db__query__summary="other") == 50
    assert seen.value("db.client.operation.duration") == 150


async def test_no_combination_of_attributes_makes_more_series_than_that(make_db: MakeDatabase) -> None:
    db, collector = make_db("postgresql://app@127.0.0.1:1/nowhere"), PoolCollector()
    stop = collector.add(db.source)
    for table in range(40):
        for workload in range(40):
            db.events.emit(
                StatementFinished(
                    "main", 0.0, "[1] x", "session", 0.01, summary=f"SELECT t{table}", workload=f"w{workload}"
                )
            )
    counts = [
        float(line.rpartition(" ")[2])
        for line in collector.render().decode().splitlines()
        if line.startswith("db_client_operation_duration_seconds_count")
    ]
    assert sum(counts) == 1600
    assert len(counts) == MOST_KINDS + 1
    stop()


async def test_nothing_is_counted_after_the_stop(
    make_db: MakeDatabase, database_url: str, seen: Seen
) -> None:
    db = make_db(database_url)
    stop = seen.watch(db.source)
    await ask(db)
    stop()
    stop()
    await ask(db)
    assert seen.value("db.client.connection.count") == 0
    assert b'pool_name="main"' not in seen.collector.render()
    assert not db.events.wanted(metrics_event())
    assert len(seen.spans("SELECT")) == 1


def metrics_event() -> Any:
    from steadypool.events import WaitEnded

    return WaitEnded


async def test_statements_of_the_shared_way(database_url: str, anyio_backend: str, seen: Seen) -> None:
    settings = DatabaseSettings(url=database_url.replace("postgresql://", "postgresql+steadypool://"))
    async with Database(settings) as db:
        stop = seen.watch(db.source)
        rows = await asyncio.gather(*(db.fetch("select generate_series(1, $1::int)", 3) for _ in range(20)))
        assert [len(row) for row in rows] == [3] * 20
        with pytest.raises(Exception, match="division by zero"):
            await db.fetch("select 1 / $1::int", 0)
        assert seen.value("db.client.operation.duration", steadypool__way="shared") == 21
        assert seen.value("db.client.operation.duration") == 21
        assert seen.value("db.client.operation.duration", db__response__status_code="22012") == 1
        assert {span.attributes["db.response.returned_rows"] for span in seen.spans("SELECT")[:20]} == {3}  # type: ignore[index]
        assert seen.value("steadypool.multiplex.collateral") == 0
        stop()


@pytest.mark.parametrize("driver", ["steadypool"], indirect=True)
async def test_callers_of_the_shared_way_who_go_without(
    make_db: MakeDatabase, database_url: str, seen: Seen
) -> None:
    db = make_db(database_url, pool_size=1, max_overflow=0, shared_connections=1)
    stop = seen.watch(db.source)
    held, leave = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with db.connection():
            held.set()
            await leave.wait()

    holder = asyncio.create_task(hold())
    await held.wait()
    callers = [asyncio.create_task(db.fetchval("select 1")) for _ in range(3)]
    await until(lambda: db.stats().pool.waiting == 1)
    assert seen.value("db.client.connection.pending_requests") == 3, "one waits on behalf of all"
    ends = await asyncio.gather(*callers, return_exceptions=True)
    assert {type(end) for end in ends} == {errors.PoolTimeout}
    assert seen.value("steadypool.acquire.failures", error__type="PoolTimeout") == 3
    assert seen.value("steadypool.acquire.failures") == 3
    assert seen.value("db.client.connection.timeouts") == db.stats().totals.pool_timeouts == 3
    assert seen.value("db.client.operation.duration") == 0, "nothing was executed"
    failed = [span for span in seen.spans() if span.status.description == "PoolTimeout"]
    assert len(failed) == 3
    leave.set()
    await holder
    assert await db.fetchval("select 1") == 1
    assert seen.value("db.client.connection.pending_requests") == 0
    stop()


@pytest.mark.parametrize("driver", ["steadypool"], indirect=True)
async def test_a_shared_connection_dies_once_for_all_who_are_on_it(
    db: Database, seen: Seen, pg: Observer
) -> None:
    assert await db.fetchval("select 1") == 1
    callers = [asyncio.create_task(db.fetchval("select pg_sleep(20)")) for _ in range(2)]
    await pg.wait_until(lambda: anybody_sleeps(pg))
    await until(lambda: (shared := db.stats().shared) is not None and shared.connections == 2)
    lost = len(await pg.backends())
    await pg.terminate()
    ends = await asyncio.gather(*callers, return_exceptions=True)
    assert {type(end) for end in ends} == {errors.ConnectionLost}
    await until(lambda: db.stats().totals.connections_lost == lost)  # of the idle one a moment later
    assert seen.value("steadypool.connection.lost") == lost
    assert seen.value("db.client.operation.duration", error__type="ConnectionLost") == 2


async def anybody_sleeps(pg: Observer) -> bool:
    return any("pg_sleep" in str(backend) for backend in await pg.backends())


async def test_watching_twice_counts_once(db: Database, seen: Seen) -> None:
    again = seen.watch(db.source)
    await ask(db)
    assert seen.value("db.client.operation.duration") == 1
    assert seen.value("db.client.connection.count", pool="main-2") == 0
    assert len(seen.spans("SELECT")) == 1
    again()
    await ask(db)
    assert len(seen.spans("SELECT")) == 1
