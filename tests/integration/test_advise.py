"""What `steadypool advise` replays is what happened: waits of a real run against a real Postgres, and of its replay."""

from __future__ import annotations

import asyncio
import random

import pytest
from sqlalchemy import text

from steadypool import Database, DatabaseSettings
from steadypool.cli.advise.replay import percentile, replay
from steadypool.events import Acquired, Event, Released
from steadypool.monitor import Arrival
from steadypool.pool.lease import PoolOptions

pytestmark = pytest.mark.anyio


async def test_a_replay_waits_as_long_as_the_real_run(database_url: str) -> None:
    rng = random.Random(1)
    arrivals: list[Arrival] = []
    begun: dict[int, Acquired] = {}

    def note(event: Event) -> None:
        if isinstance(event, Acquired):
            begun[event.connection] = event
        elif isinstance(event, Released):
            start = begun.pop(event.connection)
            arrivals.append(Arrival(start.at - start.seconds, start.seconds, event.seconds, None, "served"))

    async with Database(
        DatabaseSettings(url=database_url, pool_size=2, max_overflow=0, pool_timeout=60)
    ) as db:
        await db.warm_up()
        db.events.subscribe(note)

        async def request() -> None:
            async with db.session() as session:
                await session.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": rng.uniform(0.02, 0.2)})

        async with asyncio.TaskGroup() as requests:
            for _ in range(60):
                requests.create_task(request())
                await asyncio.sleep(rng.uniform(0.0, 0.08))
    arrivals.sort(key=lambda arrival: arrival.at)
    real = percentile(sorted(arrival.waited for arrival in arrivals), 99)
    options = PoolOptions(size=2, max_overflow=0, pool_timeout=60)
    # A thread: the replay runs an event loop of its own.
    outcome = await asyncio.to_thread(replay, arrivals, options)
    assert outcome.refused == 0
    assert 0.75 < outcome.wait(99) / real < 1.25
    wider = await asyncio.to_thread(replay, arrivals, PoolOptions(size=8, max_overflow=0, pool_timeout=60))
    assert wider.wait(99) < outcome.wait(99) / 2
