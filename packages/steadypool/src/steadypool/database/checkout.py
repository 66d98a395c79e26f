"""A connection of one's own for the length of a block: leased from the pool, and given back clean or not at all.

It comes from the pool itself, without SQLAlchemy in between, whose events of checkouts are for its own connections.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from steadypool._sqlstate import Disposition
from steadypool.connect.session_settings import milliseconds
from steadypool.database.connection import Connection, ConnectionContext
from steadypool.database.driver_adapters import DIALOGUES
from steadypool.deadline import TimeLimit, nearest_end
from steadypool.pool.lease import Lease
from steadypool.sqlalchemy.pool import SteadyPool
from steadypool.sqlalchemy.record import Record

_holding: ContextVar[int] = ContextVar("steadypool_holding", default=0)


def holds_a_connection() -> bool:
    """Whether this task, or the one that started it, may hold a connection, and locks with it."""
    return _holding.get() > 0


def _let_go() -> None:
    # No token: blocks may end in any order, and a web framework may leave one in another context than it entered it.
    _holding.set(max(0, _holding.get() - 1))


class ConnectionScope:
    """Inside the block this task, and those that it starts, may hold a connection."""

    __slots__ = ()

    def __enter__(self) -> None:
        _holding.set(_holding.get() + 1)

    def __exit__(self, *_: object) -> None:
        _let_go()


class CheckoutConfig:
    """What all uses of a pool by one workload, with the same limits, have in common.

    Args:
        pool: where the connections come from.
        workload: the class of work.
        limit: seconds that its statements may run, 0 for no limit, where that is not what the session has anyway.
        default_limit: what the session has.
        lock_timeout: seconds that a statement may wait for a lock; then each is a transaction with both limits.
    """

    def __init__(
        self,
        pool: SteadyPool,
        *,
        workload: str | None,
        limit: float | None,
        default_limit: float | None,
        lock_timeout: float | None = None,
    ) -> None:
        self.pool = pool
        self.workload = workload
        self.limit = limit
        self.dialect = dialect = pool.dialect
        self._lock_timeout = lock_timeout
        self._pooler = dialect.pooler_watch
        self.dialogue = DIALOGUES[dialect.driver]()
        self.surroundings = ConnectionContext(
            pool=pool.core.name,
            clock=pool.core.clock,
            statement_timeout=default_limit if limit is None else limit,
            lock_timeout=lock_timeout,
            workload=workload,
            snapshot=pool.core.snapshot,
            events=pool.observers,
            driver=dialect,
            dialogue=self.dialogue,
            judge=pool.judge,
            begin=self._begin,
            posts=self._posts,
        )

    @property
    def per_transaction(self) -> bool:
        """Whether the limits travel with each transaction, since no session keeps them; known once one was opened."""
        return self._lock_timeout is not None or not self._pooler.keeps_statements

    def _posts(self) -> bool:
        return not self._pooler.one_at_a_time

    def _begin(self) -> str:
        return self._pooler.beginning(self.limit if self.per_transaction else None, self._lock_timeout)


class Checkout(contextlib.AbstractAsyncContextManager[Connection]):
    """What `Database.connection()` returns: one use of a connection, on these terms."""

    __slots__ = (
        "_begins",
        "_connection",
        "_driver_limit",
        "_entered",
        "_lease",
        "_terms",
        "_told",
        "_use",
    )

    def __init__(self, terms: CheckoutConfig) -> None:
        self._terms = terms
        self._use: Connection | None = None
        self._lease: Lease[Record] | None = None
        self._entered = self._told = False

    async def __aenter__(self) -> Connection:
        if self._entered:  # two blocks would end each other's use
            raise RuntimeError("connection() is for one block: call it anew for each")
        self._entered = True
        terms = self._terms
        dialect, limit = terms.dialect, terms.limit
        lease = self._lease = await terms.pool.lease(terms.workload)
        connection: Any = lease.connection.driver_connection
        self._connection = connection
        wraps = False
        if limit is not None:
            wraps = terms.per_transaction
            self._told = not wraps
        use = self._use = Connection(connection, terms.surroundings, lease, wraps=wraps)
        self._begins = dialect.begins_by_itself and not connection.autocommit
        self._driver_limit = None
        if limit is not None:
            self._driver_limit = dialect.driver_limit(connection, limit)
            self._driver_limit.__enter__()
        _holding.set(_holding.get() + 1)
        if self._begins or self._told:
            await self._set_up(use, limit)
        return use

    async def _set_up(self, use: Connection, limit: float | None) -> None:
        try:
            if self._begins:
                await self._terms.dialect.set_autocommit(self._connection, True)
            if self._told and limit is not None:
                await use.set_up(f"SET statement_timeout = {milliseconds(limit)}")
                self._mark_clean()
        except BaseException as error:
            await self.__aexit__(None, error, None)
            raise

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        use, lease, terms = self._use, self._lease, self._terms
        assert use is not None, "a block that was not entered"
        assert lease is not None, "a use without a lease"
        pool, dialect, connection = terms.pool, terms.dialect, self._connection
        use.end()
        if (
            not pool.at_home
        ):  # the garbage collector ends a task that was forgotten, in whichever thread it runs
            pool.forget(lease)
            return
        _let_go()
        if self._driver_limit is not None:
            self._driver_limit.__exit__(None, None, None)
        fate = Disposition.EVICT
        try:
            if use.busy or (exc is not None and not isinstance(exc, Exception)):
                dialect.cut(connection)  # given up half-way: nobody knows what it would answer next
            elif dialect.is_open(connection):
                if self._told or self._begins or dialect.in_transaction(connection):
                    await self._clean(connection)
                fate = Disposition.KEEP
        finally:
            pool.end(lease, fate)  # which keeps none that was cut off meanwhile

    def __del__(self) -> None:
        lease = self._lease
        if (
            lease is not None and lease.slot.lease is lease
        ):  # somebody entered the block, and forgot to leave it
            self._terms.pool.forget(lease)

    async def _clean(self, connection: Any) -> None:
        """Undo what the block may have left, within the time for leaving; what can't be cleaned is cut off."""
        pool, dialect = self._terms.pool, self._terms.dialect
        seconds, _ = nearest_end(pool.options.leave_timeout, pool.core.clock.monotonic())
        try:
            with TimeLimit(seconds):
                if dialect.in_transaction(connection):
                    await dialect.roll_back(connection)
                if self._told:
                    touched = self._is_touched()
                    await self._terms.dialogue.execute(connection, "RESET statement_timeout", ())
                    if not touched:
                        self._mark_clean()
                if self._begins:
                    await dialect.set_autocommit(connection, False)
        except BaseException as error:
            dialect.cut(connection)
            # The server rolls back by itself what was not committed; only a cancellation is the caller's to hear.
            if not isinstance(error, Exception):
                raise

    def _is_touched(self) -> bool:
        lease, resets = self._lease, self._terms.pool.session_reset
        return lease is not None and resets is not None and resets.is_touched(lease.connection)

    def _mark_clean(self) -> None:
        """What was just sent is ours, and taken back by ourselves."""
        lease, resets = self._lease, self._terms.pool.session_reset
        if lease is not None and resets is not None:
            resets.forget(lease.connection)
