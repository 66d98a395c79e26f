"""A connection of one's own for the length of a block: leased from the pool, and given back clean or not at all.

It comes from the pool itself, without SQLAlchemy in between, whose events of checkouts are for its own connections.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from steadypool.connect.guards import milliseconds
from steadypool.deadline import TimeLimit, nearest_end
from steadypool.dedicated import (
    AsyncpgDialogue,
    Dedicated,
    Dialogue,
    PipelinedDialogue,
    PsycopgDialogue,
    Surroundings,
)
from steadypool.lease import Lease
from steadypool.sqlalchemy.pool import SteadyPool
from steadypool.sqlalchemy.record import Record
from steadypool.sqlstate import Fate

_DIALOGUES: dict[str, Callable[[Any], Dialogue]] = {
    "asyncpg": AsyncpgDialogue,
    "psycopg": PsycopgDialogue,
    "steadypool": PipelinedDialogue,
}

_holding: ContextVar[bool] = ContextVar("steadypool_holding", default=False)

holds_a_connection: Callable[[], bool] = _holding.get
"""Whether this task, or the one that started it, may hold a connection, and locks with it."""


class HoldingAConnection:
    """Inside the block this task, and those that it starts, may hold a connection."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = _holding.get()
        _holding.set(True)

    def __exit__(self, *_: object) -> None:
        # No token: a web framework may leave the block in another context than it entered it.
        _holding.set(self._before)


class Holding(contextlib.AbstractAsyncContextManager[Dedicated]):
    """What `Database.connection()` returns.

    Args:
        pool: where the connection comes from.
        workload: the class of work.
        limit: seconds that its statements may run, where that is not what the session has anyway.
        default_limit: what the session has.
        lock_timeout: seconds that a statement may wait for a lock; then each is a transaction with both limits.
    """

    __slots__ = (
        "_begins",
        "_default",
        "_driver_limit",
        "_entered",
        "_lease",
        "_limit",
        "_lock_timeout",
        "_mark",
        "_pool",
        "_told",
        "_use",
        "_workload",
    )

    def __init__(
        self,
        pool: SteadyPool,
        *,
        workload: str | None,
        limit: float | None,
        default_limit: float | None,
        lock_timeout: float | None = None,
    ) -> None:
        self._pool = pool
        self._workload = workload
        self._limit = limit
        self._default = default_limit
        self._lock_timeout = lock_timeout
        self._mark = HoldingAConnection()
        self._entered = False

    async def __aenter__(self) -> Dedicated:
        if self._entered:  # two blocks would end each other's use
            raise RuntimeError("connection() is for one block: call it anew for each")
        self._entered = True
        pool, limit = self._pool, self._limit
        dialect = pool.dialect
        lease = self._lease = await pool.lease(self._workload)
        connection: Any = lease.connection.driver_connection
        pooler = dialect.pooler_watch
        per_transaction = self._lock_timeout is not None or not pooler.keeps_statements
        self._told = limit is not None and not per_transaction
        self._use = Dedicated(
            connection,
            _DIALOGUES[dialect.driver](connection),
            Surroundings(
                pool=pool.core.name,
                clock=pool.core.clock,
                statement_timeout=limit or self._default,
                lock_timeout=self._lock_timeout,
                workload=self._workload,
                snapshot=pool.core.snapshot,
                events=pool.observers,
                lease=lease,
                driver=dialect,
                judge=pool.judge,
                begin=pooler.beginning(limit if per_transaction else None, self._lock_timeout),
                wraps=limit is not None and per_transaction,
            ),
        )
        self._begins = dialect.begins_by_itself and not connection.autocommit
        self._driver_limit = dialect.driver_limit(connection, limit)
        self._driver_limit.__enter__()
        self._mark.__enter__()
        try:
            if self._begins:
                await dialect.set_autocommit(connection, True)
            if self._told and limit is not None:
                await self._use.set_up(f"SET statement_timeout = {milliseconds(limit)}")
        except BaseException as error:
            await self._leave(error)
            raise
        return self._use

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._leave(exc)

    def __del__(self) -> None:
        lease: Lease[Record] | None = getattr(self, "_lease", None)
        if lease is not None and lease.active:  # somebody entered the block, and forgot to leave it
            self._pool.forget(lease)

    async def _leave(self, error: BaseException | None) -> None:
        use, lease, dialect = self._use, self._lease, self._pool.dialect
        connection = use.driver_connection
        use.end()
        if (
            not self._pool.at_home
        ):  # the garbage collector ends a task that was forgotten, in whichever thread it runs
            self._pool.forget(lease)
            return
        self._mark.__exit__()
        self._driver_limit.__exit__(None, None, None)
        fate = Fate.EVICT
        try:
            if use.busy or (error is not None and not isinstance(error, Exception)):
                dialect.cut(connection)  # given up half-way: nobody knows what it would answer next
            elif dialect.is_open(connection):
                if self._told or self._begins or dialect.in_transaction(connection):
                    await self._clean(connection)
                fate = Fate.KEEP
        finally:
            self._pool.end(lease, fate if dialect.is_open(connection) else Fate.EVICT)

    async def _clean(self, connection: Any) -> None:
        """Undo what the block may have left, within the time for leaving; what can't be cleaned is cut off."""
        pool, dialect = self._pool, self._pool.dialect
        seconds, _ = nearest_end(pool.options.leave_timeout, pool.core.clock.monotonic())
        try:
            with TimeLimit(seconds):
                if dialect.in_transaction(connection):
                    await dialect.roll_back(connection)
                if self._told:
                    await _DIALOGUES[dialect.driver](connection).execute("RESET statement_timeout", ())
                if self._begins:
                    await dialect.set_autocommit(connection, False)
        except BaseException as error:
            dialect.cut(connection)
            # The server rolls back by itself what was not committed; only a cancellation is the caller's to hear.
            if not isinstance(error, Exception):
                raise
