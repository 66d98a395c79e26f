"""The event loop and the process that something belongs to, seen from elsewhere.

What lives on an event loop can be used there only. Letting go of it has to be possible from anywhere: from another
loop, another thread, a forked child, and when the loop is long closed. Nothing here waits for another loop without
an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any

ASK = 1.0
"""Seconds that a loop in another thread may take to do what it is asked; a blocked one would take for ever."""

Home = tuple[asyncio.AbstractEventLoop, int]
"""An event loop and the process that made it."""


class Standing(Enum):
    """Where one is, as seen from a home."""

    HERE = "here"
    """On its loop, or nowhere yet."""
    ELSEWHERE = "another event loop"
    """Its loop runs in another thread."""
    STOPPED = "another event loop, which has stopped"
    """Its loop does not run, and may run again."""
    CLOSED = "another event loop, which is closed"
    FORKED = "another process"
    """Its loop is the parent's."""


def standing_of(home: Home | None) -> Standing:
    """Where this is called, as seen from `home`."""
    if home is None:
        return Standing.HERE
    loop, process = home
    if process != os.getpid():
        return Standing.FORKED
    if loop.is_closed():
        return Standing.CLOSED
    if not loop.is_running():
        return Standing.STOPPED
    try:
        return Standing.HERE if asyncio.get_running_loop() is loop else Standing.ELSEWHERE
    except RuntimeError:  # no event loop runs in this thread
        return Standing.ELSEWHERE


async def done_elsewhere(
    loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, object]], seconds: float = ASK
) -> bool:
    """Let `work` be done on its own loop, which runs in another thread; wait for at most so many seconds.

    Returns:
        Whether it was done by then. If not, it is still begun as soon as that loop gets round to it.
    """
    here = asyncio.get_running_loop()
    done: asyncio.Future[None] = here.create_future()

    def tell() -> None:
        with contextlib.suppress(RuntimeError):  # who asked has gone, and closed the loop
            here.call_soon_threadsafe(_settle, done)

    if not _begin(loop, work, tell):
        return False
    await asyncio.wait({done}, timeout=seconds)
    return done.done()


def done_soon(
    loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, object]], seconds: float = ASK
) -> bool:
    """`done_elsewhere` for callers that cannot await; blocks this thread for at most so many seconds."""
    done = threading.Event()
    return _begin(loop, work, done.set) and done.wait(seconds)


async def answer() -> None:
    """Work for a loop of which it has to be known whether it is blocked."""


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and, if it is one of this event loop, wait for its end."""
    loop = task.get_loop()
    if loop is asyncio.get_running_loop():
        task.cancel()
        await asyncio.wait({task})
    elif loop.is_running():
        loop.call_soon_threadsafe(task.cancel)
    else:
        bury(task)


def bury(task: asyncio.Task[Any]) -> None:
    """End a task whose event loop does not run: its clean-up runs now, and nobody hears of it."""
    if task.done():
        return
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    task.add_done_callback(_retrieve)
    coroutine: Any = task.get_coro()
    if _in_greenlet():  # one that ends in there would end in the parent of its own greenlet, not here
        return
    # What refuses to end, since it awaits in its clean-up or is a greenlet of another thread, ends with its references.
    with contextlib.suppress(Exception):
        coroutine.close()


def _in_greenlet() -> bool:
    """Whether this runs in a greenlet, or the interpreter is about to end, when greenlets do not tell any more."""
    greenlets = sys.modules.get("greenlet")
    if greenlets is None:
        return False
    try:
        return greenlets.getcurrent().parent is not None
    except RuntimeError:
        return True


def _begin(
    loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, object]], tell: Callable[[], None]
) -> bool:
    def ended(task: asyncio.Task[object]) -> None:
        tell()
        if not task.cancelled() and (error := task.exception()) is not None:
            loop.call_exception_handler({"message": "letting go failed", "exception": error, "task": task})

    def begin() -> None:
        # An empty context: who asked has a deadline, which is not for this.
        loop.create_task(work(), context=contextvars.Context()).add_done_callback(ended)  # type: ignore[arg-type]

    try:
        loop.call_soon_threadsafe(begin)
    except RuntimeError:  # closed meanwhile
        return False
    return True


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """A stopped loop may run again, and finds a coroutine that was closed."""
    if not task.cancelled():
        task.exception()
