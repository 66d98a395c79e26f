"""Time that runs faster than it did, the requests in it, and notes of what happened when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from steadypool_lab.clients import Client
from steadypool_lab.load import Requests
from steadypool_lab.network.proxy import FaultProxy
from steadypool_lab.postgres.embedded import EmbeddedPostgres

REQUEST_DEADLINE = 15.0
"""Seconds that a web request may take where its library knows of deadlines: DATABASE_REQUEST_DEADLINE."""


@dataclass
class ReplayEnvironment:
    """One incident in one way.

    All times are those of the incident, in seconds from its beginning; with `speed` 10 they pass ten times as fast,
    and so do all timeouts that were configured then.

    Attributes:
        server: the Postgres server.
        way: before, documented or steadypool.
        driver: steadypool's; None in the other ways.
        notes: what happened when.
        attempts: how often somebody tried to connect, once it is known.
    """

    server: EmbeddedPostgres
    way: str
    speed: float
    on_note: Callable[[float, str], None]
    driver: str | None = None
    requests: Requests = field(default_factory=Requests)
    notes: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    attempts: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def now(self) -> float:
        """Seconds since the beginning, in the incident's time."""
        return (time.monotonic() - self.began) * self.speed

    def begin(self) -> None:
        """The incident's time begins now."""
        self.began = time.monotonic()

    def scaled(self, seconds: float) -> float:
        """How many seconds of ours those of the incident are."""
        return seconds / self.speed

    async def until(self, moment: float) -> None:
        """Wait for that moment of the incident."""
        await asyncio.sleep(max(0.0, (moment - self.now) / self.speed))

    def note(self, text: str) -> None:
        """Something happened."""
        self.notes.append((self.now, text))
        self.on_note(self.now, text)

    async def send(self, moments: Sequence[float], serve: Callable[[], Awaitable[None]]) -> None:
        """Requests that arrive at those moments, whatever became of the earlier ones."""
        for moment in moments:
            await self.until(moment)
            self.requests.begin(serve)

    async def handle(self, peer: Client, work: Callable[[], Awaitable[None]]) -> None:
        """One request, with an end of time where the library knows of such."""
        if not peer.has_deadlines:
            await work()
            return
        async with peer.within(self.scaled(REQUEST_DEADLINE)):
            await work()

    def count_attempts(self, proxy: FaultProxy) -> None:
        """How often somebody tried to connect through that network."""
        self.attempts += proxy.accepted


def steadily(begin: float, end: float, per_second: float) -> list[float]:
    """Moments at equal distances.

    Example:
        >>> steadily(0.0, 1.0, 4)
        [0.0, 0.25, 0.5, 0.75]
    """
    return [begin + number / per_second for number in range(round((end - begin) * per_second))]
