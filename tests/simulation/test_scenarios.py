"""One readable scenario for each promise of the pool, and one for each bug that the random schedules found."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import pytest

from steadypool import errors, events
from steadypool._sqlstate import Disposition
from steadypool.deadline import deadline
from steadypool.pool.circuit_breaker import HEDGE_AFTER
from steadypool.pool.lease import EntryState, Lease

from .server import Connection, Weather
from .stage import Stage

Scenario = Callable[[Stage], Awaitable[None]]


def on_stage(**options: Any) -> Callable[[Scenario], Callable[[], None]]:
    """Make a test of a scenario: it is played on a stage with these options."""

    def decorate(scenario: Scenario) -> Callable[[], None]:
        def test() -> None:
            Stage(**options).play(scenario)

        test.__name__ = scenario.__name__
        test.__doc__ = scenario.__doc__
        return test

    return decorate


def ask(stage: Stage, **how: Any) -> asyncio.Task[Lease[Connection]]:
    return asyncio.create_task(stage.pool.acquire(**how))


async def turns(number: int = 3) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


# -- rule 1 --------------------------------------------------------------------------------------------------------


@on_stage(size=2, max_overflow=1)
async def test_never_more_than_size_and_overflow(stage: Stage) -> None:
    asking = [ask(stage) for _ in range(5)]
    await asyncio.sleep(0.5)
    assert [task.done() for task in asking] == [True, True, True, False, False]
    assert len(stage.server.backends) == 3
    for task in asking[:3]:
        task.result().release()
    await asyncio.gather(*asking)
    assert stage.server.numbers == 3


@on_stage(size=1, max_overflow=0)
async def test_a_connection_that_is_closing_still_counts(stage: Stage) -> None:
    lease = await stage.pool.acquire()
    stage.server.change(Weather(linger=0.3))
    began = stage.loop.now
    lease.release(Disposition.EVICT)
    await stage.pool.acquire()
    assert stage.loop.now - began > 0.3


@on_stage(size=1, max_overflow=0)
async def test_a_goodbye_that_fails_is_waited_for_all_the_same(stage: Stage) -> None:
    """Found by simulation: close() raised, and the slot was free while the server still had the connection."""
    await stage.pool.acquire()
    stage.server.change(Weather(close="raise", linger=0.3))
    lease_of_old_generation = next(iter(stage.pool._slots)).lease
    assert lease_of_old_generation is not None
    await stage.pool.evict()
    lease_of_old_generation.release()
    await asyncio.sleep(0.1)
    assert stage.pool.count(EntryState.CLOSING) == len(stage.server.backends) == 1
    await asyncio.sleep(0.3)
    assert stage.pool.count() == len(stage.server.backends) == 0


@on_stage(size=1, max_overflow=0)
async def test_an_abort_that_fails_costs_no_place(stage: Stage) -> None:
    """Every connection that is cut off here makes its driver raise, as asyncpg 0.31 did."""
    abort = stage.server.abort

    def raises(connection: Connection) -> None:
        abort(connection)
        raise RuntimeError("the driver's own bug")

    stage.server.abort = raises  # type: ignore[method-assign]
    for _ in range(3):
        lease = await stage.pool.acquire()
        lease.release(Disposition.EVICT)
        lease = await stage.pool.acquire()
        lease.connection.open = False
        lease.release()
    await asyncio.sleep(1.0)
    assert stage.pool.count() == 0


@on_stage(size=1, max_overflow=0)
async def test_what_a_cancelled_caller_was_just_handed_goes_to_the_next(stage: Stage) -> None:
    lease = await stage.pool.acquire()
    first, second = ask(stage), ask(stage)
    await turns()
    lease.release()
    first.cancel()  # in the same moment in which the connection was handed over
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await second).connection.number == 1
    assert len(stage.all(events.Acquired)) - len(stage.all(events.Released)) == 1


# -- rule 2 --------------------------------------------------------------------------------------------------------


@on_stage(size=1, max_overflow=0)
async def test_first_come_first_served(stage: Stage) -> None:
    served: list[int] = []

    async def caller(number: int) -> None:
        lease = await stage.pool.acquire()
        served.append(number)
        await asyncio.sleep(0.01)
        lease.release()

    await asyncio.gather(*(caller(number) for number in range(8)))
    assert served == list(range(8))


@on_stage(size=1, max_overflow=0)
async def test_a_newcomer_does_not_overtake(stage: Stage) -> None:
    lease = await stage.pool.acquire()
    waiting = ask(stage)
    await turns()
    lease.release()
    newcomer = ask(stage)
    await turns()
    assert waiting.done()
    assert not newcomer.done()
    waiting.result().release()
    await newcomer


@pytest.mark.parametrize(("lifo", "expected"), [(True, 2), (False, 1)])
def test_which_idle_connection_is_taken(lifo: bool, expected: int) -> None:
    async def scenario(stage: Stage) -> None:
        first, second = await stage.pool.acquire(), await stage.pool.acquire()
        first.release()
        second.release()
        assert (await stage.pool.acquire()).connection.number == expected

    Stage(use_lifo=lifo).play(scenario)


@on_stage(size=3, max_overflow=0, ceilings={"uploads": 1}, ping_after_idle=0.5)
async def test_a_ready_connection_goes_to_the_first_and_one_to_be_proven_to_the_second(stage: Stage) -> None:
    """Found by review: the first caller was left waiting for a ping while the second got the ready connection."""
    stale, ready, held = [await stage.pool.acquire() for _ in range(3)]
    held.release(Disposition.EVICT)
    upload = await stage.pool.acquire(workload="uploads")
    ready.release()
    await asyncio.sleep(1.0)
    stale.touch(stage.clock.monotonic() - 2.0)
    stage.server.change(Weather(ping="hang"))
    fresh = stage.pool._idle[0]
    fresh.proven_at = stage.clock.monotonic()
    stale.release()
    began = stage.loop.now
    assert (await stage.pool.acquire()).connection is not None
    assert stage.loop.now - began < 0.01
    upload.release()


# -- rule 3 --------------------------------------------------------------------------------------------------------


@on_stage()
async def test_a_cancelled_caller_does_not_cancel_its_connect(stage: Stage) -> None:
    stage.server.change(Weather(latency=0.3))
    caller = ask(stage)
    await asyncio.sleep(0.1)
    caller.cancel()
    await asyncio.sleep(0)
    assert stage.server.connecting == 1
    began = stage.loop.now
    lease = await stage.pool.acquire()
    assert lease.connection.number == 1
    assert stage.loop.now - began < 0.21
    assert stage.server.numbers == 1


# -- rule 4 --------------------------------------------------------------------------------------------------------


@on_stage(pool_timeout=5.0)
async def test_callers_are_served_when_the_database_comes_back(stage: Stage) -> None:
    stage.server.change(Weather(open="refuse"))
    asking = [ask(stage) for _ in range(3)]
    await asyncio.sleep(2.0)
    assert stage.all(events.ConnectAttemptFailed)
    assert not any(task.done() for task in asking)
    stage.server.change(Weather())
    began = stage.loop.now
    await asyncio.gather(*asking)
    assert stage.loop.now - began < 0.6


@on_stage(pool_timeout=3.0)
async def test_while_the_database_is_down_one_attempt_at_a_time_and_a_second_beside_a_stuck_one(
    stage: Stage,
) -> None:
    stage.server.change(Weather(open="hang"))
    asking = [ask(stage) for _ in range(3)]
    began, most = stage.loop.now, 0
    for _ in range(250):
        await asyncio.sleep(0.01)
        most = max(most, stage.server.connecting)
        assert most == 1 or stage.loop.now - began >= HEDGE_AFTER
    assert most == 2
    stage.server.change(Weather())
    await asyncio.gather(*asking, return_exceptions=True)


@on_stage(pool_timeout=2.0)
async def test_a_driver_that_cancels_itself_is_a_failed_connect(stage: Stage) -> None:
    """Found by simulation: a CancelledError from within the driver ended the attempt and woke nobody."""
    stage.server.change(Weather(open="gives up"))
    caller = ask(stage)
    await asyncio.sleep(0.5)
    stage.server.change(Weather())
    began = stage.loop.now
    await caller
    assert stage.loop.now - began < 0.6
    assert "gave up" in str(stage.all(events.ConnectAttemptFailed)[0].error)


@pytest.mark.parametrize("weather", ["asleep", "refuse"])
@pytest.mark.parametrize(("wake", "patience"), [(6.0, None), (6.0, 30.0), (12.0, 30.0)])
def test_a_sleeping_database_is_waited_for_by_all(weather: str, wake: float, patience: float | None) -> None:
    """Stock serves 15 of 200 where it wakes after 12 s, and none where it refuses for 6 s."""

    async def caller(stage: Stage) -> None:
        with deadline(patience, clock=stage.clock) if patience else nullcontext():
            lease = await stage.pool.acquire()
        await asyncio.sleep(0.01)
        lease.release()

    async def scenario(stage: Stage) -> None:
        stage.server.change(Weather(open=weather))
        callers = [asyncio.create_task(caller(stage)) for _ in range(200)]
        await asyncio.sleep(wake)
        assert stage.server.connecting <= 2
        stage.server.change(Weather())
        began = stage.loop.now
        await asyncio.gather(*callers)
        assert stage.loop.now - began < 1.0

    Stage(size=10, max_overflow=5, pool_timeout=10.0, connect_timeout=10.0).play(scenario)


# -- rule 5 --------------------------------------------------------------------------------------------------------


@on_stage(size=10, max_overflow=5, pool_timeout=10.0, connect_timeout=10.0)
async def test_an_exhausted_pool_says_so_after_pool_timeout(stage: Stage) -> None:
    leases = await asyncio.gather(*(stage.pool.acquire(name=f"request {n}") for n in range(15)))
    began = stage.loop.now
    with pytest.raises(errors.PoolTimeout) as caught:
        await stage.pool.acquire()
    assert stage.loop.now - began == pytest.approx(10.0, abs=0.01)
    assert str(caught.value).startswith(
        "QueuePool limit of size 10 overflow 5 reached, connection timed out, timeout 10.00"
    )
    assert caught.value.pool is not None
    assert caught.value.pool.leased == 15
    for lease in leases:
        lease.release()
    assert await stage.pool.acquire()
    assert stage.pool.count(EntryState.IDLE) == 9


@on_stage(pool_timeout=0.5, connect_timeout=2.0)
async def test_waiting_and_connecting_do_not_add_up(stage: Stage) -> None:
    stage.server.change(Weather(open="hang"))
    began = stage.loop.now
    with pytest.raises(errors.ConnectTimeout, match=r"did not answer within 2\.00s"):
        await stage.pool.acquire()
    assert stage.loop.now - began == pytest.approx(2.0, abs=0.01)


@on_stage(pool_timeout=0.5, connect_timeout=1.0)
async def test_a_deadline_shortens_a_wait_and_lengthens_it_while_connecting(stage: Stage) -> None:
    stage.server.change(Weather(open="hang"))
    began = stage.loop.now
    with (
        deadline(0.2, clock=stage.clock),
        pytest.raises(errors.DeadlineExceeded, match=r"deadline of 0\.20s"),
    ):
        await stage.pool.acquire()
    assert stage.loop.now - began == pytest.approx(0.2, abs=0.01)
    with (
        deadline(4.0, clock=stage.clock),
        pytest.raises(errors.DeadlineExceeded, match=r"deadline of 4\.00s"),
    ):
        await stage.pool.acquire()
    assert stage.loop.now - began == pytest.approx(4.2, abs=0.01)


@on_stage(size=1, max_overflow=0, pool_timeout=0.5)
async def test_a_deadline_does_not_lengthen_the_wait_for_a_busy_pool(stage: Stage) -> None:
    lease = await stage.pool.acquire()
    began = stage.loop.now
    with deadline(30.0, clock=stage.clock), pytest.raises(errors.PoolTimeout):
        await stage.pool.acquire()
    assert stage.loop.now - began == pytest.approx(0.5, abs=0.01)
    lease.release()


@on_stage(size=3, max_overflow=0, pool_timeout=0.3, connect_timeout=1.0)
async def test_a_pool_with_room_does_not_say_that_it_is_exhausted(stage: Stage) -> None:
    """Found by simulation: one lease was enough for `QueuePool limit reached`, though the database was down."""
    lease = await stage.pool.acquire()
    for weather, kind in (("hang", errors.ConnectTimeout), ("refuse", errors.ConnectFailed)):
        stage.server.change(Weather(open=weather))
        with pytest.raises(kind) as caught:
            await stage.pool.acquire()
        assert not isinstance(caught.value, errors.PoolTimeout)
    assert "connection refused" in str(caught.value)
    lease.release()


@on_stage(pool_timeout=1.0)
async def test_a_final_failure_is_told_at_once(stage: Stage) -> None:
    stage.server.change(Weather(open="final"))
    began = stage.loop.now
    asking = [ask(stage) for _ in range(4)]
    for result in await asyncio.gather(*asking, return_exceptions=True):
        assert isinstance(result, errors.ConnectFailed)
        assert result.final
        assert "password" in str(result)
    assert stage.loop.now - began < 0.05


@on_stage(pool_timeout=0.5, connect_timeout=2.0)
async def test_a_final_failure_leaves_those_who_wait_what_is_given_back(stage: Stage) -> None:
    """The password was changed: connections that are open go on serving, and new ones never come."""
    lease = await stage.pool.acquire()
    stage.server.change(Weather(open="final"))
    served, refused = ask(stage), ask(stage)
    await asyncio.sleep(0.3)
    began = stage.loop.now
    lease.release()
    held = await served
    assert stage.loop.now - began < 0.01
    with pytest.raises(errors.ConnectFailed, match="password authentication failed") as caught:
        await refused
    assert caught.value.final
    assert caught.value.elapsed.total == pytest.approx(0.5, abs=0.01)  # as for a busy pool, and no longer
    held.release(Disposition.EVICT)
    with pytest.raises(errors.ConnectFailed) as caught:
        await stage.pool.acquire()
    assert caught.value.elapsed.total < 0.1  # nobody has one to give back


@on_stage(size=1, max_overflow=0, pool_timeout=1.0, connect_timeout=2.0)
async def test_whom_a_sleeping_database_has_kept_waits_until_the_deadline_and_no_longer(stage: Stage) -> None:
    """Rule "never both in a row": one limit, from one start, though the wait was for two things in turn."""
    stage.server.change(Weather(open="asleep"))
    served = ask(stage)
    with deadline(3.0, clock=stage.clock):
        patient = ask(stage)
    plain = ask(stage)
    await asyncio.sleep(1.5)
    stage.server.change(Weather())
    lease = await served
    with pytest.raises(errors.PoolTimeout, match=r"timeout 2\.00") as caught:
        await plain
    assert caught.value.elapsed.total == pytest.approx(2.0, abs=0.01)
    with pytest.raises(errors.DeadlineExceeded):
        await patient
    assert stage.loop.now - lease.acquired_at == pytest.approx(1.5, abs=0.01)
    began = stage.loop.now
    with pytest.raises(errors.PoolTimeout):
        await stage.pool.acquire()  # who comes now waits for the busy pool alone
    assert stage.loop.now - began == pytest.approx(1.0, abs=0.01)
    lease.release()


@on_stage()
async def test_a_bug_of_a_driver_has_a_name_and_a_message(stage: Stage) -> None:
    stage.server.change(Weather(open="bug"))
    with pytest.raises(errors.ConnectFailed) as caught:
        await stage.pool.acquire()
    assert caught.value.message == "OSError"


@on_stage(size=1, max_overflow=0, max_waiting=2)
async def test_a_full_queue_turns_away_at_once_and_does_not_count_the_cancelled(stage: Stage) -> None:
    lease = await stage.pool.acquire()
    waiting = [ask(stage), ask(stage)]
    await turns()
    with pytest.raises(errors.PoolQueueFull):
        await stage.pool.acquire()
    third = ask(stage)
    waiting[0].cancel()  # it has not left yet when the third one asks
    await turns()
    assert not third.done()
    lease.release()
    (await waiting[1]).release()
    await third


@on_stage(size=2, max_overflow=0, ceilings={"uploads": 1}, pool_timeout=0.5)
async def test_a_workload_at_its_ceiling_waits_and_lets_others_pass(stage: Stage) -> None:
    upload = await stage.pool.acquire(workload="uploads")
    with pytest.raises(errors.PoolTimeout, match="'uploads' holds as many"):
        await stage.pool.acquire(workload="uploads")
    second = ask(stage, workload="uploads")
    await turns()
    (await stage.pool.acquire()).release()
    upload.release()
    assert await second


# -- rule 7: silence -------------------------------------------------------------------------------------------------


@on_stage(size=3, max_overflow=1, pool_timeout=10.0, connect_timeout=10.0)
async def test_silent_idle_connections_do_not_keep_a_caller_from_a_new_one(stage: Stage) -> None:
    """The cold start of 2025-12-02: the ping itself hangs, on one idle connection after the other."""
    for lease in [await stage.pool.acquire() for _ in range(3)]:
        lease.release()
    for connection in stage.server.backends.values():
        connection.silent = True
    await asyncio.sleep(1.0)
    began = stage.loop.now
    lease = await stage.pool.acquire()
    assert lease.connection.number == 4
    assert stage.loop.now - began < 0.5
    await asyncio.sleep(6.0)
    assert stage.pool.count(EntryState.SILENT, EntryState.IDLE) == 0


@on_stage(size=3, max_overflow=0, pool_timeout=2.0, connect_timeout=2.0)
async def test_on_a_silent_network_nothing_takes_twice_as_long(stage: Stage) -> None:
    for lease in [await stage.pool.acquire() for _ in range(3)]:
        lease.release()
    for connection in stage.server.backends.values():
        connection.silent = True
    stage.server.change(Weather(open="hang"))
    await asyncio.sleep(1.0)
    began = stage.loop.now
    results = await asyncio.gather(*(ask(stage) for _ in range(6)), return_exceptions=True)
    assert stage.loop.now - began == pytest.approx(2.0, abs=0.01)
    assert all(isinstance(result, errors.ConnectTimeout) for result in results)


@on_stage(size=1, max_overflow=0, ping_after_idle=0.5)
async def test_only_what_was_idle_for_long_is_asked(stage: Stage) -> None:
    stage.server.change(Weather(ping="fail"))
    (await stage.pool.acquire()).release()
    await asyncio.sleep(0.3)
    assert (await stage.pool.acquire()).connection.number == 1
    next(iter(stage.pool._slots)).lease.release()  # type: ignore[union-attr]
    await asyncio.sleep(0.6)
    assert (await stage.pool.acquire()).connection.number == 2


@on_stage(size=1, max_overflow=0, ping_after_idle=0.0)
async def test_a_ping_before_every_lease_is_one_ping(stage: Stage) -> None:
    """Found by simulation: with 0 seconds the proof was out of date the moment it came, without end."""
    for _ in range(3):
        lease = await stage.pool.acquire()
        pings = lease.connection.asked
        lease.release()
        await asyncio.sleep(0.01)
    assert pings == 2


@on_stage(size=2, max_overflow=0, pool_timeout=0.01)
async def test_a_short_pool_timeout_leaves_a_ping_its_time(stage: Stage) -> None:
    """Found by review: the ping's limit was pool_timeout, so every idle connection was thrown away."""
    (await stage.pool.acquire()).release()
    stage.server.change(Weather(latency=0.05))
    await asyncio.sleep(1.0)
    assert (await stage.pool.acquire()).connection.number == 1


@on_stage()
async def test_an_idle_connection_that_died_is_not_handed_out(stage: Stage) -> None:
    (await stage.pool.acquire()).release()
    stage.server.cut(stage.server.backends[1])
    assert (await stage.pool.acquire()).connection.number == 2


@on_stage(size=2)
async def test_when_one_was_shut_down_its_siblings_have_to_prove_themselves(stage: Stage) -> None:
    first, second = await stage.pool.acquire(), await stage.pool.acquire()
    second.release()
    stage.server.change(Weather(ping="fail"))
    first.release(Disposition.EVICT_AND_PROVE)
    assert (await stage.pool.acquire()).connection.number == 3


# -- rule 8 --------------------------------------------------------------------------------------------------------


@on_stage(size=1, max_overflow=0)
async def test_returned_means_clean(stage: Stage) -> None:
    lease = await stage.pool.acquire()
    connection = lease.connection
    connection.dirty = True
    lease.release()
    assert stage.pool.count(EntryState.RESETTING) == 1
    assert (await stage.pool.acquire()).connection is connection
    assert not connection.dirty


@on_stage(size=1, max_overflow=0)
async def test_what_cannot_be_cleaned_in_time_is_not_used_again(stage: Stage) -> None:
    stage.server.change(Weather(reset="hang"))
    lease = await stage.pool.acquire()
    lease.connection.dirty = True
    lease.release()
    assert (await stage.pool.acquire()).connection.number == 2


@on_stage(size=1, max_overflow=2)
async def test_beyond_size_it_is_closed_unless_somebody_waits(stage: Stage) -> None:
    leases = [await stage.pool.acquire() for _ in range(3)]
    waiting = ask(stage)
    await turns()
    for lease in leases:
        lease.release()
    assert (await waiting).connection.number == 1
    await asyncio.sleep(0.1)
    assert stage.pool.count() == 2
    assert [event.reason for event in stage.all(events.Closed)] == ["overflow"]


# -- rule 9 --------------------------------------------------------------------------------------------------------


@on_stage(size=2, recycle=10.0)
async def test_old_connections_are_replaced_in_the_background(stage: Stage) -> None:
    for lease in [await stage.pool.acquire() for _ in range(2)]:
        lease.release()
    ages = [slot.expires_at - slot.opened_at for slot in stage.pool._slots]
    assert all(9.0 <= age < 10.0 for age in ages)
    assert ages[0] != ages[1]
    await asyncio.sleep(10.5)
    assert sorted(slot.number for slot in stage.pool._slots) == [3, 4]
    assert stage.pool.count(EntryState.IDLE) == 2


@on_stage(size=4, recycle=10.0, recycle_jitter=0.9)
async def test_one_that_came_later_and_lives_shorter_is_replaced_in_time(stage: Stage) -> None:
    """Found by review: the timer was set for the first to come, and not moved for one that ends earlier."""
    for lease in [await stage.pool.acquire() for _ in range(4)]:
        lease.release()
    for _ in range(120):
        await asyncio.sleep(0.1)
        idle = [slot for slot in stage.pool._slots if slot.state is EntryState.IDLE]
        assert all(slot.expires_at > stage.loop.now - 0.01 for slot in idle)
    assert len(stage.all(events.Closed)) >= 4


@pytest.mark.parametrize("recycle", [0.0, 0.2])
def test_a_life_of_an_instant_is_one_use(recycle: float) -> None:
    """Found by review: on a clock that goes on, each new connection was old before anybody had it."""

    async def scenario(stage: Stage) -> None:
        for number in range(1, 4):
            lease = await stage.pool.acquire()
            assert lease.connection.number == number
            await asyncio.sleep(0.1)
            lease.release()
            await asyncio.sleep(0.2)

    Stage(recycle=recycle).play(scenario)


# -- rules 11 and 12 -----------------------------------------------------------------------------------------------


@on_stage(size=1, max_overflow=0, leave_timeout=0.5)
async def test_a_close_that_hangs_holds_its_place_for_a_limited_time(stage: Stage) -> None:
    stage.server.change(Weather(close="hang"))
    lease = await stage.pool.acquire()
    evicting = asyncio.create_task(stage.pool.evict())
    await turns()
    lease.release()
    began = stage.loop.now
    await stage.pool.acquire()
    assert 0.5 <= stage.loop.now - began < 0.6
    await evicting


@on_stage(size=2, max_overflow=0)
async def test_an_eviction_reaches_what_is_being_proven(stage: Stage) -> None:
    """Found by simulation: a connection that was answering a ping came back after the eviction."""
    (await stage.pool.acquire()).release()
    await asyncio.sleep(1.0)
    stage.server.change(Weather(latency=0.2))
    caller = ask(stage)
    await asyncio.sleep(0.1)
    assert stage.pool.count(EntryState.PROVING) == 1
    await stage.pool.evict()
    assert (await caller).connection.number == 2


@on_stage(size=2)
async def test_warming_up_opens_without_callers_and_gives_up_when_the_database_is_down(stage: Stage) -> None:
    stage.pool.warm_up()
    await asyncio.sleep(0.5)
    assert stage.pool.count(EntryState.IDLE) == 2
    await stage.pool.evict()
    stage.server.change(Weather(open="refuse"))
    stage.pool.warm_up()
    await asyncio.sleep(60.0)
    assert len(stage.all(events.ConnectAttemptFailed)) == 1
    stage.server.change(Weather())
    assert await stage.pool.acquire()


# -- rule 13 -------------------------------------------------------------------------------------------------------


@on_stage(close_grace=1.0)
async def test_close_lets_the_busy_finish(stage: Stage) -> None:
    lease = await stage.pool.acquire()
    closing = asyncio.create_task(stage.pool.close())
    await asyncio.sleep(0.3)
    assert not closing.done()
    with pytest.raises(errors.PoolClosed):
        await stage.pool.acquire()
    began = stage.loop.now
    lease.release()
    await closing
    assert stage.loop.now - began < 0.1
    assert [event.aborted for event in stage.all(events.PoolClosedEvent)] == [0]


@on_stage(size=3, close_grace=1.0)
async def test_close_aborts_all_at_once_when_its_grace_is_over(stage: Stage) -> None:
    leases = [await stage.pool.acquire() for _ in range(3)]
    connections = [lease.connection for lease in leases]
    stage.server.change(Weather(linger=0.2))
    began = stage.loop.now
    await stage.pool.close()
    assert stage.loop.now - began == pytest.approx(1.0, abs=0.01)
    assert {round(connection.aborted_at or 0, 2) for connection in connections} == {round(began + 1.0, 2)}
    assert [event.aborted for event in stage.all(events.PoolClosedEvent)] == [3]
    assert [event.kept for event in stage.all(events.Released)] == [False] * 3
    for lease in leases:
        assert not lease.active
        lease.release()
    assert len(stage.all(events.Released)) == 3


@on_stage()
async def test_close_tells_those_who_wait(stage: Stage) -> None:
    stage.server.change(Weather(open="hang"))
    asking = [ask(stage) for _ in range(3)]
    await asyncio.sleep(0.1)
    await stage.pool.close()
    for result in await asyncio.gather(*asking, return_exceptions=True):
        assert isinstance(result, errors.PoolClosed)


@pytest.mark.parametrize("pause", [None, 0.1], ids=["not yet begun", "under way"])
def test_close_does_not_wait_for_connects_that_it_cancelled(pause: float | None) -> None:
    """Found by simulation: close waited for its whole grace time, because a cancelled connect told nobody."""

    async def scenario(stage: Stage) -> None:
        stage.server.change(Weather(open="hang"))
        caller = ask(stage)
        await (asyncio.sleep(0) if pause is None else asyncio.sleep(pause))
        began = stage.loop.now
        await stage.pool.close(5.0)
        assert stage.loop.now - began < 0.01
        with pytest.raises(errors.PoolClosed):
            await caller

    Stage().play(scenario)


@on_stage(size=2, leave_timeout=2.0)
async def test_close_while_one_is_being_cleaned(stage: Stage) -> None:
    """Found by review: the cleaning was cancelled at the end of the grace time and crashed."""
    stage.server.change(Weather(reset="hang"))
    lease = await stage.pool.acquire()
    lease.connection.dirty = True
    lease.release()
    await turns()
    began = stage.loop.now
    await stage.pool.close(0.3)
    assert stage.loop.now - began == pytest.approx(0.3, abs=0.01)


@on_stage()
async def test_close_twice_ends_twice_and_is_said_once(stage: Stage) -> None:
    await stage.pool.acquire()
    began = stage.loop.now
    await asyncio.gather(stage.pool.close(5.0), stage.pool.close(0.2))
    assert stage.loop.now - began == pytest.approx(0.2, abs=0.01)
    await stage.pool.close()
    assert len(stage.all(events.PoolClosedEvent)) == 1


@on_stage()
async def test_a_close_that_is_cancelled_aborts_at_once(stage: Stage) -> None:
    lease = await stage.pool.acquire()
    connection = lease.connection
    closing = asyncio.create_task(stage.pool.close(5.0))
    await asyncio.sleep(0.1)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert connection.aborted_at is not None
    assert not lease.active
    await asyncio.sleep(0.1)
    assert stage.pool.count() == 0


@on_stage(connect_timeout=1.0)
async def test_a_driver_that_takes_no_notice_of_being_cancelled(stage: Stage) -> None:
    """Found by review: what such a connect brought after the end of the pool had no place to go."""
    stage.server.change(Weather(open="stubborn"))
    caller = ask(stage)
    await asyncio.sleep(0.1)
    await stage.pool.close(0)
    with pytest.raises(errors.PoolClosed):
        await caller
    assert [c for c in stage.server.backends.values() if c.aborted_at is None] == []


# -- leases and homes ----------------------------------------------------------------------------------------------


@on_stage()
async def test_a_lease_ends_once(stage: Stage) -> None:
    lease = await stage.pool.acquire()
    lease.release()
    again = await stage.pool.acquire()
    lease.release()
    assert again.active
    assert not lease.active
    with pytest.raises(RuntimeError, match="this lease has ended"):
        _ = lease.connection


@on_stage()
async def test_leaving_a_block_gives_back_and_leaving_it_cancelled_evicts(stage: Stage) -> None:
    with await stage.pool.acquire() as connection:
        assert connection.number == 1
    with pytest.raises(KeyError):
        with await stage.pool.acquire():
            raise KeyError
    assert stage.pool.count(EntryState.IDLE) == 1

    async def hold() -> None:
        with await stage.pool.acquire():
            await asyncio.sleep(10.0)

    holding = asyncio.create_task(hold())
    await asyncio.sleep(0.1)
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding
    assert (await stage.pool.acquire()).connection.number == 2


def test_a_pool_belongs_to_its_event_loop() -> None:
    stage = Stage()

    async def use(stage: Stage) -> None:
        (await stage.pool.acquire()).release()

    stage.play(use)
    with pytest.raises(errors.WrongEventLoop, match="belongs to another event loop"):
        asyncio.run(stage.pool.close())


@on_stage()
async def test_the_work_of_the_pool_does_not_inherit_a_callers_deadline(stage: Stage) -> None:
    from steadypool.deadline import current_deadline

    seen: list[object] = []
    attempt = stage.server._attempt

    async def looking(*args: Any) -> Connection:
        seen.append(current_deadline())
        return await attempt(*args)

    stage.server._attempt = looking  # type: ignore[method-assign]
    with deadline(5.0, clock=stage.clock):
        await stage.pool.acquire()
    assert seen == [None]


@on_stage(size=2, max_overflow=0)
async def test_a_snapshot_says_who_holds_what(stage: Stage) -> None:
    await stage.pool.acquire(name="GET /tracks", workload="api")
    await asyncio.sleep(2.0)
    snapshot = stage.pool.snapshot()
    (holder,) = snapshot.holders
    assert (holder.name, holder.workload) == ("GET /tracks", "api")
    assert holder.seconds == pytest.approx(2.0, abs=0.1)
    assert (snapshot.leased, snapshot.idle, snapshot.waiting) == (1, 0, 0)
