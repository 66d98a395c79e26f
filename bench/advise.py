"""How well `steadypool advise` predicts: a recorded run, replayed for another pool size, against a real run with it.

    python bench/advise.py                 3 pairs of runs, 45 s each
    python bench/advise.py --pairs 1 --seconds 5

Requests arrive at random (Poisson) and hold a connection for a random time (`pg_sleep`). Both runs get the same
arrivals and the same holds; what differs is the pool. Compared is the 99th percentile of the wait for a connection.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text

from steadypool import Database, DatabaseSettings
from steadypool.cli.advise.replay import Timing, percentile, replay
from steadypool.events import Acquired, Event, Released
from steadypool.monitor import Arrival
from steadypool.pool.lease import PoolOptions
from steadypool_lab import EmbeddedPostgres


@dataclass(frozen=True)
class Plan:
    """When each request comes, and how long its statement sleeps. Seconds."""

    at: tuple[float, ...]
    sleeps: tuple[float, ...]

    @classmethod
    def random(cls, rate: float, mean: float, seconds: float, seed: int) -> Plan:
        rng, at, sleeps, now = random.Random(seed), [], [], 0.0
        while (now := now + rng.expovariate(rate)) < seconds:
            at.append(now)
            sleeps.append(min(rng.expovariate(1 / mean), 10 * mean))
        return cls(tuple(at), tuple(sleeps))


class Notes:
    """Makes arrivals of events, as the recorder does."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self._open: dict[int, Acquired] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, Acquired):
            self._open[event.connection] = event
        elif isinstance(event, Released) and (begun := self._open.pop(event.connection, None)):
            arrived = begun.at - begun.seconds
            self.arrivals.append(Arrival(arrived, begun.seconds, event.seconds, begun.workload, "served"))

    def recorded(self) -> list[Arrival]:
        return sorted(self.arrivals, key=lambda arrival: arrival.at)

    def waits(self) -> Sequence[float]:
        return sorted(arrival.waited for arrival in self.arrivals)


async def run(url: str, size: int, plan: Plan) -> Notes:
    """Real requests against a real Postgres."""
    settings = DatabaseSettings(
        url=url, pool_size=size, max_overflow=0, statement_timeout=60, pool_timeout=60
    )
    notes = Notes()
    async with Database(settings) as db:
        await db.warm_up()

        async def request(seconds: float) -> None:
            async with db.session() as session:
                await session.execute(text("select pg_sleep(:s)"), {"s": seconds})

        db.events.subscribe(notes)
        began = time.monotonic()
        async with asyncio.TaskGroup() as requests:
            for at, seconds in zip(plan.at, plan.sleeps, strict=True):
                await asyncio.sleep(max(0.0, began + at - time.monotonic()))
                requests.create_task(request(seconds))
    return notes


async def compare(url: str, plan: Plan, before: int, after: int) -> tuple[float, float, float, float]:
    """p99 waits: measured and replayed with the first size, predicted from it for the second, and measured there."""
    first, second = await run(url, before, plan), await run(url, after, plan)
    recorded, timing = first.recorded(), Timing()

    async def predicted(size: int) -> float:
        options = PoolOptions(size=size, max_overflow=0, pool_timeout=60)
        # A thread: the replay runs an event loop of its own.
        return (await asyncio.to_thread(replay, recorded, options, timing=timing)).wait(99)

    return (
        percentile(first.waits(), 99),
        await predicted(before),
        await predicted(after),
        percentile(second.waits(), 99),
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=45.0)
    parser.add_argument("--rate", type=float, default=6.0, help="requests a second")
    parser.add_argument("--hold", type=float, default=0.5, help="seconds, on average")
    parser.add_argument("--sizes", type=int, nargs=2, default=(4, 5), metavar=("BEFORE", "AFTER"))
    given = parser.parse_args()
    before, after = given.sizes
    print(f"p99 wait; {given.rate:g} requests/s, each holds {given.hold * 1000:g} ms on average")
    async with EmbeddedPostgres.temporary() as server:
        for seed in range(1, given.pairs + 1):
            plan = Plan.random(given.rate, given.hold, given.seconds, seed)
            real, again, forecast, came = await compare(server.url, plan, before, after)
            print(
                f"pair {seed}, {len(plan.at)} requests: size {before}: real {real * 1000:.0f} ms, "
                f"replayed {again * 1000:.0f} ms ({again / real - 1:+.0%}); size {after}: "
                f"predicted {forecast * 1000:.0f} ms, real {came * 1000:.0f} ms ({forecast / came - 1:+.0%})"
            )


if __name__ == "__main__":
    asyncio.run(main())
