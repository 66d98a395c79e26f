"""Runs one schedule: does its steps, plays the callers, and asks the rules after every turn of the loop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

from steadypool import errors
from steadypool._clock import Backoff
from steadypool._sqlstate import Disposition
from steadypool._virtual_time import LoopClock, VirtualLoop
from steadypool.deadline import deadline
from steadypool.pool import Pool
from steadypool.pool.circuit_breaker import CircuitBreaker
from steadypool.pool.lease import Lease

from .rules import Caller, RecordingRoster, Rules
from .schedule import (
    CALLER_TIMEOUTS,
    DEADLINES,
    GRACES,
    WEATHERS,
    WORKLOADS,
    Schedule,
    Step,
)
from .server import FAIR, Connection, RuleBroken, Server

FATES = (
    *Disposition,
    Disposition.KEEP,
    Disposition.KEEP,
    Disposition.KEEP,
    Disposition.KEEP,
    Disposition.KEEP,
    Disposition.KEEP,
)
SETTLING = 4.0
"""Seconds after the last step in which everything must have come to its end."""


class World:
    """One pool, one server and many callers, on one virtual loop.

    Args:
        schedule: what happens.
        pool_class: the pool under test; the mutants are others.
    """

    def __init__(self, schedule: Schedule, pool_class: type[Pool[Any]] = Pool) -> None:
        self.schedule = schedule
        options = schedule.config.options
        rng = random.Random(schedule.seed ^ 0x5EED)
        self.loop = VirtualLoop(rng, self._turned, self._rested)
        self.rules = Rules(schedule.config, self.loop)
        limits = (options.connect_timeout, options.connect_timeout / 2, options.leave_timeout)
        self.server = Server(
            self.loop, rng, limits, lambda: self.pool.closed, self.rules.seen, self.rules.blame
        )
        self.clock = LoopClock(self.loop)
        self.pool: Pool[Connection] = pool_class(
            self.server,
            options,
            clock=self.clock,
            rng=rng,
            breaker=CircuitBreaker(options.max_connecting, Backoff(first=0.05, ceiling=0.5, rng=rng)),
            ceilings=dict(schedule.config.ceilings),
        )
        roster = RecordingRoster(self.rules)
        self.pool._slots = roster
        self.rules.attach(self.pool, self.server, roster)
        self.callers: list[Caller] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.evicting: list[asyncio.Task[None]] = []
        self.closings: list[asyncio.Task[None]] = []
        self.broken: BaseException | None = None
        self.step_number = 0
        self.loop.set_exception_handler(self._complained)

    # -- running -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run the schedule. Raises RuleBroken, Deadlock or Livelock."""
        main = self.loop.create_task(self._main())
        main.add_done_callback(lambda _: self.loop.stop())
        try:
            self.loop.run_forever()
            if self.broken is None:
                main.result()
        except AssertionError as error:
            self._break(error)
        if self.broken is not None:
            self._clear_away()
        self.loop.close()
        if self.broken is not None:
            raise self.broken

    def _clear_away(self) -> None:
        """After a broken rule: end what is still running, so that nothing complains later."""
        self.loop.set_exception_handler(lambda loop, context: None)
        for _ in range(5):
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.call_later(60.0, self.loop.stop)
            with suppress(AssertionError):
                self.loop.run_forever()

    async def _main(self) -> None:
        self.finished: asyncio.Future[None] = self.loop.create_future()
        self._next()
        await self.finished
        await self._wind_up()

    def _next(self) -> None:
        steps = self.schedule.steps
        try:
            while self.step_number < len(steps):
                step = steps[self.step_number]
                self.step_number += 1
                self._do(step)
                if self.step_number == len(steps):
                    break
                gap = steps[self.step_number][0]
                if gap > 0:
                    self.loop.call_later(gap, self._next)
                    return
                if gap < 0:
                    self._after_turns(int(-gap))
                    return
            self.finished.set_result(None)
        except Exception as error:  # noqa: BLE001 - a crash of the pool is a finding too
            self._break(error)

    def _after_turns(self, turns: int) -> None:
        self.loop.call_soon(
            self._next if turns <= 1 else self._after_turns, *(() if turns <= 1 else (turns - 1,))
        )

    def _turned(self) -> None:
        self._ask(self.rules.after_turn)

    def _rested(self) -> None:
        self._ask(self.rules.at_rest)

    def _ask(self, rule: Callable[[], None]) -> None:
        if self.broken is None:
            try:
                rule()
            except AssertionError as error:
                self._break(error)

    def _break(self, error: BaseException) -> None:
        if self.broken is None:
            self.broken = error
            self.loop.stop()

    def _complained(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._break(RuleBroken(f"the loop complains: {context.get('message')}: {context.get('exception')!r}"))

    # -- steps -------------------------------------------------------------------------------------------------

    def _do(self, step: Step) -> None:
        _, verb, a, b = step
        self.rules.seen(verb)
        getattr(self, "_do_" + verb.replace(" ", "_"))(a, b)

    def _do_wait(self, a: int, b: int) -> None: ...

    def _do_acquire(self, a: int, b: int) -> None:
        for number in range(1 if a % 5 else 1 + a % 4):
            caller = Caller(
                str(len(self.callers)),
                WORKLOADS[(a >> 4) % len(WORKLOADS)] if self.pool.ceilings else None,
                CALLER_TIMEOUTS[(b >> 2) % len(CALLER_TIMEOUTS)],
                DEADLINES[(b >> 6) % len(DEADLINES)],
            )
            self.callers.append(caller)
            caller.task = self.loop.create_task(self._call(caller), name=caller.name)
            self.tasks.add(caller.task)
            caller.task.add_done_callback(self._caller_left)
            a += number * 7

    def _caller_left(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._break(error)

    async def _call(self, caller: Caller) -> None:
        limit = nullcontext() if caller.limit is None else deadline(caller.limit, clock=self.clock)
        with limit as end:
            self.rules.arrives(caller, None if end is None else end.at)
            try:
                lease = await self.pool.acquire(
                    name=caller.name, workload=caller.workload, timeout=caller.timeout
                )
            except asyncio.CancelledError:
                self.rules.cancelled(caller)
                raise
            except errors.SteadypoolError as error:
                self.rules.refused(caller, error)
            else:
                self.rules.served(caller, lease)

    def _holder(self, pick: int) -> Caller | None:
        holders = self.rules.holding
        return holders[pick % len(holders)] if holders else None

    def _do_release(self, a: int, b: int) -> None:
        holder = self._holder(a)
        if holder is not None:
            self._release(holder, FATES[b % len(FATES)])

    def _release(self, holder: Caller, fate: Disposition) -> None:
        self.rules.holding.remove(holder)
        lease = holder.lease
        assert lease is not None
        self.rules.gives_back(lease, fate)
        lease.release(fate)
        if lease.active:
            raise RuleBroken("a lease is active after its release")
        holder.ended = True

    def _do_release_twice(self, a: int, b: int) -> None:
        ended = [c for c in self.callers if c.ended]
        if ended:
            before = self.rules.version()
            lease: Lease[Connection] | None = ended[a % len(ended)].lease
            assert lease is not None
            lease.release(FATES[b % len(FATES)])
            if self.rules.version() != before:
                raise RuleBroken("a second release did something")

    def _do_use(self, a: int, b: int) -> None:
        holder = self._holder(a)
        if holder is not None and holder.lease is not None and holder.lease.active:
            connection = holder.lease.connection
            if b % 3:
                connection.dirty = True
            if b % 2:
                holder.lease.touch(self.clock.monotonic())
                connection.answered_at = self.loop.now
                connection.doubted = False

    def _do_cancel(self, a: int, b: int) -> None:
        """Cancel the first who waits, the last, or anybody; also somebody who has been served in this moment."""
        waiting = [
            c for c in self.callers[-40:] if not c.settled and not c.cancel_asked and c.task is not None
        ]
        if waiting:
            caller = waiting[(0, -1, a % len(waiting))[b % 3]]
            self.rules.cancels(caller)
            assert caller.task is not None
            caller.task.cancel()

    def _do_weather(self, a: int, b: int) -> None:
        what, values = WEATHERS[a % len(WEATHERS)]
        self.server.worsen(**{what: values[b % len(values)]})

    def _do_fair(self, a: int, b: int) -> None:
        self.server.change(FAIR)

    def _backend(self, a: int) -> Connection | None:
        living = list(self.server.backends.values())
        return living[a % len(living)] if living else None

    def _do_cut(self, a: int, b: int) -> None:
        if (connection := self._backend(a)) is not None and not connection.silent:
            self.server.cut(connection)

    def _do_cut_all(self, a: int, b: int) -> None:
        for connection in list(self.server.backends.values()):
            if not connection.silent:
                self.server.cut(connection)

    def _do_silence(self, a: int, b: int) -> None:
        if (connection := self._backend(a)) is not None:
            connection.silent = True

    def _do_silence_all(self, a: int, b: int) -> None:
        for connection in self.server.backends.values():
            connection.silent = True

    def _do_evict(self, a: int, b: int) -> None:
        self.evicting.append(self.loop.create_task(self._evict()))

    async def _evict(self) -> None:
        await self.pool.evict()

    def _do_drain(self, a: int, b: int) -> None:
        self.rules.drains(lambda connection: connection.number % 2 == a % 2)

    def _do_cancel_evict(self, a: int, b: int) -> None:
        if self.evicting:
            self.evicting[a % len(self.evicting)].cancel()

    def _do_suspect_all(self, a: int, b: int) -> None:
        self.rules.doubts()
        self.pool.suspect_all()

    def _do_first_use_is_silent(self, a: int, b: int) -> None:
        """A holder's first use was not answered in time: its connection goes, and the idle ones have to answer."""
        holder = self._holder(a)
        if holder is not None and holder.lease is not None and holder.lease.active:
            since = self.loop.now - (0.0, 0.05, 0.25)[b % 3]
            self.rules.doubts(since)
            self.pool.doubt_idle(since)
            self._release(holder, Disposition.EVICT)

    def _do_prove_idle(self, a: int, b: int) -> None:
        self.rules.doubts()
        self.rules.proves_idle(self.pool.prove_idle)

    def _do_warm_up(self, a: int, b: int) -> None:
        self.pool.warm_up(None if a % 2 else b % 4)

    def _do_abort_idle(self, a: int, b: int) -> None:
        # Meant for when no loop runs any more: nobody can wait until the server has let go.
        for slot in self.pool._idle:
            assert slot.connection is not None
            self.server.excuse(slot.connection)
        self.pool.abort_idle()

    def _do_close(self, a: int, b: int) -> None:
        self._begin_close(GRACES[a % len(GRACES)])

    def _begin_close(self, grace: float | None) -> asyncio.Task[None]:
        closing = self.loop.create_task(self._close(grace))
        self.closings.append(closing)
        return closing

    async def _close(self, grace: float | None) -> None:
        ending = self.rules.closes(self.schedule.config.options.close_grace if grace is None else grace)
        try:
            await self.pool.close(grace)
        finally:
            self.rules.closed(ending)

    def _do_cancel_close(self, a: int, b: int) -> None:
        if self.closings:
            self.closings[a % len(self.closings)].cancel()

    # -- the end -----------------------------------------------------------------------------------------------

    async def _wind_up(self) -> None:
        """Fair weather, everybody leaves: nothing may be left over."""
        self.server.change(FAIR)
        for _ in range(100):
            for holder in list(self.rules.holding):
                self._release(holder, Disposition.KEEP)
            if not self.tasks:
                break
            await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)
        else:
            raise RuleBroken("callers go on waiting in fair weather")
        await asyncio.sleep(SETTLING)
        self.rules.after_everybody_left()
        await self._begin_close(None)
        await asyncio.gather(*self.evicting, *self.closings, return_exceptions=True)
        if self.server.backends:
            await asyncio.sleep(31.0)  # those on a silent network end by the server's own keepalive
        self.rules.after_close()
        mine = asyncio.current_task()
        if others := [t for t in asyncio.all_tasks() if t is not mine and not t.done()]:
            raise RuleBroken(f"tasks are left over: {others}")
        if timers := self.loop.timers():
            raise RuleBroken(f"timers are left over: {timers}")


def run(schedule: Schedule, pool_class: type[Pool[Any]] = Pool) -> World:
    """Run a schedule to its end. Raises RuleBroken, Deadlock or Livelock."""
    world = World(schedule, pool_class)
    world.run()
    return world
