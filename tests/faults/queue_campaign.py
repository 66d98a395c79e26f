"""Many writers change queues over two instances while the listeners' world breaks; everything seen is recorded.

Used by the test of the same name, and at full size by bench/queue_history.py.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from sqlalchemy import text
from sqlalchemy.exc import InterfaceError, OperationalError

from backend.config import QueueSettings, Settings
from backend.migrations.upgrade import upgrade
from backend.services.live_queues import LiveQueues
from backend.services.queue_cache import Queue
from backend.utilities.database import build_database
from conditions import until
from steadypool import Database, DatabaseSettings, events
from steadypool.errors import SteadypoolError
from steadypool_lab import EmbeddedPostgres, FaultProxy
from steadypool_lab.network.proxy import Mode

from .history import Deafness, History, Read, Write

AWAY = (SteadypoolError, OperationalError, InterfaceError)
SURVIVES_A_CRASH = {"synchronous_commit": "on"}
"""For the server: what a temporary one confirms may be gone after an immediate restart, and the checker notices."""

OPTIONS = QueueSettings(connect_timeout=2.0, heartbeat_interval=0.2)
KILL = text(
    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'steadypool listener'"
)
PAUSE = 0.05
"""Seconds that a writer waits when the database is away."""


@dataclass
class Instance:
    """One instance of the service as far as queues go, with a network of its own for its listener."""

    name: str
    database: Database
    live: LiveQueues
    proxy: FaultProxy


@dataclass
class Run:
    """What happened."""

    history: History = field(default_factory=History)
    confirmed: dict[tuple[str, str], set[int]] = field(default_factory=lambda: defaultdict(set))
    """Numbers of the updates of which a writer knows that they happened, by queue and writer."""
    unknown: dict[tuple[str, str], set[int]] = field(default_factory=lambda: defaultdict(set))
    """Those whose end he never learned."""
    final: dict[str, Queue] = field(default_factory=dict)
    conflicts: int = 0
    failures: int = 0
    from_copies: int = 0
    faults: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    seconds: float = 0.0

    @property
    def updates(self) -> int:
        return sum(map(len, self.confirmed.values()))

    def lost(self) -> list[str]:
        """Updates that were confirmed and are not in the queue, or are there and were never made."""
        found: list[str] = []
        for did, queue in self.final.items():
            told = queue.state.get("last", {})
            for key in {key for key in (*self.confirmed, *self.unknown) if key[0] == did}:
                sure, perhaps = self.confirmed[key], self.unknown[key]
                kept = told.get(key[1], 0)
                if not len(sure) <= kept <= len(sure) + len(perhaps):
                    found.append(f"{key}: {kept} kept, {len(sure)} confirmed, {len(perhaps)} of unknown end")
        return found


@asynccontextmanager
async def _instance(name: str, server: EmbeddedPostgres, run: Run) -> AsyncGenerator[Instance]:
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        direct = server.url.replace(f":{server.port}/", f":{proxy.port}/")
        settings = Settings(
            database=DatabaseSettings(
                url=server.url, direct_url=direct, connection_timeout=5.0, max_overflow=0, close_grace=1.0
            ),
            queue=OPTIONS,
        )

        def look(event: events.Event) -> None:
            if isinstance(event, events.ListenerGap):
                run.history.deafness.append(Deafness(name, event.since, event.at))

        database = build_database(settings)
        database.events.subscribe(look)
        async with database, LiveQueues(database) as live:
            yield Instance(name, database, live, proxy)


class Writer:
    """Adds one to its own number in a queue, again and again, as a client with If-Match would."""

    def __init__(self, name: str, instance: Instance, did: str, run: Run) -> None:
        self.name, self.instance, self.did, self.run = name, instance, did, run
        self.done = 0

    async def work(self, more: Callable[[], bool]) -> None:
        found: Queue | None = None
        while more():
            try:
                found = await self._read() if found is None else found
                found = await self._write(found)
            except AWAY:
                self.run.failures += 1
                found = None
                await asyncio.sleep(PAUSE)

    async def _read(self) -> Queue:
        return await read(self.instance, self.did, self.run)

    async def _write(self, found: Queue) -> Queue | None:
        """One try; returns the queue to go on from when somebody else was faster."""
        live, history = self.instance.live, self.run.history
        key = (self.did, self.name)
        last = dict(found.state.get("last", {}))
        last[self.name] = last.get(self.name, 0) + 1
        state = {"track_ids": [], "last": last}
        began = time.monotonic()
        async with self.instance.database.session() as session:
            revision = await live.put(session, self.did, state, found.revision)
            if revision is not None:
                self.done += 1
                try:
                    await live.commit(session, self.did, Queue(state, revision))
                except AWAY:
                    self.run.unknown[key].add(self.done)
                    history.writes.append(Write(self.did, revision, began, None, self.instance.name))
                    raise
        if revision is None:
            self.run.conflicts += 1
            return await live.get_current(self.did)
        self.run.confirmed[key].add(self.done)
        history.writes.append(Write(self.did, revision, began, time.monotonic(), self.instance.name))
        return None


async def read(instance: Instance, did: str, run: Run) -> Queue:
    """A read as a request does it, recorded."""
    began = time.monotonic()
    copies = instance.live.is_live and instance.live._cache.get(did) is not None
    found = await instance.live.get(did)
    run.from_copies += copies
    run.history.reads.append(Read(instance.name, did, found.revision, began, time.monotonic()))
    return found


class Breaker:
    """Breaks one thing after the other until stopped; after each, some time in which all is well."""

    def __init__(
        self, rng: random.Random, server: EmbeddedPostgres, instances: list[Instance], run: Run, every: float
    ) -> None:
        self.rng, self.server, self.instances, self.run, self.every = rng, server, instances, run, every
        self.stopped = asyncio.Event()

    async def work(self) -> None:
        kinds = [self._kill, self._silence, self._silence, self._kill, self._restart]
        while not self.stopped.is_set():
            for fault in self.rng.sample(kinds, len(kinds)):
                await self._pause(self.rng.uniform(0.3, 1.0) * self.every)
                if self.stopped.is_set():
                    return
                await fault(self.rng.choice(self.instances))
                self.run.faults[fault.__name__.lstrip("_")] += 1
                await until(lambda: all(instance.live.is_live for instance in self.instances), seconds=60)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stopped.wait()

    async def _kill(self, instance: Instance) -> None:
        with suppress(*AWAY):
            async with instance.database.session() as session:
                await session.execute(KILL)

    async def _silence(self, instance: Instance) -> None:
        instance.proxy.mode = Mode.SILENT
        await self._pause(self.rng.uniform(0.0, 4.0))
        instance.proxy.drop_all()
        instance.proxy.mode = Mode.PASS

    async def _restart(self, _instance: Instance) -> None:
        await self.server.restart(self.rng.choice(("fast", "immediate")))


async def campaign(
    server: EmbeddedPostgres,
    *,
    updates: int,
    writers: int = 20,
    queues: int = 10,
    every: float = 1.0,
    seed: int = 1,
    seconds: float = math.inf,
) -> Run:
    """Let the writers make so many updates, or work for so many seconds, and break something about `every` seconds."""
    await asyncio.to_thread(upgrade, DatabaseSettings(url=server.url))
    rng, run = random.Random(seed), Run()
    dids = [f"did:plc:{number}" for number in range(queues)]
    async with _instance("a", server, run) as a, _instance("b", server, run) as b:
        instances = [a, b]
        await until(lambda: a.live.is_live and b.live.is_live, seconds=60)
        async with a.database.session() as session:
            for did in dids:
                await session.execute(
                    text("INSERT INTO artists (did, handle, display_name) VALUES (:did, :did, :did)"),
                    {"did": did},
                )
            await session.commit()
        started = time.monotonic()
        breaker = Breaker(rng, server, instances, run, every)
        breaking = asyncio.create_task(breaker.work())

        def more() -> bool:
            return run.updates < updates and time.monotonic() - started < seconds

        async def look(instance: Instance) -> None:
            while more():
                try:
                    await read(instance, rng.choice(dids), run)
                except AWAY:
                    run.failures += 1
                await asyncio.sleep(0.003)

        async with asyncio.TaskGroup() as tasks:
            for number in range(writers):
                pair = number // 2
                # Two writers a queue, one on each instance; for every other queue both on one, so that all that the
                # other instance knows of it is what it hears.
                instance = instances[(number if pair % 2 else pair // 2) % 2]
                writer = Writer(f"w{number}", instance, dids[pair % queues], run)
                tasks.create_task(writer.work(more))
            for instance in instances:
                tasks.create_task(look(instance))
        run.seconds = time.monotonic() - started
        breaker.stopped.set()
        await breaking
        await until(lambda: a.live.is_live and b.live.is_live, seconds=60)
        for did in dids:
            run.final[did] = await read(a, did, run)
            await read(b, did, run)
    return run
