"""Pool events: which are fired, in which order, how often, with what; and what happens when a handler fails."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from sqlalchemy import event, exc, text
from sqlalchemy.exc import SAWarning
from sqlalchemy.pool import Pool
from sqlalchemy.util import greenlet_spawn

import steadypool

pytestmark = pytest.mark.anyio


async def test_the_life_of_a_connection(make: Any, eventually: Any) -> None:
    engine, seen = make.recorded(pool_size=1, max_overflow=0)
    async with engine.connect() as connection:
        assert seen == ["first_connect", "connect", "checkout"]
        await connection.execute(text("select 1"))
    assert seen[3:] == ["reset", "checkin"]
    async with engine.connect():
        assert seen[5:] == ["checkout"]
    assert seen[6:] == ["reset", "checkin"]
    await engine.dispose()
    assert seen[8:] == ["close"]


async def test_each_connection_connects_and_only_one_is_the_first(make: Any) -> None:
    engine, seen = make.recorded("first_connect", "connect", "checkout")
    async with engine.connect(), engine.connect():
        assert sorted(seen) == ["checkout", "checkout", "connect", "connect", "first_connect"]
        assert seen[0] == "first_connect"


async def test_a_disposed_engine_begins_anew_with_its_listeners(make: Any) -> None:
    engine, seen = make.recorded("first_connect", "connect", "checkin")
    async with engine.connect():
        pass
    await engine.dispose()
    async with engine.connect():
        pass
    assert seen == ["first_connect", "connect", "checkin"] * 2


async def test_handlers_are_called_in_the_order_asked_for(make: Any) -> None:
    engine = make()
    seen: list[int] = []
    event.listen(engine.sync_engine, "connect", lambda *_: seen.append(1))
    event.listen(engine.sync_engine, "connect", lambda *_: seen.append(2), insert=True)
    event.listen(engine.sync_engine, "connect", lambda *_: seen.append(3))
    async with engine.connect():
        assert seen == [2, 1, 3]


async def test_a_handler_for_all_pools_is_called_for_this_one(make: Any) -> None:
    seen: list[Any] = []

    def on_checkout(dbapi_connection: Any, record: Any, proxy: Any) -> None:
        seen.append(proxy.dbapi_connection is dbapi_connection)

    event.listen(Pool, "checkout", on_checkout)
    try:
        async with make().connect():
            assert seen == [True]
    finally:
        event.remove(Pool, "checkout", on_checkout)


async def test_handlers_get_the_connection_and_its_record(make: Any) -> None:
    engine = make()
    got: dict[str, tuple[Any, ...]] = {}
    for name in ("connect", "checkout", "checkin", "reset", "close"):
        # bound by default arguments: SQLAlchemy counts the positional ones
        def keep(*arguments: Any, name: str = name) -> None:
            got[name] = arguments

        event.listen(engine.sync_engine, name, keep)
    async with engine.connect() as connection:
        proxy = await connection.get_raw_connection()
        dbapi_connection, driver_connection = proxy.dbapi_connection, proxy.driver_connection
    await engine.dispose()
    assert {arguments[0] for arguments in got.values()} == {dbapi_connection}
    assert len({id(arguments[1]) for arguments in got.values()}) == 1
    assert {name: len(arguments) for name, arguments in got.items()} == {
        "connect": 2,
        "checkout": 3,
        "checkin": 2,
        "reset": 3,
        "close": 2,
    }
    assert dbapi_connection.driver_connection is driver_connection


@pytest.mark.parametrize("use_transaction", [True, False])
async def test_reset_says_what_was_done_already(make: Any, use_transaction: bool) -> None:
    engine = make()
    states: list[Any] = []
    event.listen(engine.sync_engine, "reset", lambda _c, _r, state: states.append(state))
    async with engine.connect() as connection:
        if use_transaction:
            await connection.execute(text("select 1"))
    raw = await engine.raw_connection()
    raw.detach()
    await make.let_go(raw)
    states_of = [(s.transaction_was_reset, s.terminate_only, s.asyncio_safe) for s in states]
    assert states_of == [(use_transaction, False, True), (False, True, True)]


async def test_hard_invalidation(make: Any, eventually: Any) -> None:
    engine, seen = make.recorded("invalidate", "close", "reset", "checkin", "connect")
    reasons: list[Any] = []
    event.listen(engine.sync_engine, "invalidate", lambda _c, _r, reason: reasons.append(reason))
    reason = ValueError("because")
    connection = await engine.connect()
    await connection.invalidate(reason)
    assert seen == ["connect", "invalidate", "close", "checkin"]
    assert reasons == [reason]
    assert connection.invalidated
    await connection.rollback()
    await connection.execute(text("select 1"))
    assert not connection.invalidated
    await connection.close()
    assert seen[4:] == ["connect", "reset", "checkin"]


async def test_soft_invalidation(make: Any, eventually: Any) -> None:
    engine, seen = make.recorded("soft_invalidate", "invalidate", "close", "checkin", "connect", pool_size=1)
    connection = await engine.connect()
    raw = await connection.get_raw_connection()
    first = raw.driver_connection
    raw.invalidate(soft=True)
    assert seen == ["connect", "soft_invalidate"]
    await connection.execute(text("select 1"))  # it may still be used until it is given back
    await connection.close()
    async with engine.connect() as connection:
        assert (await connection.get_raw_connection()).driver_connection is not first
    await eventually(lambda: "close" in seen)
    extra = ["invalidate"] if make.differs("what is evicted says so") else []
    assert sorted(seen[2:]) == ["checkin", "checkin", "close", "connect", *extra]


async def test_detach(make: Any, counts: Any) -> None:
    engine, seen = make.recorded(
        "connect", "detach", "close", "close_detached", "reset", "checkin", pool_size=1, max_overflow=0
    )
    raw = await engine.raw_connection()
    assert counts(engine)[3] == 1
    raw.detach()
    assert seen == ["connect", "detach"]
    assert raw.is_detached
    assert raw.is_valid
    assert counts(engine)[3] == 0
    async with engine.connect():  # it does not count any more
        pass
    assert raw.driver_connection is None
    await make.let_go(raw)
    assert seen[2:] == [
        "connect",
        "reset",
        "checkin",
        "reset",
        *(["close_detached"] if make.terminates else []),
    ]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_garbage_collected_connection(make: Any, counts: Any, eventually: Any) -> None:
    engine, seen = make.recorded(
        "reset", "detach", "close", "close_detached", "checkin", pool_size=1, max_overflow=0
    )
    raw = await engine.raw_connection()
    with pytest.warns(SAWarning, match="garbage collector is trying to clean up"):
        del raw
        gc.collect()
    assert seen == ["reset", "detach", *(["close_detached"] if make.terminates else [])]
    await eventually(lambda: counts(engine)[3] == 0)
    async with engine.connect() as connection:
        await connection.execute(text("select 1"))


@pytest.mark.parametrize("failing", ["connect", "first_connect"])
async def test_a_failing_connect_handler_costs_no_place(make: Any, counts: Any, failing: str) -> None:
    engine = make(pool_size=1, max_overflow=0, pool_timeout=5)
    fail = True

    def handler(*_arguments: Any) -> None:
        if fail:
            raise ZeroDivisionError("the handler failed")

    event.listen(engine.sync_engine, failing, handler)
    for _ in range(3):
        with pytest.raises(Exception, match="the handler failed"):
            await engine.connect()
    assert counts(engine)[3] == 0
    fail = False
    if make.differs("a pause after a failure"):
        for _ in range(100):
            try:
                await (await engine.connect()).close()
                break
            except steadypool.DatabaseUnavailable:
                await asyncio.sleep(0.05)
    async with engine.connect() as connection:
        assert await connection.scalar(text("select 1")) == 1


class Interruption(BaseException):
    """Not an Exception, as a cancellation."""


@pytest.mark.parametrize("error", [ZeroDivisionError, Interruption])
async def test_a_failing_checkout_handler_costs_no_place(
    make: Any, counts: Any, eventually: Any, error: type[BaseException]
) -> None:
    engine, seen = make.recorded("invalidate", "checkin", pool_size=1, max_overflow=0, pool_timeout=5)
    fail = True

    def handler(*_arguments: Any) -> None:
        if fail:
            raise error("the handler failed")

    event.listen(engine.sync_engine, "checkout", handler)
    for _ in range(3):
        with pytest.raises(error):
            await engine.connect()
    await eventually(lambda: counts(engine)[3] == 0)
    assert seen == ["invalidate", "checkin"] * 3
    fail = False
    async with engine.connect() as connection:
        assert await connection.scalar(text("select 1")) == 1


async def test_a_disconnection_error_in_checkout_brings_a_new_connection(make: Any, pid_of: Any) -> None:
    engine, seen = make.recorded("connect", "invalidate", "close", "checkin", pool_size=1, max_overflow=0)
    bad: set[int] = set()

    def handler(dbapi_connection: Any, _record: Any, _proxy: Any) -> None:
        if id(dbapi_connection) in bad:
            raise exc.DisconnectionError("not this one")
        kept.append(dbapi_connection)

    kept: list[Any] = []
    event.listen(engine.sync_engine, "checkout", handler)
    async with engine.connect() as connection:
        first = await pid_of(connection)
    bad.add(id(kept[0]))
    async with engine.connect() as connection:
        assert await pid_of(connection) != first
    assert seen == ["connect", "checkin", "invalidate", "close", "connect", "checkin"]


async def test_a_checkout_handler_that_never_agrees(make: Any, counts: Any, eventually: Any) -> None:
    engine, seen = make.recorded("connect", "checkin", pool_size=1, max_overflow=0, pool_timeout=5)

    def handler(*_arguments: Any) -> None:
        raise exc.DisconnectionError("none is good enough")

    event.listen(engine.sync_engine, "checkout", handler)
    with pytest.raises(exc.InvalidRequestError, match="This connection is closed"):
        await engine.connect()
    assert seen == ["connect", "connect", "connect", "checkin"]
    await eventually(lambda: counts(engine)[3] == 0)
    event.remove(engine.sync_engine, "checkout", handler)
    async with engine.connect() as connection:
        await connection.execute(text("select 1"))


async def test_a_failing_reset_handler_costs_the_connection_and_no_place(
    make: Any, counts: Any, eventually: Any, pid_of: Any
) -> None:
    engine = make(pool_size=1, max_overflow=0, pool_timeout=5)

    def handler(*_arguments: Any) -> None:
        raise ZeroDivisionError("the handler failed")

    event.listen(engine.sync_engine, "reset", handler)
    async with engine.connect() as connection:
        first = await pid_of(connection)
    event.remove(engine.sync_engine, "reset", handler)
    await eventually(lambda: counts(engine)[3] == 0)
    async with engine.connect() as connection:
        assert await pid_of(connection) != first


async def test_a_failing_invalidate_handler_costs_no_place(
    make: Any, counts: Any, eventually: Any, pid_of: Any
) -> None:
    engine = make(pool_size=1, max_overflow=0, pool_timeout=5)

    def handler(*_arguments: Any) -> None:
        raise ZeroDivisionError("the handler failed")

    connection = await engine.connect()
    first = await pid_of(connection)
    event.listen(engine.sync_engine, "invalidate", handler)
    with pytest.raises(ZeroDivisionError):
        await connection.invalidate()
    event.remove(engine.sync_engine, "invalidate", handler)
    await connection.close()
    await eventually(lambda: counts(engine)[3] == 0)
    async with engine.connect() as connection:
        assert await pid_of(connection) != first


async def test_an_async_call_in_a_connect_handler(make: Any) -> None:
    engine = make()

    def handler(dbapi_connection: Any, _record: Any) -> None:
        cursor = dbapi_connection.cursor()
        cursor.execute("set application_name = 'set by the handler'")
        cursor.close()
        dbapi_connection.commit()

    event.listen(engine.sync_engine, "connect", handler)
    async with engine.connect() as connection:
        assert await connection.scalar(text("show application_name")) == "set by the handler"


async def test_info_lives_as_long_as_the_connection_and_record_info_as_long_as_the_record(make: Any) -> None:
    engine = make(pool_size=1, max_overflow=0)
    event.listen(engine.sync_engine, "connect", lambda _c, record: record.info.setdefault("connected", 1))
    async with engine.connect() as connection:
        info = (await connection.get_raw_connection()).info
        assert info["connected"] == 1
        info["mine"] = 2
        record_info = (await connection.get_raw_connection()).record_info
        record_info["kept"] = 3
    async with engine.connect() as connection:
        raw = await connection.get_raw_connection()
        assert raw.info["mine"] == 2
        assert raw.record_info["kept"] == 3
        await connection.invalidate()
    async with engine.connect() as connection:
        raw = await connection.get_raw_connection()
        assert raw.info == {"connected": 1}
        assert raw.record_info == ({} if make.differs("a record is one connection") else {"kept": 3})


async def test_what_a_detached_connection_knows(make: Any) -> None:
    engine = make(pool_size=1, max_overflow=0)
    raw = await engine.raw_connection()
    raw.info["mine"] = 1
    raw.detach()
    async with engine.connect() as connection:
        assert "mine" not in (await connection.get_raw_connection()).info
    assert raw.info["mine"] == 1
    assert raw.record_info is None
    await make.let_go(raw)


async def test_a_failing_checkin_handler(make: Any, counts: Any, eventually: Any) -> None:
    engine = make(pool_size=1, max_overflow=0, pool_timeout=0.2)

    def handler(*_arguments: Any) -> None:
        raise ZeroDivisionError("the handler failed")

    event.listen(engine.sync_engine, "checkin", handler)
    raw = await engine.raw_connection()
    with pytest.raises(ZeroDivisionError):
        await greenlet_spawn(raw.close)
    event.remove(engine.sync_engine, "checkin", handler)
    if make.differs("a failing checkin handler costs no place"):
        assert counts(engine)[3] == 0
        async with engine.connect() as connection:
            await connection.execute(text("select 1"))
    else:
        assert counts(engine)[3] == 1
        with pytest.raises(exc.TimeoutError):
            await engine.connect()
        await greenlet_spawn(raw.dbapi_connection.close)


@pytest.mark.parametrize("name", ["close", "invalidate"])
async def test_a_handler_that_fails_where_nobody_is(
    make: Any, counts: Any, eventually: Any, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    engine = make(pool_size=1, max_overflow=0, pool_timeout=2)

    def handler(*_arguments: Any) -> None:
        raise ZeroDivisionError("the handler failed")

    raw = await engine.raw_connection()
    driver_connection = raw.driver_connection
    event.listen(engine.sync_engine, name, handler)
    raw.invalidate(soft=True)
    if make.differs("handlers run for nobody"):
        await greenlet_spawn(raw.close)
        async with engine.connect() as connection:
            await connection.execute(text("select 1"))
        assert "handler failed" in caplog.text
    else:
        await greenlet_spawn(raw.close)
        if name == "close":
            with pytest.raises(ZeroDivisionError):
                await engine.connect()
    event.remove(engine.sync_engine, name, handler)
    await engine.dispose()
    closed = driver_connection.is_closed() if make.driver == "asyncpg" else driver_connection.closed
    if not closed:
        assert not make.is_ours
        await driver_connection.close()
