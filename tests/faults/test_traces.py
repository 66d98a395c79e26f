"""Each trace of the simulation that found a bug, played again on a real server behind a real network.

The steps are those of `tests/simulation`, with a real clock: where a scenario there counts on a moment, a replay waits
for the state that belongs to it. What the simulated driver does by itself (it cancels itself, it takes no notice of
being cancelled) is done by a hook here. The rules are watched as in all fault tests.
"""

from __future__ import annotations

import ast
import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from conditions import until
from steadypool import Database, errors, events
from steadypool._sqlstate import Disposition
from steadypool.pipeline import Batch, Statement
from steadypool.pool import Pool
from steadypool.pool.lease import EntryState, Lease
from steadypool.sqlalchemy.record import Record
from steadypool_lab import FaultProxy, Mode
from steadypool_lab.testing import Observer

from .conftest import MakeDatabase
from .kit import MARGIN, rests

pytestmark = pytest.mark.anyio

LONG = 20.0
"""Seconds: a limit that a replay must not run into."""


class Place:
    """Where a trace is played: makes its pool, and has the network and a look at the server."""

    def __init__(self, make: MakeDatabase, url: str, proxy: FaultProxy, pg: Observer, *, pings: bool) -> None:
        self._make, self._url = make, url
        self.proxy, self.pg = proxy, pg
        self.pings = pings
        """Whether the driver's proof is a flight of its own, before somebody gets the connection."""
        self.db: Database

    def pool(self, *, on_connect: Any = None, leave_timeout: float = 5.0, **settings: Any) -> Pool[Record]:
        times = {"pool_timeout": 5.0, "connection_timeout": 5.0, "pool_recycle": "off", "close_grace": 5.0}
        self.db = self._make(
            self._url,
            on_connect=on_connect,
            engine_arguments={"leave_timeout": leave_timeout},
            **(times | settings),
        )
        return self.db.pool.core


@pytest.fixture
def place(make_db: MakeDatabase, proxied_url: str, proxy: FaultProxy, pg: Observer, driver: str) -> Place:
    return Place(make_db, proxied_url, proxy, pg, pings=driver != "steadypool")


REPLAYS: dict[str, Callable[[Place], Awaitable[None]]] = {}


def replays(scenario: str) -> Callable[[Callable[[Place], Awaitable[None]]], None]:
    """Register the replay of a scenario of the simulation, by its name."""

    def register(replay: Callable[[Place], Awaitable[None]]) -> None:
        assert scenario not in REPLAYS
        REPLAYS[scenario] = replay

    return register


def ask(pool: Pool[Record], **how: Any) -> asyncio.Task[Lease[Record]]:
    return asyncio.create_task(pool.acquire(**how))


async def seconds_of(work: Awaitable[Any]) -> float:
    started = time.monotonic()
    await work
    return time.monotonic() - started


async def begin(connection: Any) -> None:
    """Begin a transaction behind SQLAlchemy's back, in each driver's way."""
    if hasattr(connection, "run"):
        await connection.run(Batch([Statement("BEGIN", prepare=False)]))
    else:
        await connection.execute("BEGIN")


@replays("test_a_goodbye_that_fails_is_waited_for_all_the_same")
async def _(place: Place) -> None:
    pool = place.pool(pool_size=1, max_overflow=0)

    @event.listens_for(place.db.engine.sync_engine, "close")
    def fails(_connection: Any, _record: Any) -> None:
        raise OSError("what the goodbye said")

    lease = await pool.acquire()
    (backend,) = await place.pg.backends()
    place.proxy.delay = 0.3  # the server hears of the end that much later
    await pool.evict()
    lease.release()
    assert pool.count(EntryState.CLOSING) == 1
    await until(lambda: pool.count() == 0)
    place.proxy.delay = 0.0
    assert backend.pid not in [each.pid for each in await place.pg.backends()]


@replays("test_a_ready_connection_goes_to_the_first_and_one_to_be_proven_to_the_second")
async def _(place: Place) -> None:
    pool = place.pool(
        pool_size=3, max_overflow=0, ping_after_idle=0.5, pool_timeout=LONG, connection_timeout=LONG
    )
    place.db.workload("uploads", max_connections=1)
    stale, ready, held = [await pool.acquire() for _ in range(3)]
    held.release(Disposition.EVICT)
    upload = await pool.acquire(workload="uploads")
    ready.release()
    now = pool.clock.monotonic()
    stale.touch(now - 2.0)
    pool._idle[0].proven_at = now + 5.0  # ready for as long as this takes
    place.proxy.mode = Mode.SILENT
    stale.release()
    lease: list[Lease[Record]] = []
    assert await seconds_of(_into(lease, pool)) < MARGIN
    assert lease[0].slot.number == ready.slot.number or not place.pings
    place.proxy.mode = Mode.PASS
    lease[0].release()
    upload.release()


async def _into(leases: list[Lease[Record]], pool: Pool[Record]) -> None:
    leases.append(await pool.acquire())


@replays("test_a_driver_that_cancels_itself_is_a_failed_connect")
async def _(place: Place) -> None:
    given_up = 0

    async def on_connect(_connection: Any) -> None:
        nonlocal given_up
        if given_up < 2:
            given_up += 1
            raise asyncio.CancelledError

    pool = place.pool(on_connect=on_connect)
    failed: list[events.Event] = []
    pool.events.subscribe(
        lambda told: failed.append(told) if isinstance(told, events.ConnectAttemptFailed) else None
    )
    assert await seconds_of(ask(pool)) < 2 * MARGIN
    assert len(failed) == given_up == 2
    assert isinstance(failed[0], events.ConnectAttemptFailed)
    assert "gave up" in str(failed[0].error)


@replays("test_a_pool_with_room_does_not_say_that_it_is_exhausted")
async def _(place: Place) -> None:
    pool = place.pool(pool_size=3, max_overflow=0, pool_timeout=0.3, connection_timeout=1.0)
    lease = await pool.acquire()
    for mode, kind in ((Mode.SILENT, errors.ConnectTimeout), (Mode.REFUSE, errors.ConnectFailed)):
        place.proxy.mode = mode
        with pytest.raises(kind) as caught:
            await pool.acquire()
        assert not isinstance(caught.value, errors.PoolTimeout)
        await until(lambda: pool.count(EntryState.OPENING, EntryState.STUCK) == 0)
    assert "Connection refused" in str(caught.value)
    place.proxy.mode = Mode.PASS
    lease.release()


@replays("test_a_ping_before_every_lease_is_one_ping")
async def _(place: Place) -> None:
    pool = place.pool(pool_size=1, max_overflow=0, ping_after_idle=0.0)
    (await pool.acquire()).release()
    await pool.clock.sleep(0.01)
    place.proxy.delay = 0.01
    before = place.proxy.round_trips
    for pings in (1, 2):
        lease = await pool.acquire()
        assert place.proxy.round_trips - before == (pings if place.pings else 0)
        await pool.clock.sleep(0.01)
        lease.release()
    place.proxy.delay = 0.0


@replays("test_a_short_pool_timeout_leaves_a_ping_its_time")
async def _(place: Place) -> None:
    pool = place.pool(pool_size=2, max_overflow=0, pool_timeout=0.01)
    (await pool.acquire()).release()
    place.proxy.delay = 0.05
    pool.suspect_all()
    lease = await pool.acquire()
    assert lease.slot.number == 1
    place.proxy.delay = 0.0
    lease.release()


@replays("test_one_that_came_later_and_lives_shorter_is_replaced_in_time")
async def _(place: Place) -> None:
    pool = place.pool(pool_size=4, pool_recycle=1)
    pool.options = replace(pool.options, recycle_jitter=0.9)
    closed: list[str] = []
    pool.events.subscribe(
        lambda told: closed.append(told.reason) if isinstance(told, events.Closed) else None
    )
    for lease in [await pool.acquire() for _ in range(4)]:
        lease.release()
    end = time.monotonic() + LONG
    while closed.count("recycled") < 6:
        idle = [slot for slot in pool._slots if slot.state is EntryState.IDLE]
        now = pool.clock.monotonic()
        assert all(slot.expires_at > now - MARGIN / 2 for slot in idle)
        assert time.monotonic() < end, closed
        await asyncio.sleep(0.02)


def _of_an_instant(recycle: float) -> Callable[[Place], Awaitable[None]]:
    async def replay(place: Place) -> None:
        pool = place.pool()
        pool.options = replace(pool.options, recycle=recycle)
        for number in range(1, 4):
            lease = await pool.acquire()
            assert lease.slot.number == number
            await pool.clock.sleep(recycle)
            lease.release()

    return replay


@replays("test_a_life_of_an_instant_is_one_use")
async def _(place: Place) -> None:
    await _of_an_instant(0.0)(place)
    await _of_an_instant(0.1)(place)


@replays("test_an_eviction_reaches_what_is_being_proven")
async def _(place: Place) -> None:
    pool = place.pool(pool_size=2, max_overflow=0)
    (await pool.acquire()).release()
    place.proxy.delay = 0.2
    pool.suspect_all()
    caller = ask(pool)
    await until(lambda: pool.count(EntryState.PROVING) == 1)
    await pool.evict()
    assert (await caller).slot.number > 1
    place.proxy.delay = 0.0


@replays("test_close_does_not_wait_for_connects_that_it_cancelled")
async def _(place: Place) -> None:
    for under_way in (False, True):
        pool = place.pool()
        place.proxy.mode = Mode.SILENT
        caller = ask(pool)
        await (
            until(lambda pool=pool: pool.count(EntryState.OPENING) == 1) if under_way else asyncio.sleep(0)
        )
        assert await seconds_of(place.db.close(LONG)) < MARGIN
        with pytest.raises(errors.PoolClosed):
            await caller
        place.proxy.mode = Mode.PASS


@replays("test_close_while_one_is_being_cleaned")
async def _(place: Place) -> None:
    pool = place.pool(pool_size=2, leave_timeout=LONG)
    lease = await pool.acquire()
    await begin(lease.connection.driver_connection)
    place.proxy.mode = Mode.SILENT
    lease.release()
    assert pool.count(EntryState.RESETTING) == 1
    assert 0.25 < await seconds_of(place.db.close(0.3)) < 0.3 + MARGIN
    place.proxy.mode = Mode.PASS


@replays("test_a_driver_that_takes_no_notice_of_being_cancelled")
async def _(place: Place) -> None:
    connecting, let_go = asyncio.Event(), asyncio.Event()

    async def on_connect(_connection: Any) -> None:
        connecting.set()
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                let_go.set()

    pool = place.pool(on_connect=on_connect)
    caller = ask(pool)
    await connecting.wait()
    await place.db.close(0)
    with pytest.raises(errors.PoolClosed):
        await caller
    assert let_go.is_set()
    await place.pg.wait_until(place.pg.is_quiet)


@pytest.mark.parametrize("scenario", sorted(REPLAYS))
async def test_a_trace_that_found_a_bug_on_a_real_server(scenario: str, place: Place) -> None:
    async with asyncio.timeout(LONG):
        await REPLAYS[scenario](place)
    if not place.db.pool.core.closed:
        await place.db.close(0.0)
    await rests(place.db)
    await place.pg.wait_until(place.pg.is_quiet)


def test_no_trace_is_missing() -> None:
    """A scenario says in its first words that it was found; every one of these has its replay here."""
    found = set[str]()
    for file in (Path(__file__).parent.parent / "simulation").glob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if function and (ast.get_docstring(node) or "").startswith("Found by"):
                found.add(node.name)
    assert found == set(REPLAYS)
    assert len(found) >= 12
