"""plyr on a database that falls asleep: it really sleeps, pages that are open say so, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from conditions import until
from processes import running_plyr
from steadypool_lab import SuspendingPostgres
from steadypool_lab.suspending import PowerState

from .devices import events_of, next_of

pytestmark = pytest.mark.anyio

SLEEP_AFTER = 1.0
LET_GO_AFTER = 0.4


@pytest.fixture
async def sleepy(anyio_backend: str) -> AsyncIterator[SuspendingPostgres]:
    async with SuspendingPostgres(sleep_after=SLEEP_AFTER, wake=0.3) as server:
        yield server


@asynccontextmanager
async def started(sleepy: SuspendingPostgres, home: Path, name: str) -> AsyncGenerator[httpx.AsyncClient]:
    """An instance in a process of its own, which lets the database sleep, and a client who is signed in."""
    running = running_plyr(
        home,
        name,
        DATABASE_URL=sleepy.url,
        DATABASE_IDLE_POLICY="allow_sleep",
        DATABASE_POOL_IDLE_TIMEOUT=str(LET_GO_AFTER),
        QUEUE_HEARTBEAT_INTERVAL="0.2",
    )
    plyr = await asyncio.to_thread(running.__enter__)
    try:
        async with httpx.AsyncClient(base_url=plyr.url, timeout=30.0) as client:
            client.headers["Authorization"] = f"Bearer {plyr.token}"
            yield client
    finally:
        await asyncio.to_thread(running.__exit__, None, None, None)


async def listener(client: httpx.AsyncClient) -> str:
    return (await client.get("/readyz")).json()["listener"]["state"]


async def test_an_idle_plyr_lets_its_database_sleep_and_loses_nothing(
    sleepy: SuspendingPostgres, tmp_path: Path
) -> None:
    async with (
        started(sleepy, tmp_path, "a") as a,
        started(sleepy, tmp_path, "b") as b,
        aclosing(events_of(a)) as device,
    ):
        assert (await next_of(device)).id == "0"
        assert (await next_of(device)).name == "stale"  # somebody watches, and still it may sleep
        await until(lambda: sleepy.state is PowerState.ASLEEP, seconds=60)
        attempts = sleepy.knocks.attempts
        await asyncio.sleep(2 * SLEEP_AFTER)
        assert await listener(a) == "dormant"
        assert sleepy.knocks.attempts == attempts  # nobody knocks, and health is asked without a knock

        await put(b, 0)  # the database wakes, a sleeps on
        assert await listener(a) == "dormant"
        assert (await a.get("/queue/")).json()["revision"] == 1  # whoever asks is told the truth at once
        told = await next_of(device)
        assert (told.name, told.id) == ("queue", "1")

        await put(b, 1)  # now a hears
        told = await next_of(device)
        while told.name == "stale" or told.id == "1":  # a busy machine took its time in between
            await a.get("/queue/")
            told = await next_of(device)
        assert told.id == "2"
        await until(lambda: sleepy.state is PowerState.ASLEEP, seconds=60)


async def put(client: httpx.AsyncClient, revision: int) -> None:
    answer = await client.put(
        "/queue/", json={"state": {"track_ids": []}}, headers={"If-Match": f'"{revision}"'}
    )
    assert answer.status_code == 200, answer.text
