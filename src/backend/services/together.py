"""Work that several callers want at the same time is done once."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class Together(Generic[Value]):
    """Gives all callers that ask for a key while it is being worked on the same result.

    Example:
        >>> text = await together(("did:plc:xyz", 7), lambda: write_text(queue))
    """

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[Value]] = {}

    async def __call__(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
        """Wait for the work on this key, and begin it if it is not under way; a cancelled caller does not stop it.

        Args:
            key: what the result depends on.
            work: does it, outside of the caller's context: a caller's deadline is not the others'.
        """
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(work(), context=contextvars.Context())
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._end(key, done))
        return await asyncio.shield(task)  # the other callers still wait for it

    def _end(self, key: Hashable, task: asyncio.Task[Value]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            task.exception()  # retrieved: all callers may have been cancelled
