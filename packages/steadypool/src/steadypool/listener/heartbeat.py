"""The proof that notifications arrive: one sent from elsewhere at the start, then one to ourselves at intervals."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from steadypool import errors
from steadypool._clock import Clock
from steadypool.listener.buffer import Notification

if TYPE_CHECKING:
    from steadypool.connect.psycopg_connection import SteadyConnection
    from steadypool.listener.transport import Transport


class Heartbeat:
    """Sends notifications to ourselves, on a channel that nobody else has, and waits for them.

    Args:
        timeout: seconds of silence after which the connection counts as lost.
        clock: what measures the lag.

    Attributes:
        proven_at: up to this moment everything that was committed has been heard, if it was listened for.
        lag: how long the last one took, in seconds.
    """

    def __init__(self, timeout: float, clock: Clock) -> None:
        self.channel = f"steadypool_{uuid.uuid4().hex}"
        self.timeout = timeout
        self.proven_at = clock.monotonic()
        self.lag: float | None = None
        self._clock = clock
        self._sent_at: float | None = None
        self._expected: dict[str, asyncio.Future[None]] = {}

    def lag_at(self, now: float) -> float | None:
        """How long the last one took, or how long the one on its way has taken if that is more."""
        return self.lag if self._sent_at is None else max(self.lag or 0.0, now - self._sent_at)

    def arrived(self, notification: Notification) -> None:
        """One of ours came back."""
        waiting = self._expected.get(notification.payload)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def beat(self, wire: Transport) -> None:
        """A NOTIFY to ourselves and back: the socket works both ways, and notifications are delivered.

        Raises:
            errors.HeartbeatMissed: it did not come back.
        """
        with self._one() as (beat, arrived):
            answer = wire.submit(f"NOTIFY {self.channel}, '{beat}'")
            if not await wire.wait_for(arrived, self.timeout):
                if answer.done():
                    answer.result()  # refused, for example because the server's queue is full
                raise errors.HeartbeatMissed(f"no answer to the heartbeat within {self.timeout:g} s")

    async def prove(self, wire: Transport, second: SteadyConnection) -> None:
        """Let another connection send one: only that tells a transaction pooler from a server.

        Raises:
            errors.NotificationsBlocked: it did not come, although the listening connection answers.
            errors.HeartbeatMissed: that does not answer either.
        """
        with self._one() as (beat, arrived):
            await second.execute("SELECT pg_notify(%s, %s)", (self.channel, beat))
            if not await wire.wait_for(arrived, self.timeout):
                await self._say_why(wire)

    async def _say_why(self, wire: Transport) -> None:
        """Is nothing heard at all, or are notifications swallowed?"""
        if not await wire.wait_for(wire.submit("SELECT 1"), self.timeout):
            raise errors.HeartbeatMissed(f"the listening connection answered nothing for {self.timeout:g} s")
        raise errors.NotificationsBlocked(
            "LISTEN was accepted, but a NOTIFY from another connection did not arrive: there is a transaction "
            "pooler in between, which does not pass notifications on. Set DATABASE_DIRECT_URL to the address of "
            "the server itself"
        )

    @contextmanager
    def _one(self) -> Generator[tuple[str, asyncio.Future[None]]]:
        """One that is expected back; its end without an error means that it came."""
        beat = uuid.uuid4().hex
        arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._expected[beat] = arrived
        self._sent_at = sent_at = self._clock.monotonic()
        try:
            yield beat, arrived
        finally:
            self._sent_at = None
            del self._expected[beat]
        # What was committed before it was sent came before it; of what was committed later nothing is known.
        self.proven_at = sent_at
        self.lag = self._clock.monotonic() - sent_at
