"""A connection of one's own: native `$1` placeholders, one round trip a statement, the driver's object in reach.

Statements run in autocommit unless `transaction()` says otherwise. Errors of SQL come through as the
driver raises them; what ends a statement or a connection has steadypool's names. A statement that was given up,
by its limit, a deadline or a cancellation, takes its connection with it: nobody knows what it would answer next.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from steadypool import errors, refusal
from steadypool.clock import Clock
from steadypool.deadline import CLIENT_GRACE, EARLY, Deadline, TimeLimit, nearest_end
from steadypool.errors import Elapsed, Phase, Report
from steadypool.events import ConnectionLost, Events, StatementFinished, StatementTimedOut
from steadypool.fingerprint import fingerprint, name_of
from steadypool.lease import Lease
from steadypool.rows import Row, named_rows, row_type
from steadypool.sqlstate import (
    LOCK_NOT_AVAILABLE,
    QUERY_CANCELED,
    THE_DRIVERS_OWN,
    Fate,
    cause_of_loss,
    fate_of,
    sqlstate_in,
)
from steadypool.whereabouts import endpoint

Run: TypeAlias = Callable[[str, tuple[Any, ...], float | None], Awaitable[Any]]
"""A way of a dialogue's to run a statement."""

_BEGUN = ("BEGIN", "START TRANSACTION")
"""The tags of commands that begin a transaction."""


class GaveUp(TimeoutError):
    """A driver that bounds its statements by itself gave one up."""


class Dialogue(Protocol):
    """How to talk to one driver: what `Dedicated` needs of it.

    `bounds` is whether it keeps to a limit by itself; then it gets one, in seconds, and raises `GaveUp`.
    """

    bounds: bool

    async def fetch(self, sql: str, args: tuple[Any, ...], limit: float | None = None) -> Sequence[Row]:
        """Run one statement and return its rows."""
        ...

    async def execute(self, sql: str, args: tuple[Any, ...], limit: float | None = None) -> str:
        """Run one statement and return its command tag."""
        ...


class AsyncpgDialogue:
    """Over an `asyncpg.Connection`."""

    bounds = False

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def fetch(self, sql: str, args: tuple[Any, ...], limit: float | None = None) -> Sequence[Row]:
        """Run one statement and return its rows."""
        return await self._connection.fetch(sql, *args)

    async def execute(self, sql: str, args: tuple[Any, ...], limit: float | None = None) -> str:
        """Run one statement and return its command tag."""
        return await self._connection.execute(sql, *args)


class PsycopgDialogue:
    """Over a `psycopg.AsyncConnection`, with the server's own placeholders."""

    bounds = False

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def _run(self, sql: str, args: tuple[Any, ...]) -> Any:
        import psycopg

        cursor = psycopg.AsyncRawCursor(self._connection)
        await cursor.execute(sql.encode(), args or None)
        return cursor

    async def fetch(self, sql: str, args: tuple[Any, ...], limit: float | None = None) -> Sequence[Row]:
        """Run one statement and return its rows."""
        cursor = await self._run(sql, args)
        if cursor.description is None:
            return []
        names = [column.name for column in cursor.description]
        return named_rows(names, await cursor.fetchall())

    async def execute(self, sql: str, args: tuple[Any, ...], limit: float | None = None) -> str:
        """Run one statement and return its command tag."""
        return (await self._run(sql, args)).statusmessage or ""


class PipelinedDialogue:
    """Over a `pipeline.PipelinedConnection`: one flight a statement."""

    bounds = True

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def _run(self, sql: str, args: tuple[Any, ...], limit: float | None) -> Any:
        from steadypool.pipeline import Overdue, Segment, Statement

        # What begins a transaction may bring along its limits: a segment of several statements.
        parts = sql.split("; ") if sql.startswith("BEGIN; ") else (sql,)
        try:
            results = await self._connection.send(
                Segment([Statement(part, args) for part in parts], limit=limit)
            )
        except Overdue as error:
            raise GaveUp(str(error)) from error
        return results[-1]

    async def fetch(self, sql: str, args: tuple[Any, ...], limit: float | None = None) -> Sequence[Row]:
        """Run one statement and return its rows."""
        result = await self._run(sql, args, limit)
        return result.rows(row_type(result.names))

    async def execute(self, sql: str, args: tuple[Any, ...], limit: float | None = None) -> str:
        """Run one statement and return its command tag."""
        return (await self._run(sql, args, limit)).tag


class Driver(Protocol):
    """What `Dedicated` asks about a driver's connection."""

    def is_open(self, driver_connection: Any) -> bool:
        """Whether the socket is open as far as can be told without asking the server."""
        ...

    def in_transaction(self, driver_connection: Any) -> bool:
        """Whether the server has a transaction open on it."""
        ...

    def spoke(self, driver_connection: Any) -> None:
        """The server has answered."""

    def cut(self, driver_connection: Any) -> None:
        """Cut the connection off: a statement was given up half-way."""


@dataclass(slots=True)
class Surroundings:
    """What a dedicated connection needs to know and to tell, from the pool that it comes from."""

    pool: str
    clock: Clock
    statement_timeout: float | None
    lock_timeout: float | None
    """Seconds that a statement may wait for a lock, where that is bounded."""
    workload: str | None
    snapshot: Callable[[], errors.PoolSnapshot]
    events: Events
    lease: Lease[Any]
    driver: Driver
    judge: Callable[[Fate, Any, str], None]
    """Told of an error that says something about the server, on which connection and in which words."""
    begin: str = "BEGIN"
    """What begins a transaction; behind a pooler it brings along the limits that no session keeps there."""
    wraps: bool = False
    """Whether a statement that is in no transaction gets one of its own: the only place where its limit holds."""


class Dedicated:
    """What `Database.connection()` yields.

    `driver_connection` is the driver's own object, for everything that is not here (COPY, cursors, LISTEN). What
    another task has on its way when the block ends is given up like a statement that was cancelled.
    """

    def __init__(self, driver_connection: Any, dialogue: Dialogue, surroundings: Surroundings) -> None:
        self.driver_connection = driver_connection
        self._dialogue = dialogue
        self._around = surroundings
        self._depth = 0
        self._running = 0
        self._ended = False

    @property
    def busy(self) -> bool:
        """Whether a statement is on its way, which another task than the one that asks has sent."""
        return self._running > 0

    def end(self) -> None:
        """The block is over: from now on the connection is somebody else's."""
        self._ended = True

    async def fetch(self, sql: str, *args: Any) -> Sequence[Row]:
        """All rows of a statement with `$1` placeholders.

        Raises:
            errors.StatementTimeout: it ran longer than its limit.
            errors.DeadlineExceeded: the caller's deadline passed.
            errors.ConnectionLost: the connection died, or was dropped before because a statement was given up.
        """
        return await self._told(sql, self._dialogue.fetch, args)

    async def fetchrow(self, sql: str, *args: Any) -> Row | None:
        """The first row, or None."""
        rows = await self.fetch(sql, *args)
        return rows[0] if rows else None

    async def fetchval(self, sql: str, *args: Any) -> Any:
        """The first column of the first row, or None."""
        row = await self.fetchrow(sql, *args)
        return None if row is None else row[0]

    async def execute(self, sql: str, *args: Any) -> str:
        """Run a statement; returns its command tag, such as `INSERT 0 1`."""
        return await self._told(sql, self._dialogue.execute, args)

    async def set_up(self, sql: str) -> None:
        """Run a statement of the library's own, bounded like any other, of which nobody is told."""
        await self._say(sql)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None]:
        """A transaction around the block; inside another one, a savepoint.

        Raises:
            errors.SteadypoolError: COMMIT was answered by a rollback, because a statement inside had failed.
        """
        depth, savepoint = self._depth, f"steadypool_{self._depth}"
        await self._order(f"SAVEPOINT {savepoint}" if depth else self._around.begin)
        self._depth += 1
        try:
            yield
        except Exception:
            await self._roll_back(f"ROLLBACK TO SAVEPOINT {savepoint}" if depth else "ROLLBACK")
            raise
        else:
            tag = await self._order(f"RELEASE SAVEPOINT {savepoint}" if depth else "COMMIT")
            if tag == "ROLLBACK":
                raise errors.TransactionRolledBack.at_commit()
        finally:
            # A cancellation sends nothing: whoever yielded this connection cuts it off.
            self._depth = depth

    async def _order(self, sql: str) -> str:
        """A statement of the transaction's own, of which observers are told."""
        return await self._told(sql, self._dialogue.execute, (), wraps=False)

    async def _say(self, sql: str) -> str:
        return await self._bounded(sql, self._dialogue.execute, ())

    async def _wrapped(self, sql: str, run: Run, args: tuple[Any, ...]) -> Any:
        """Run it in a transaction of its own: behind a pooler that keeps no session, its limit holds only there."""
        await self._say(self._around.begin)
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
        return self._around.driver.is_open(self.driver_connection)

    async def _told(self, sql: str, run: Run, args: tuple[Any, ...], *, wraps: bool = True) -> Any:
        around = self._around
        wraps = wraps and around.wraps and not around.driver.in_transaction(self.driver_connection)
        work = (self._wrapped if wraps else self._bounded)(sql, run, args)
        if not around.events.wanted(StatementFinished):
            return await work
        started = around.clock.monotonic()
        try:
            result = await work
        except BaseException as error:
            self._tell(sql, started, None, error)
            raise
        self._tell(sql, started, _rows_in(result), None)
        return result

    def _tell(self, sql: str, started: float, rows: int | None, error: BaseException | None) -> None:
        around, now = self._around, self._around.clock.monotonic()
        waiting, connecting = around.lease.take_cost()
        name = name_of(sql)
        state = sqlstate_in(error)
        around.events.emit(
            StatementFinished(
                around.pool,
                now,
                name.fingerprint,
                "dedicated",
                now - started,
                rows,
                waiting,
                connecting,
                around.workload,
                around.lease.slot.number,
                None if state in THE_DRIVERS_OWN else state,
                None if error is None else type(error).__name__,
                endpoint(),
                name.summary,
            )
        )

    async def _bounded(self, sql: str, run: Run, args: tuple[Any, ...]) -> Any:
        if self._ended:
            raise RuntimeError("the block of this connection has ended; it may be somebody else's by now")
        around = self._around
        server = around.statement_timeout
        started = around.clock.monotonic()
        seconds, deadline = nearest_end(None if server is None else server + CLIENT_GRACE, started)
        # Behind another statement its own clock would start too late for a deadline.
        bounds = deadline is None and not self._running and self._dialogue.bounds
        limit = TimeLimit(None if bounds else seconds)
        around.lease.running = sql, started
        self._running += 1
        try:
            with limit:
                result = await run(sql, args, seconds if bounds else None)
        except asyncio.CancelledError:
            around.driver.cut(self.driver_connection)
            raise
        except TimeoutError as error:
            if not limit.expired and not isinstance(error, GaveUp):
                raise
            around.driver.cut(self.driver_connection)
            raise self._out_of_time(sql, started, deadline) from error
        except Exception as error:
            named = self._named(sql, started, error)
            if named is None:
                raise
            raise named from error
        finally:
            self._running -= 1
            around.lease.running = None
        around.driver.spoke(self.driver_connection)
        return result

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
        state = getattr(error, "sqlstate", None)
        limit = self._around.statement_timeout
        report = self._report(started)
        if state == QUERY_CANCELED and limit is not None and report.elapsed.total >= limit - EARLY:
            return self._timed_out(sql, self._report(started, maybe_executed=False), "")
        wait = self._around.lock_timeout
        if state == LOCK_NOT_AVAILABLE and wait is not None and report.elapsed.total >= wait - EARLY:
            self._tell_of_timeout(sql, wait)
            return refusal.locked_out(sql, wait, self._report(started, maybe_executed=False))
        fate = fate_of(state, words=str(error)) if state is not None else Fate.KEEP
        if fate in (Fate.BACK_OFF, Fate.DRAIN_HOST):
            self._around.judge(fate, self.driver_connection, f"the server said {state}")
        gone = fate in (Fate.EVICT, Fate.EVICT_AND_PROVE)
        if self._is_open and not gone:
            return None
        self._around.driver.cut(self.driver_connection)
        self._around.events.emit(
            ConnectionLost(
                self._around.pool,
                self._around.clock.monotonic(),
                self._around.lease.slot.number,
                cause_of_loss(state),
                self._around.workload,
            )
        )
        because = f"the server said {state}" if state else "it ended without a word"
        return errors.ConnectionLost(
            f"the connection was lost after {report.elapsed.total:.2f}s in: {fingerprint(sql)} ({because}). "
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


def _rows_in(result: Any) -> int | None:
    """How many rows a result has; the last number of a command tag, such as `INSERT 0 1`, is that too."""
    if not isinstance(result, str):
        return len(result)
    last = result.rpartition(" ")[2]
    return int(last) if last.isdecimal() else None
