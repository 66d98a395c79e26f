"""The parts a pool is made of: its options, a slot for each connection, a waiter for each caller, and the lease.

A slot is counted from the moment its connect starts until the server has let go of it, so that counting slots is
counting connections as the server sees them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from steadypool._callsite import Place
from steadypool._sqlstate import Disposition
from steadypool.deadline import Deadline

T = TypeVar("T")
C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """How a pool behaves. Times are seconds, amounts are connections unless said otherwise.

    `max_overflow` of None means no upper limit; `recycle` and `ping_after_idle` of None mean never.
    """

    size: int = 10
    max_overflow: int | None = 5
    pool_timeout: float = 10.0
    connect_timeout: float = 10.0
    recycle: float | None = 7200.0
    recycle_jitter: float = 0.1
    ping_after_idle: float | None = 0.5
    leave_timeout: float = 2.0
    """How long cleaning, closing or waiting for the server to let go of one connection may take."""
    max_waiting: int = 1000
    """Callers that may wait at the same time."""
    max_connecting: int = 4
    close_grace: float = 5.0
    leak_after: float | None = None
    """A connection held for longer is reported, once."""
    idle_timeout: float | None = None
    """An idle connection is closed after this time."""
    use_lifo: bool = True
    connect_wait: float | None = None
    """Seconds a caller waits while connections are being opened; None for the longer of the two timeouts."""
    retry_connects: bool = True
    """Whether callers wait for another attempt after one that failed."""
    shed: bool = True
    """Callers who cannot be served in time are turned away early."""

    @property
    def limit(self) -> float:
        """The most connections there may ever be, opening and closing ones included."""
        return math.inf if self.max_overflow is None else self.size + self.max_overflow

    @property
    def acquire_limit(self) -> float:
        """Seconds a caller without a deadline waits while connections are being opened."""
        if self.connect_wait is not None:
            return self.connect_wait
        return max(self.pool_timeout, self.connect_timeout)


class Driver(Protocol[C]):
    """What a pool needs to know about connections; one implementation a driver.

    Every coroutine here runs in a task that the pool owns, bounded by a timeout of the pool, and may be cancelled.
    """

    async def open(self) -> C:
        """Open a connection. Raises `errors.ConnectFailed`."""
        ...

    async def ping(self, connection: C) -> None:
        """Return if the server answers on this connection, raise if not."""
        ...

    def needs_reset(self, connection: C) -> bool:
        """Whether its last user left something behind."""
        ...

    async def reset(self, connection: C) -> None:
        """Make it as good as new, or raise."""
        ...

    def is_open(self, connection: C) -> bool:
        """Whether it is usable as far as can be told without asking the server."""
        ...

    def rest(self, connection: C, lost: Callable[[], None]) -> None:
        """Nobody uses it from now on: call `lost` as soon as its end is noticed."""
        ...

    def abort(self, connection: C) -> None:
        """Cut it off now. Never waits, never raises, may be called twice.

        Called on the pool's event loop, or where that does not run any more.
        """
        ...

    def hang_up(self, connection: C) -> None:
        """End it for the server, from another thread than its own; whoever has it there finds it dead."""
        ...

    def disown(self, connection: C) -> None:
        """It is the parent process's: close this process's descriptors, and send nothing."""
        ...

    async def close(self, connection: C) -> None:
        """Say goodbye; after `abort`, just wait until the server has let go."""
        ...


class EntryState(Enum):
    """Where a connection is in its life. Each slot is in exactly one state; GONE is where it ends."""

    # The one that Enum defines is Python code, and states are counted all the time. Members are singletons.
    __hash__ = object.__hash__

    OPENING = "opening"
    """A task of the pool is connecting; nobody holds it."""
    STUCK = "stuck"
    """Connecting for longer than usual: held open, since it may be waking the server, but nobody counts on it."""
    IDLE = "idle"
    """In the pool, ready or in need of a proof."""
    PROVING = "proving"
    """A task of the pool asks the server for a sign of life."""
    SILENT = "silent"
    """Asked for a sign of life, and it takes long: nobody counts on it, but it may still answer."""
    LEASED = "leased"
    """Somebody has it."""
    RESETTING = "resetting"
    """Given back unclean; a task of the pool cleans it."""
    CLOSING = "closing"
    """Not to be used again, but the server may still have it."""
    GONE = "gone"
    """The server has let go; the slot is free."""


class PoolEntry(Generic[T]):
    """The place of one connection in the pool."""

    __slots__ = (
        "connect_seconds",
        "connection",
        "expires_at",
        "generation",
        "idle_since",
        "lease",
        "leases",
        "number",
        "opened_at",
        "proven_at",
        "since",
        "state",
        "suspect",
        "suspected_at",
        "task",
    )

    def __init__(self, number: int, generation: int, now: float) -> None:
        self.number = number
        self.generation = generation
        self.state = EntryState.OPENING
        self.since = now
        self.leases = 0
        self.connection: T | None = None
        self.lease: Lease[T] | None = None
        self.task: asyncio.Task[None] | None = None
        self.opened_at = 0.0
        self.connect_seconds = 0.0
        self.proven_at = 0.0
        self.idle_since = 0.0
        self.expires_at = math.inf
        self.suspect = False
        self.suspected_at = 0.0


class Lease(Generic[T]):
    """A connection that somebody holds, until `release`.

    Use it as a context manager: leaving the block gives the connection back; leaving it by an exception that is
    not an ordinary `Exception` (a cancellation) evicts it, because nobody knows in which state it is.
    """

    __slots__ = (
        "_release",
        "_trusted",
        "acquired_at",
        "name",
        "places",
        "reported",
        "running",
        "slot",
        "told",
        "waited",
        "workload",
    )

    def __init__(
        self,
        slot: PoolEntry[T],
        release: Callable[[Lease[T], Disposition], None],
        trusted: Callable[[], None],
        *,
        acquired_at: float,
        waited: float,
        name: str,
        workload: str | None,
        places: tuple[Place, ...] = (),
    ) -> None:
        self.slot = slot
        self.places = places
        self.reported = False
        self.running: tuple[str, float] | None = None
        """The statement that executes on it and since when, by whoever executes it; for whoever looks."""
        self.told = False
        """Whether somebody was told what this lease cost."""
        self._release = release
        self._trusted = trusted
        self.acquired_at = acquired_at
        self.waited = waited
        self.name = name
        self.workload = workload

    @property
    def connection(self) -> T:
        """The connection. Raises RuntimeError once the lease has ended."""
        slot = self.slot
        if slot.lease is not self or slot.connection is None:
            raise RuntimeError("this lease has ended; its connection may be somebody else's by now")
        return slot.connection

    @property
    def active(self) -> bool:
        """Whether the connection is still this lease's."""
        return self.slot.lease is self

    @property
    def connecting(self) -> float:
        """Seconds of `waited` in which this very connection was being opened."""
        opened_at = self.slot.opened_at
        began = max(self.acquired_at - self.waited, opened_at - self.slot.connect_seconds)
        return max(0.0, min(self.acquired_at, opened_at) - began)

    def take_cost(self) -> tuple[float, float]:
        """Seconds of waiting, and of connecting, before this lease began; zeros from the second question on."""
        if self.told:
            return 0.0, 0.0
        self.told = True
        if self.waited <= 0.0:  # the usual case, without sums
            return 0.0, 0.0
        connecting = self.connecting
        return self.waited - connecting, connecting

    def touch(self, now: float) -> None:
        """The server answered on this connection at `now`: it need not be asked again soon.

        An answer from before the connection came under suspicion says nothing against that.
        """
        slot = self.slot
        slot.proven_at = now
        if slot.suspect and now >= slot.suspected_at:
            slot.suspect = False
            self._trusted()

    def release(self, fate: Disposition = Disposition.KEEP) -> None:
        """Give the connection back. Never waits, and a second call does nothing."""
        if self.slot.lease is self:
            self._release(self, fate)

    def __enter__(self) -> T:
        return self.connection

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        interrupted = exc is not None and not isinstance(exc, Exception)
        self.release(Disposition.EVICT if interrupted else Disposition.KEEP)


class Waiter(Generic[T]):
    """A caller who waits for a connection.

    It waits until `busy_until` for a busy pool, and until `connect_until` if it is the server that has kept it until
    then. Both count from the same start.
    """

    __slots__ = (
        "busy_until",
        "connect_until",
        "deadline",
        "for_others",
        "future",
        "name",
        "places",
        "since",
        "timer",
        "workload",
    )

    def __init__(
        self,
        future: asyncio.Future[Lease[T]],
        *,
        since: float,
        pool_timeout: float,
        connect_wait: float,
        deadline: Deadline | None,
        name: str,
        workload: str | None,
        places: tuple[Place, ...] = (),
        for_others: bool = False,
    ) -> None:
        self.future = future
        self.for_others = for_others
        self.places = places
        self.since = since
        self.deadline = deadline
        self.name = name
        self.workload = workload
        self.timer: asyncio.TimerHandle | None = None
        end = math.inf if deadline is None else deadline.at
        self.busy_until = min(since + pool_timeout, end)
        self.connect_until = since + connect_wait if deadline is None else deadline.at

    def offer(self, lease: Lease[T]) -> bool:
        """Hand over a lease; False if the caller has gone in the meantime."""
        if self.future.done():
            return False
        self.future.set_result(lease)
        return True

    def fail(self, error: BaseException) -> bool:
        """Let the caller go with an error; False if it has gone already."""
        if self.future.done():
            return False
        self.future.set_exception(error)
        return True
