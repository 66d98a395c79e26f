"""`Multiplexer`: which statement goes over which connection, and when.

An idle connection is preferred to a busy one. What cannot be sent at once waits in one queue, first come, first
served, and can still be withdrawn. Connections come from the pool as leases like anybody's, and go back as soon as
somebody waits there and what is on its way has been answered.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import psycopg

from steadypool import errors
from steadypool._printable import printable
from steadypool._sql.fingerprint import fingerprint
from steadypool._sqlstate import Disposition, fate_of
from steadypool.deadline import CLIENT_GRACE, Deadline, TimeLimit, current_deadline
from steadypool.events import StatementFinished, StatementsFinished, StatementTimedOut
from steadypool.multiplex import failures
from steadypool.multiplex.connection import SharedConnection, limits_of_session, reset_limits
from steadypool.multiplex.connections import SharedConnections
from steadypool.multiplex.eligibility import ATTEMPTS, check_timeout
from steadypool.multiplex.instrumentation import tell, tell_together, went_without
from steadypool.multiplex.options import MultiplexOptions, MultiplexStats
from steadypool.multiplex.request import Request
from steadypool.multiplex.statement_stats import StatementStats, StatementStatsTable
from steadypool.pipeline import (
    Batch,
    BatchTimeout,
    ConnectionClosed,
    PipelinedConnection,
    Result,
    SessionModified,
)
from steadypool.pool.pool import Pool, rejections

_log = logging.getLogger("steadypool.multiplex")


class Multiplexer(SharedConnections):
    """Runs single statements of many callers over a few connections.

    Args:
        pool: where the connections come from.
        pipelined: the pipelined connection of a lease's connection.
        options: how it behaves.
        holds: whether the current task holds a connection: then its statements never queue behind strangers', who
            may be waiting for a lock that it has.
        pooled: whether there is a pooler before the server; asked when a connection is open.
        carries_two: told when that pooler answered two statements that were sent at once.
        used: told of each statement: those who come to a connection that is shared already acquire none.

    Example:
        >>> way = Multiplexer(pool, pipelined=lambda record: record.driver_connection, options=MultiplexOptions())
        >>> result = await way.run("select title from tracks where id = $1", (7,))
        >>> result.rows()
    """

    def __init__(
        self,
        pool: Pool[Any],
        *,
        pipelined: Callable[[Any], PipelinedConnection],
        options: MultiplexOptions,
        holds: Callable[[], bool] = lambda: False,
        pooled: Callable[[], bool] = lambda: False,
        carries_two: Callable[[], None] = lambda: None,
        used: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(pool, pipelined=pipelined, options=options, pooled=pooled, carries_two=carries_two)
        self._holds = holds
        self._used = used
        self._paces = StatementStatsTable()
        self._statements = self._alone = self._refused = self._withdrawn = 0
        self._repeated = self._collateral = self._offences = 0

    # -- what callers do ---------------------------------------------------------------------------------------

    async def run(
        self, sql: str, args: Sequence[Any] = (), *, timeout: float | None = None, harmless: bool = False
    ) -> Result:
        """Run one statement, in a transaction of its own.

        Args:
            sql: with `$1` placeholders.
            args: their values.
            timeout: seconds that it may run; the shared way's by default.
            harmless: running it twice does no harm, so it may be sent again when a connection is lost.

        Raises:
            ValueError: a timeout that is not above 0.
            errors.NotMultiplexable: it would leave something behind that strangers feel.
            errors.StatementTimeout: it ran longer than its limit.
            errors.DeadlineExceeded: the caller's deadline passed.
            errors.ConnectionLost: the connection died; `maybe_executed` says whether it had been sent.
            errors.ResultTooLarge: the result was larger than a shared connection carries.
            errors.WrongEventLoop: the pool belongs to another event loop or process.
            psycopg.Error: what the server said to it.
        """
        if timeout is not None:
            check_timeout(timeout)
        pool, events = self.pool, self._events
        pool.bind()
        try:
            pace = self._paces.of(sql)
        except errors.NotMultiplexable:
            self._refused += 1
            raise
        call = Request(
            sql,
            args,
            self.options,
            pace,
            timeout=timeout,
            harmless=harmless,
            since=self._now(),
            deadline=current_deadline(),
        )
        try:
            result = await self._attempts(call, pace)
        except BaseException as error:
            # Its answer may have come, and was told, in the very moment in which its caller left.
            if not call.told and events.wanted(StatementFinished):
                tell(self.pool, call, None, error)
            raise
        if not call.told and events.wanted(StatementFinished):
            tell(self.pool, call, result.affected, None)
        return result

    async def _attempts(self, call: Request, pace: StatementStats) -> Result:
        if self._closed:
            raise rejections.closed(self.pool.name)
        self._statements += 1
        self._used()
        options = self.options
        while True:
            call.attempts += 1
            try:
                results = await self._begin(call, pace)
                pace.ran(slow=call.took > options.slow_after)
                return results[-1]
            except asyncio.CancelledError:
                if not call.sent:
                    self._withdrawn += 1
                raise
            except psycopg.Error as error:
                took = call.took
                if took:
                    pace.ran(slow=took > options.slow_after)
                if self._again(call, error):
                    self._repeated += 1
                    call.again(self.options)
                    continue
                named = self._named(call, error)
                if named is None:
                    raise
                raise named from error

    def _begin(self, call: Request, pace: StatementStats) -> Awaitable[list[Result]]:
        """Send it, or let it wait until it can be; what to await then."""
        options = self.options
        alone = pace.is_slow or call.allowed > options.statement_timeout
        alone = alone or (pace.in_no_block and (options.local or call.timeout is not None))
        if alone or (self._holds() and self._must_not_wait()):
            return self._bounded(call, self._run_alone(call))
        seat = None if self._queue else self._choose(call)
        if seat is None:
            return self._bounded(call, self._enqueue(call))
        future = self._send(seat, call)
        deadline = call.deadline
        if deadline is None or self._ends_before(deadline, seat):
            return future
        return self._within(deadline, call, future)

    def _ends_before(self, deadline: Deadline, seat: SharedConnection) -> bool:
        """Whether what was sent just now ends before a deadline anyway: by its own limit, and theirs who come first."""
        longest = self.options.statement_timeout + CLIENT_GRACE
        return deadline.remaining(self._now()) > seat.load * longest

    def _bounded(self, call: Request, work: Awaitable[list[Result]]) -> Awaitable[list[Result]]:
        return work if call.deadline is None else self._within(call.deadline, call, work)

    async def _within(self, deadline: Deadline, call: Request, work: Awaitable[list[Result]]) -> list[Result]:
        """Within the caller's deadline."""
        limit = TimeLimit(deadline.remaining(self._now()))
        try:
            with limit:
                return await work
        except TimeoutError as error:
            if not limit.expired or isinstance(error, errors.SteadypoolError):
                raise
            passed = failures.deadline_passed(call, self._now(), self.pool.snapshot())
            if not call.sent:
                self._withdrawn += 1
                went_without(self.pool, call, passed)
            raise passed from error

    def _named(self, call: Request, error: psycopg.Error) -> errors.SteadypoolError | None:
        """What the caller is told; None where it is the statement's own error."""
        now = self._clock.monotonic()
        lock_timeout = self.options.lock_timeout
        return failures.named(call, error, now, self.pool.snapshot(), self._timed_out, lock_timeout)

    def _again(self, call: Request, error: psycopg.Error) -> bool:
        """Whether it is sent once more: only where the connection was lost, and it was not sent or does no harm."""
        lost = isinstance(error, ConnectionClosed) and not isinstance(error, BatchTimeout | SessionModified)
        return lost and call.attempts < ATTEMPTS and (not call.sent or call.harmless)

    def _must_not_wait(self) -> bool:
        """Whether there is no connection here on which the caller, who holds another, would be the first."""
        return bool(self._queue) or not any(
            not seat.load and seat.takes_new and not seat.proving for seat in self._seats
        )

    def _timed_out(self, call: Request, limit: float) -> None:
        now, name = self._clock.monotonic(), fingerprint(call.sql)
        self.pool.events.emit(StatementTimedOut(self.pool.name, now, name, limit, None))

    # -- together with others ----------------------------------------------------------------------------------

    def _choose(self, call: Request) -> SharedConnection | None:
        """Where it may be sent now: an idle connection before a busy one; None where it has to wait."""
        chosen, least, staying = None, self.options.window, 0
        for seat in self._seats:
            staying += not seat.leaving
            load = seat.connection.pending
            if load < least and seat.takes_new and (call.harmless or not seat.proving):
                chosen, least = seat, load
                if not load:
                    break
        if least and staying < self.options.connections:
            self._grow()
        if chosen is None or least or chosen.proven or not self._is_silent(chosen.connection):
            return chosen
        self._prove_silent()
        # What may run twice travels right behind the ping; for all else another may be known to live.
        return chosen if call.harmless and self.options.window > 1 else self._choose(call)

    def _prove_silent(self) -> None:
        """Ask all connections that were idle for long: where one has died, the others often have too."""
        limit = self._ping_limit
        for seat in self._seats:
            if not (seat.load or seat.proving or seat.leaving) and self._is_silent(seat.connection):
                seat.prove(limit, self._pump)

    def _send(self, seat: SharedConnection, call: Request) -> asyncio.Future[list[Result]]:
        lease = seat.lease
        call.connection, call.seat = lease.slot.number, seat
        if call.since < lease.acquired_at:
            call.connecting = min(lease.connecting, lease.acquired_at - call.since)
        call.on_settled, call.on_repeated = self._answered, self._sent_again
        return seat.connection.send(call)

    def _enqueue(self, call: Request) -> asyncio.Future[list[Result]]:
        if len(self._queue) >= self.pool.options.max_waiting:
            self._drop_abandoned()
            if len(self._queue) >= self.pool.options.max_waiting:
                error = rejections.queue_full(
                    self.pool.options.max_waiting, call.deadline, self.pool.snapshot()
                )
                went_without(self.pool, call, error)
                raise error
        future = call.future = asyncio.get_running_loop().create_future()
        self._queue.append(call)
        if self._queue_timer is None:
            self._watch_queue()
        if not self._seats:
            self._grow()
        return future

    def _pump(self, freed: SharedConnection | None = None) -> None:
        """Send what waits, as far as there is room; most likely there is on the one that has just answered."""
        queue = self._queue
        while queue:
            call = queue[0]
            future = call.future
            if future is not None and future.done():  # withdrawn
                queue.popleft()
                continue
            if freed is not None and freed.goes_on:
                seat = freed  # it lives, and those that are idle take no more, or nobody would wait
            elif freed is not None and freed.load and len(self._seats) >= self.options.connections:
                return  # the others send more when they answer
            else:
                seat = self._choose(call)
            if seat is None:
                return
            queue.popleft()
            try:
                self._send(seat, call)
            except Exception as error:  # noqa: BLE001 - adapting a value may end in any, and only its caller cares
                if future is not None and not future.done():
                    future.set_exception(error)

    def _answered(self, segment: Batch) -> None:
        """A segment was settled, well or not: there may be room for the next, or the connection has to go."""
        assert isinstance(segment, Request)
        call, seat, error = segment, segment.seat, segment.error
        assert seat is not None, "a call that was never sent"
        if error is not None:
            self._failed(seat, error)
        elif call.took < self._events.quick and not call.given_up:
            call.told = True
            seat.fresh.append(call)
        if seat.connection.closed:
            self._lost(seat, call)
        elif self._retired or (self.pool.waiting and self._pool_is_short()):
            seat.leaving = True
        if self._queue:
            self._pump(seat)

    def _sent_again(self, segment: Batch) -> None:
        """It comes behind others now, whose limits were not counted when its deadline seemed to need no timer."""
        assert isinstance(segment, Request)
        call, deadline, future = segment, segment.deadline, segment.future
        if deadline is not None and future is not None:
            left = deadline.remaining(self._now())
            asyncio.get_running_loop().call_later(left, self._deadline_passed, call, future)

    def _deadline_passed(self, call: Request, future: asyncio.Future[list[Result]]) -> None:
        if not future.done():
            future.set_exception(failures.deadline_passed(call, self._now(), self.pool.snapshot()))

    def _failed(self, seat: SharedConnection, error: psycopg.Error) -> None:
        """What an error says about the connection."""
        if isinstance(error, ConnectionClosed):
            seat.last_words = seat.last_words or error.sqlstate
        if (fate := fate_of(error.sqlstate)) not in (Disposition.KEEP, Disposition.FORGET_STATEMENT):
            seat.fate, seat.leaving = fate, True

    def _lost(self, seat: SharedConnection, call: Request) -> None:
        future = call.future
        failure = future.exception() if future is not None and not future.cancelled() else None
        if isinstance(failure, BatchTimeout | SessionModified):
            self._offences += 1
            seat.offence = str(failure)
            _log.warning(
                "a shared connection was dropped because of %s: %s",
                fingerprint(call.sql),
                printable(str(failure)),
            )
        elif seat.offence is not None:
            self._collateral += 1

    def _after_answers(self, seat: SharedConnection) -> None:
        """All answers of one turn were taken."""
        if seat.fresh:
            self._tell(seat)
        if not seat.is_clean():
            self._offences += 1
            seat.offence = "a statement left a transaction or a setting behind"
            _log.warning("a shared connection was dropped: %s", seat.offence)
            seat.connection.abort()
        elif seat.leaving and not seat.load:
            self._let_go(seat)

    def _tell(self, seat: SharedConnection) -> None:
        calls, seat.fresh = seat.fresh, []
        if self._events.wanted(StatementsFinished):
            tell_together(self.pool, seat.lease.slot.number, calls, seat.connection.last_answer)

    def _fail_queue(self, failure: BaseException) -> None:
        queue, self._queue = self._queue, deque()
        for call in queue:
            future = call.future
            if future is not None and not future.done():
                error = copy.copy(failure)
                error.__cause__ = failure.__cause__ or failure
                went_without(self.pool, call, error)
                future.set_exception(rejections.said_by_server(error) or error)

    # -- alone -------------------------------------------------------------------------------------------------

    async def _run_alone(self, call: Request) -> list[Result]:
        """On a connection that nobody else uses meanwhile."""
        self._alone += 1
        try:
            lease = await self._lease_alive()
        except errors.SteadypoolError as error:
            went_without(self.pool, call, error)
            if (said := rejections.said_by_server(error)) is not None:
                raise said from said.__cause__
            raise
        connection = self._pipelined(lease.connection)
        call.connection, call.connecting = lease.slot.number, lease.connecting
        fate = Disposition.EVICT
        in_session = call.pace.in_no_block and not self.options.local
        try:
            if in_session:
                limits = limits_of_session(call.allowed, self.options.lock_timeout)
                await connection.run(Batch([limits], limit=call.limit))
            results = await connection.run(call.prepare(self.options, alone=True))
            fate = Disposition.KEEP
            return results
        except psycopg.Error as error:
            fate = fate_of(error.sqlstate) if not connection.closed else Disposition.EVICT
            if isinstance(error, ConnectionClosed):
                self._tell_lost(lease.slot.number, error.sqlstate)
            raise
        finally:
            if in_session and not connection.closed:
                if self.options.window > 1:
                    reset_limits(connection, call.limit)
                else:  # a pooler may stop for ever where what follows does not wait for the answer
                    fate = Disposition.EVICT
            lease.touch(connection.last_answer)
            lease.release(fate)

    # -- how long the queue waits ------------------------------------------------------------------------------

    def _watch_queue(self) -> None:
        left = self._queue[0].since + self.pool.options.acquire_limit - self._clock.monotonic()
        loop = asyncio.get_running_loop()
        self._queue_timer = loop.call_later(max(0.0, left), self._look_at_queue)

    def _look_at_queue(self) -> None:
        self._queue_timer = None
        now, limit = self._clock.monotonic(), self.pool.options.acquire_limit
        self._drop_abandoned()
        while self._queue and now - self._queue[0].since >= limit:
            call = self._queue.popleft()
            future = call.future
            if future is not None and not future.done():
                pool = self.pool.snapshot()
                error = rejections.out_of_time(
                    now=now, since=call.since, limit=limit, deadline=None, pool=pool, cause=None
                )
                went_without(self.pool, call, error)
                future.set_exception(error)
        if self._queue:
            self._watch_queue()

    def _drop_abandoned(self) -> None:
        self._queue = deque(call for call in self._queue if not _abandoned(call))

    # -- the end -----------------------------------------------------------------------------------------------

    async def close(self, grace: float) -> None:
        """Refuse new statements, let those on their way finish for `grace` seconds, give the connections back."""
        self._closed = True
        if self._queue_timer is not None:
            self._queue_timer.cancel()
            self._queue_timer = None
        if self._growing is not None:
            self._growing.cancel()
            await asyncio.wait({self._growing})
        self._fail_queue(rejections.closed(self.pool.name))
        self.make_room()
        if self._seats:
            self._empty = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._empty}, timeout=grace)
        for seat in tuple(self._seats):
            seat.connection.abort()

    def stats(self) -> MultiplexStats:
        """What is going on."""
        queued = sum(not _abandoned(call) for call in tuple(self._queue))
        return MultiplexStats(
            connections=len(self._seats),
            in_flight=sum(seat.load for seat in tuple(self._seats)),
            queued=queued,
            waiting=queued - self._asking,
            statements=self._statements,
            alone=self._alone,
            refused=self._refused,
            withdrawn=self._withdrawn,
            repeated=self._repeated,
            collateral=self._collateral,
            offences=self._offences,
        )


def _abandoned(call: Request) -> bool:
    return call.future is not None and call.future.done()
