"""A soak: real load on a real server through a network that fails at random, and a look at what is left afterwards.

    python bench/soak.py --minutes 30 --seed 1

Prints one JSON line a minute, and at the end resident memory, descriptors, tasks and server backends as they were
after the warm-up and as they are once everything has healed. Exits with 1 where something has grown or was left.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

from sqlalchemy import text

from steadypool import Database, DatabaseSettings, SteadypoolError, deadline
from steadypool.listener import Gap, ListenerOptions
from steadypool_lab import EmbeddedPostgres
from steadypool_lab.network.proxy import FaultProxy, Mode
from steadypool_lab.testing import Observer

WORKERS = 8


@dataclass(frozen=True)
class Measured:
    """What must not grow."""

    rss_mib: float
    descriptors: int
    tasks: int
    backends: int


def resident_mib() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def measure(observer: Observer) -> Measured:
    gc.collect()
    return Measured(
        rss_mib=round(resident_mib(), 1),
        descriptors=len(os.listdir("/proc/self/fd")),
        tasks=len(asyncio.all_tasks()),
        backends=len(await observer.backends()),
    )


async def work(db: Database, rng: random.Random, outcomes: Counter[str], until: float) -> None:
    """One caller after the other, each with five seconds."""
    while time.monotonic() < until:
        try:
            with deadline(5.0):
                await random_use(db, rng)
            outcomes["served"] += 1
        except SteadypoolError as error:
            outcomes[type(error).__name__] += 1
        except Exception as error:  # noqa: BLE001 - the driver's own errors of SQL are counted by name, too
            outcomes[f"other {type(error).__name__}"] += 1
        await asyncio.sleep(rng.uniform(0.0, 0.05))


async def random_use(db: Database, rng: random.Random) -> None:
    kind = rng.random()
    if kind < 0.5:
        async with db.session() as session:
            await session.execute(text("select pg_sleep(:seconds)"), {"seconds": rng.uniform(0, 0.02)})
    elif kind < 0.7:
        async with db.session() as session:
            await session.execute(text("update counters set value = value + 1"))
            await session.commit()
    elif kind < 0.9:
        async with db.connection() as connection:
            await connection.fetch("select n from generate_series(1, $1::int) n", rng.randrange(1, 200))
    else:
        await db.notify("changes", str(rng.random()))


async def listen(db: Database, outcomes: Counter[str]) -> None:
    async with db.listen("changes", overflow="conflate") as notifications:
        async for heard in notifications:
            outcomes["gaps" if isinstance(heard, Gap) else "notifications"] += 1


async def trouble(
    server: EmbeddedPostgres,
    proxy: FaultProxy,
    db: Database,
    rng: random.Random,
    seen: Counter[str],
    until: float,
) -> None:
    """Something goes wrong every few seconds, and is healed again."""

    async def network(mode: Mode) -> None:
        proxy.mode = mode
        await asyncio.sleep(rng.uniform(0.5, 3.0))
        proxy.mode = Mode.PASS
        if mode is Mode.SILENT and rng.random() < 0.5:
            proxy.drop_all()

    async def slow() -> None:
        proxy.delay = rng.uniform(0.001, 0.05)
        await asyncio.sleep(rng.uniform(1.0, 4.0))
        proxy.delay = 0.0

    async def killed() -> None:
        await server.kill()
        await asyncio.sleep(rng.uniform(0.2, 2.0))
        await server.start()

    async def disposed() -> None:
        """From another event loop, in another thread."""
        await asyncio.to_thread(lambda: asyncio.run(db.engine.dispose()))

    faults: dict[str, Callable[[], Awaitable[object]]] = {
        "dispose": disposed,
        "silent": lambda: network(Mode.SILENT),
        "refuse": lambda: network(Mode.REFUSE),
        "reset": lambda: network(Mode.RESET),
        "slow": slow,
        "restart": lambda: server.restart(rng.choice(["fast", "immediate"])),
        "kill": killed,
    }
    while time.monotonic() < until:
        await asyncio.sleep(rng.uniform(2.0, 6.0))
        name = rng.choice(list(faults))
        seen[name] += 1
        await faults[name]()


async def soak(minutes: float, seed: int, driver: str) -> bool:
    rng = random.Random(seed)
    async with EmbeddedPostgres.temporary() as server, FaultProxy("127.0.0.1", server.port) as proxy:
        await server.create_database("soak")
        direct = server.url.rsplit("/", 1)[0] + "/soak"
        url = direct.replace(f":{server.port}/", f":{proxy.port}/").replace(
            "postgresql://", f"postgresql+{driver}://"
        )
        settings = DatabaseSettings(
            url=url, statement_timeout=2, connection_timeout=2, pool_timeout=2, close_grace=2, pool_recycle=30
        )
        outcomes, faults = Counter[str](), Counter[str]()
        async with Database(
            settings, listener=ListenerOptions(heartbeat_interval=1, heartbeat_timeout=1)
        ) as db:
            async with db.session() as session:
                await session.execute(text("create table counters (value int)"))
                await session.execute(text("insert into counters values (0)"))
                await session.commit()
            listening = asyncio.create_task(listen(db, outcomes))
            await run_load(db, rng, outcomes, 20.0)
            before = await settled(db, direct)
            end = time.monotonic() + minutes * 60
            troubling = asyncio.create_task(trouble(server, proxy, db, rng, faults, end))
            while (left := end - time.monotonic()) > 0:
                await run_load(db, rng, outcomes, min(60.0, left))
                print(
                    json.dumps({"served": outcomes["served"], "rss_mib": round(resident_mib(), 1)}),
                    flush=True,
                )
            await troubling
            await run_load(db, rng, outcomes, 10.0)
            after = await settled(db, direct)
            listening.cancel()
            await asyncio.wait({listening})
    print(json.dumps({"driver": driver, "faults": faults, "outcomes": outcomes}))
    print(json.dumps({"before": asdict(before), "after": asdict(after)}))
    return (
        after.rss_mib <= before.rss_mib * 1.2 + 10
        and after.descriptors <= before.descriptors + 2
        and after.tasks <= before.tasks
        and after.backends <= before.backends
    )


async def run_load(db: Database, rng: random.Random, outcomes: Counter[str], seconds: float) -> None:
    until = time.monotonic() + seconds
    await asyncio.gather(*(work(db, rng, outcomes, until) for _ in range(WORKERS)))


async def settled(db: Database, direct: str) -> Measured:
    """Once everybody has left: only idle connections and the listener may be there."""
    await asyncio.sleep(5.0)  # what is closing may take as long as leaving may
    observer = await Observer.connect(direct)
    try:
        return await measure(observer)
    finally:
        await observer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--driver", choices=["asyncpg", "psycopg", "steadypool"], default="asyncpg")
    options = parser.parse_args()
    sys.exit(0 if asyncio.run(soak(options.minutes, options.seed, options.driver)) else 1)


if __name__ == "__main__":
    main()
