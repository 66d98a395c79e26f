"""The connection is cut at every byte of a flight: nothing runs twice, and what was said to have run has run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from steadypool.connect.dsn import parse_url
from steadypool.connect.psycopg import open_psycopg
from steadypool.pipeline import Batch, ConnectionClosed, PipelinedConnection, Statement
from steadypool_lab.network.link import Direction
from steadypool_lab.network.proxy import FaultProxy

pytestmark = pytest.mark.anyio

COUNT = "insert into counter values ($1::int) returning n"


@pytest.fixture
async def counter(database_url: str, anyio_backend: object) -> AsyncIterator[Any]:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute("create table counter (n int)")
        yield connection


async def opened(url: str, proxy: FaultProxy) -> PipelinedConnection:
    """A connection on which the statement is prepared, and the last of the proxy's links is its own."""
    raw = await open_psycopg(parse_url(url), timeout=10, autocommit=True)
    connection = PipelinedConnection(raw)
    for _ in range(2):
        await connection.run(Batch([Statement(COUNT, (-1,))]))
    return connection


async def one_flight(connection: PipelinedConnection, numbers: tuple[int, ...]) -> list[Any]:
    futures = [connection.send(Batch([Statement(COUNT, (n,))], limit=5)) for n in numbers]
    ends = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 10)
    return [end if isinstance(end, BaseException) else end[0].rows()[0][0] for end in ends]


@pytest.mark.parametrize("way", ["up", "down"])
async def test_cut_at_every_byte(proxied_url: str, proxy: FaultProxy, counter: Any, way: str) -> None:
    connection = await opened(proxied_url, proxy)
    before = (proxy.bytes_up, proxy.bytes_down)
    assert await one_flight(connection, (-2, -2)) == [-2, -2]
    length = proxy.bytes_up - before[0] if way == "up" else proxy.bytes_down - before[1]
    connection.abort()
    assert length > 50, "a flight of two statements"
    told: dict[int, Any] = {}
    for cut in range(length):
        connection = await opened(proxied_url, proxy)
        link = proxy.links[-1]
        side = link.server_side if way == "up" else link.client_side
        limit = Direction(cut_after=side.arrived + cut)
        if way == "up":
            link.up = limit
        else:
            link.down = limit
        numbers = (2 * cut, 2 * cut + 1)
        told |= dict(zip(numbers, await one_flight(connection, numbers), strict=True))
        connection.abort()
    rows = await (await counter.execute("select n, count(*) from counter where n >= 0 group by n")).fetchall()
    ran = dict(rows)
    assert set(ran.values()) <= {1}, "nothing ran twice"
    for number, end in told.items():
        if isinstance(end, ConnectionClosed):
            assert end.sent
        else:
            assert end == number, "everybody gets their own row"
            assert ran.get(number) == 1, "what was said to have run has run"
    assert any(isinstance(end, ConnectionClosed) for end in told.values())
    if way == "down":
        assert len(ran) >= len(told) // 2, "the server had begun to answer, whatever the client heard"
        assert any(end == number for number, end in told.items())
    else:
        assert len(ran) < len(told)
