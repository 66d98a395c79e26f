"""Requests that are timed, also those that never end, and what became of all of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from steadypool.errors import SteadypoolError

_LONGEST_MESSAGE = 160
_CANCEL_SECONDS = 2.0


@dataclass(slots=True)
class Outcome:
    """How one request ended.

    Attributes:
        began: when, on `time.monotonic()`.
        seconds: how long it took; for one that hung, how long it was watched.
        error: what it raised.
        hung: it was given up by whoever watched.
    """

    began: float
    seconds: float
    error: BaseException | None = None
    hung: bool = False

    @property
    def ended(self) -> float:
        """When it ended, on `time.monotonic()`."""
        return self.began + self.seconds

    @property
    def served(self) -> bool:
        """Whether it got what it asked for."""
        return self.error is None and not self.hung


async def timed(work: Awaitable[Any]) -> Outcome:
    """Await it, and tell how it ended."""
    began = time.monotonic()
    try:
        await work
    except Exception as error:  # noqa: BLE001 - what went wrong is the measurement
        return Outcome(began, time.monotonic() - began, error)
    return Outcome(began, time.monotonic() - began)


class Requests:
    """Requests under way, and how those that are over ended.

    Example:
        >>> async def main() -> None:
        ...     requests = Requests()
        ...     for _ in range(30):
        ...         requests.begin(lambda: asyncio.sleep(1))
        ...     outcomes = await requests.finish(patience=2.0)
    """

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self._running: dict[asyncio.Task[None], float] = {}
        self._given_up: set[asyncio.Task[None] | None] = set()
        self._stuck: set[asyncio.Task[None]] = set()

    def begin(self, call: Callable[[], Awaitable[Any]]) -> asyncio.Task[None]:
        """Start one."""
        task = asyncio.create_task(self._watch(call), name="lab request")
        self._running[task] = time.monotonic()
        task.add_done_callback(lambda task: self._running.pop(task, None))
        return task

    async def _watch(self, call: Callable[[], Awaitable[Any]]) -> None:
        outcome = await timed(call())
        if asyncio.current_task() not in self._given_up:
            self.outcomes.append(outcome)

    @property
    def under_way(self) -> int:
        """How many have not ended."""
        return len(self._running)

    async def finish(self, patience: float) -> list[Outcome]:
        """Wait that many seconds for those under way; the others hung, and are cancelled.

        Cancelling may hang too: `let_go` collects those later, once the network lets them.
        """
        running = dict(self._running)
        if running:
            _, pending = await asyncio.wait(running, timeout=patience)
            for task in pending:
                self.outcomes.append(Outcome(running[task], time.monotonic() - running[task], hung=True))
                self._given_up.add(task)
                task.cancel()
            if pending:
                _, self._stuck = await asyncio.wait(pending, timeout=_CANCEL_SECONDS)
        return self.outcomes

    async def let_go(self, seconds: float = 30.0) -> int:
        """Wait for those that hung although they were cancelled; returns how many still hang."""
        if not self._stuck:
            return 0
        _, self._stuck = await asyncio.wait(self._stuck, timeout=seconds)
        return len(self._stuck)


@dataclass
class Tally:
    """A number of requests in figures.

    Attributes:
        slowest: seconds of the slowest that ended.
        errors: how often each error came, by class and message.
        unnamed: errors that say nothing: an empty message.
        facts: whatever else was measured; times in seconds.
    """

    requests: int = 0
    served: int = 0
    failed: int = 0
    hung: int = 0
    slowest: float = 0.0
    slowest_served: float = 0.0
    unnamed: int = 0
    foreign: int = 0
    errors: dict[str, int] = field(default_factory=dict[str, int])
    facts: dict[str, float | int | str | None] = field(default_factory=dict[str, float | int | str | None])


def tally(outcomes: Iterable[Outcome]) -> Tally:
    """Count them.

    Example:
        >>> tally([Outcome(0.0, 1.5), Outcome(0.0, 2.0, TimeoutError())]).unnamed
        1
    """
    all_of_them = list(outcomes)
    failed = [one for one in all_of_them if one.error is not None]
    served = [one for one in all_of_them if one.served]
    said = Counter(describe(one.error) for one in failed)
    return Tally(
        requests=len(all_of_them),
        served=len(served),
        failed=len(failed),
        hung=sum(one.hung for one in all_of_them),
        slowest=max((one.seconds for one in all_of_them), default=0.0),
        slowest_served=max((one.seconds for one in served), default=0.0),
        unnamed=sum(not str(one.error).strip() for one in failed),
        foreign=sum(not isinstance(one.error, SteadypoolError) for one in failed),
        errors=dict(said.most_common(8)),
    )


def describe(error: BaseException | None) -> str:
    """Class and message of an error, in one short line."""
    said = " ".join(str(error).split())
    short = said if len(said) <= _LONGEST_MESSAGE else said[: _LONGEST_MESSAGE - 1] + "…"
    return f"{type(error).__name__}: {short or '(empty message)'}"


async def at_once(count: int, call: Callable[[], Awaitable[Any]], patience: float) -> Requests:
    """That many requests at the same moment, each watched for so many seconds."""
    requests = Requests()
    for _ in range(count):
        requests.begin(call)
    await requests.finish(patience)
    return requests
