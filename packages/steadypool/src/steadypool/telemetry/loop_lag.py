"""By how much the event loop is late: what a busy loop adds to every wait, and nobody should blame on the pool."""

from __future__ import annotations

import asyncio
import weakref

from steadypool._clock import Clock

INTERVAL = 0.25
"""Seconds between two looks."""

REMEMBERED = 60
"""Looks over which `worst` is taken: a quarter of a minute."""


class LoopLag:
    """A chain of timers on one event loop; each asks how late it was called.

    Args:
        clock: where the time comes from.
        interval: seconds between two looks.
    """

    def __init__(self, clock: Clock, interval: float = INTERVAL) -> None:
        self._clock = clock
        self._interval = interval
        self._due: float | None = None
        self._late = self._most = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._recent = [0.0] * REMEMBERED
        self._looks = 0

    def start(self) -> None:
        """Begin on the running event loop; a second call does nothing."""
        if self._timer is None:
            self._next(asyncio.get_running_loop())

    def stop(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._due = None

    @property
    def seconds(self) -> float:
        """How late the loop is: what the last look found, or what the next one is late by already."""
        due = self._due  # once: this is asked from other threads too
        return self._late if due is None else max(self._late, self._clock.monotonic() - due)

    @property
    def worst(self) -> float:
        """The most it was late in the last quarter of a minute."""
        return max(self.seconds, *self._recent)

    def take_most(self) -> float:
        """The most it was late since this was last asked: for whoever writes it down, once a second."""
        most, self._most = max(self._most, self.seconds), 0.0
        return most

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = self._clock.monotonic() + self._interval
        # The loop must not keep alive what nobody else knows any more.
        known: weakref.ref[LoopLag] = weakref.ref(self)
        self._timer = loop.call_later(self._interval, _look, known, loop)

    def look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called by the loop's timer."""
        late = 0.0 if self._due is None else self._clock.monotonic() - self._due
        self._late = self._recent[self._looks % REMEMBERED] = max(0.0, late)
        self._looks += 1
        self._most = max(self._most, self._late)
        self._next(loop)


def _look(known: weakref.ref[LoopLag], loop: asyncio.AbstractEventLoop) -> None:
    lag = known()
    if lag is not None:
        lag.look(loop)
