"""SQLAlchemy's Pool interface over steadypool's pool.

What SQLAlchemy calls a pool keeps its events, its records and its words; who gets which connection, when one is
opened, proven, recycled or closed, is decided by `steadypool.pool.Pool`. The connection type of that pool is
`Record`, which is handed out only when it is connected, so SQLAlchemy never connects in a caller's task.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import pool
from sqlalchemy.pool.base import ResetStyle
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from steadypool import errors
from steadypool._callsite import Place, request_name, whereabouts
from steadypool._owner_loop import Standing, standing_of
from steadypool._sqlstate import Disposition, fate_of
from steadypool.deadline import TimeLimit, nearest_end
from steadypool.events import Events, WaitEnded
from steadypool.pool.circuit_breaker import CircuitBreaker
from steadypool.pool.lease import EntryState, Lease, PoolOptions
from steadypool.pool.pool import Pool
from steadypool.sqlalchemy.elsewhere import Sharer, close_elsewhere, collected, dispose_of
from steadypool.sqlalchemy.errors import raise_as_sqlalchemy, sqlstate_of
from steadypool.sqlalchemy.instrumentation import tell_wait
from steadypool.sqlalchemy.record import Record, RecordDriver
from steadypool.sqlalchemy.session_reset import SessionReset

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

    from steadypool.sqlalchemy.dialects.base import BoundedDialect

UNLIMITED = 2**31
"""What a pool_size of 0, SQLAlchemy's word for "no limit", becomes."""

DRAIN_EVERY = 5.0
"""Seconds: where there is no primary to go to, connections are not replaced at every write that is refused."""

_WORDS = {
    EntryState.OPENING: "opening",
    EntryState.STUCK: "opening",
    EntryState.IDLE: "idle",
    EntryState.PROVING: "idle",
    EntryState.SILENT: "idle",
    EntryState.LEASED: "used",
    EntryState.RESETTING: "idle",
    EntryState.CLOSING: "closing",
}
"""The states of connections in the words of OpenTelemetry's `db.client.connection.state`, and two of our own."""

current_workload: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "steadypool_workload", default=None
)
"""The class of work for which a connection is being acquired; set around `Pool.connect` only."""


class SteadyPool(pool.Pool):
    """A `sqlalchemy.pool.Pool` that keeps steadypool's promises; made by `create_async_engine`.

    `size`, `checkedin`, `checkedout`, `overflow`, `timeout` and `status` mean what they mean for QueuePool, and
    never count connections that are dead.
    """

    _is_asyncio = True  # pyright: ignore[reportAssignmentType]
    _sqla_logger_namespace = "sqlalchemy.pool.SteadyPool"
    """Where SQLAlchemy's documentation says that a pool logs: below `sqlalchemy.pool`."""
    session_reset: SessionReset | None
    """What makes sessions clean between their holders; None where only transactions are rolled back."""
    predecessors: tuple[weakref.ref[SteadyPool], ...] = ()
    """Pools that `Engine.dispose` replaced while somebody still had a connection of theirs, and keeps them alive."""
    sharer: Sharer | None = None
    """What shares connections of this pool: they go back when a session is about to wait for one."""

    done = False
    """Whether `close` has ended."""
    unproven_after: float | None
    """Seconds without an answer after which a connection's first use is its proof; None where it is not."""
    disposed = False
    """Whether `dispose` was called."""

    _drained_at = -math.inf
    _home_loop: asyncio.AbstractEventLoop | None = None

    def __init__(
        self,
        creator: Any,
        pool_size: int = 5,
        max_overflow: int = 10,
        timeout: float | None = 30.0,
        use_lifo: bool = False,
        steady_options: PoolOptions | None = None,
        steady_name: str = "main",
        steady_events: Events | None = None,
        steady_ceilings: dict[str, int] | None = None,
        steady_breaker: bool = True,
        ping_by_select: bool = False,
        first_use_proves: bool = False,
        session_reset: SessionReset | None = None,
        recycle: float = -1,
        pre_ping: bool = False,
        **kw: Any,
    ) -> None:
        super().__init__(creator, recycle=-1, pre_ping=False, **kw)  # the core does both, in the background
        base = steady_options or PoolOptions()
        options = replace(
            base,
            size=pool_size or UNLIMITED,
            max_overflow=None if pool_size == 0 or max_overflow == -1 else max_overflow,
            pool_timeout=math.inf if timeout is None else timeout,
            recycle=recycle if recycle >= 0 else None,
            ping_after_idle=base.ping_after_idle if pre_ping and not first_use_proves else None,
            use_lifo=use_lifo,
        )
        self.ping_by_select, self.session_reset = ping_by_select, session_reset
        self.ceilings = steady_ceilings if steady_ceilings is not None else {}
        self._arguments: dict[str, Any] = {
            **kw,
            "pool_size": pool_size,
            "max_overflow": max_overflow,
            "timeout": timeout,
            "use_lifo": use_lifo,
            "steady_options": steady_options,
            "steady_name": steady_name,
            "steady_ceilings": self.ceilings,
            "steady_breaker": steady_breaker,
            "ping_by_select": ping_by_select,
            "first_use_proves": first_use_proves,
            "session_reset": session_reset,
            "recycle": recycle,
            "pre_ping": pre_ping,
        }
        self.observers = steady_events or Events()
        self.core: Pool[Record] = Pool(
            RecordDriver(self),
            options,
            name=steady_name,
            breaker=CircuitBreaker(options.max_connecting, enabled=steady_breaker),
            observers=self.observers,
            ceilings=self.ceilings,
        )
        self.watched: set[Record] = set()
        self.unproven_after = base.ping_after_idle if pre_ping and first_use_proves else None

    @property
    def options(self) -> PoolOptions:
        """How the pool behaves now; `resize` changes it."""
        return self.core.options

    # Set by SQLAlchemy later, and asked for so often in every use that the getter had better not be Python.
    dialect: BoundedDialect = property(  # pyright: ignore[reportAssignmentType]
        attrgetter("_dialect"), doc="The engine's dialect, which knows the driver."
    )

    @property
    def resets_on_return(self) -> bool:
        """Whether a connection that comes back in a transaction is rolled back."""
        return self._reset_on_return is not ResetStyle.reset_none

    # -- what SQLAlchemy calls ---------------------------------------------------------------------------------

    def _create_connection(self) -> ConnectionPoolEntry:
        return Record(self)

    def _do_get(self) -> ConnectionPoolEntry:
        # Here, where the frames of whoever asks can be seen: below it is the event loop's task.
        core = self.core
        places = whereabouts() if core.options.leak_after is not None else ()
        try:
            workload = current_workload.get()
            lease = None
            if in_greenlet():  # without a switch of greenlets, if there is one to be had at once
                lease = core.acquire_now(name=request_name(), workload=workload, places=places)
            if lease is None:
                lease = await_only(self._acquire(workload, places))
        except errors.SteadypoolError as error:
            raise_as_sqlalchemy(error)
        if self._home_loop is None:
            self._home_loop = asyncio.get_running_loop()
        record = lease.connection
        record.lease = lease
        if record.fairy_ref is not None:
            # A fairy that was collected may have left its weak reference; the record is in nobody's hands now.
            record.fairy_ref = None
        if self.unproven_after is not None:
            age = core.clock.monotonic() - lease.slot.proven_at
            adapter: Any = record.dbapi_connection
            adapter.lease_begins(
                record.renew, ping_limit=self.ping_limit if age >= self.unproven_after else None
            )
        return record

    async def lease(self, workload: str | None = None) -> Lease[Record]:
        """A connection for use without SQLAlchemy; `end` gives it back.

        Args:
            workload: the class of work.

        Raises what `Pool.acquire` raises.
        """
        places = whereabouts() if self.options.leak_after is not None else ()
        try:
            lease = self.core.acquire_now(name=request_name(), workload=workload, places=places)
            if lease is None:
                lease = await self._acquire(workload, places)
            unproven_after = self.unproven_after
            if unproven_after is not None:
                age = self.core.clock.monotonic() - lease.slot.proven_at
                if age >= unproven_after:
                    lease = await self._proven(lease)
        except errors.SteadypoolError as error:
            raise_as_sqlalchemy(error)
        if self._home_loop is None:
            self._home_loop = asyncio.get_running_loop()
        return lease

    async def _proven(self, lease: Lease[Record]) -> Lease[Record]:
        """The same lease, or, where its connection turns out to be dead or silent, another."""
        began = self.core.clock.monotonic()
        seconds, _ = nearest_end(self.ping_limit, began)
        timer = TimeLimit(seconds)
        try:
            with timer:
                await self.dialect.prove(lease.connection.driver_connection, select=self.ping_by_select)
        except Exception as error:  # noqa: BLE001 - whatever the driver raises, it is not fit for use
            self.dialect.ping_failed(error, lease.connection.dbapi_connection)
            self.suspect(began if timer.expired else None)
            lease.release(Disposition.EVICT)
            return await self.acquire_again(lease)
        except BaseException:  # cancelled
            lease.release(Disposition.EVICT)
            raise
        return lease

    def end(self, lease: Lease[Record], fate: Disposition) -> None:
        """Give back what `lease` gave."""
        if fate is Disposition.KEEP and lease.slot.lease is lease:
            record = lease.connection
            if record.read_only:
                self._look_at_role(record)
            proven_at = self.dialect.proven_at(record.driver_connection)
            if proven_at is not None:
                lease.touch(proven_at)
        lease.release(fate)

    async def acquire_again(self, ended: Lease[Record]) -> Lease[Record]:
        """Another lease for whoever had this one, whose connection was dead."""
        self._make_room()
        return await self.core.acquire(name=ended.name, workload=ended.workload, places=ended.places)

    @property
    def ping_limit(self) -> float:
        """Seconds in which a connection that was idle for long has to answer its first use.

        A pooler answers when it has a server to spare, which is no sign of silence.
        """
        pooled = self.dialect.pooler_watch.behind_pooler
        return self.options.connect_timeout / 2 if pooled else self.core.ping_patience

    def suspect(self, silent_since: float | None) -> None:
        """A connection turned out to be dead at its first use: let its siblings prove that they live.

        Args:
            silent_since: the moment since which it did not answer; None where it has ended.
        """
        if silent_since is None:
            self.core.suspect_all()
        else:
            self.core.doubt_idle(silent_since)

    def _make_room(self) -> None:
        """Whoever is about to wait comes before the shared connections."""
        if (
            self.sharer is not None
            and not self.core.count(EntryState.IDLE)
            and self.core.count() >= self.options.limit
        ):
            self.sharer.make_room()

    def _acquire(self, workload: str | None, places: tuple[Place, ...]) -> Coroutine[Any, Any, Lease[Record]]:
        """Wait for a connection; whoever wants to know of waits is told of this one."""
        self._make_room()
        acquiring = self.core.acquire(name=request_name(), workload=workload, places=places)
        return self._told_wait(acquiring, workload) if self.observers.wanted(WaitEnded) else acquiring

    async def _told_wait(
        self, acquiring: Coroutine[Any, Any, Lease[Record]], workload: str | None
    ) -> Lease[Record]:
        began = self.core.clock.monotonic()
        try:
            lease = await acquiring
        except BaseException as error:
            tell_wait(self, began, workload, None, error)
            raise
        tell_wait(self, began, workload, lease, None)
        return lease

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        self.take_back(cast(Record, record))

    def take_back(self, entry: Record) -> None:
        """End the lease of a record, if it has one; may be called by the garbage collector."""
        lease, entry.lease = entry.lease, None
        if lease is None:
            return
        gone = entry._is_hard_or_soft_invalidated()  # pyright: ignore[reportPrivateUsage]
        fate = Disposition.EVICT if gone else Disposition.KEEP
        home = self._home_loop
        if home is None:
            return
        if entry.collected or not self.at_home or home.is_closed():
            # The garbage collector runs in whichever thread happens to allocate, and in the middle of anything.
            if entry.collected:
                self._at_home_soon(self.core.forgotten, lease)
            self._cut_elsewhere(entry.driver_connection)
            self._at_home_soon(lease.release, fate)
        else:
            if entry.read_only and not gone:
                self._look_at_role(entry)
            proven_at = self.dialect.proven_at(entry.driver_connection)
            if proven_at is not None:
                lease.touch(proven_at)
            lease.release(fate)

    @property
    def at_home(self) -> bool:
        """Whether this is the event loop on which its connections are used."""
        return self.core.at_home

    @property
    def is_left(self) -> bool:
        """Whether its event loop does not run any more."""
        home = self._home_loop
        return home is not None and not home.is_running()

    def _at_home_soon(self, call: Callable[..., object], *args: Any) -> None:
        """Call something on the pool's loop, if that may still run; not in a child, where it is the parent's."""
        home = self._home_loop
        if home is not None and standing_of(self.core.home) is not Standing.FORKED:
            with contextlib.suppress(RuntimeError):  # closed
                home.call_soon_threadsafe(call, *args)

    def _cut_elsewhere(self, driver_connection: Any | None) -> None:
        """Cut off what nobody will give back, where the pool's loop cannot."""
        standing = standing_of(self.core.home)
        if driver_connection is None or standing in (Standing.HERE, Standing.ELSEWHERE):
            return
        if standing is Standing.FORKED:
            self.dialect.disown(driver_connection)
        else:
            self.dialect.cut(driver_connection)

    def forget(self, lease: Lease[Record]) -> None:
        """The garbage collector found a lease that nobody ended; it may be running in any thread."""
        if lease.active:
            self._cut_elsewhere(lease.connection.driver_connection)
        self._at_home_soon(self._end_forgotten, lease)

    def _end_forgotten(self, lease: Lease[Record]) -> None:
        if lease.active:
            self.core.forgotten(lease)
            self.dialect.cut(lease.connection.driver_connection)
            lease.release(Disposition.EVICT)

    def _invalidate(
        self,
        connection: PoolProxiedConnection,
        exception: BaseException | None = None,
        _checkin: bool = True,
    ) -> None:
        """One connection was lost: drop it, and let the others prove that they are alive.

        SQLAlchemy would replace them all, each in the task of the caller that meets it. Where the server turns out to
        be a standby they are alive, and lead to the wrong place: all are replaced, those in use when they come back.
        """
        if exception is not None and fate_of(sqlstate_of(exception)) is Disposition.DRAIN_HOST:
            self.drain(connection.driver_connection)
        else:
            self.core.suspect_all()
        if _checkin and connection.is_valid:
            connection.invalidate(exception)

    def judge(self, fate: Disposition, driver_connection: object, said: str) -> None:
        """Act on an error of a statement that says something about the server, and nothing about the connection."""
        if fate is Disposition.BACK_OFF:
            self.core.server_fails(said)
        elif fate is Disposition.DRAIN_HOST and self.dialect.takes_no_writes(driver_connection):
            self.drain(driver_connection)

    def drain(self, driver_connection: object) -> None:
        """The server at the other end of a connection takes no writes: replace all that lead there.

        Other hosts come first until a connect there succeeds again. Where it is not known which host it is, all
        connections are replaced.
        """
        now, network = self.core.clock.monotonic(), self.dialect.guards.network
        if now < self._drained_at + DRAIN_EVERY:
            return
        self._drained_at = now
        place = network.place_of(driver_connection)
        if place is not None:
            network.doubt(place)
        self.core.drain(
            lambda record: place is None or network.place_of(record.driver_connection) in (place, None)
        )

    def _look_at_role(self, record: Record) -> None:
        """It was a standby's, which may have been promoted; that is told unasked, with the answer to any statement."""
        if not self.dialect.takes_no_writes(record.driver_connection):
            record.read_only = False
            place = self.dialect.guards.network.place_of(record.driver_connection)
            if place is not None:
                self.dialect.guards.network.trust(place)

    def _close_connection(self, connection: DBAPIConnection, *, terminate: bool = False) -> None:
        if terminate and not self.at_home and self._home_loop is not None:
            standing = standing_of(self.core.home)
            if standing is Standing.ELSEWHERE:
                self._at_home_soon(self._dialect.do_terminate, connection)
                return
            if standing is Standing.FORKED:
                self.dialect.disown(cast(Any, connection).driver_connection)
                return
        super()._close_connection(connection, terminate=terminate)

    def recreate(self) -> SteadyPool:
        """A new pool with the same arguments, as `Engine.dispose` needs it."""
        self.logger.info("Pool recreating")
        if standing_of(self.core.home) is Standing.FORKED:
            # Also after `dispose(close=False)`: the garbage collector must not close the parent's connections.
            dispose_of(self, Standing.FORKED)
        changed: dict[str, Any] = {
            "echo": self.echo,
            "logging_name": self._orig_logging_name,
            "reset_on_return": self._reset_on_return,
            "steady_events": self.observers,
            "_dispatch": self.dispatch,
            "dialect": self._dialect,
            "events": None,
        }
        self.core.replaced = self.disposed
        successor = type(self)(self._creator, **{**self._arguments, **changed})
        successor.predecessors = tuple(map(weakref.ref, self.family()))
        return successor

    def family(self) -> tuple[SteadyPool, ...]:
        """This pool and those before it, as far as they have connections."""
        alive = (*(known() for known in self.predecessors), self)
        return tuple(pool for pool in alive if pool is not None and pool.core.count())

    def dispose(self) -> None:
        """Close all idle connections at once; those in use are closed when they come back.

        May be called anywhere: where the pool belongs to another event loop, thread or process nothing waits for
        that without an end, see `steadypool.sqlalchemy.elsewhere`.
        """
        self.disposed = True
        for one in self.family():
            standing = standing_of(one.core.home)
            if standing is Standing.HERE:
                one._dispose_here()
            else:
                dispose_of(one, standing)
        self.logger.info("Pool disposed. %s", self.status())

    def _dispose_here(self) -> None:
        if in_greenlet():
            await_only(self.core.evict())
        else:
            watched = set(self.watched)  # by tasks, which go on
            self.core.abort_idle()
            for record in self.watched - watched:
                self.stop_watching(record)

    async def close(self, grace: float | None = None) -> None:
        """Close for good, as `steadypool.pool.Pool.close`; `dispose` would leave a pool that can be used again."""
        standing = standing_of(self.core.home)
        try:
            if standing is Standing.HERE:
                await self.core.close(grace)
            else:
                await close_elsewhere(self, standing, self.options.close_grace if grace is None else grace)
        finally:
            self.done = True
            self.stop_watching_all()

    def __del__(self) -> None:
        core = self.__dict__.get("core")
        if core is not None and core.count():
            collected(self)

    def stop_watching(self, record: Record) -> None:
        """Nobody waits any more for the server to let go of this connection."""
        if record.farewell is not None:
            record.farewell.close()
            record.farewell = None
        self.watched.discard(record)

    def stop_watching_all(self) -> None:
        """The same of all connections."""
        for record in tuple(self.watched):
            self.stop_watching(record)

    # -- what a person can see ---------------------------------------------------------------------------------

    def status(self) -> str:
        """One line, in QueuePool's words."""
        return (
            f"Pool size: {self.size()}  Connections in pool: {self.checkedin()} "
            f"Current Overflow: {self.overflow()} Current Checked out connections: {self.checkedout()}"
        )

    def connections(self) -> dict[str, int]:
        """How many connections the engine has, in the words of OpenTelemetry; may be called from another thread.

        Those that were in use when the engine was disposed of are among them until they come back.
        """
        counts: dict[str, int] = dict.fromkeys(_WORDS.values(), 0)
        for one in self.family():
            for state, word in _WORDS.items():
                counts[word] += one.core.by_state()[state]
        return counts

    def size(self) -> int:
        """Connections that are kept open; 0 for no limit."""
        return 0 if self.options.size == UNLIMITED else self.options.size

    def timeout(self) -> float | None:
        """Seconds a caller waits while all connections are in use; None for no limit."""
        return None if self.options.pool_timeout == math.inf else self.options.pool_timeout

    def checkedin(self) -> int:
        """Connections in the pool that nobody uses."""
        return self.core.count(EntryState.IDLE, EntryState.PROVING, EntryState.RESETTING)

    def checkedout(self) -> int:
        """Connections in use."""
        return self.core.count(EntryState.LEASED)

    def overflow(self) -> int:
        """Open connections beyond `size`; negative while there are fewer."""
        return 0 if self.size() == 0 else self.checkedin() + self.checkedout() - self.size()
