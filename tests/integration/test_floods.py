"""A server that asks for too much, or says too much: memory and the event loop stay bounded, the reason is named."""

from __future__ import annotations

import asyncio
import base64
import time

import pytest
from sqlalchemy import text

from steadypool import ConnectionLost
from steadypool.connect.channel_binding import MOST_ROUNDS, ScramPlus
from steadypool.connect.failure import BindingRefused
from steadypool.pipeline.transport import MOST_NOTIFICATIONS
from steadypool.sqlalchemy import create_async_engine

pytestmark = pytest.mark.anyio


async def test_notifications_that_are_not_read(database_url: str) -> None:
    engine = create_async_engine(database_url)
    async with engine.connect() as connection, engine.connect() as other:
        raw = (await connection.get_raw_connection()).driver_connection
        await connection.execute(text("listen flood"))
        await connection.commit()
        ended = asyncio.get_running_loop().create_future()
        raw.when_ended(lambda: ended.set_result(None))
        notify = text("select pg_notify('flood', n::text) from generate_series(1, :count) n")
        await other.execute(notify, {"count": MOST_NOTIFICATIONS})
        await other.commit()
        assert await connection.scalar(text("select 1")) == 1
        await connection.commit()  # in a transaction nothing is delivered
        await other.execute(notify, {"count": 1})
        await other.commit()
        await ended
        with pytest.raises(ConnectionLost, match=f"more than {MOST_NOTIFICATIONS:,} notifications"):
            await connection.execute(text("select 1"))
    await engine.dispose()


async def test_notifications_that_are_read_now_and_then(database_url: str) -> None:
    engine = create_async_engine(database_url)
    async with engine.connect() as connection, engine.connect() as other:
        raw = (await connection.get_raw_connection()).driver_connection
        await connection.execute(text("listen flood"))
        await connection.commit()
        await other.execute(text("notify flood, 'one'"))
        await other.commit()
        assert await connection.scalar(text("select 1")) == 1
        await connection.commit()
        async with raw.plain() as plain:
            async for notification in plain.notifies(timeout=5, stop_after=1):
                assert (notification.channel, notification.payload) == ("flood", "one")
                break
    await engine.dispose()


@pytest.mark.parametrize("rounds", [MOST_ROUNDS + 1, 2**31 - 1, 2**31, 10**30])
def test_rounds_of_scram_beyond_reason(rounds: int) -> None:
    exchange = ScramPlus("secret", b"binding", nonce="n")
    salt = base64.b64encode(b"salt").decode()
    began = time.monotonic()
    with pytest.raises(BindingRefused, match=r"rounds of SCRAM's hash; more than 1,000,000 are refused"):
        exchange.final(f"r=nserver,s={salt},i={rounds}".encode())
    assert time.monotonic() - began < 1.0
