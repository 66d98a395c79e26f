"""The rules of the pool, watched while it works on a real server and a real network.

The simulation checks the same rules against its own books and a clock that stands still (`tests/simulation/rules.py`).
Here neither is to be had, so this looks at what must hold on any machine, however slow: at every event, at every
connection that is about to be opened, at the end of every wait. It relies on no duration but the pool's own limits.
The numbers are the simulation's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from steadypool import errors, events
from steadypool.deadline import current_deadline
from steadypool.pool import Pool
from steadypool.pool.circuit_breaker import BreakerState
from steadypool.pool.entries import CONNECTING
from steadypool.pool.lease import EntryState, Lease, PoolEntry

AnyPool = Pool[Any]

LATE = 0.1
"""Seconds after the end of a wait at which it is looked whether it has ended."""
TURNS = 50
"""Turns of the loop that whoever was told so may need to notice: a loop that stalls stalls both."""
NEAR = 1e-6
"""Seconds: two moments closer than this are one."""


class _Asked:
    """The pool's driver; of each connection it is known whether the pool asked in this turn of the loop, and was told
    that it is open. A connection may die right then: that is known to who asks later, and not to the pool."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._open: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    async def open(self) -> Any:
        connection = await self._driver.open()
        self._found_open(connection)
        return connection

    def is_open(self, connection: Any) -> bool:
        answer = self._driver.is_open(connection)
        if answer:
            self._found_open(connection)
        else:
            self._open.discard(id(connection))
        return answer

    def _found_open(self, connection: Any) -> None:
        self._open.add(id(connection))
        asyncio.get_running_loop().call_soon(self._open.discard, id(connection))

    def known_dead(self, connection: Any) -> bool:
        """Whether the pool knows, or would if it had asked."""
        return id(connection) not in self._open and not self._driver.is_open(connection)


class LiveRules:
    """Watches one pool from its beginning; `broken` is what it did wrong, in words."""

    def __init__(self, pool: AnyPool) -> None:
        self.pool = pool
        self._driver = _Asked(pool.driver)
        pool.driver = self._driver  # type: ignore[assignment]
        self.broken: list[str] = []
        self.acquired = self.released = self.started = self.ended = 0
        self._handed: set[int] = set()
        self._refused: list[BaseException] = []
        self._calls = 0
        self._looks_soon = False
        self._acquire = pool.acquire
        self._add = pool._slots.add
        self._close = pool.close
        pool.acquire = self.acquire  # type: ignore[method-assign]
        pool.close = self.close  # type: ignore[method-assign]
        pool._slots.add = self.add  # type: ignore[method-assign]
        pool.events.subscribe(self.observe)

    def blame(self, what: str) -> None:
        """A rule was broken; the first few are enough to see why."""
        if len(self.broken) < 20:
            self.broken.append(f"{what} ({self.pool.snapshot()})")

    # -- callers -----------------------------------------------------------------------------------------------------

    async def acquire(self, **how: Any) -> Lease[Any]:
        """As the pool's, from outside: every call ends once, in time, and as the events say."""
        self._calls += 1
        name, own = f"caller {self._calls}", how.get("timeout")
        options, end = self.pool.options, current_deadline()
        limit = max(options.acquire_limit, options.pool_timeout if own is None else own)
        if end is not None:
            limit = end.remaining(self.pool.clock.monotonic())
        loop = asyncio.get_running_loop()
        waiting = [True]
        look = None
        if limit < 1e6:
            look = loop.call_later(limit + LATE, self._has_ended, name, waiting, loop, TURNS)
        try:
            lease = await self._acquire(**how)
        except errors.SteadypoolError as error:
            told = [one for one in self._refused if one is error]
            early = isinstance(error, errors.PoolClosed | errors.WrongEventLoop)
            # For others, each of the statements in line has an event of its own.
            if len(told) != 1 and not early and not how.get("for_others"):
                self.blame(f"events: {name} was refused, and {len(told)} events tell of it: {error!r}")
            self._refused = [one for one in self._refused if one is not error]
            raise
        else:
            if not lease.active and not self.pool.closed:
                self.blame(f"R1: {name} got a lease that is not active")
            return lease
        finally:
            waiting[0] = False
            if look is not None:
                look.cancel()

    def _has_ended(self, name: str, waiting: list[bool], loop: asyncio.AbstractEventLoop, turns: int) -> None:
        if waiting[0] and turns > 0:
            loop.call_soon(self._has_ended, name, waiting, loop, turns - 1)
        elif waiting[0]:
            self.blame(f"R5: {name} still waits after the end of its time")

    async def close(self, grace: float | None = None) -> None:
        """As the pool's; afterwards nothing is left of it."""
        await self._close(grace)
        if self.pool.count():
            self.blame(f"R13: {self.pool.count()} connections are left after close")
        if self.acquired != self.released:
            self.blame(f"R13: {self.acquired} leases began and {self.released} ended")
        if self.pool.waiting:
            self.blame(f"R13: {self.pool.waiting} callers wait for a closed pool")

    # -- connections -------------------------------------------------------------------------------------------------

    def add(self, generation: int) -> PoolEntry[Any]:
        """As the roster's: a connection is about to be opened, and may be."""
        pool, slots = self.pool, self.pool._slots
        if len(slots) >= pool.options.limit:
            self.blame(f"R1: one more connection, and there are {len(slots)} already")
        if pool.closed:
            self.blame("R13: a closed pool opens a connection")
        opening, stuck = slots.count(EntryState.OPENING), slots.count(EntryState.STUCK)
        breaker = pool.breaker
        known_to_work = breaker.state is BreakerState.CLOSED and slots.trusted() > 0
        if breaker.enabled and not known_to_work and (opening > 0 or stuck > 1):
            self.blame(f"R6: {opening} connects are under way and {stuck} are stuck, and one more begins")
        if opening + stuck >= max(pool.options.max_connecting, 2):
            self.blame(f"R6: {opening + stuck} connects are under way, and one more begins")
        return self._add(generation)

    # -- events ------------------------------------------------------------------------------------------------------

    def observe(self, event: events.Event) -> None:
        """An observer of the pool's events."""
        if isinstance(event, events.Acquired):
            self._hand_over(event)
        elif isinstance(event, events.Released):
            self.released += 1
            if event.connection not in self._handed:
                self.blame(f"R1: connection {event.connection} was released, and nobody had it")
            self._handed.discard(event.connection)
        elif isinstance(event, events.AcquireFailed):
            self._refused.append(event.error)
        elif isinstance(event, events.ConnectStarted):
            self.started += 1
        elif isinstance(event, events.ConnectSucceeded | events.ConnectAttemptFailed):
            self.ended += 1
            if self.ended > self.started:
                self.blame("events: more connects ended than began")
        if not self._looks_soon:
            self._looks_soon = True
            asyncio.get_running_loop().call_soon(self._after_turn)

    def _hand_over(self, event: events.Acquired) -> None:
        self.acquired += 1
        pool = self.pool
        slot = next((one for one in pool._slots if one.number == event.connection), None)
        if slot is None or slot.lease is None or slot.connection is None or slot.number in self._handed:
            self.blame(f"R1: connection {event.connection} was handed to two callers, or to none")
            return
        self._handed.add(slot.number)
        if pool.closed:
            self.blame("R13: a closed pool handed a connection over")
        if self._driver.known_dead(slot.connection):
            self.blame(f"R7: connection {slot.number} was handed over, and it is known to be dead")
        stale = pool.options.ping_after_idle
        if slot.suspect or (stale is not None and event.at - slot.proven_at > stale + NEAR):
            self.blame(f"R7: connection {slot.number} was handed over unproven")
        if slot.generation != pool._generation:
            self.blame(f"R12: connection {slot.number} was evicted, and handed over")
        ceiling = pool.ceilings.get(event.workload or "")
        if ceiling is not None and pool._held[event.workload or ""] > ceiling:
            self.blame(f"ceiling: {event.workload} holds {pool._held[event.workload or '']} of {ceiling}")
        came = slot.lease.acquired_at - slot.lease.waited
        for other in pool._waiters:
            passed = not other.future.done() and other.since < came - NEAR
            if passed and not pool._at_ceiling(other.workload):
                self.blame(f"R2: {slot.lease.name} got a connection, and {other.name} was there before")

    def _after_turn(self) -> None:
        """What must hold when a change has had its consequences."""
        self._looks_soon = False
        pool, slots = self.pool, self.pool._slots
        states = [slot.state for slot in slots]
        counts = {state: states.count(state) for state in EntryState}
        if any(slots.count(state) != counts[state] for state in EntryState if state is not EntryState.GONE):
            self.blame(f"R1: the counts are wrong: {counts}")
        if counts[EntryState.IDLE] != len(pool._idle) or len(pool._idle) > pool.options.size:
            self.blame(f"R8: {counts[EntryState.IDLE]} idle, {len(pool._idle)} listed")
        if counts[EntryState.LEASED] != len(self._handed):
            self.blame(f"R1: {counts[EntryState.LEASED]} are leased, {len(self._handed)} were handed over")
        without = [slot for slot in slots if slot.connection is None and slot.state not in CONNECTING]
        if without:
            self.blame(f"R1: slots without a connection: {[slot.state.value for slot in without]}")
        if pool._suspended or pool.closed or not pool._takers():
            return
        now = pool.clock.monotonic()
        for slot in pool._idle:
            usable = not pool._needs_proof(slot, now) and not pool._is_old(slot, now)
            if usable and not self._driver.known_dead(slot.connection):
                self.blame(f"R4: somebody waits, and connection {slot.number} is ready")


@contextmanager
def rules_watched(patch: Callable[[Any, str, Any], None]) -> Iterator[list[LiveRules]]:
    """Watch every pool that is made inside, and fail at the end if one of them broke a rule.

    Args:
        patch: pytest's `monkeypatch.setattr`.
    """
    watched: list[LiveRules] = []
    make = Pool.__init__

    def made(pool: AnyPool, *args: Any, **others: Any) -> None:
        make(pool, *args, **others)
        watched.append(LiveRules(pool))

    patch(Pool, "__init__", made)
    yield watched
    broken = [what for rules in watched for what in rules.broken]
    assert not broken, "the pool broke its rules:\n" + "\n".join(broken)
