"""One end of time for everything a request does, carried by a context variable.

A deadline is a moment, not a duration: whoever waits takes what is left of it, so waits in a row cannot add up.
Tasks that are started inside inherit it, because they copy the context.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from steadypool._clock import SYSTEM_CLOCK, Clock


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on a clock, and the number of seconds it was set for."""

    at: float
    seconds: float

    def remaining(self, now: float) -> float:
        """Seconds left at `now`; never below zero."""
        return max(0.0, self.at - now)


_current: ContextVar[Deadline | None] = ContextVar("steadypool_deadline", default=None)


def current_deadline() -> Deadline | None:
    """The deadline in force here, or None."""
    return _current.get()


CLIENT_GRACE = 0.5
"""Seconds by which the client waits longer than the server's own limit, so that the server's answer normally wins."""

EARLY = 0.05
"""Seconds by which the server's clock may end a statement before ours says that it is time."""


def nearest_end(own: float | None, now: float) -> tuple[float | None, Deadline | None]:
    """Seconds until the first of one's own limit and the deadline in force, and the deadline if it is that.

    Example:
        >>> nearest_end(3.0, now=0.0)
        (3.0, None)
    """
    set_outside = _current.get()  # asked before every statement: not by way of `current_deadline`
    if set_outside is None:
        return own, None
    left = set_outside.remaining(now)
    return (left, set_outside) if own is None or left < own else (own, None)


@contextmanager
def deadline(seconds: float, *, clock: Clock = SYSTEM_CLOCK) -> Generator[Deadline]:
    """Let everything inside the block end within `seconds`; of nested deadlines the nearest wins.

    Args:
        seconds: how long the block may take from now; 0 or more.
        clock: what measures them.

    Raises:
        ValueError: `seconds` is negative or not a number.

    Example:
        >>> with deadline(2.0) as outer, deadline(60.0) as inner:
        ...     inner is outer
        True
    """
    if not seconds >= 0:
        raise ValueError(f"a deadline takes 0 or more seconds, not {seconds!r}")
    own = Deadline(clock.monotonic() + seconds, seconds)
    outer = _current.get()
    chosen = outer if outer is not None and outer.at <= own.at else own
    token = _current.set(chosen)
    try:
        yield chosen
    finally:
        _current.reset(token)


def override_deadline(end: Deadline | None) -> None:
    """Put another deadline, or none, in the place of the one in force: from here on, in this context.

    Unlike `deadline()` it can lengthen. For whoever set the one in force, such as the web framework: a route has a
    longer one, the response is complete. Leaving the block of an enclosing `deadline()` restores what was before it.

    Example:
        >>> with deadline(2.0):
        ...     override_deadline(None)
        ...     current_deadline()
    """
    _current.set(end)


class TimeLimit:
    """Ends what the current task awaits inside the block when its time is up, by TimeoutError.

    Like `asyncio.timeout`, but entered without `await`, so that it works where a greenlet stands between the
    task and the code. `expired` tells afterwards whether the time was up.

    Args:
        seconds: how long; None for no limit.

    Example:
        >>> async def fetch() -> None:
        ...     with TimeLimit(2.0):
        ...         await asyncio.sleep(1.0)
    """

    __slots__ = ("_before", "_handle", "_task", "expired", "seconds")

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.expired = False
        self._handle: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._before = 0

    def __enter__(self) -> TimeLimit:
        if self.seconds is not None:
            self._task = asyncio.current_task()
            if self._task is not None:
                self._before = self._task.cancelling()
                self._handle = self._task.get_loop().call_later(self.seconds, self._expire)
        return self

    def _expire(self) -> None:
        self.expired = True
        if self._task is not None:
            self._task.cancel()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if self._handle is not None:
            self._handle.cancel()
        if self.expired and task is not None:
            # Our own cancellation is taken back; if somebody else cancelled too, theirs goes on.
            nobody_else = task.uncancel() <= self._before
            if nobody_else and exc_type is not None and issubclass(exc_type, asyncio.CancelledError):
                raise TimeoutError(f"not done within {self.seconds}s") from exc
