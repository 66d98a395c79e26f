"""Hedging, refusing at once, leaks, idle time-outs, suspend, resize: one scenario each, on the virtual clock."""

from __future__ import annotations

import asyncio

import pytest

from steadypool import errors, events
from steadypool._sqlstate import Disposition
from steadypool.deadline import deadline
from steadypool.pool.circuit_breaker import HEDGE_AFTER
from steadypool.pool.lease import EntryState, Lease

from .server import Connection, Weather
from .stage import Stage
from .test_scenarios import ask, on_stage


@on_stage(pool_timeout=10.0, connect_timeout=10.0)
async def test_a_stuck_connect_is_not_the_outage(stage: Stage) -> None:
    """One connect hangs while others would succeed in no time (incident 2025-12-08)."""
    stage.server.change(Weather(open="hang"))
    caller = ask(stage)
    await asyncio.sleep(HEDGE_AFTER - 0.01)
    assert len(stage.all(events.ConnectStarted)) == 1
    await asyncio.sleep(0.02)
    assert len(stage.all(events.ConnectStarted)) == 2
    assert stage.pool.count(EntryState.STUCK) == 1
    await asyncio.sleep(3.0)
    assert len(stage.all(events.ConnectStarted)) == 2
    stage.server.change(Weather())
    (await caller).release()


@on_stage(pool_timeout=1.0)
async def test_while_it_is_down_a_caller_without_time_is_told_at_once(stage: Stage) -> None:
    stage.server.change(Weather(open="refuse"))
    with pytest.raises(errors.ConnectFailed):
        await stage.pool.acquire()
    began, told = stage.loop.now, 0
    for _ in range(20):
        with pytest.raises(errors.SteadypoolError) as caught, deadline(0.001, clock=stage.clock):
            await stage.pool.acquire()
        told += isinstance(caught.value, errors.DatabaseUnavailable)
    assert told
    assert stage.loop.now - began < 0.1


@on_stage(pool_timeout=1.0)
async def test_a_wrong_password_is_not_hammered(stage: Stage) -> None:
    stage.server.change(Weather(open="final"))
    began = stage.loop.now
    for _ in range(50):
        with pytest.raises(errors.ConnectFailed) as caught:
            await stage.pool.acquire()
        assert caught.value.final
    assert stage.loop.now - began < 1.0
    assert len(stage.all(events.ConnectAttemptFailed)) < 10


@on_stage(size=2, max_overflow=0, leak_after=5.0)
async def test_a_leak_is_reported_once(stage: Stage) -> None:
    leaked = await stage.pool.acquire(name="GET /tracks")
    await asyncio.sleep(3.0)
    (await stage.pool.acquire()).release()
    await asyncio.sleep(10.0)
    reports = stage.all(events.LeakSuspected)
    assert [(report.holder, round(report.seconds, 1)) for report in reports] == [("GET /tracks", 5.0)]
    leaked.release()
    again = await stage.pool.acquire(name="again")
    await asyncio.sleep(6.0)
    assert [report.holder for report in stage.all(events.LeakSuspected)] == ["GET /tracks", "again"]
    again.release()


@on_stage(size=3, max_overflow=0, idle_timeout=2.0, ping_after_idle=None)
async def test_an_unused_connection_is_closed(stage: Stage) -> None:
    leases = [await stage.pool.acquire() for _ in range(3)]
    for lease in leases:
        lease.release()
    for _ in range(30):
        await asyncio.sleep(0.1)
        (await stage.pool.acquire()).release()
    assert stage.pool.count(EntryState.IDLE) == 1
    await asyncio.sleep(2.5)
    assert stage.pool.count() == 0


@on_stage(size=2, max_overflow=0, pool_timeout=1.0)
async def test_suspended_nobody_is_served(stage: Stage) -> None:
    (await stage.pool.acquire()).release()
    stage.pool.suspend()
    caller = ask(stage)
    await asyncio.sleep(0.5)
    assert not caller.done()
    stage.pool.resume()
    (await caller).release()
    stage.pool.suspend()
    with pytest.raises(errors.SteadypoolError):
        await stage.pool.acquire()
    stage.pool.resume()


@on_stage(size=1, max_overflow=0, pool_timeout=1.0)
async def test_resized_at_run_time(stage: Stage) -> None:
    first = await stage.pool.acquire()
    caller = ask(stage)
    await asyncio.sleep(0.1)
    stage.pool.resize(size=3)
    leases = [first, await caller, await stage.pool.acquire()]
    stage.pool.resize(size=1)
    for lease in leases:
        lease.release()
    await asyncio.sleep(1.0)
    assert stage.pool.count() == 1


@on_stage(size=4, max_overflow=0)
async def test_after_a_loss_new_connections_come_one_at_a_time_until_one_answers(stage: Stage) -> None:
    leases = [await stage.pool.acquire() for _ in range(3)]
    stage.server.change(Weather(open="hang"))
    leases[0].release(Disposition.EVICT_AND_PROVE)
    callers = [ask(stage) for _ in range(3)]
    await asyncio.sleep(0.1)
    assert stage.server.connecting == 1
    leases[1].touch(stage.loop.now)
    await asyncio.sleep(0)
    assert stage.server.connecting == 2  # the limit of 4 leaves room for no more
    stage.server.change(Weather())
    for lease in leases[1:]:
        lease.release()
    for caller in callers:
        (await caller).release()


@on_stage(size=6, max_overflow=0, ping_after_idle=None, max_connecting=2)
async def test_idle_connections_prove_themselves_before_somebody_wants_them(stage: Stage) -> None:
    leases = [await stage.pool.acquire() for _ in range(6)]
    for lease in leases[:5]:
        lease.release()
    dead = [leases[number].slot.connection for number in (1, 3)]
    for connection in dead:
        assert connection is not None
        connection.silent = True
    stage.server.change(Weather(latency=0.1))
    stage.pool.prove_idle()
    most = 0
    for _ in range(200):
        most = max(most, stage.pool.count(EntryState.PROVING))
        await asyncio.sleep(0.01)
    assert most == 2
    assert [c.number for c in stage.pool.connections().connections if c.suspect] == [6]  # in use
    assert {leases[number].slot.state for number in (1, 3)} == {EntryState.GONE}
    began = stage.loop.now
    (await stage.pool.acquire()).release()
    assert stage.loop.now - began < 0.05  # a ping would take 0.1 s: nobody has to ask again
    leases[5].release()


@on_stage(size=2, max_overflow=0)
async def test_an_answer_from_before_the_suspicion_is_no_proof(stage: Stage) -> None:
    lease = await stage.pool.acquire()
    answered = stage.loop.now
    await asyncio.sleep(0.1)
    stage.pool.suspect_all()
    lease.touch(answered)
    assert lease.slot.suspect
    lease.touch(stage.loop.now)
    assert not lease.slot.suspect
    lease.release()


@on_stage()
async def test_a_change_of_the_breaker_is_told_once(stage: Stage) -> None:
    stage.server.change(Weather(open="refuse"))
    caller = ask(stage)
    await asyncio.sleep(0.5)
    stage.server.change(Weather())
    (await caller).release()
    stage.pool.server_fails("the heartbeat was not answered")
    stage.pool.server_answers()
    stage.pool.server_answers()
    told = [(event.before, event.after, event.reason) for event in stage.all(events.BreakerChanged)]
    assert told == [
        ("closed", "open", "connection refused"),
        ("open", "closed", None),
        ("closed", "open", "the heartbeat was not answered"),
        ("open", "closed", None),
    ]


# -- from elsewhere, and drivers that raise ------------------------------------------------------------------------


@pytest.mark.parametrize("leased", [True, False])
def test_what_is_cut_off_where_the_loop_does_not_run_costs_no_place(leased: bool) -> None:
    """Idle, in use, being opened: nothing is left with the loop closed; with it stopped what is in use comes back."""
    stage = Stage(size=3, max_overflow=1)
    held: list[Lease[Connection]] = []

    async def begin() -> None:
        held.extend([await stage.pool.acquire() for _ in range(2)])
        stage.server.change(Weather(open="hang"))
        stage.pool.warm_up()
        await asyncio.sleep(0.01)
        held.pop().release()
        assert stage.pool.count(EntryState.IDLE, EntryState.LEASED, EntryState.OPENING) == 3

    stage.loop.run_until_complete(begin())
    in_use = stage.pool.count(EntryState.LEASED)
    assert in_use
    stage.pool.cut_off(leased=leased)
    assert stage.pool.count() == (0 if leased else in_use)
    assert sum(c.open for c in stage.server.backends.values()) == stage.pool.count()
    for lease in held:
        lease.release()
    stage.loop.run_until_complete(asyncio.sleep(1.0))
    assert stage.pool.count() == 0
    assert stage.server.connecting == 0
    stage.loop.close()


@on_stage(size=1, max_overflow=0)
async def test_a_driver_that_raises_when_it_cuts_off_costs_no_place(stage: Stage) -> None:
    abort, raised = stage.server.abort, 0

    def fail(connection: Connection) -> None:
        nonlocal raised
        raised += 1
        abort(connection)
        raise OSError("injected")

    stage.server.abort = fail  # type: ignore[method-assign]
    for _ in range(3):
        (await stage.pool.acquire()).release(Disposition.EVICT)
    assert raised >= 2
    lease = await stage.pool.acquire()
    assert stage.pool.count() == 1
    lease.release()
    stage.server.abort = abort  # type: ignore[method-assign]
