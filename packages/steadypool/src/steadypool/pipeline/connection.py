"""`PipelinedConnection`: one libpq connection in pipeline mode on the event loop.

What is sent goes out once per turn of the loop, whoever sent it. Answers come in the order of the segments, and
the future of a segment is settled at its own Sync, never before: a deferred constraint or a serialization failure
comes after the rows. Every future is settled, whatever becomes of the connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg.adapt import AdaptersMap
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus, abc

from steadypool._clock import SYSTEM_CLOCK, Clock
from steadypool._sql.texts import decoded, encoded
from steadypool.errors import WrongEventLoop
from steadypool.pipeline.batch import (
    Batch,
    BatchTimeout,
    ConnectionClosed,
    PingTimeout,
    Result,
    SessionModified,
    Statement,
    gone,
    said_in,
)
from steadypool.pipeline.commands import CommandWriter
from steadypool.pipeline.in_flight import CHUNK_ROWS, Deadly, InFlightBatch, ProtocolDesync
from steadypool.pipeline.libpq import check_libpq
from steadypool.pipeline.parameters import adapt
from steadypool.pipeline.statement_cache import MADE_STALE, StatementCache, is_stale
from steadypool.pipeline.transport import Transport, cut_off, was_interrupted
from steadypool.pipeline.values import Values

_SYNC = int(ExecStatus.PIPELINE_SYNC)
_CHUNK = int(ExecStatus.TUPLES_CHUNK)
_DONE = int(ExecStatus.COMMAND_OK)
_STATUSES = tuple(TransactionStatus)
"""In the order of their numbers: to look one up is quicker than to call the class."""
_IN_TRANSACTION = frozenset({TransactionStatus.INTRANS, TransactionStatus.INERROR})
_LAST = ("FATAL", "PANIC")
_CANCEL_AGAIN = 0.1
"""Seconds after which a cancel request that had no effect is made again."""


class PipelinedConnection(Transport):
    """A connection over which many segments may be on their way.

    It belongs to the running event loop. `psycopg_connection` is the connection underneath; use it in `plain()` only.

    Args:
        connection: an open psycopg connection that nobody uses; it belongs to this object from now on.
        clock: what measures how long the head of the queue has been waiting.
        keeps_statements: whether prepared statements stay where they were prepared; not behind a transaction pooler.
        statements: how many are remembered.

    Raises:
        errors.ConfigurationError: libpq is older than 17.

    Example:
        >>> connection = PipelinedConnection(await open_psycopg(target, timeout=10))
        >>> results = await connection.run(Batch([Statement("select $1::int + 1", (41,))]))
        >>> results[0].rows()
        [(42,)]
    """

    def __init__(
        self,
        connection: Any,
        *,
        clock: Clock = SYSTEM_CLOCK,
        keeps_statements: bool = True,
        statements: int = 128,
    ) -> None:
        check_libpq()
        super().__init__(connection)
        self._values = Values(connection)
        self.statements = StatementCache(self._values.adapters, keeps=keeps_statements, size=statements)
        self.statements.encoding = self._values.encoding
        self._commands = CommandWriter(self.pgconn, self.statements)
        self.uses = 0
        """How often something was sent, or `plain()` was entered."""
        self.refused_tags: frozenset[bytes] = frozenset()
        """Command tags that end the connection: a stranger would feel what they leave behind."""
        self.after_answers: Callable[[], None] | None = None
        """Called when answers were taken and their futures settled."""
        self._clock = clock
        self._flights: deque[InFlightBatch] = deque()
        self._held: deque[Batch] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._closed = False
        self._head_at = self._answered_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._last_words: tuple[str, str] | None = None
        self._ended_by: BaseException | None = None
        self._listeners: list[Callable[[], None]] = []
        connection.add_notice_handler(self._noticed)
        self._enter()

    # -- what can be seen --------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether it has ended; noticed as soon as the server hangs up."""
        return self._closed

    @property
    def adapters(self) -> AdaptersMap:
        """psycopg's adapters of this connection, to register types with."""
        return self.psycopg_connection.adapters

    @property
    def pending(self) -> int:
        """Segments on their way, or held back."""
        return len(self._flights) if self._held is None else len(self._flights) + len(self._held)

    @property
    def last_answer(self) -> float:
        """When the server last answered a segment."""
        return self._answered_at

    @property
    def head_age(self) -> float:
        """Seconds for which the next segment to be answered has been that; 0 if there is none."""
        return self._clock.monotonic() - self._head_at if self._flights else 0.0

    @property
    def transaction_status(self) -> TransactionStatus:
        """As libpq's: ACTIVE while segments are on their way."""
        return TransactionStatus.UNKNOWN if self._closed else _STATUSES[int(self.pgconn.transaction_status)]

    @property
    def in_transaction(self) -> bool:
        """Whether the server has a transaction open on it; one whose end is on its way is over."""
        return not self._closed and self.pgconn.transaction_status in _IN_TRANSACTION

    @property
    def sends_as(self) -> tuple[bytes | None, ...]:
        """The settings on which texts and parameters depend that are sent; the same object until they change."""
        return self._values.sends_as

    def parameter(self, name: str) -> str | None:
        """What the server last told about one of its parameters."""
        value = None if self._closed else self.pgconn.parameter_status(name.encode())
        return None if value is None else decoded(value, self._values.encoding)

    def when_ended(self, tell: Callable[[], None]) -> Callable[[], None]:
        """Call `tell`, once, when the connection ends; at once if it has. Returns what takes this back."""
        if self._closed:
            tell()
        else:
            self._listeners.append(tell)

        def forget() -> None:
            if tell in self._listeners:
                self._listeners.remove(tell)

        return forget

    # -- sending -----------------------------------------------------------------------------------------------

    async def run(self, segment: Batch) -> list[Result]:
        """Send it and wait for its Sync. A cancellation takes nothing back: whoever owns the connection aborts it.

        Raises:
            psycopg.Error: what the server said to one of the statements (`segment.failed_at`).
            ConnectionClosed: the connection ended before.
        """
        return await self.send(segment)

    async def execute(self, sql: str, *parameters: Any) -> Result:
        """One statement by itself, with `$1` placeholders; for hooks and other plain uses."""
        return (await self.run(Batch([Statement(sql, parameters)])))[0]

    def send(self, segment: Batch) -> asyncio.Future[list[Result]]:
        """Send it in this turn of the loop; the future is settled at its Sync.

        Raises:
            psycopg.Error: a parameter cannot be adapted; nothing was sent.
            errors.InvalidText: the text or a parameter cannot be encoded; nothing was sent.
            errors.WrongEventLoop: the connection belongs to another event loop, or none runs in this thread.
        """
        self._check_loop()
        self.uses += 1
        future = segment.future
        if future is None:
            future = segment.future = self._loop.create_future()
        if self._closed:
            self._settle(segment, gone(self._ended_by, segment, self._last_words, "the connection is closed"))
        elif self._held is not None:
            self._held.append(segment)
        else:
            self._put(segment)
        return future

    def post(self, segment: Batch, *, lingers: bool = False) -> None:
        """Send a segment whose answer has no reader; where it fails the connection is aborted.

        It is written to the socket before `post` returns, so that it reaches the server also where the event loop
        is blocked or stopped next.

        Args:
            segment: what to send.
            lingers: leave it unwritten for a moment (`LINGER`), to travel with what comes next. Only for what the
                server may as well receive later, such as a BEGIN.
        """
        segment.must_succeed, segment.lingers = True, lingers
        self.send(segment).add_done_callback(_look_at)
        if not lingers and self._unsent and self._descriptor != -1:
            self._flush()

    def _put(self, segment: Batch, *, roll_back: bool = False) -> None:
        values, known = self._values, self.statements
        if values.has_new_adapters():
            self._renew()
        transformer = values.transformer
        adapted = [adapt(statement, transformer, known) for statement in segment.statements]
        segment.sent = True
        flights = self._flights
        try:
            flight = self._commands.write(segment, adapted, first=not flights, roll_back=roll_back)
        except Exception as error:  # noqa: BLE001 - what libpq has of it already, no answer would fit
            flights.append(InFlightBatch(segment, [], {}))
            self._end(error)
            return
        alone = not flights or (self._loiters and not self._in_haste)
        flights.append(flight)
        self._unsent = True
        if len(flights) == 1:
            self._new_head()
        if segment.lingers:
            self._loiters = len(flights) == 1
            self._flush_later()
            return
        self._in_haste += 1
        if self._flushing:
            return  # at the end of this turn
        if alone and not self._crowded:
            self._flush()  # nobody is before it, and last time nobody came after: the server can begin at once
        else:
            self._flush_soon()

    # -- answers -----------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        """Take the answers that are there, as far as they are complete."""
        try:
            self._take_answers()
        except Deadly as deadly:
            self._end(deadly.error)
        except Exception as error:  # noqa: BLE001 - out of step, or a bug: no later answer could be trusted
            self._end(error)
        if not self._flights and self._drained is not None:
            self._at_rest()
        if self.after_answers is not None:
            self._call(self.after_answers)

    def _take_answers(self) -> None:
        pgconn, flights = self.pgconn, self._flights
        is_busy, get_result = pgconn.is_busy, pgconn.get_result
        statements, values = self.statements, self._values
        while flights and not is_busy():
            flight = flights[0]
            result = get_result()
            if result is None:
                raise ProtocolDesync("a command ended without an answer")
            status = result.status
            if status == _SYNC:
                if flight.position != len(flight.steps):
                    raise ProtocolDesync("a Sync where a result was due")
                self._synced(flight)
            elif status == _CHUNK:
                flight.take_chunk(result)
            else:
                flight.take(result, status, statements, values.transformer)
                # What is refused gives no rows.
                if status == _DONE and self.refused_tags and result.command_status in self.refused_tags:
                    self._offend(flight, result)
                    return
                # That the command is over libpq says by itself, without waiting for the server.
                if get_result() is not None:
                    raise ProtocolDesync("two answers to one command")
                if flight.position < len(flight.steps) and flight.wants_chunks:
                    pgconn.set_chunked_rows_mode(CHUNK_ROWS)
        if not flights:
            self._expect_nothing()

    def _expect_nothing(self) -> None:
        """Everything was answered. Raises ProtocolDesync where there is more."""
        if self._closed or self._descriptor == -1 or self.pgconn.is_busy():
            return
        if self.pgconn.get_result() is not None:
            raise ProtocolDesync("an answer that nobody had asked for")

    def _synced(self, flight: InFlightBatch) -> None:
        """A segment's own Sync: the one moment at which it is known what became of it."""
        flights, segment = self._flights, flight.segment
        flights.popleft()
        began = self._head_at
        self._answered_at = self._new_head()
        segment.took = self._answered_at - began
        if flights and flights[0].wants_chunks:
            self.pgconn.set_chunked_rows_mode(CHUNK_ROWS)
        if (
            not self.refused_tags and self._values.has_new_settings()
        ):  # a shared connection has to keep its own
            try:
                self._renew(segment.results)
            except Exception as failure:  # noqa: BLE001 - such as an encoding that Python lacks
                self._end(failure, because_of=segment)
                return
        error = segment.error
        if error is not None:
            try:
                if self._repeat(flight, error):
                    return
            except Exception as failure:  # noqa: BLE001 - it cannot be sent again: its caller has to know
                self._settle(segment, failure)
                return
            if segment.must_succeed:
                self._end(error)
        self._settle(segment, error)

    def _renew(self, results: Sequence[Result] = ()) -> None:
        """Make values anew, also those of `results`: a setting they depend on has changed, or the types registered."""
        if self._values.has_new_adapters():
            self.statements.look_anew()
        self._values.renew()
        self.statements.encode_anew(self._values.encoding)
        for result in results:
            result.transformer = self._values.transformer

    def _repeat(self, flight: InFlightBatch, error: psycopg.Error) -> bool:
        """Send a segment again that met a stale prepared statement, if nothing of it can have taken effect."""
        segment, at = flight.segment, flight.segment.failed_at
        known = None if at is None else flight.named.get(at)
        if known is None or not is_stale(error, known):
            return False
        self.statements.forget(known)
        if error.sqlstate in MADE_STALE:
            self.statements.forget_all()
        status = self.transaction_status
        in_error = status == TransactionStatus.INERROR
        again = (
            status == TransactionStatus.IDLE or (in_error and segment.prelude > 0) or bool(self.refused_tags)
        )
        if segment.repeated or at != segment.prelude or not again:
            return False
        segment.repeated, segment.error, segment.failed_at = True, None, None
        segment.results = []
        self._put(segment, roll_back=in_error)
        if segment.on_repeated is not None:
            segment.on_repeated(segment)
        return True

    def _settle(self, segment: Batch, error: BaseException | None) -> None:
        future = segment.future
        if isinstance(error, psycopg.Error):
            segment.error = error
        if future is not None and not future.done():
            try:
                if error is None:
                    future.set_result(segment.results)
                else:
                    future.set_exception(error)
            except RuntimeError:
                # The loop was closed: nobody runs any more who could be told.
                if not self._loop.is_closed():
                    raise
        if segment.on_settled is not None:
            self._call(segment.on_settled, segment)

    def _offend(self, flight: InFlightBatch, result: abc.PGresult) -> None:
        """It did what strangers would feel: it, and nobody else, gets to hear that."""
        self._flights.popleft()
        tag = (result.command_status or b"").decode()
        error = SessionModified(
            f"{tag} does not belong on a connection that is shared", sent=True, answered=True
        )
        self._end(error, because_of=flight.segment)

    # -- how long the head takes -------------------------------------------------------------------------------

    def _new_head(self) -> float:
        """The clock of the next segment to be answered starts, if there is one; returns the time."""
        now = self._head_at = self._clock.monotonic()
        limit = self._flights[0].segment.due_within if self._flights else None
        if limit is not None and (self._timer is None or now + limit < self._timer_at):
            self._watch(now + limit, limit)
        return now

    def _watch(self, at: float, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, seconds), self._look_at_head)

    def _look_at_head(self) -> None:
        self._timer = None
        self.read_now()
        if self._flights and (limit := self._flights[0].segment.due_within) is not None:
            left = self._head_at + limit - self._clock.monotonic()
            if left > 0:
                self._watch(self._head_at + limit, left)
            else:
                head = self._flights.popleft().segment
                pinged = not head.answered and limit == head.ping_limit
                error = (PingTimeout if pinged else BatchTimeout)(
                    f"no answer within {limit:.2f}s; the connection was dropped",
                    sent=True,
                    answered=head.answered,
                )
                self._end(error, because_of=head)

    # -- other uses of the connection --------------------------------------------------------------------------

    @asynccontextmanager
    async def plain(self) -> AsyncGenerator[Any]:
        """psycopg's own connection, out of pipeline mode until the block ends: for COPY, cursors and the like.

        What is sent meanwhile is held back. A block that ends in the middle of a command ends the connection.

        Raises:
            ConnectionClosed: the connection ended before.
        """
        self._hold()
        self.uses += 1
        self.statements.changes.add(None)
        try:
            await self._drain()
            self._leave_loop()
            self.pgconn.exit_pipeline_mode()
            yield self.psycopg_connection
        finally:
            self._resume()

    async def cancel(self, timeout: float) -> None:
        """End what the server is doing; on a connection that nobody shares.

        A request that comes before its statement has begun is lost, so it is made again until there is nothing to
        end. Meanwhile nothing is sent, lest a late one hits what comes next.

        Args:
            timeout: seconds for all of it.

        Raises:
            TimeoutError: the server did not end it in time.
            psycopg.Error: no request could be made.
            ConnectionClosed: the connection ended.
        """
        self._hold()
        try:
            async with asyncio.timeout(timeout):
                while self._flights:
                    await self.psycopg_connection.cancel_safe(timeout=timeout)
                    await self._drain(_CANCEL_AGAIN)
                await self._drain()
                sync = Batch([])
                sync.future = self._loop.create_future()
                self._put(sync)
                await sync.future
        finally:
            self._resume()

    async def run_script(self, sql: str) -> list[Result]:
        """Run the statements of one text by the simple protocol, as psycopg does: one transaction outside of one.

        Raises:
            psycopg.Error: what the server said to one of them.
            ConnectionClosed: the connection ended.
            errors.InvalidText: the text cannot be encoded; nothing was sent.
        """
        text = encoded(sql, self._values.encoding)
        results: list[abc.PGresult] = []
        async with self.plain() as raw:
            cursor = psycopg.AsyncCursor[Any](raw)
            await cursor.execute(text)
            more: bool | None = True
            while more:
                if cursor.pgresult is not None:
                    results.append(cursor.pgresult)
                more = cursor.nextset()
        return [Result(result, self._values.transformer) for result in results]

    def _check_loop(self) -> None:
        if not self.at_home:
            raise WrongEventLoop("the connection belongs to another event loop: end its session there")

    def _hold(self) -> None:
        self._check_loop()
        if self._closed:
            raise ConnectionClosed("the connection is closed", sent=False)
        if self._held is not None:
            raise RuntimeError("the connection is in use by plain() or cancel() already")
        self._held = deque()

    async def _drain(self, seconds: float | None = None) -> None:
        """Wait until everything is answered, or for so many seconds."""
        if self._flights:
            self._drained = self._loop.create_future()
            try:
                await asyncio.wait({self._drained}, timeout=seconds)
            finally:
                self._drained = None
        if self._closed:
            raise ConnectionClosed("the connection ended", sent=False)

    def _resume(self) -> None:
        if self._closed:
            return
        pgconn = self.pgconn
        if self._descriptor == -1:
            given_up = (
                was_interrupted(self.psycopg_connection)
                or pgconn.transaction_status == TransactionStatus.ACTIVE
            )
            if given_up or pgconn.status != ConnStatus.OK:
                self._end(None)
                return
            try:
                self._enter()
                self._renew()
            except Exception as error:  # noqa: BLE001 - it cannot go on: what was held back has to know
                self._end(error)
                return
            self.statements.forget_all()  # which may have been deallocated, or mean something else
        held, self._held = self._held or (), None
        for segment in held:
            if self._closed:
                self._settle(segment, gone(None, segment, self._last_words))
                continue
            try:
                self._put(segment)
            except Exception as error:  # noqa: BLE001 - it could not be adapted: whoever waits for it has to know
                self._settle(segment, error)

    # -- leaving -----------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """Close the socket now; whoever waits gets ConnectionClosed. Never waits, may be called twice."""
        self._end(None)

    async def close(self) -> None:
        """Say goodbye and close; what is still on its way gets ConnectionClosed."""
        self._end(None)

    def _collect_and_end(self, error: Exception) -> None:
        """The connection broke; what had been answered before counts."""
        self._collect()
        self._end(error)

    def _end(self, reason: BaseException | None, because_of: Batch | None = None) -> None:
        """`because_of` is the segment that is at fault: its error is the reason itself."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._call(self._leave_loop)
        self._call(cut_off, self.psycopg_connection)
        flights, held = list(self._flights), self._held or ()
        said = said_in(reason) or (said_in(flights[0].segment.error) if flights else None)
        self._ended_by = reason
        words = self._last_words = said or self._last_words
        self._flights.clear()
        self._held = None
        if because_of is not None:
            self._settle(because_of, reason)
        for flight in flights:
            self._settle(flight.segment, gone(reason, flight.segment, words))
        for segment in held:
            self._settle(segment, gone(reason, segment, words))
        self._call(self._at_rest)
        listeners, self._listeners = self._listeners, []
        for tell in listeners:
            self._call(tell)

    def _noticed(self, diagnostic: Any) -> None:
        """What comes while nothing is asked for is a notice for libpq, also the server's last word."""
        if diagnostic.severity_nonlocalized in _LAST or diagnostic.severity in _LAST:
            self._last_words = diagnostic.sqlstate or "", diagnostic.message_primary or ""

    def _at_rest(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)


def _look_at(future: asyncio.Future[list[Result]]) -> None:
    """Retrieve the error, which has ended the connection, so that asyncio does not report it as lost."""
    _ = future.cancelled() or future.exception()
