"""A soak: real load on a real server through a network that fails at random, and a look at what is left afterwards.

    python bench/soak.py --minutes 30 --seed 1 --driver steadypool

Every few seconds the server is restarted or killed, the network is silent, reset, refused or slow, the connections that
are idle go silent while new ones work, or a pool is let go of from another thread, from a forked child, or after its
event loop was closed or has stopped. Meanwhile workers read, write, notify, and take locks that they hand over.

Prints one JSON line a minute, and at the end resident memory, descriptors, tasks and server backends as they were
after the warm-up and as they are once everything has healed, and the promises that were broken:

- `late`: a request ended more than `LATE` seconds after its deadline;
- `unserved`: the first requests after idle connections went silent, or a pool was let go of, got nothing;
- `slow to let go`: letting go took more than `SOON` seconds;
- `still locked`: a lock was still held after its transaction had ended, and nothing was out of order.

Exits with 1 where one was broken, or something has grown or was left.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field

from sqlalchemy import text

from steadypool import Database, DatabaseSettings, SteadypoolError, deadline
from steadypool.listener import Gap, ListenerOptions
from steadypool_lab import EmbeddedPostgres
from steadypool_lab.matrix.elsewhere import Home
from steadypool_lab.network.link import Direction
from steadypool_lab.network.proxy import FaultProxy, Mode
from steadypool_lab.testing import Observer

WORKERS = 8
DEADLINE = 5.0
"""Seconds that each use has."""
LATE = 2.5
"""Seconds after a deadline: a machine that soaks is busy, and leaving may take two."""
SOON = 4.0
"""Seconds in which letting go from elsewhere has to end; where something is in use there, closing takes two."""

_ROW = "select id from jobs where id = :id for update"
_LOCKS = (
    (_ROW, "select id from jobs where id = $1 for update skip locked"),
    (_ROW, "select id from jobs where id = $1 for update nowait"),
    (
        "select pg_advisory_xact_lock(:id)",
        "select from (select pg_try_advisory_xact_lock($1) as got) as one where got",
    ),
)
"""What a transaction locks, and what returns a row to another one, if it is not locked any more."""


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


@dataclass
class Load:
    """Workers that use a database, and how it went.

    Attributes:
        troubles: how many faults have begun; a lock that outlives one is no broken promise.
        troubled: whether one is going on.
        broken: promises, by name, and how often they were broken.
    """

    db: Database
    rng: random.Random
    outcomes: Counter[str] = field(default_factory=Counter[str])
    broken: Counter[str] = field(default_factory=Counter[str])
    troubles: int = 0
    troubled: bool = False

    def __post_init__(self) -> None:
        self._busy = 0
        self._goes_on, self._rests = asyncio.Event(), asyncio.Event()
        self._goes_on.set()

    @asynccontextmanager
    async def at_rest(self) -> AsyncGenerator[None]:
        """Keep all workers from using the database until the block ends."""
        self._goes_on.clear()
        if self._busy:
            await self._rests.wait()
        try:
            yield
        finally:
            self._goes_on.set()

    async def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(self._work(worker, until) for worker in range(WORKERS)))

    async def _work(self, worker: int, until: float) -> None:
        """One caller after the other."""
        while time.monotonic() < until:
            await self._goes_on.wait()
            self._busy += 1
            self._rests.clear()
            await self.served(lambda: self._random_use(worker))
            self._busy -= 1
            if not self._busy:
                self._rests.set()
            await asyncio.sleep(self.rng.uniform(0.0, 0.05))

    async def served(self, use: Callable[[], Awaitable[None]]) -> bool:
        """Whether a use got what it wanted."""
        began, served = time.monotonic(), False
        try:
            with deadline(DEADLINE):
                await use()
            self.outcomes["served"] += 1
            served = True
        except SteadypoolError as error:
            self.outcomes[type(error).__name__] += 1
        except Exception as error:  # noqa: BLE001 - the driver's own errors of SQL are counted by name, too
            self.outcomes[f"other {type(error).__name__}"] += 1
        if time.monotonic() - began > DEADLINE + LATE:
            self.broken["late"] += 1
        return served

    async def _random_use(self, worker: int) -> None:
        db, rng, kind = self.db, self.rng, self.rng.random()
        if kind < 0.4:
            async with db.session() as session:
                await session.execute(text("select pg_sleep(:seconds)"), {"seconds": rng.uniform(0, 0.02)})
        elif kind < 0.6:
            async with db.session() as session:
                await session.execute(text("update counters set value = value + 1"))
                await session.commit()
        elif kind < 0.75:
            async with db.connection() as connection:
                await connection.fetch("select n from generate_series(1, $1::int) n", rng.randrange(1, 200))
        elif kind < 0.8:
            await db.fetch("select n from generate_series(1, $1::int) n", rng.randrange(1, 200))
        elif kind < 0.9:
            await self._hand_over(worker)
        else:
            await db.notify("changes", str(rng.random()))

    async def _hand_over(self, worker: int) -> None:
        """Lock something, end the transaction, and get the lock at once on another connection."""
        lock, wanted = self.rng.choice(_LOCKS)
        async with self.db.connection() as other:
            await other.fetch("select 1")
            troubles, troubled = self.troubles, self.troubled
            async with self.db.session() as session:
                await session.execute(text(lock), {"id": worker})
                if self.rng.random() < 0.5:
                    await session.rollback()
            try:
                got = await other.fetch(wanted, worker)
            except Exception as error:
                if getattr(error, "sqlstate", None) != "55P03":  # lock_not_available
                    raise
                got = []
            # A connection that was cut off may keep its lock until the server has noticed.
            if not (got or troubled or troubles != self.troubles):
                self.broken["still locked"] += 1
            self.outcomes["locks handed over"] += bool(got)


async def listen(db: Database, outcomes: Counter[str]) -> None:
    async with db.listen("changes", overflow="conflate") as notifications:
        async for heard in notifications:
            outcomes["gaps" if isinstance(heard, Gap) else "notifications"] += 1


class Trouble:
    """What goes wrong."""

    def __init__(self, load: Load, server: EmbeddedPostgres, proxy: FaultProxy) -> None:
        self._load, self._server, self._proxy = load, server, proxy
        self._rng = load.rng
        self.seen = Counter[str]()
        self._faults: dict[str, Callable[[], Awaitable[object]]] = {
            "silent": lambda: self._network(Mode.SILENT),
            "refuse": lambda: self._network(Mode.REFUSE),
            "reset": lambda: self._network(Mode.RESET),
            "slow": self._slow,
            "restart": lambda: server.restart(self._rng.choice(["fast", "immediate"])),
            "kill": self._kill,
            "idle ones silent": self._idle_ones_silent,
            "dispose in a thread": lambda: self._dispose(self._in_thread),
            "dispose without a loop": lambda: self._dispose(self._without_loop),
            "dispose in a child": lambda: self._dispose(self._in_child),
            "loop closed": lambda: self._visit(closes=True),
            "loop stopped": lambda: self._visit(closes=False),
        }

    async def run(self, until: float) -> None:
        """Something goes wrong every few seconds, and is healed again; everything once before anything twice."""
        rng, load, left = self._rng, self._load, list[str]()
        while time.monotonic() < until:
            await asyncio.sleep(rng.uniform(1.0, 4.0))
            if not left:
                left = rng.sample(list(self._faults), len(self._faults))
            name = left.pop()
            self.seen[name] += 1
            load.troubles, load.troubled = load.troubles + 1, True
            try:
                await self._faults[name]()
            finally:
                load.troubled = False

    # -- the network and the server ------------------------------------------------------------------------------

    async def _network(self, mode: Mode) -> None:
        self._proxy.mode = mode
        await asyncio.sleep(self._rng.uniform(0.5, 3.0))
        self._proxy.mode = Mode.PASS
        if mode is Mode.SILENT and self._rng.random() < 0.5:
            self._proxy.drop_all()

    async def _slow(self) -> None:
        self._proxy.delay = self._rng.uniform(0.001, 0.05)
        await asyncio.sleep(self._rng.uniform(1.0, 4.0))
        self._proxy.delay = 0.0

    async def _kill(self) -> None:
        await self._server.kill()
        await asyncio.sleep(self._rng.uniform(0.2, 2.0))
        await self._server.start()

    async def _idle_ones_silent(self) -> None:
        """A firewall forgets the connections that are idle; new ones pass."""
        async with self._load.at_rest():
            await asyncio.sleep(0.6)  # longer than a connection counts as alive
            forgotten = list(self._proxy.links)
            for link in forgotten:
                link.up = link.down = Direction(silent=True)
            await self._is_served(5)
        for link in forgotten:
            link.end(reset=True)

    async def _is_served(self, requests: int = 1) -> None:
        async def one() -> None:
            async with self._load.db.session() as session:
                await session.execute(text("select 1"))

        served = await asyncio.gather(*(self._load.served(one) for _ in range(requests)))
        if not all(served):
            self._load.broken["unserved"] += 1

    # -- letting go from elsewhere -------------------------------------------------------------------------------

    async def _dispose(self, dispose: Callable[[], Awaitable[object]]) -> None:
        await self._soon(dispose())
        await self._is_served()

    async def _soon(self, work: Awaitable[object]) -> None:
        began = time.monotonic()
        await work
        if time.monotonic() - began > SOON:
            self._load.broken["slow to let go"] += 1

    async def _in_thread(self) -> None:
        await asyncio.to_thread(lambda: asyncio.run(self._load.db.engine.dispose()))

    async def _without_loop(self) -> None:
        await asyncio.to_thread(self._load.db.engine.sync_engine.dispose)

    async def _in_child(self) -> None:
        """The child ends when it has disposed of what it has inherited."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads
            child = os.fork()
        if child == 0:
            try:
                asyncio.run(self._load.db.engine.dispose())
            finally:
                os._exit(0)
        waiting = asyncio.create_task(asyncio.to_thread(os.waitpid, child, 0))
        await asyncio.wait({waiting}, timeout=2 * SOON)
        if not waiting.done():
            os.kill(child, signal.SIGKILL)
        await waiting

    async def _visit(self, *, closes: bool) -> None:
        """A database of another event loop's, which is over when it is let go of here."""
        home, visitor = Home(), Database(self._load.db.settings)

        async def use() -> None:
            with deadline(DEADLINE):
                await visitor.fetch("select 1")
                async with visitor.session() as session:
                    await session.execute(text("select 1"))

        try:
            if not await self._load.served(lambda: home.run(use())):
                self._load.broken["unserved"] += 1
            if closes:
                await home.close()
            await self._soon(visitor.engine.dispose())
            await self._soon(visitor.close())
        finally:
            await home.end()


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
        async with Database(
            settings, listener=ListenerOptions(heartbeat_interval=1, heartbeat_timeout=1)
        ) as db:
            await make_tables(db)
            load = Load(db, rng)
            trouble = Trouble(load, server, proxy)
            listening = asyncio.create_task(listen(db, load.outcomes))
            await load.run(20.0)
            before = await settled(direct)
            end = time.monotonic() + minutes * 60
            troubling = asyncio.create_task(trouble.run(end))
            while (left := end - time.monotonic()) > 0:
                await load.run(min(60.0, left))
                print(
                    json.dumps({"served": load.outcomes["served"], "rss_mib": round(resident_mib(), 1)}),
                    flush=True,
                )
            await troubling
            await load.run(10.0)
            after = await settled(direct)
            listening.cancel()
            await asyncio.wait({listening})
    print(json.dumps({"driver": driver, "faults": trouble.seen, "outcomes": load.outcomes}))
    print(json.dumps({"before": asdict(before), "after": asdict(after), "broken": load.broken}))
    return (
        not load.broken
        and after.rss_mib <= before.rss_mib * 1.2 + 10
        and after.descriptors <= before.descriptors + 2
        and after.tasks <= before.tasks
        and after.backends <= before.backends
    )


async def make_tables(db: Database) -> None:
    async with db.session() as session:
        await session.execute(text("create table counters (value int)"))
        await session.execute(text("insert into counters values (0)"))
        await session.execute(
            text(f"create table jobs as select id from generate_series(0, {WORKERS - 1}) id")
        )
        await session.commit()


async def settled(direct: str) -> Measured:
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
