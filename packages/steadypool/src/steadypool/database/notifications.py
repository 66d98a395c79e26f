"""Notifications, as `Database` offers them: a listener that connects when somebody first listens, and `notify`."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from steadypool.errors import ConfigurationError, HeartbeatMissed, Phase, PoolClosed, Report, words_of
from steadypool.events import Acquired, ConnectSucceeded, Event, Events
from steadypool.listener import (
    CatchUp,
    Listener,
    ListenerOptions,
    Overflow,
    Subscription,
    check_channel,
)
from steadypool.listener.config import connector_for, options_for
from steadypool.settings.database import DatabaseSettings
from steadypool.sqlalchemy.pool import SteadyPool

LONGEST_PAYLOAD = 7999
"""Bytes that a notification may carry (PostgreSQL manual, NOTIFY: "less than 8000 bytes")."""


class Notifying:
    """The part of `Database` that hears and sends notifications."""

    settings: DatabaseSettings
    name: str
    events: Events
    _listener_options: ListenerOptions | None
    _listener: Listener | None

    @property
    def pool(self) -> SteadyPool:
        """The engine's pool."""
        raise NotImplementedError

    def connection(self, *, workload: str | None = None) -> AbstractAsyncContextManager[Any]:
        """A connection of one's own until the block ends."""
        raise NotImplementedError

    @property
    def listener(self) -> Listener:
        """What hears notifications; it connects when somebody first calls `listen`."""
        if self._listener is None:
            self._listener = self._make_listener()
        return self._listener

    def _make_listener(self) -> Listener:
        core = self.pool.core
        if core.closed:
            raise PoolClosed(f"the database {self.name!r} is closed", Report(phase=Phase.CLOSING))
        blamed = False

        def lost(error: Exception) -> None:
            nonlocal blamed
            if isinstance(error, HeartbeatMissed):
                blamed = True  # until it is known better, new connections are tried one at a time
                core.server_fails(words_of(error))
            core.prove_idle()

        def proven() -> None:
            nonlocal blamed
            if blamed:
                blamed = False
                core.server_answers()

        listener = Listener(
            connector_for(self.settings),
            self._listener_options or options_for(self.settings),
            name=self.name,
            clock=core.clock,
            observers=self.events,
            on_lost=lost,
            on_proven=proven,
        )
        self.events.subscribe(lambda event: _inform(listener, event), Acquired, ConnectSucceeded)
        return listener

    def listen(
        self,
        channel: str,
        *,
        buffer: int = 1000,
        overflow: Overflow | str = Overflow.DROP_OLDEST,
        catch_up: CatchUp | None = None,
    ) -> AbstractAsyncContextManager[Subscription]:
        """Hear a channel while the block runs: notifications, and a `Gap` wherever some may have been missed.

        Args:
            channel: its name, as in NOTIFY.
            buffer: how many notifications may wait for this subscriber.
            overflow: what becomes of more: `drop_oldest` or `conflate`.
            catch_up: awaited after LISTEN, before anything is delivered, each time the listener connects.

        Raises:
            errors.ConfigurationError: the name cannot be a channel's.
            errors.NotificationsBlocked: from the iteration, while a transaction pooler swallows notifications.

        Example:
            >>> async with db.listen("queue_changes") as notifications:
            ...     async for notification in notifications:
            ...         ...
        """
        return self.listener.listen(channel, buffer=buffer, overflow=Overflow(overflow), catch_up=catch_up)

    async def notify(self, channel: str, payload: str = "", *, session: AsyncSession | None = None) -> None:
        """Send a notification; never over the listening connection.

        Args:
            channel: its name.
            payload: at most 7,999 bytes.
            session: send it in this session's transaction: it is delivered if, and only if, that commits.

        Raises:
            errors.ConfigurationError: the payload is longer than Postgres takes, or has a NUL in it.
        """
        check_channel(channel)
        if "\0" in payload:
            raise ConfigurationError(
                f"a payload for channel {channel!r} with a NUL in it: Postgres takes none"
            )
        if (size := len(payload.encode())) > LONGEST_PAYLOAD:
            raise ConfigurationError(
                f"a payload of {size:,} bytes for channel {channel!r}: allowed: at most {LONGEST_PAYLOAD:,}. "
                "Keep what it says in a table and send its key"
            )
        if session is not None:
            await session.execute(
                text("SELECT pg_notify(:channel, :payload)"), {"channel": channel, "payload": payload}
            )
            return
        async with self.connection() as connection:
            await connection.execute("SELECT pg_notify($1, $2)", channel, payload)


def _inform(listener: Listener, event: Event) -> None:
    """A request uses the database, so a dormant listener may as well; or it answers, so a listener may try again."""
    if isinstance(event, Acquired):
        listener.activity()
    elif isinstance(event, ConnectSucceeded):
        listener.server_answers()
