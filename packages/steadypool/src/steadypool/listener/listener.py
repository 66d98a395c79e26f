"""The listener: one supervised connection, its heartbeat, and what subscribers are told."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from steadypool import errors, events
from steadypool._clock import SYSTEM_CLOCK, Backoff, Clock
from steadypool._owner_loop import Home, Standing, bury
from steadypool.deadline import override_deadline
from steadypool.listener.buffer import Gap, Notification, NotificationBuffer, Overflow
from steadypool.listener.heartbeat import Heartbeat
from steadypool.listener.state import ListenerOptions, ListenerState, ListenerStats
from steadypool.listener.subscription import CatchUp, Subscription

if TYPE_CHECKING:  # the library can be used without psycopg; listening needs it
    from steadypool.connect.psycopg_connection import SteadyConnection
    from steadypool.listener.transport import Transport

_log = logging.getLogger("steadypool.listener")

LONGEST_CHANNEL = 63
"""Bytes of a channel's name that Postgres keeps (NAMEDATALEN - 1)."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0
"""Ceilings of the first and the longest pause between two attempts to connect, or to catch up, in seconds."""

SHORT_PAUSE = 0.5
"""Ceiling of a pause that somebody else's success cuts short, in seconds."""

STEADY_AFTER = 1.0
"""Seconds for which a connection has to last before its loss begins a new series of pauses: what connects and is lost
at once, again and again, must not be tried in a hurry."""

CLOSE_TIMEOUT = 5.0
"""Seconds that `close` waits for catch-up functions that do not let themselves be cancelled."""


_inherited: list[object] = []
"""Listeners of the parent process: what they had on their way must not be cleaned up by the garbage collector here."""


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
        on_lost: called with the reason when the connection died or did not answer: others to the same server may be
            dead too.
        on_proven: called when a new connection has proven itself.
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
        on_lost: Callable[[Exception], None] | None = None,
        on_proven: Callable[[], None] | None = None,
    ) -> None:
        self.options = options or ListenerOptions()
        self.state = ListenerState.IDLE
        self._connect = connect
        self._name = name
        self._clock = clock
        self._backoff = backoff or Backoff(first=FIRST_PAUSE, ceiling=LONGEST_PAUSE)
        self._events = observers or events.Events()
        self._on_lost = on_lost
        self._on_proven = on_proven
        self._home: Home | None = None
        self._channels: dict[str, dict[Subscription, None]] = {}
        self._heartbeat = Heartbeat(self.options.heartbeat_timeout, clock)
        self._wire: Transport | None = None
        """The connection that hears; one that has not proven itself yet is not here."""
        self._first: set[Subscription] = set()
        """Who has to try to catch up before the listener says that it is connected."""
        self._task: asyncio.Task[None] | None = None
        self._joining: dict[Subscription, asyncio.Task[None]] = {}
        self._wanted, self._nudged = asyncio.Event(), asyncio.Event()
        self._doing = ""
        now = clock.monotonic()
        self._used_at = self._told_at = self._began_at = now
        self._heard_at: float | None = None
        self._connects = self._gaps = self._dropped = 0
        self._last_error: Exception | None = None

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
            errors.ConfigurationError: the channel's name cannot be one, or the buffer has no room.
            errors.NotificationsBlocked: from the iteration, while a pooler swallows notifications.
            errors.PoolClosed: the listener was closed.
            errors.WrongEventLoop: it belongs to another event loop or process.
        """
        check_channel(channel)
        if buffer < 1:
            raise errors.ConfigurationError(f"buffer={buffer!r}: allowed: room for 1 notification or more")
        self._bind()
        if self.state is ListenerState.CLOSED:
            raise errors.PoolClosed("the listener is closed", errors.Report(phase=errors.Phase.CLOSING))
        subscription = Subscription(
            channel, NotificationBuffer(buffer, overflow), catch_up, self._clock.monotonic()
        )
        self._add(subscription)
        try:
            await subscription.begin(self.options.heartbeat_timeout)
            yield subscription
        finally:
            self._remove(subscription)

    def activity(self) -> None:
        """The application uses the database: a dormant listener wakes."""
        self._used_at = self._clock.monotonic()
        self._wanted.set()

    def server_answers(self) -> None:
        """Somebody else could connect: a listener that pauses between attempts tries again soon."""
        self._nudged.set()

    def stats(self) -> ListenerStats:
        """How it is."""
        now = self._clock.monotonic()
        subscriptions = tuple(self._subscriptions())
        return ListenerStats(
            state=self.state,
            channels=tuple(sorted(self._channels)),
            subscribers=len(subscriptions),
            behind=sum(not subscription.is_live for subscription in subscriptions),
            lag=self._heartbeat.lag_at(now),
            silent_for=None if self._heard_at is None else now - self._heard_at,
            connects=self._connects,
            gaps=self._gaps,
            waiting=sum(len(subscription.mailbox) for subscription in subscriptions),
            dropped=self._dropped + sum(subscription.mailbox.dropped for subscription in subscriptions),
            last_error=None if self._last_error is None else _said(self._last_error),
        )

    async def close(self) -> None:
        """End every subscription and cut the connection."""
        if self._home is not None:
            self._bind()
        self._move(ListenerState.CLOSED)
        tasks = {task for task in (self._task, *self._joining.values()) if task is not None}
        self._let_go("the listener was closed")
        for subscription in tuple(self._subscriptions()):
            subscription.end()
        for task in tasks:
            task.cancel()
        tasks.discard(asyncio.current_task())  # pyright: ignore[reportArgumentType]  # a catch-up may close us
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT)

    @property
    def home(self) -> Home | None:
        """The event loop and the process that it belongs to; None before its first use."""
        return self._home

    @property
    def hears(self) -> bool:
        """Whether it has a connection."""
        return self._wire is not None

    def leave(self, standing: Standing) -> None:
        """End it where its event loop does not run, or does not answer, or is the parent process's. Never waits."""
        wire, self._wire = self._wire, None
        self.state = ListenerState.CLOSED
        if standing is Standing.FORKED:
            _inherited.append((self, wire))
            if wire is not None:
                wire.disown()
        elif standing is Standing.ELSEWHERE:
            if wire is not None:
                wire.hang_up()
            for task in (self._task, *self._joining.values()):
                if task is not None:
                    task.get_loop().call_soon_threadsafe(task.cancel)  # when it goes on
        else:
            if wire is not None:
                wire.close()
            for task in (self._task, *self._joining.values()):
                if task is not None:
                    bury(task)

    def _bind(self) -> None:
        if self._home is not None and self._home[1] == os.getpid() and self._home[0].is_closed():
            self._move_house()
        here = (asyncio.get_running_loop(), os.getpid())
        if self._home is None:
            self._home = here
        elif self._home != here:
            where = "process" if self._home[1] != here[1] else "event loop"
            raise errors.WrongEventLoop(f"the listener {self._name!r} belongs to another {where}")

    def _move_house(self) -> None:
        """Its event loop is closed, and all its subscribers with it: begin again on this one."""
        closed = self.state is ListenerState.CLOSED
        self.leave(Standing.CLOSED)
        self.state = ListenerState.CLOSED if closed else ListenerState.IDLE
        self._home = self._task = None
        self._channels, self._joining, self._first = {}, {}, set()
        self._wanted, self._nudged = asyncio.Event(), asyncio.Event()

    # -- subscriptions -----------------------------------------------------------------------------------------

    def _subscriptions(self) -> Iterable[Subscription]:
        for subscriptions in self._channels.values():
            yield from subscriptions

    def _add(self, subscription: Subscription) -> None:
        self._channels.setdefault(subscription.channel, {})[subscription] = None
        if self._task is None or self._task.done():
            self._move(ListenerState.STARTING)
            context = copy_context()
            context.run(override_deadline, None)  # it outlives the request that happens to be the first
            self._task = _start(self._supervise(), f"{self._name}-listener", context)
        elif self._wire is not None:
            self._join_soon(self._wire, subscription, asked=False)
        if self.state is ListenerState.DEAF:
            subscription.end(self._last_error)
        self.activity()

    def _remove(self, subscription: Subscription) -> None:
        channel = subscription.channel
        others = self._channels.get(channel)
        if others is None or subscription not in others:
            return  # it was on an event loop that is closed
        del others[subscription]
        if not others:
            del self._channels[channel]
        joining = self._joining.pop(subscription, None)
        if joining is not None:
            joining.cancel()
        self._dropped += subscription.mailbox.dropped
        subscription.end()
        self._tried(subscription)
        if self._wire is not None and not others:
            self._wire.submit(f"UNLISTEN {_quoted(channel)}")  # whoever leaves does not wait for it

    def _join_soon(self, wire: Transport, subscription: Subscription, *, asked: bool) -> None:
        before = self._joining.get(subscription)
        joining = self._join(wire, subscription, before, asked=asked)
        task = _start(joining, f"{self._name}-listener-catch-up", subscription.context)
        self._joining[subscription] = task

        def forget(_done: object) -> None:
            if self._joining.get(subscription) is task:
                del self._joining[subscription]

        task.add_done_callback(forget)

    async def _join(
        self, wire: Transport, subscription: Subscription, before: asyncio.Task[None] | None, *, asked: bool
    ) -> None:
        """LISTEN, catch up, and only then deliver: for one subscriber, on one connection."""
        if before is not None:
            await asyncio.wait({before})  # was cancelled; a subscriber catches up once at a time
        if not asked:
            try:
                await wire.run(f"LISTEN {_quoted(subscription.channel)}")
            except Exception as error:  # noqa: BLE001 - the supervisor deals with it as with any loss
                wire.close(error)
                return
        subscription.heard_from = self._clock.monotonic()
        pauses = Backoff(first=FIRST_PAUSE, ceiling=LONGEST_PAUSE)
        while (failure := await self._catch_up(subscription)) is not None:
            self._tell(subscription, self._gap_of_failure(subscription, failure))
            self._tried(subscription)
            await self._clock.sleep(pauses.next_pause())
        if wire is not self._wire or wire.lost.done():
            return
        gap = subscription.hears(self._clock.monotonic())
        if gap is not None:
            self._report(subscription, gap)
        self._tried(subscription)

    async def _catch_up(self, subscription: Subscription) -> Exception | None:
        """Let the subscriber read anew; returns why that failed."""
        if subscription.catch_up is None:
            return None
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(self.options.catch_up_timeout):
                await subscription.catch_up()
        except asyncio.CancelledError as error:
            if task is not None and task.cancelling():
                raise
            failure: Exception = RuntimeError("something in it was cancelled")
            failure.__cause__ = error
        except Exception as error:  # noqa: BLE001 - the subscriber's own code: it is told, and tried again
            failure = error
        else:
            return None
        _log.error(
            "catching up on channel %r failed: %s", subscription.channel, _said(failure), exc_info=failure
        )
        return failure

    def _gap_of_failure(self, subscription: Subscription, failure: Exception) -> Gap:
        reason = f"catching up failed: {_said(failure)}"
        return Gap(subscription.deaf_since, self._clock.monotonic(), reason)

    def _tried(self, subscription: Subscription) -> None:
        """One more has caught up, tried to, or left; after the last one the listener is connected."""
        self._first.discard(subscription)
        self._check_connected()

    def _check_connected(self) -> None:
        wire = self._wire
        if self._first or wire is None or wire.lost.done() or self.state is ListenerState.CONNECTED:
            return
        self._connects += 1
        self._last_error = None
        self._move(ListenerState.CONNECTED)

    # -- the task ----------------------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        try:
            while True:
                failure = await self._hear_until_it_ends()
                if failure is None or self._may_sleep():
                    await self._sleep_until_wanted()
                else:
                    await self._pause()
        finally:  # closed, or cancelled together with everything else on this event loop
            self._let_go("the listener was stopped")
            for subscription in self._subscriptions():
                subscription.end()
            self._move(ListenerState.IDLE)

    async def _hear_until_it_ends(self) -> Exception | None:
        """One connection from its beginning to its end; returns what it died of, None if the database may sleep."""
        try:
            wire = await self._open()
            await self._keep_hearing(wire)
        except Exception as error:  # noqa: BLE001 - whatever it is, the listener says so and connects again
            self._failed(error)
            return error
        self._let_go("the listener let the database sleep")
        return None

    async def _open(self) -> Transport:
        """Connect, LISTEN, and prove that notifications arrive: all inside one limit."""
        from steadypool.listener.transport import Transport

        seconds = self.options.connect_timeout
        self._doing = "connecting"
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                connection = await self._connect(seconds)
                try:
                    wire = Transport(connection, self._arrived)
                except BaseException:
                    connection.abort()
                    raise
                try:
                    await self._prove(wire)
                except BaseException:
                    wire.close()
                    raise
                return wire
        except TimeoutError as error:
            if isinstance(error, errors.SteadypoolError) or not limit.expired():
                raise
            raise errors.ConnectTimeout(
                f"the listener does not hear within {seconds:g} s; it was {self._doing}",
                errors.Report(phase=errors.Phase.CONNECTING),
            ) from error

    async def _prove(self, wire: Transport) -> None:
        """Let another connection send a NOTIFY: only that tells a pooler from a server."""
        self._doing = "waiting for an answer to LISTEN"
        await wire.run(f"LISTEN {self._heartbeat.channel}")
        self._doing = "connecting a second time, to prove that notifications arrive"
        second = await self._connect(self.options.connect_timeout)
        try:
            self._doing = "sending itself a notification over a second connection"
            await self._heartbeat.prove(wire, second)
        finally:
            second.abort()

    async def _keep_hearing(self, wire: Transport) -> None:
        """Until the connection is lost (raises) or the listener may go dormant (returns)."""
        try:
            await self._ask_for_channels(wire)
        except BaseException:
            wire.close()
            raise
        options = self.options
        while True:
            beat_at = self._clock.monotonic()
            await asyncio.wait({wire.lost}, timeout=options.heartbeat_interval)
            if wire.lost.done():
                raise wire.lost.result()
            if self._may_sleep():
                return
            if options.dormant_after is None or self._used_at >= beat_at:
                await self._heartbeat.beat(wire)
                self._events.emit(
                    events.ListenerHeartbeat(self._name, self._clock.monotonic(), self._heartbeat.lag or 0.0)
                )

    async def _ask_for_channels(self, wire: Transport) -> None:
        """LISTEN to all that is wanted in one flight, and let everybody catch up."""
        self._doing = "waiting for an answer to LISTEN"
        asked = tuple(self._channels)
        for subscription in self._subscriptions():
            subscription.mailbox.resume()
            subscription.mailbox.hold_back()
        if asked:
            answer = wire.submit("; ".join(f"LISTEN {_quoted(channel)}" for channel in asked))
            if not await wire.wait_for(answer, self.options.heartbeat_timeout):
                raise errors.HeartbeatMissed(
                    f"no answer to LISTEN within {self.options.heartbeat_timeout:g} s"
                )
            answer.result()
        self._wire = wire
        self._began_at = self._clock.monotonic()
        self._call(self._on_proven)
        self._first = set(self._subscriptions())
        for subscription in tuple(self._first):
            self._join_soon(wire, subscription, asked=subscription.channel in asked)
        for channel in asked:
            if channel not in self._channels:  # they left meanwhile
                wire.submit(f"UNLISTEN {_quoted(channel)}")
        self._check_connected()

    # -- pauses ------------------------------------------------------------------------------------------------

    async def _pause(self) -> None:
        """Wait before the next attempt; somebody else's success in the meantime cuts it short."""
        self._nudged.clear()
        seconds = self._backoff.next_pause()
        short = min(seconds, self._backoff.rng.uniform(0.0, SHORT_PAUSE))
        await self._clock.sleep(short)
        if self.state is ListenerState.DEAF:
            await self._clock.sleep(seconds - short)  # whoever connects to the pooler says nothing about this
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds - short):
                await self._nudged.wait()

    async def _sleep_until_wanted(self) -> None:
        self._wanted.clear()
        self._move(ListenerState.DORMANT)
        await self._wanted.wait()
        self._move(self._beginning)

    @property
    def _beginning(self) -> ListenerState:
        """The state of a listener that is about to connect."""
        return ListenerState.RECONNECTING if self._connects else ListenerState.STARTING

    def _may_sleep(self) -> bool:
        """Whether nothing has happened for so long that the database may sleep."""
        seconds = self.options.dormant_after
        return seconds is not None and self._clock.monotonic() - max(self._used_at, self._told_at) >= seconds

    # -- what arrives ------------------------------------------------------------------------------------------

    def _arrived(self, notification: Notification) -> None:
        self._heard_at = now = self._clock.monotonic()
        if notification.channel == self._heartbeat.channel:
            self._heartbeat.arrived(notification)
            return
        self._told_at = now
        for subscription in self._channels.get(notification.channel, ()):
            gap = subscription.mailbox.put(notification, now)
            if gap is not None:
                self._report(subscription, gap)

    # -- losing it ---------------------------------------------------------------------------------------------

    def _failed(self, error: Exception) -> None:
        heard = self._wire is not None
        if heard and self._clock.monotonic() - self._began_at >= STEADY_AFTER:
            self._backoff.reset()
        self._last_error = error
        self._let_go(_said(error))
        deaf = isinstance(error, errors.NotificationsBlocked)
        self._move(ListenerState.DEAF if deaf else self._beginning)
        _log.warning("the listener %r is %s: %s", self._name, self.state.value, _said(error))
        if deaf:
            for subscription in self._subscriptions():
                subscription.end(error)
        if heard and self._on_lost is not None:
            self._call(partial(self._on_lost, error))

    def _call(self, function: Callable[[], None] | None) -> None:
        try:
            if function is not None:
                function()
        except Exception:  # noqa: BLE001 - whoever is told must not stop the listener
            _log.exception("%r raised", function)

    def _let_go(self, reason: str) -> None:
        """From now on something may be missed."""
        wire, self._wire = self._wire, None
        self._first = set()
        for task in tuple(self._joining.values()):
            task.cancel()
        for subscription in self._subscriptions():
            subscription.deafen(self._heartbeat.proven_at, reason)
        if wire is not None:
            wire.close()

    def _tell(self, subscription: Subscription, gap: Gap) -> None:
        subscription.mailbox.put_gap(gap)
        self._report(subscription, gap)

    def _report(self, subscription: Subscription, gap: Gap) -> None:
        """A subscriber is told of a gap: so are the log, the numbers and whoever watches."""
        self._gaps += 1
        channel = subscription.channel
        _log.warning(
            "notifications of channel %r may be missing for %.1f s: %s",
            channel,
            gap.until - gap.since,
            gap.reason,
        )
        self._events.emit(events.ListenerGap(self._name, gap.until, channel, gap.since, gap.reason))

    def _move(self, state: ListenerState) -> None:
        if state is self.state or self.state is ListenerState.CLOSED:
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


def _start(work: Coroutine[Any, Any, None], name: str, context: Context) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work, name=name, context=context)


def _said(error: BaseException) -> str:
    """One line, never empty: a TimeoutError says nothing, libpq goes on with what it probably means."""
    return errors.words_of(error).partition("\n")[0]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
