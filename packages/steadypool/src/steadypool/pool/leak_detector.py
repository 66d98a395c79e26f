"""Connections that somebody has had for too long: who, since when, and where in the program they were acquired."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from steadypool import events
from steadypool._clock import Clock
from steadypool.pool.lease import Lease, PoolEntry


class LeakDetector:
    """Reports each lease that lasts longer than a limit, or that nobody ended, once.

    One timer serves all leases: it is set when there is something to watch, and looks at what is due.

    Args:
        limit: seconds that a lease may last; None for no watch.
        slots: the connections of the pool.
        observers: where `LeakSuspected` goes.
        name: what the event calls the pool.
        clock: where the time comes from.
    """

    def __init__(
        self,
        limit: float | None,
        slots: Iterable[PoolEntry[Any]],
        *,
        observers: events.Events,
        name: str,
        clock: Clock,
    ) -> None:
        self._limit = limit
        self._slots = slots
        self._events = observers
        self._name = name
        self._clock = clock
        self.timer: asyncio.TimerHandle | None = None
        """None while nothing is watched."""

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """A lease has begun."""
        if self.timer is None and self._limit is not None:
            self._wait(loop, self._limit)

    def stop(self) -> None:
        """There will be no more leases."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _wait(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        # Weakly: the timer must not keep a pool that was dropped, and its connections, for so long.
        self.timer = loop.call_later(seconds, _look, weakref.ref(self), loop)

    def look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Report what is due, and wait for what comes next."""
        limit, self.timer = self._limit, None
        if limit is None:
            return
        now = self._clock.monotonic()
        held = [slot.lease for slot in self._slots if slot.lease is not None and not slot.lease.reported]
        for lease in held:
            if now - lease.acquired_at >= limit:
                self._report(lease, now)
        begins = [lease.acquired_at for lease in held if not lease.reported]
        if begins:
            self._wait(loop, max(0.0, min(begins) + limit - now))

    def forgotten(self, lease: Lease[Any]) -> None:
        """The garbage collector found a lease that its holder never ended; where the watch is off, nobody is told."""
        if self._limit is not None and not lease.reported:
            self._report(lease, self._clock.monotonic(), forgotten=True)

    def _report(self, lease: Lease[Any], now: float, *, forgotten: bool = False) -> None:
        lease.reported = True
        self._events.emit(
            events.LeakSuspected(
                self._name,
                now,
                lease.slot.number,
                now - lease.acquired_at,
                lease.name,
                lease.workload,
                lease.places,
                forgotten,
            )
        )


def _look(watch: Callable[[], LeakDetector | None], loop: asyncio.AbstractEventLoop) -> None:
    alive = watch()
    if alive is not None:
        alive.look(loop)
