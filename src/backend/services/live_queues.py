"""Queues that are the same on every instance: changes are told through Postgres, copies live as long as they are true.

A change and its NOTIFY are one transaction, so the others hear of it if, and only if, it happened. Copies are used only
while the listener hears. Whenever it may have missed something, all of them are dropped before it says that it hears.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from sqlalchemy.ext.asyncio import AsyncSession

from backend.services import queue
from backend.services.queue_cache import Queue, QueueCache
from backend.services.together import Together
from steadypool import Database
from steadypool.errors import ConfigurationError, NotificationsBlocked
from steadypool.events import Event, ListenerStateChanged
from steadypool.listener import Gap, ListenerState, Overflow, Subscription
from steadypool.settings import IdlePolicy

log = logging.getLogger(__name__)

CHANNEL = "queue_changes"

READERS = 4
"""Watchers that read the database at the same time: after a gap all of them want to, and requests come first."""


class Watch:
    """One who wants to know when a queue may have changed."""

    def __init__(self, owner: LiveQueues) -> None:
        self._owner = owner
        self.told = asyncio.Event()

    async def changed(self, within: float | None = None) -> bool:
        """Wait until the queue may have changed, at most `within` seconds; False when there is nothing to wait for.

        While nothing can be heard, every few seconds is "may have changed".
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while not (self.told.is_set() or self._owner.ended):
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._owner.poll_every):
                            await self.told.wait()
                    if self._owner.has_to_ask:
                        break
        self.told.clear()
        return not self._owner.ended


class LiveQueues:
    """The queues as this instance knows them; `async with` begins and ends the listening.

    Neither a database nor a listener has to be there: without them every read goes to the database.

    Args:
        database: where queues are, and what tells of their changes.
        poll_every: seconds after which a watcher looks for itself while nothing can be heard.
    """

    def __init__(self, database: Database, *, poll_every: float = 5.0) -> None:
        self.poll_every = poll_every
        self.ended = False
        self.readers = asyncio.Semaphore(READERS)
        self.writing: Together[str] = Together()
        """Events that several devices of an artist wait for; each is long, and the same for all."""
        self._database = database
        self._cache = QueueCache()
        self._watches: dict[str, set[Watch]] = {}
        self._subscription: Subscription | None = None
        self._task: asyncio.Task[None] | None = None
        self._listener_state: str = ListenerState.IDLE
        self._unsubscribe: Callable[[], None] | None = None
        # A database that may sleep is not woken by pages that nobody looks at.
        self._asks_when_deaf = database.settings.idle_policy is IdlePolicy.KEEP_AWAKE

    async def __aenter__(self) -> Self:
        self._unsubscribe = self._database.events.subscribe(self._look, ListenerStateChanged)
        self._task = asyncio.create_task(self._follow(), name="follow queues")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_watches()
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait({self._task})
        assert self._unsubscribe is not None
        self._unsubscribe()

    def end_watches(self) -> None:
        """Let everybody who watches go; nobody waits from now on."""
        self.ended = True
        self._tell_all()

    @property
    def is_live(self) -> bool:
        """Whether changes on other instances are being heard."""
        return self._subscription is not None and self._subscription.is_live

    @property
    def has_to_ask(self) -> bool:
        """Whether whoever wants to know of changes has to look at the database."""
        return self._asks_when_deaf and not self.is_live

    @property
    def is_dormant(self) -> bool:
        """Whether the database is left to sleep: whoever watches must not read it, or it never would."""
        return self._listener_state == ListenerState.DORMANT

    @property
    def stale_because(self) -> str | None:
        """Why whoever watches is neither told of changes on other instances nor looks for them; None if they are."""
        if self.is_dormant:
            return "the database may sleep"
        if self._listener_state == ListenerState.DEAF and not self._asks_when_deaf:
            return "a transaction pooler swallows notifications, and the database may sleep"
        return None

    def _look(self, event: Event) -> None:
        if isinstance(event, ListenerStateChanged):
            self._listener_state = event.after
            self._tell_all()

    # -- reading and writing -----------------------------------------------------------------------------------

    async def get(self, did: str) -> Queue:
        """The queue as it is: a copy while changes are being heard, else what the database says."""
        if self.is_live and (copy := self._cache.get(did)) is not None:
            return copy
        with self._cache.reading(did) as reading:
            was_live = self.is_live
            found = Queue(*await queue.get(self._database, did))
            if was_live and self.is_live:
                self._cache.keep_read(did, found, reading)
        return found

    async def get_current(self, did: str) -> Queue:
        """The queue as the database says, whatever is known here."""
        found = Queue(*await queue.get(self._database, did))
        self._cache.changed(did, found.revision)
        return found

    async def put(self, session: AsyncSession, did: str, state: dict[str, Any], expected: int) -> int | None:
        """Replace the state if its revision is still the one expected, and tell everybody once that is committed.

        Returns the new revision, or None if it moved on.
        """
        revision = await queue.put(session, did, state, expected)
        if revision is not None:
            payload = json.dumps({"did": did, "revision": revision})
            await self._database.notify(CHANNEL, payload, session=session)
        return revision

    async def commit(self, session: AsyncSession, did: str, new: Queue) -> None:
        """Commit what `put` did.

        The copy of the new state is kept only if nothing newer was heard, and no gap passed, while the answer to the
        COMMIT was on its way: others may have gone on from the new state before this instance learned of its success.
        """
        with self._cache.reading(did) as reading:
            was_live = self.is_live
            try:
                await session.commit()
            except BaseException:  # it may have happened all the same
                self._cache.forget(did)
                raise
            self._changed(did, new.revision)
            if was_live and self.is_live:
                self._cache.keep_read(did, new, reading)

    @contextmanager
    def watch(self, did: str) -> Generator[Watch]:
        """Be told of changes while the block runs."""
        watch = Watch(self)
        watches = self._watches.setdefault(did, set())
        watches.add(watch)
        try:
            yield watch
        finally:
            watches.discard(watch)
            if not watches and self._watches.get(did) is watches:
                del self._watches[did]

    # -- what is heard -----------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        try:
            async with self._database.listen(
                CHANNEL, overflow=Overflow.CONFLATE, catch_up=self._catch_up
            ) as subscription:
                self._subscription = subscription
                while True:
                    try:
                        async for heard in subscription:
                            self._hear(None if isinstance(heard, Gap) else heard.payload)
                        return
                    except NotificationsBlocked as error:
                        log.error("changes of queues on other instances are not heard: %s", error)
                    await subscription.live.wait()
        except ConfigurationError as error:
            log.error("changes of queues on other instances are not heard: %s", error)
        except Exception:
            log.exception("changes of queues on other instances are not heard")
        finally:
            self._subscription = None
            self._forget_all()

    async def _catch_up(self) -> None:
        """Runs after LISTEN, and before anybody calls the subscription live: no older copy can be used then."""
        self._forget_all()

    def _hear(self, payload: str | None) -> None:
        if payload is None:
            self._forget_all()
            return
        try:
            change = json.loads(payload)
            did, revision = str(change["did"]), int(change["revision"])
        except (ValueError, TypeError, KeyError):
            log.warning("not understood on channel %s: %r", CHANNEL, payload)
            self._forget_all()
            return
        self._changed(did, revision)

    def _changed(self, did: str, revision: int) -> None:
        self._cache.changed(did, revision)
        for watch in self._watches.get(did, ()):
            watch.told.set()

    def _forget_all(self) -> None:
        self._cache.clear()
        self._tell_all()

    def _tell_all(self) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.told.set()
