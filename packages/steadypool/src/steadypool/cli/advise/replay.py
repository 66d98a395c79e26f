"""Recorded arrivals once more, through the real `pool.py`, on a clock that jumps: hours in seconds.

What is assumed: a caller holds a connection for as long as it did when it was recorded. A database that gets slower
with more connections makes the gain smaller than what is predicted.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steadypool import errors
from steadypool._clock import Backoff, Clock
from steadypool._virtual_time import LoopClock, VirtualLoop
from steadypool.events import Acquired, ConnectSucceeded, Event, Released
from steadypool.monitor import Arrival
from steadypool.pool.circuit_breaker import CircuitBreaker
from steadypool.pool.lease import PoolOptions
from steadypool.pool.pool import Pool

SETTLED = 5.0
"""Virtual seconds after the connections were warmed up in which the first arrival comes."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What the pretended server takes, in seconds."""

    connect: float = 0.02
    round_trip: float = 0.001


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. Times are seconds."""

    size: int
    max_overflow: int
    callers: int
    refused: int
    waits: tuple[float, ...]
    """Of those who were served, shortest first."""
    connects_per_minute: float
    peak: int
    overflow_share: float
    """The part of the time in which more than `size` connections were in use."""

    @property
    def limit(self) -> int:
        """The most connections."""
        return self.size + self.max_overflow

    def wait(self, percent: float) -> float:
        """The wait that so many percent of those served did not exceed."""
        return percentile(self.waits, percent)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of values in ascending order; 0 where there are none.

    Example:
        >>> percentile([1.0, 2.0, 3.0, 4.0], 50)
        2.0
    """
    if not ordered:
        return 0.0
    return ordered[max(0, min(len(ordered) - 1, -(-len(ordered) * int(percent * 10) // 1000) - 1))]


class _Server:
    """A driver whose server takes fixed times and never fails."""

    def __init__(self, clock: Clock, timing: Timing) -> None:
        self._clock = clock
        self._timing = timing
        self._number = 0

    async def open(self) -> int:
        await self._clock.sleep(self._timing.connect)
        self._number += 1
        return self._number

    async def ping(self, connection: int) -> None:
        await self._clock.sleep(self._timing.round_trip)

    def needs_reset(self, connection: int) -> bool:
        return False

    async def reset(self, connection: int) -> None: ...

    def is_open(self, connection: int) -> bool:
        return True

    def rest(self, connection: int, lost: Callable[[], None]) -> None: ...

    def abort(self, connection: int) -> None: ...

    def hang_up(self, connection: int) -> None: ...

    def disown(self, connection: int) -> None: ...

    async def close(self, connection: int) -> None:
        await self._clock.sleep(self._timing.round_trip)


class _Use:
    """Counts connections in use over time."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.connects = 0
        self.now = 0
        self.peak = 0
        self.above = 0.0
        self._since = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, ConnectSucceeded):
            self.connects += 1
        elif isinstance(event, Acquired | Released):
            if self.now > self.size:
                self.above += event.at - self._since
            self._since = event.at
            self.now += 1 if isinstance(event, Acquired) else -1
            self.peak = max(self.peak, self.now)


def replay(
    arrivals: Sequence[Arrival],
    options: PoolOptions,
    *,
    ceilings: dict[str, int] | None = None,
    timing: Timing | None = None,
) -> Outcome:
    """Play the arrivals against a pool with these options; the same arguments give the same outcome.

    Args:
        arrivals: in the order of arriving. Who was never served gets the hold of somebody who was.
        options: the pool's.
        ceilings: of workloads.
        timing: the server's.

    Example:
        >>> crowd = [Arrival(0.0, 0.0, 1.0, None, "served")] * 3
        >>> replay(crowd, PoolOptions(size=1, max_overflow=0)).wait(99)
        2.0
    """
    rng = random.Random(1)
    loop = VirtualLoop()
    clock = LoopClock(loop)
    pool = Pool[int](
        _Server(clock, timing or Timing()),
        options,
        clock=clock,
        rng=rng,
        breaker=CircuitBreaker(options.max_connecting, Backoff(0.05, 0.5, rng)),
        ceilings=ceilings,
    )
    holds = [arrival.held for arrival in arrivals if arrival.held is not None] or [0.0]
    use = _Use(options.size)
    waits: list[float] = []

    async def call(arrival: Arrival) -> None:
        try:
            lease = await pool.acquire(name="", workload=arrival.workload)
        except errors.SteadypoolError:
            return
        waits.append(lease.waited)
        await clock.sleep(arrival.held if arrival.held is not None else rng.choice(holds))
        lease.release()

    async def main() -> None:
        leases = await asyncio.gather(*(pool.acquire(name="") for _ in range(options.size)))
        for lease in leases:
            lease.release()
        pool.events.subscribe(use)
        began = loop.now + SETTLED
        async with asyncio.TaskGroup() as callers:
            for arrival in arrivals:
                pause = began + (arrival.at - arrivals[0].at) - loop.now
                if pause > 0:
                    await asyncio.sleep(pause)
                callers.create_task(call(arrival))
        await pool.close(0)

    loop.run(main())
    seconds = max(arrivals[-1].at - arrivals[0].at, 1.0) if arrivals else 1.0
    return Outcome(
        options.size,
        options.max_overflow or 0,
        len(arrivals),
        len(arrivals) - len(waits),
        tuple(sorted(round(wait, 6) for wait in waits)),
        use.connects * 60 / seconds,
        use.peak,
        use.above / seconds,
    )
