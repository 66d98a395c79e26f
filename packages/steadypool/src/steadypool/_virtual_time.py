"""An event loop whose time is virtual: when nothing is ready it jumps to the next timer.

No sockets, no threads, no sleeping, so that a run is a function of its seed. Callbacks run in the order in which
asyncio promises to run them; timers that are due together run in an order drawn by lot: no promise covers them.
"""

# The base class keeps its queues in attributes that typeshed does not know.
# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Coroutine
from typing import Any

TICK = 1e-7
"""Seconds that pass between two looks at the clock: on a real machine it never stands still either."""
TOGETHER = 1e-5
"""Timers that lie closer together than this many seconds are due at the same moment."""
MOST_TURNS = 3000
"""Turns of the loop without a jump in time after which nothing will come of it."""


class Deadlock(AssertionError):
    """Somebody waits, and nothing will ever happen."""


class Livelock(AssertionError):
    """The loop turns and turns, and time stands still."""


class _NoSelector:
    """The base class asks for a selector when it closes; there is none."""

    def close(self) -> None: ...


class VirtualLoop(asyncio.BaseEventLoop):
    """An asyncio event loop in virtual time.

    Args:
        rng: orders timers that are due together; None keeps the order of their times.
        on_turn: called after every turn of the loop.
        on_rest: called whenever nothing is ready, before time jumps.
    """

    def __init__(
        self,
        rng: random.Random | None = None,
        on_turn: Callable[[], None] | None = None,
        on_rest: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self._now = 1000.0
        self._rng = rng
        self._on_turn = on_turn
        self._on_rest = on_rest
        self._turns = 0
        self._selector = _NoSelector()

    def time(self) -> float:
        """Virtual seconds; no two looks see the same."""
        self._now += TICK
        return self._now

    @property
    def now(self) -> float:
        """Virtual seconds, without letting any pass."""
        return self._now

    def timers(self) -> list[asyncio.TimerHandle]:
        """The timers that are armed."""
        return [handle for handle in self._scheduled if not handle.cancelled()]

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        """Run to completion and close the loop."""
        try:
            return self.run_until_complete(main)
        finally:
            self.close()

    def _write_to_self(self) -> None:
        """Nobody has to be woken: there is one thread."""

    def _process_events(self, event_list: object) -> None:
        """There are no sockets, so there are no events."""

    def _run_once(self) -> None:
        scheduled, ready = self._scheduled, self._ready
        while scheduled and scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(scheduled)._scheduled = False
        if not ready and not self._stopping:
            due = bool(scheduled) and scheduled[0]._when <= self._now + TOGETHER
            if self._on_rest is not None and not due:
                self._on_rest()
            if not ready:
                self._jump()
        self._collect_due()
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()
        self._turns += 1
        if self._turns > MOST_TURNS:
            raise Livelock(f"{MOST_TURNS} turns of the loop and no time has passed")
        if self._on_turn is not None:
            self._on_turn()

    def _jump(self) -> None:
        if not self._scheduled:
            raise Deadlock("somebody waits for something that will never happen")
        first = self._scheduled[0]._when
        if first > self._now + TOGETHER:
            self._turns = 0
        self._now = max(self._now, first)

    def _collect_due(self) -> None:
        """Move the timers that are due to the ready queue; never one before its time."""
        scheduled = self._scheduled
        if not scheduled or scheduled[0]._when > self._now:
            return
        due: list[asyncio.TimerHandle] = []
        until = scheduled[0]._when + TOGETHER
        while scheduled and scheduled[0]._when <= max(until, self._now):
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            if handle._cancelled:
                self._timer_cancelled_count -= 1
            else:
                due.append(handle)
        self._now = max(self._now, due[-1]._when) if due else self._now
        if self._rng is not None and len(due) > 1:
            self._rng.shuffle(due)
        self._ready.extend(due)


class LoopClock:
    """The pool's clock, showing a loop's time."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.monotonic = loop.time

    async def sleep(self, seconds: float) -> None:
        """Come back after that many virtual seconds."""
        await asyncio.sleep(seconds)
