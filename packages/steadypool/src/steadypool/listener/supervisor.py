"""The listener: one supervised connection, its heartbeat, and what subscribers are told."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum

from steadypool import errors, events
from steadypool.clock import SYSTEM_CLOCK, Backoff, Clock
from steadypool.connect.psycopg_connection import SteadyConnection
from steadypool.listener.mailbox import Gap, Mailbox, Notification, Overflow
from steadypool.listener.wire import Wire

_log = logging.getLogger("steadypool.listener")

CatchUp = Callable[[], Awaitable[None]]
"""Reads anew what the notifications are about; run after LISTEN and before anything is delivered."""

LONGEST_CHANNEL = 63
"""Bytes of a channel's name that Postgres keeps (NAMEDATALEN - 1)."""


class ListenerState(StrEnum):
    """How the listener is."""

    IDLE = "idle"
    """Nobody has subscribed yet."""
    STARTING = "starting"
    """It connects for the first time."""
    CONNECTED = "connected"
    """It hears."""
    RECONNECTING = "reconnecting"
    """It heard, and connects again."""
    DEAF = "deaf"
    """It is connected to something that does not pass notifications on: a transaction pooler."""
    DORMANT = "dormant"
    """It let go of its connection so that the database may sleep; the next request wakes it."""
    CLOSED = "closed"
    """It was closed."""


@dataclass(frozen=True, slots=True)
class ListenerOptions:
    """How the listener behaves. Seconds.

    `dormant_after` of None keeps the heartbeat going for ever; with a number nothing is sent to an idle server,
    and after that many seconds without requests or notifications the connection is given up until there are some.
    """

    connect_timeout: float = 15.0
    heartbeat_interval: float = 5.0
    heartbeat_timeout: float = 2.0
    catch_up_timeout: float = 15.0
    dormant_after: float | None = None


@dataclass(frozen=True, slots=True)
class ListenerStats:
    """The listener at one moment; times in seconds, None where there was none yet."""

    state: ListenerState
    channels: tuple[str, ...]
    subscribers: int
    lag: float | None
    silent_for: float | None
    connects: int
    gaps: int
    dropped: int
    last_error: str | None


class Subscription:
    """What `async for` over `Database.listen` iterates: `Notification`s, and `Gap`s where some may be missing."""

    def __init__(self, channel: str, mailbox: Mailbox, catch_up: CatchUp | None, since: float) -> None:
        self.channel = channel
        self.mailbox = mailbox
        self.catch_up = catch_up
        self.deaf_since: float | None = since
        self.deaf_because = "the listener started late"
        self.heard_before = False
        self.live = asyncio.Event()
        """Set while notifications of the channel are being heard."""

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Notification | Gap:
        return await self.mailbox.take()


class Listener:
    """Owns the listening connection and the task that looks after it.

    Args:
        connect: opens a connection in autocommit, past any transaction pooler; called for the listening
            connection and for the one that proves it.
        options: times.
        name: what events call it.
        clock: where the time comes from.
        backoff: the pauses between connects.
        observers: where events go.
        on_silence: called when the connection died or did not answer: others to the same server may be dead too.
    """

    def __init__(
        self,
        connect: Callable[[float], Awaitable[SteadyConnection]],
        options: ListenerOptions | None = None,
        *,
        name: str = "main",
        clock: Clock = SYSTEM_CLOCK,
        backoff: Backoff | None = None,
        observers: events.Events | None = None,
        on_silence: Callable[[], None] | None = None,
    ) -> None:
        self.options = options or ListenerOptions()
        self.state = ListenerState.IDLE
        self._connect = connect
        self._name = name
        self._clock = clock
        self._backoff = backoff or Backoff(first=0.1, ceiling=30.0)
        self._events = observers or events.Events()
        self._on_silence = on_silence
        self._subscriptions: dict[Subscription, None] = {}
        self._heartbeat_channel = f"steadypool_{uuid.uuid4().hex}"
        self._beats: dict[str, asyncio.Future[None]] = {}
        self._wire: Wire | None = None
        self._held: list[Notification] | None = None
        self._task: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._heard_at: float | None = None
        self._active_at = clock.monotonic()
        self._lag: float | None = None
        self._connects = self._gaps = 0
        self._last_error: BaseException | None = None

    # -- what subscribers call ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def listen(
        self,
        channel: str,
        *,
        buffer: int = 1000,
        overflow: Overflow = Overflow.DROP_OLDEST,
        catch_up: CatchUp | None = None,
    ) -> AsyncGenerator[Subscription]:
        """Hear a channel while the block runs.

        The block begins when the channel is being heard, or, where that takes longer than a heartbeat may, at once:
        a service starts without its database. In that case the first thing it hears is a `Gap`.

        Raises:
            errors.ConfigurationError: the channel's name cannot be one.
            errors.ListenerDeaf: from the iteration, while a pooler swallows notifications.
        """
        check_channel(channel)
        if self.state is ListenerState.CLOSED:
            raise errors.PoolClosed("the listener is closed", errors.Report(phase=errors.Phase.CLOSING))
        mailbox = Mailbox(buffer, overflow)
        subscription = Subscription(channel, mailbox, catch_up, self._clock.monotonic())
        self._subscriptions[subscription] = None
        try:
            if self._task is None:
                self._move(ListenerState.STARTING)
                self._task = asyncio.create_task(self._supervise(), name=f"{self._name}-listener")
            elif self.state is ListenerState.CONNECTED:
                await self._begin_hearing(subscription)
            self.activity()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.options.heartbeat_timeout):
                    await subscription.live.wait()
            yield subscription
        finally:
            self._subscriptions.pop(subscription, None)
            mailbox.end()
            self._stop_hearing(channel)

    def activity(self) -> None:
        """The application uses the database: a dormant listener wakes."""
        self._active_at = self._clock.monotonic()
        self._wanted.set()

    def stats(self) -> ListenerStats:
        """How it is."""
        now = self._clock.monotonic()
        return ListenerStats(
            state=self.state,
            channels=tuple(sorted(self._channels())),
            subscribers=len(self._subscriptions),
            lag=self._lag,
            silent_for=None if self._heard_at is None else now - self._heard_at,
            connects=self._connects,
            gaps=self._gaps,
            dropped=sum(subscription.mailbox.dropped for subscription in self._subscriptions),
            last_error=None if self._last_error is None else str(self._last_error),
        )

    async def close(self) -> None:
        """End every subscription and cut the connection."""
        self._move(ListenerState.CLOSED)
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        self._drop_wire()
        for subscription in self._subscriptions:
            subscription.mailbox.end()

    # -- the task ----------------------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        while True:
            try:
                await self._start_hearing()
                await self._keep_hearing()
                self._deafen("the listener let the database sleep")
                await self._sleep_until_wanted()
                continue
            except errors.ListenerDeaf as error:
                self._failed(error, ListenerState.DEAF)
            except Exception as error:  # noqa: BLE001 - whatever it is, the listener says so and connects again
                again = ListenerState.RECONNECTING if self._connects else ListenerState.STARTING
                self._failed(error, again)
            await self._clock.sleep(self._backoff.next_pause())

    async def _start_hearing(self) -> None:
        """Connect, LISTEN, prove that notifications arrive, catch up, and only then deliver."""
        async with asyncio.timeout(self.options.connect_timeout):
            connection = await self._connect(self.options.connect_timeout)
            self._held = []
            self._wire = wire = Wire(connection, self._arrived)
            for channel in (self._heartbeat_channel, *self._channels()):
                await wire.run(f"LISTEN {_quoted(channel)}")
            await self._prove_from_elsewhere()
        for subscription in tuple(self._subscriptions):
            subscription.mailbox.resume()
            await self._catch_up(subscription)
        self._connects += 1
        self._backoff.reset()
        self._last_error = None
        self._move(ListenerState.CONNECTED)
        for subscription in self._subscriptions:
            self._mark_live(subscription)
        held, self._held = self._held, None
        for notification in held:
            self._hand_out(notification)
        # Whoever subscribed while this went on is not among the channels that were asked for.
        for subscription in tuple(self._subscriptions):
            if not subscription.live.is_set():
                await self._begin_hearing(subscription)

    async def _keep_hearing(self) -> None:
        """Until the connection is lost (raises) or the listener may go dormant (returns)."""
        assert self._wire is not None
        wire, options = self._wire, self.options
        while True:
            done, _ = await asyncio.wait({wire.lost}, timeout=options.heartbeat_interval)
            if done:
                raise wire.lost.result()
            if options.dormant_after is None:
                await self._beat(wire)
            elif self._quiet_for() >= options.dormant_after:
                return

    async def _beat(self, wire: Wire) -> None:
        """A NOTIFY to ourselves and back: the socket works both ways, and notifications are delivered."""
        started = self._clock.monotonic()
        beat, arrived = self._expect_beat()
        try:
            async with asyncio.timeout(self.options.heartbeat_timeout):
                await wire.run(f"NOTIFY {_quoted(self._heartbeat_channel)}, '{beat}'")
                await arrived
        except TimeoutError as error:
            raise errors.HeartbeatMissed(
                f"no answer to the heartbeat within {self.options.heartbeat_timeout:g} s"
            ) from error
        finally:
            self._beats.pop(beat, None)
        self._lag = self._clock.monotonic() - started

    async def _prove_from_elsewhere(self) -> None:
        beat, arrived = self._expect_beat()
        second = await self._connect(self.options.connect_timeout)
        try:
            await second.execute("SELECT pg_notify(%s, %s)", (self._heartbeat_channel, beat))
            async with asyncio.timeout(self.options.heartbeat_timeout):
                await arrived
        except TimeoutError as error:
            raise errors.ListenerDeaf(
                "LISTEN was accepted, but a NOTIFY from another connection did not arrive: there is a transaction "
                "pooler in between, which does not pass notifications on. Set DATABASE_DIRECT_URL to the address of "
                "the server itself"
            ) from error
        finally:
            self._beats.pop(beat, None)
            second.abort()

    def _expect_beat(self) -> tuple[str, asyncio.Future[None]]:
        beat = uuid.uuid4().hex
        arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._beats[beat] = arrived
        return beat, arrived

    async def _sleep_until_wanted(self) -> None:
        self._move(ListenerState.DORMANT)
        self._wanted.clear()
        await self._wanted.wait()

    def _quiet_for(self) -> float:
        last = max(self._active_at, self._heard_at or self._active_at)
        return self._clock.monotonic() - last

    # -- what arrives ------------------------------------------------------------------------------------------

    def _arrived(self, notification: Notification) -> None:
        self._heard_at = self._clock.monotonic()
        if notification.channel == self._heartbeat_channel:
            waiting = self._beats.get(notification.payload)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
        elif self._held is not None:
            self._held.append(notification)
        else:
            self._hand_out(notification)

    def _hand_out(self, notification: Notification) -> None:
        now = self._clock.monotonic()
        for subscription in self._subscriptions:
            if subscription.channel == notification.channel and subscription.live.is_set():
                subscription.mailbox.put(notification, now)

    # -- channels ----------------------------------------------------------------------------------------------

    def _channels(self) -> set[str]:
        return {subscription.channel for subscription in self._subscriptions}

    async def _begin_hearing(self, subscription: Subscription) -> None:
        """LISTEN for one more, without connecting again; where that fails, the next connect does it."""
        wire = self._wire
        if wire is None:
            return
        try:
            async with asyncio.timeout(self.options.heartbeat_timeout):
                await wire.run(f"LISTEN {_quoted(subscription.channel)}")
        except Exception as error:  # noqa: BLE001 - the supervisor deals with it as with any loss
            wire.close(error)
            return
        await self._catch_up(subscription)
        self._mark_live(subscription)

    def _stop_hearing(self, channel: str) -> None:
        if self._wire is not None and channel not in self._channels():
            self._wire.submit(f"UNLISTEN {_quoted(channel)}")  # whoever leaves does not wait for it

    async def _catch_up(self, subscription: Subscription) -> None:
        if subscription.catch_up is None:
            return
        try:
            async with asyncio.timeout(self.options.catch_up_timeout):
                await subscription.catch_up()
        except Exception:  # noqa: BLE001 - it is the subscriber's own code, and its bug must not stop the listener
            _log.exception("catching up on channel %r failed", subscription.channel)

    def _mark_live(self, subscription: Subscription) -> None:
        if subscription.live.is_set():
            return
        since, now = subscription.deaf_since, self._clock.monotonic()
        late = since is not None and now - since > self.options.heartbeat_timeout
        if since is not None and (subscription.heard_before or late):
            gap = Gap(since, now, subscription.deaf_because)
            self._gaps += 1
            subscription.mailbox.put_gap(gap)
            self._events.emit(events.ListenerGap(self._name, now, subscription.channel, since, gap.reason))
        subscription.deaf_since = None
        subscription.heard_before = True
        subscription.live.set()

    # -- losing it ---------------------------------------------------------------------------------------------

    def _failed(self, error: Exception, state: ListenerState) -> None:
        was_hearing = self.state is ListenerState.CONNECTED
        self._last_error = error
        self._deafen(str(error))
        self._move(state)
        _log.warning("the listener %r is %s: %s", self._name, state.value, error or type(error).__name__)
        if state is ListenerState.DEAF:
            for subscription in self._subscriptions:
                subscription.mailbox.end(error)
        if was_hearing and self._on_silence is not None:
            self._on_silence()

    def _deafen(self, reason: str) -> None:
        """From now on something may be missed; count from when something was last heard."""
        now = self._clock.monotonic()
        since = now if self._heard_at is None else self._heard_at
        self._drop_wire()
        for subscription in self._subscriptions:
            if subscription.live.is_set():
                subscription.live.clear()
                subscription.deaf_since = since
                subscription.deaf_because = reason

    def _drop_wire(self) -> None:
        wire, self._wire = self._wire, None
        self._held = None
        if wire is not None:
            wire.close()

    def _move(self, state: ListenerState) -> None:
        if state is self.state:
            return
        before, self.state = self.state, state
        now = self._clock.monotonic()
        self._events.emit(events.ListenerStateChanged(self._name, now, before.value, state.value))


def check_channel(channel: str) -> None:
    """Refuse what Postgres would cut short or not take as a name. Raises `errors.ConfigurationError`."""
    if not channel or "\0" in channel or len(channel.encode()) > LONGEST_CHANNEL:
        raise errors.ConfigurationError(
            f"channel {channel!r}: allowed: 1 to {LONGEST_CHANNEL} bytes, which is what Postgres keeps of a name"
        )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
