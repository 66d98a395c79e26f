"""What a status page shows: each connection and each caller who waits, true at the moment."""

from __future__ import annotations

import asyncio
import math

import pytest

from steadypool.deadline import deadline
from steadypool.pool.inspection import ConnectionInfo, PoolInspection, WaiterInfo

from .server import Weather
from .stage import Stage
from .test_scenarios import ask, on_stage


def rounded(census: PoolInspection) -> PoolInspection:
    """Times to a thousandth of a second."""

    def near(value: float | None) -> float | None:
        return None if value is None else round(value, 3)

    return PoolInspection(
        census.pool,
        tuple(
            ConnectionInfo(
                c.number,
                c.state,
                round(c.seconds, 3),
                near(c.age),
                near(c.proven),
                c.suspect,
                c.leases,
                c.holder,
                c.workload,
            )
            for c in census.connections
        ),
        tuple(
            WaiterInfo(w.holder, w.workload, round(w.seconds, 3), round(w.left, 3)) for w in census.waiters
        ),
    )


@on_stage(size=2, max_overflow=0, pool_timeout=4.0, connect_timeout=9.0, ceilings={"uploads": 1})
async def test_everybody_is_shown_with_what_they_have_or_wait_for(stage: Stage) -> None:
    upload = await stage.pool.acquire(name="POST /tracks", workload="uploads")  # connected within 0.01 s
    (await stage.pool.acquire(name="GET /first")).release()
    await asyncio.sleep(1.0)
    page = await stage.pool.acquire(name="GET /tracks")  # asks for a sign of life, 0.01 s
    await asyncio.sleep(0.5)
    stage.pool.suspect_all()
    with deadline(3.0, clock=stage.clock):
        short = ask(stage, name="GET /short")
        await asyncio.sleep(0)
    waiting = ask(stage, name="POST /more", workload="uploads")
    await asyncio.sleep(0.25)
    assert rounded(stage.pool.connections()) == PoolInspection(
        "main",
        (
            ConnectionInfo(1, "leased", 1.77, 1.77, 1.77, True, 1, "POST /tracks", "uploads"),
            ConnectionInfo(2, "leased", 0.75, 1.76, 0.75, True, 2, "GET /tracks", None),
        ),
        (WaiterInfo("GET /short", None, 0.25, 2.75), WaiterInfo("POST /more", "uploads", 0.25, 3.75)),
    )
    page.release()
    (await short).release()
    upload.release()
    (await waiting).release()
    await asyncio.sleep(0.2)
    census = stage.pool.connections()
    assert [c.state for c in census.connections] == ["idle", "idle"]
    assert [c.holder for c in census.connections] == [None, None]
    assert census.waiters == ()


@on_stage(size=1, max_overflow=0, pool_timeout=1.0, connect_timeout=5.0)
async def test_while_the_server_is_asked_a_caller_has_the_time_of_a_connect_left(stage: Stage) -> None:
    stage.server.change(Weather(open="hang"))
    caller = ask(stage, name="GET /")
    endless = asyncio.create_task(stage.pool.acquire(name="script", timeout=math.inf))
    await asyncio.sleep(0.5)
    census = rounded(stage.pool.connections())
    assert census.connections == (ConnectionInfo(1, "stuck", 0.25, None, None, False, 0, None, None),)
    assert census.waiters == (
        WaiterInfo("GET /", None, 0.5, 4.5),
        WaiterInfo("script", None, 0.5, math.inf),
    )
    stage.server.change(Weather())
    (await caller).release()
    (await endless).release()


@on_stage()
async def test_a_census_says_what_was_and_changes_nothing(stage: Stage) -> None:
    lease = await stage.pool.acquire()
    before = stage.pool.connections()
    with pytest.raises(AttributeError):
        before.connections[0].state = "idle"  # type: ignore[misc]
    lease.release()
    assert before.connections[0].state == "leased"
    assert stage.pool.connections().connections[0].state == "idle"
