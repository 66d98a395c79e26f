"""A connection of one's own: native `$1` placeholders, one round trip a statement, the driver's object in reach.

Statements run in autocommit unless `transaction()` says otherwise. Errors of SQL come through as the
driver raises them; what ends a statement or a connection has steadypool's names. A statement that was given up,
by its limit, a deadline or a cancellation, takes its connection with it: nobody knows what it would answer next.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, TypeAlias

from steadypool import errors
from steadypool._callsite import endpoint
from steadypool._clock import Clock
from steadypool._rows import Row
from steadypool._sql.fingerprint import fingerprint, name_of
from steadypool._sql.session_state import touches
from steadypool._sqlstate import (
    LOCK_NOT_AVAILABLE,
    QUERY_CANCELED,
    THE_DRIVERS_OWN,
    Disposition,
    cause_of_loss,
    fate_of,
    said,
    sqlstate_in,
)
from steadypool.database.driver_adapters import DriverAdapter, DriverTimeout
from steadypool.deadline import CLIENT_GRACE, EARLY, Deadline, TimeLimit, current_deadline, nearest_end
from steadypool.errors import Elapsed, Phase, Report
from steadypool.events import ConnectionLost, Events, StatementFinished, StatementTimedOut
from steadypool.pool import rejections
from steadypool.pool.lease import Lease

Run: TypeAlias = Callable[[Any, str, tuple[Any, ...], float | None], Awaitable[Any]]
"""A way of a dialogue's to run a statement on a connection."""

_BEGUN = ("BEGIN", "START TRANSACTION")
"""The tags of commands that begin a transaction."""


class DriverConnection(Protocol):
    """What `Connection` asks about a driver's connection."""

    def is_open(self, driver_connection: Any) -> bool:
        """Whether the socket is open as far as can be told without asking the server."""
        ...

    def in_transaction(self, driver_connection: Any) -> bool:
        """Whether the server has a transaction open on it."""
        ...

    def spoke(self, driver_connection: Any) -> None:
        """The server has answered."""

    def last_words(self, driver_connection: Any, error: BaseException) -> tuple[str | None, str]:
        """The SQLSTATE and the message of the server in an error, or what it said before it ended the connection."""
        ...

    def cut(self, driver_connection: Any) -> None:
        """Cut the connection off: a statement was given up half-way."""


@dataclass(slots=True)
class ConnectionContext:
    """What a dedicated connection needs to know and to tell; the same for all that a pool gives to one workload."""

    pool: str
    clock: Clock
    statement_timeout: float | None
    lock_timeout: float | None
    """Seconds that a statement may wait for a lock, where that is bounded."""
    workload: str | None
    snapshot: Callable[[], errors.PoolSnapshot]
    events: Events
    driver: DriverConnection
    dialogue: DriverAdapter
    judge: Callable[[Disposition, Any, str], None]
    """Told of an error that says something about the server, on which connection and in which words."""
    begin: Callable[[], str]
    """What begins a transaction; behind a pooler it brings along the limits that no session keeps there."""
    posts: Callable[[], bool]
    """Whether something may be on its way before the answer to what was sent ahead of it has come."""
    patience: float | None = field(init=False)
    """Seconds for which the client waits for the answer to a statement."""

    def __post_init__(self) -> None:
        server = self.statement_timeout = self.statement_timeout or None
        self.patience = None if server is None else server + CLIENT_GRACE


class Connection:
    """What `Database.connection()` yields.

    `driver_connection` is the driver's own object, for everything that is not here (COPY, cursors, LISTEN). What
    another task has on its way when the block ends is given up like a statement that was cancelled.

    Args:
        driver_connection: the driver's own object.
        surroundings: where it comes from.
        lease: under which it is held.
        wraps: whether a statement that is in no transaction gets one of its own: the only place where its limit holds.
    """

    def __init__(
        self,
        driver_connection: Any,
        surroundings: ConnectionContext,
        lease: Lease[Any],
        *,
        wraps: bool = False,
    ) -> None:
        self._connection = driver_connection
        self._around = surroundings
        self._lease = lease
        self._wraps = wraps
        self._depth = 0
        self._blocks: list[_Transaction] = []
        self._running = 0
        self._begun: asyncio.Future[Any] | None = None
        self._ended = False

    @property
    def driver_connection(self) -> Any:
        """The driver's own object; what is done with it may change the session."""
        if not self._around.dialogue.sees_all and self._lease.active:
            self._lease.connection.changes.add(None)
        return self._connection

    @property
    def busy(self) -> bool:
        """Whether something is on its way: a statement that another task has sent, or a BEGIN that nothing followed."""
        return self._running > 0 or (self._begun is not None and not self._begun.done())

    def end(self) -> None:
        """The block is over: from now on the connection is somebody else's."""
        self._ended = True

    async def fetch(self, sql: str, *args: Any) -> Sequence[Row]:
        """All rows of one statement with `$1` placeholders; a text with several is a syntax error (42601).

        Raises:
            errors.StatementTimeout: it ran longer than its limit.
            errors.DeadlineExceeded: the caller's deadline passed.
            errors.ConnectionLost: the connection died, or was dropped before because a statement was given up.
        """
        return await self._told(sql, self._around.dialogue.fetch, args)

    async def fetchrow(self, sql: str, *args: Any) -> Row | None:
        """The first row, or None."""
        rows = await self._told(sql, self._around.dialogue.fetch, args)
        return rows[0] if rows else None

    async def fetchval(self, sql: str, *args: Any) -> Any:
        """The first column of the first row, or None."""
        rows = await self._told(sql, self._around.dialogue.fetch, args)
        return rows[0][0] if rows else None

    async def execute(self, sql: str, *args: Any) -> str:
        """Run a statement; returns its command tag, such as `INSERT 0 1`.

        A text without arguments may hold several statements; outside of a transaction they are one, and the tag is the
        last one's.
        """
        return await self._told(sql, self._around.dialogue.execute, args)

    async def set_up(self, sql: str) -> None:
        """Run a statement of the library's own, bounded like any other, of which nobody is told."""
        await self._say(sql)

    def transaction(self) -> AbstractAsyncContextManager[None]:
        """A transaction around the block; inside another one, a savepoint.

        Raises:
            errors.SteadypoolError: COMMIT was answered by a rollback, because a statement inside had failed.
            errors.ConcurrentTransaction: another task is in a transaction on this connection.
        """
        return _Transaction(self._begin, self._end, self._blocks)

    async def _begin(self) -> int:
        """Begin a transaction or a savepoint; returns how deep in others it is."""
        depth = self._depth
        if depth:
            await self._order(f"SAVEPOINT steadypool_{depth}")
        elif not self._post_begin():
            await self._order(self._around.begin())
        self._depth = depth + 1
        return depth

    async def _end(self, depth: int, error: BaseException | None) -> None:
        """End what `_begin` began, as its block was left."""
        try:
            if error is None:
                tag = await self._order(f"RELEASE SAVEPOINT steadypool_{depth}" if depth else "COMMIT")
                if tag == "ROLLBACK":
                    raise errors.TransactionRolledBack.at_commit()
            elif isinstance(error, Exception):
                await self._roll_back(f"ROLLBACK TO SAVEPOINT steadypool_{depth}" if depth else "ROLLBACK")
        finally:
            # A cancellation sends nothing: whoever yielded this connection cuts it off.
            self._depth = depth

    def _post_begin(self) -> bool:
        """Send the beginning of a transaction ahead of what follows; False where its answer has to be waited for."""
        around = self._around
        if self._ended or self._wraps or not around.posts():
            return False
        sql, started = around.begin(), around.clock.monotonic()
        begun = self._begun = around.dialogue.post(self._connection, sql, around.patience)
        if begun is None:
            return False

        def tell(answer: asyncio.Future[Any]) -> None:
            if (
                not answer.cancelled() and answer.exception() is None
            ):  # else whoever follows tells how it ended
                self._tell(sql, started, None, None)

        begun.add_done_callback(tell)
        return True

    def _order(self, sql: str) -> Awaitable[str]:
        """A statement of the transaction's own, of which observers are told."""
        return self._bounded(sql, self._around.dialogue.execute, (), tells=True)

    async def _say(self, sql: str) -> str:
        return await self._bounded(sql, self._around.dialogue.execute, ())

    async def _wrapped(self, sql: str, run: Run, args: tuple[Any, ...]) -> Any:
        """Run it in a transaction of its own: behind a pooler that keeps no session, its limit holds only there."""
        await self._say(self._around.begin())
        try:
            result = await self._bounded(sql, run, args)
        except Exception:
            await self._roll_back("ROLLBACK")
            raise
        if result not in _BEGUN:  # the caller begins a transaction by hand: this is the one, with its limit
            await self._say("COMMIT")
        return result

    async def _roll_back(self, sql: str) -> None:
        """Where the connection is gone the server does it by itself, and the error to see is the one before."""
        if self._is_open:
            with contextlib.suppress(errors.ConnectionLost, errors.StatementTimeout, errors.DeadlineExceeded):
                await self._say(sql)

    @property
    def _is_open(self) -> bool:
        return self._around.driver.is_open(self._connection)

    def _told(self, sql: str, run: Run, args: tuple[Any, ...]) -> Awaitable[Any]:
        """A statement of the user's, of which observers are told."""
        if touches(sql) and self._lease.active:
            self._lease.connection.changes.add(sql)
        if self._wraps and not self._around.driver.in_transaction(self._connection):
            return self._wrapped_and_told(sql, run, args)
        return self._bounded(sql, run, args, tells=True)

    async def _wrapped_and_told(self, sql: str, run: Run, args: tuple[Any, ...]) -> Any:
        started = self._around.clock.monotonic()
        try:
            result = await self._wrapped(sql, run, args)
        except BaseException as error:
            self._tell(sql, started, None, error)
            raise
        self._tell(sql, started, result, None)
        return result

    def _tell(self, sql: str, started: float, result: Any, error: BaseException | None) -> None:
        """A statement ended, with a result or with an error."""
        around, lease = self._around, self._lease
        if not around.events.wanted(StatementFinished):
            return
        now = around.clock.monotonic()
        waiting, connecting = (0.0, 0.0) if lease.told else lease.take_cost()
        name = name_of(sql)
        state = None if error is None else sqlstate_in(error)
        around.events.emit(
            StatementFinished(
                around.pool,
                now,
                name.fingerprint,
                "dedicated",
                now - started,
                None if result is None else _rows_in(result),
                waiting,
                connecting,
                around.workload,
                lease.slot.number,
                None if state in THE_DRIVERS_OWN else state,
                None if error is None else type(error).__name__,
                endpoint(),
                name.summary,
            )
        )

    async def _bounded(self, sql: str, run: Run, args: tuple[Any, ...], *, tells: bool = False) -> Any:
        """Run a statement within its limit and the deadline in force; `tells` is whether observers hear of it.

        Every statement comes through here, so what most of them do not need is not made for any.
        """
        if self._ended:
            raise RuntimeError("the block of this connection has ended; it may be somebody else's by now")
        around, lease, connection = self._around, self._lease, self._connection
        started = around.clock.monotonic()
        seconds, deadline = around.patience, None
        if current_deadline() is not None:
            seconds, deadline = nearest_end(seconds, started)
        limit: TimeLimit | None = None
        lease.running = sql, started
        self._running += 1
        try:
            # Behind another statement its own clock would start too late for a deadline.
            if seconds is None or (around.dialogue.bounds and deadline is None and self._running == 1):
                result = await run(connection, sql, args, seconds)
            else:
                with TimeLimit(seconds) as limit:
                    result = await run(connection, sql, args, None)
        except BaseException as error:
            named = self._failed(error, sql, started, deadline, limit)
            if tells:
                self._tell(sql, started, None, named)
            if named is error:
                raise
            raise named from error
        finally:
            self._running -= 1
            lease.running = None
        around.driver.spoke(connection)
        if tells:
            self._tell(sql, started, result, None)
        return result

    def _failed(
        self,
        error: BaseException,
        sql: str,
        started: float,
        deadline: Deadline | None,
        limit: TimeLimit | None,
    ) -> BaseException:
        """What to raise for an error of a statement: itself, or what it means, made from it."""
        named: BaseException | None = None
        if isinstance(error, asyncio.CancelledError):
            self._around.driver.cut(self._connection)
        elif isinstance(error, TimeoutError):
            if isinstance(error, DriverTimeout) or (limit is not None and limit.expired):
                self._around.driver.cut(self._connection)
                named = self._out_of_time(sql, started, deadline)
        elif isinstance(error, Exception):
            named = self._named(sql, started, error)
        if named is None:
            return error
        named.__cause__ = error
        return named

    def _report(self, started: float, *, maybe_executed: bool = True) -> Report:
        elapsed = Elapsed(executing=self._around.clock.monotonic() - started)
        return Report(Phase.EXECUTING, elapsed, maybe_executed=maybe_executed, pool=self._around.snapshot())

    def _out_of_time(self, sql: str, started: float, deadline: Deadline | None) -> errors.SteadypoolError:
        """The client gave the statement up."""
        report = self._report(started)
        if deadline is None:
            return self._timed_out(sql, report, "The server did not answer; the connection was dropped. ")
        return errors.DeadlineExceeded(
            f"deadline of {deadline.seconds:.2f}s passed while executing, {report.elapsed.total:.2f}s into: "
            f"{fingerprint(sql)}",
            report,
        ).with_report(deadline=deadline.seconds)

    def _named(self, sql: str, started: float, error: Exception) -> errors.SteadypoolError | None:
        """A name for what the driver raised; None where it is the statement's own error."""
        state, words = self._around.driver.last_words(self._connection, error)
        limit = self._around.statement_timeout
        report = self._report(started)
        if state == QUERY_CANCELED and limit is not None and report.elapsed.total >= limit - EARLY:
            return self._timed_out(sql, self._report(started, maybe_executed=False), "")
        wait = self._around.lock_timeout
        if state == LOCK_NOT_AVAILABLE and wait is not None and report.elapsed.total >= wait - EARLY:
            self._tell_of_timeout(sql, wait)
            return rejections.locked_out(sql, wait, self._report(started, maybe_executed=False))
        fate = fate_of(state, words=f"{error} {words}") if state is not None else Disposition.KEEP
        if fate in (Disposition.BACK_OFF, Disposition.DRAIN_HOST):
            self._around.judge(fate, self._connection, f"the server said {state}")
        gone = fate in (Disposition.EVICT, Disposition.EVICT_AND_PROVE)
        if self._is_open and not gone:
            return None
        self._around.driver.cut(self._connection)
        self._around.events.emit(
            ConnectionLost(
                self._around.pool,
                self._around.clock.monotonic(),
                self._lease.slot.number,
                cause_of_loss(state),
                self._around.workload,
            )
        )
        return errors.ConnectionLost(
            f"the connection was lost after {report.elapsed.total:.2f}s in: {fingerprint(sql)} ({said(state, words)}). "
            "Whether the statement took effect is not known",
            report,
        )

    def _timed_out(self, sql: str, report: Report, and_then: str) -> errors.StatementTimeout:
        around, name, limit = self._around, fingerprint(sql), self._around.statement_timeout or 0.0
        self._tell_of_timeout(sql, limit)
        what = f" on workload {around.workload!r}" if around.workload else ""
        return errors.StatementTimeout(
            f"statement ended after {report.elapsed.total:.2f}s{what}, limit {limit:.2f}s: {name}. {and_then}"
            "Make it faster, or give its workload a longer statement_timeout (DATABASE_STATEMENT_TIMEOUT)",
            report,
        )

    def _tell_of_timeout(self, sql: str, limit: float) -> None:
        around, now = self._around, self._around.clock.monotonic()
        around.events.emit(StatementTimedOut(around.pool, now, fingerprint(sql), limit, around.workload))


_inside: ContextVar[tuple[_Transaction, ...]] = ContextVar("steadypool_inside", default=())
"""The transactions whose blocks this task is in, or the one that started it was."""


class _Transaction:
    """What `Connection.transaction` returns. A class: in the path of every transaction a generator is dear."""

    __slots__ = ("_begin", "_blocks", "_depth", "_end", "_task")

    def __init__(
        self,
        begin: Callable[[], Awaitable[int]],
        end: Callable[[int, BaseException | None], Awaitable[None]],
        blocks: list[_Transaction],
    ) -> None:
        self._begin = begin
        self._end = end
        self._blocks = blocks

    async def __aenter__(self) -> None:
        self._enter()
        try:
            self._depth = await self._begin()
        except BaseException:
            self._leave()
            raise

    def _enter(self) -> None:
        """Become the innermost block; only inside the one that is that now, or after its task has ended."""
        blocks, self._task = self._blocks, asyncio.current_task()
        inside = _inside.get()
        if blocks:
            task = blocks[-1]._task
            if blocks[-1] not in inside and task is not self._task and task is not None and not task.done():
                raise errors.ConcurrentTransaction(
                    "a transaction was begun on a connection while another task is in one there: each would commit or "
                    "undo what the other does. Give each task a connection of its own",
                    Report(Phase.EXECUTING),
                )
        blocks.append(self)
        _inside.set((*inside, self))

    def _leave(self) -> None:
        if self in self._blocks:
            self._blocks.remove(self)
        _inside.set(tuple(block for block in _inside.get() if block is not self))

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._end(self._depth, exc)
        finally:
            self._leave()


def _rows_in(result: Any) -> int | None:
    """How many rows a result has; the last number of a command tag, such as `INSERT 0 1`, is that too."""
    if not isinstance(result, str):
        return len(result)
    last = result.rpartition(" ")[2]
    return int(last) if last.isdecimal() else None
