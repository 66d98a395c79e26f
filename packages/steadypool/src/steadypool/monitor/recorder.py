"""Fills the memory: from events as they come, and from a look at the pool once a second."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from steadypool import events
from steadypool._callsite import as_text
from steadypool._clock import Clock
from steadypool.errors import words_of
from steadypool.monitor.buffers import Arrivals, Moments, Rows
from steadypool.monitor.histogram import Histogram, bucket_of
from steadypool.monitor.journal import Journal
from steadypool.monitor.locks import GAVE_UP, Written
from steadypool.monitor.recording import (
    COUNTED,
    LISTENER_STATES,
    SERVED,
    Arrival,
    Note,
    RecordedSecond,
    Recording,
    arrivals_line,
    merged,
)
from steadypool.monitor.statement_stats import RecordedStatements, TopStatements
from steadypool.monitor.view import PoolView
from steadypool.pool.inspection import ConnectionInfo, WaiterInfo
from steadypool.telemetry.counters import FOUND_DEAD, SLOW_CONNECT, Counters, cause_of

SECONDS, MINUTES = 3_600, 1_440
TOPS = 8
MOST_NOTES, MOST_ARRIVALS, MOST_STATEMENTS, MOST_LEAKS = 1_000, 32_768, 200, 50
SHOWN_CONNECTIONS, SHOWN_WAITERS = 40, 20
"""How many of either a moment keeps: those who have held, and who have waited, for longest."""

LONG = 0.5
"""Seconds after which somebody who holds a connection is worth a moment."""
LATE = 0.5
"""Seconds by which the event loop may be late before the journal says so."""
LONGEST_NAME = 200


class Recorder:
    """Remembers what the pool did; an observer of its events, and of the pool itself once a second.

    Args:
        pool: its name.
        settings: what the recording says about the pool's settings.
        clock: the pool's, by which events are dated.
        wall: seconds since 1970.
        counters: what counts the pool's events already; of its own, which it feeds, if not given.

    Example:
        >>> async with Database(DatabaseSettings()) as db:
        ...     recording = db.recorder.recording()
    """

    def __init__(
        self,
        pool: str,
        settings: Mapping[str, Any],
        *,
        clock: Clock,
        wall: Callable[[], float],
        counters: Counters | None = None,
    ) -> None:
        self.pool = pool
        self.settings = settings
        self.journal = Journal(MOST_NOTES)
        self.statements = RecordedStatements(MOST_STATEMENTS)
        self.tops = TopStatements(MINUTES, TOPS)
        self.moments = Moments(SECONDS, MINUTES)
        self.seconds = Rows(SECONDS)
        self.minutes = Rows(MINUTES)
        self.counters = counters or Counters()
        self._feeds = counters is None
        self.leaks: deque[dict[str, Any]] = deque(maxlen=MOST_LEAKS)
        self._arrivals = Arrivals(MOST_ARRIVALS)
        self._clock = clock
        self._wall = wall
        self._offset = wall() - clock.monotonic()
        self._ticked = clock.monotonic()
        self._counted: dict[str, float] = {}
        self._durations = Histogram(), Histogram(), Histogram()
        self._in_use = self._peak = 0
        self._leases: dict[int, tuple[float, float, str | None]] = {}
        self._last_statement: dict[int, tuple[str, float]] = {}
        self._written = Written()
        self._leaking: set[int] = set()
        self._size: tuple[int, int] | None = None
        self._failing_since: float | None = None
        self._fresh: list[Arrival] = []
        self.keeps_lines = False
        self._lines: deque[dict[str, Any]] = deque(maxlen=1_000)
        self._handlers: dict[type[events.Event], Callable[[Any], None]] = {
            events.Acquired: self._acquired,
            events.Released: self._released,
            events.AcquireFailed: self._acquire_failed,
            events.StatementFinished: self._statement_finished,
            events.StatementsFinished: self._quick_statements,
            events.StatementTimedOut: self._statement_timed_out,
            events.ConnectSucceeded: self._connect_succeeded,
            events.ConnectAttemptFailed: self._connect_failed,
            events.Closed: self._closed,
            events.BreakerChanged: self._breaker_changed,
            events.ConnectionLost: self._connection_lost,
            events.LeakSuspected: self._leak,
            events.ListenerStateChanged: self._listener_changed,
            events.ListenerGap: self._gap,
            events.SessionLimitsLost: self._guards_lost,
            events.PoolClosedEvent: self._pool_closed,
        }

    def watch(self, observers: events.Events) -> Callable[[], None]:
        """Take in what happens in a pool, until the function that this returns is called."""
        ends = [
            # What is told together will do.
            observers.subscribe(self if self._feeds else handler, kind, slower_than=math.inf)
            for kind, handler in self._handlers.items()
        ]

        def end() -> None:
            for unsubscribe in ends:
                unsubscribe()

        return end

    def __call__(self, event: events.Event) -> None:
        """Take in one event."""
        if self._feeds:
            self.counters(event)
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def when(self, at: float) -> float:
        """A moment of the pool's clock as seconds since 1970."""
        return at + self._offset

    @property
    def now(self) -> float:
        """Seconds since 1970."""
        return self.when(self._clock.monotonic())

    # -- what events say ---------------------------------------------------------------------------------------------

    def _note(self, at: float, kind: str, text: str, *, count: bool = True) -> None:
        self.journal.note(self.when(at), kind, text, count=count)

    def note(self, kind: str, text: str) -> None:
        """Put something into the journal that is known from elsewhere."""
        self._note(self._clock.monotonic(), kind, text, count=False)

    def _arrived(self, arrival: Arrival) -> None:
        self._arrivals.add(arrival)
        if self.keeps_lines and len(self._fresh) < MOST_ARRIVALS:
            self._fresh.append(arrival)

    def _acquired(self, event: events.Acquired) -> None:
        self._durations[0].add(event.seconds)
        self._leases[event.connection] = (event.at - event.seconds, event.seconds, event.workload)
        self._peak = max(self._peak, len(self._leases))

    def _released(self, event: events.Released) -> None:
        lease = self._forget(event.connection)
        if lease is not None:
            arrived, waited, workload = lease
            self._arrived(Arrival(self.when(arrived), waited, event.seconds, workload, SERVED))

    def _forget(self, connection: int) -> tuple[float, float, str | None] | None:
        """Nobody has it any more; what was known of its lease."""
        self._last_statement.pop(connection, None)
        self._written.forget(connection)
        self._leaking.discard(connection)
        return self._leases.pop(connection, None)

    def _acquire_failed(self, event: events.AcquireFailed) -> None:
        cause = cause_of(event.error)
        self._durations[0].add(event.seconds)
        arrived = self.when(event.at - event.seconds)
        self._arrived(Arrival(arrived, event.seconds, None, event.workload, cause))
        if cause != "refused_closed":
            self._note(event.at, cause, words_of(event.error))

    def _statement_finished(self, event: events.StatementFinished) -> None:
        if not self._feeds:
            self.counters.statement_finished(event)  # which nobody wants on the counters' account
        seconds, at = event.seconds, event.at + self._offset
        bucket = bucket_of(seconds)
        self._durations[2].add_to(bucket)
        if event.way == "shared":  # it waits for its turn, not for a lease
            self._durations[0].add(event.waiting + event.connecting)
        connection = event.connection
        if connection is not None and connection in self._leases:
            self._last_statement[connection] = (event.fingerprint, event.at)
            self._written.add(event)
        figures = self.statements.count(event.fingerprint, seconds, event.rows, at, bucket)
        figures.errors += event.error_type is not None
        self.tops.add(event.fingerprint, seconds, at)
        if event.sqlstate in GAVE_UP:
            self._note(event.at, "lock", f"{GAVE_UP[event.sqlstate]}: {event.fingerprint}")

    def _quick_statements(self, event: events.StatementsFinished) -> None:
        if not self._feeds:
            self.counters.quick_statements(event)
        waits, _, durations = self._durations
        at, connection = event.at + self._offset, event.connection
        for fingerprint, seconds, waiting, connecting, rows in event.statements:
            bucket = bucket_of(seconds)
            durations.add_to(bucket)
            waits.add(waiting + connecting)
            self.statements.count(fingerprint, seconds, rows, at, bucket)
            self.tops.add(fingerprint, seconds, at)
        if connection in self._leases:
            self._last_statement[connection] = (event.statements[-1].fingerprint, event.at)

    def _connection_lost(self, event: events.ConnectionLost) -> None:
        self._note(event.at, "connections_lost", f"a connection broke in use: {event.cause}")

    def _statement_timed_out(self, event: events.StatementTimedOut) -> None:
        workload = f" on workload {event.workload}" if event.workload else ""
        text = f"a statement reached its limit of {event.seconds:g} s{workload}: {event.fingerprint}"
        self._note(event.at, "statement_timeouts", text)

    def _connect_succeeded(self, event: events.ConnectSucceeded) -> None:
        self._durations[1].add(event.seconds)
        since, self._failing_since = self._failing_since, None
        if since is not None:
            away = event.at - since
            self._note(
                event.at, "wake_up", f"the database answers again, {away:.1f} s after it first did not"
            )
        elif event.seconds >= SLOW_CONNECT:
            text = f"the database took {event.seconds:.1f} s to let a connection in: it slept, or has too much to do"
            self._note(event.at, "wake_up", text)

    def _connect_failed(self, event: events.ConnectAttemptFailed) -> None:
        self._durations[1].add(event.seconds)
        if self._failing_since is None:
            self._failing_since = event.at - event.seconds
        self._note(event.at, "connect_failures", words_of(event.error))

    def _closed(self, event: events.Closed) -> None:
        self._forget(event.connection)
        if event.reason == FOUND_DEAD:
            self._note(event.at, "idle_death", "an idle connection was found dead, and is replaced")

    def _breaker_changed(self, event: events.BreakerChanged) -> None:
        reason = f": {event.reason}" if event.reason else ""
        self._note(event.at, "breaker", f"breaker {event.before} → {event.after}{reason}", count=False)

    def _leak(self, event: events.LeakSuspected) -> None:
        self._leaking.add(event.connection)
        leak = {
            "at": round(self.when(event.at), 3),
            "connection": event.connection,
            "seconds": round(event.seconds, 1),
            "holder": event.holder[:LONGEST_NAME],
            "workload": event.workload,
            "stack": as_text(event.places),
        }
        self.leaks.append(leak)
        text = f"connection {event.connection} has been held for {event.seconds:.0f} s by {event.holder}"
        self._note(event.at, "leak", text, count=False)

    def _listener_changed(self, event: events.ListenerStateChanged) -> None:
        self._note(event.at, "listener", f"listener {event.before} → {event.after}", count=False)

    def _gap(self, event: events.ListenerGap) -> None:
        text = f"notifications of {event.channel} may have been missed: {event.reason}"
        self._note(event.at, "gap", text)

    def _guards_lost(self, event: events.SessionLimitsLost) -> None:
        self._note(event.at, "guards", f"sessions start without their guards: {event.reason}", count=False)

    def _pool_closed(self, event: events.PoolClosedEvent) -> None:
        self._note(event.at, "close", f"the pool was closed; {event.aborted} connections were cut off")

    # -- once a second -----------------------------------------------------------------------------------------------

    def tick(self, view: PoolView, lag: float) -> RecordedSecond:
        """A second has passed: look at the pool, and begin the next one.

        Args:
            view: the pool now.
            lag: by how many seconds the event loop was late at most.
        """
        monotonic = self._clock.monotonic()
        elapsed, self._ticked = monotonic - self._ticked, monotonic
        # A machine that slept: its clock goes on, the monotonic one did not. Backwards it never goes.
        drift = self._wall() - self.when(monotonic)
        if drift > 1.0:
            self._offset += drift
        now = self.when(monotonic)
        self._notice(view, lag, monotonic)
        values = self._since_last() | _measured(view) | {"elapsed": elapsed, "lag": lag}
        values["peak"] = max(self._peak, view.pool.leased)
        at = math.floor(now)
        if self.seconds.last is not None:
            at = max(at, self.seconds.last + 1)
            if at // 60 != self.seconds.last // 60:
                self._end_minute(self.seconds.last // 60 * 60)
        row = RecordedSecond(at, values, *self._durations)
        self.seconds.add(row)
        self._write({"k": "row", "span": 1, "row": row.as_json()})
        self._durations = Histogram(), Histogram(), Histogram()
        self._peak = view.pool.leased
        self._remember(view, now)
        return row

    def _since_last(self) -> dict[str, float]:
        """What was counted since this was last asked."""
        before, self._counted = self._counted, dict(self.counters.so_far)
        return {name: count - before.get(name, 0) for name, count in self._counted.items() if name in COUNTED}

    def _end_minute(self, at: int) -> None:
        row = merged(self.seconds.since(at, at + 60), at)
        self.minutes.add(row)
        self._write({"k": "row", "span": 60, "row": row.as_json()})
        for top in self.tops.fresh():
            self._write({"k": "top"} | top)
        self._write({"k": "statements", "rows": self.statements.table(MOST_STATEMENTS)})

    def _notice(self, view: PoolView, lag: float, monotonic: float) -> None:
        size = (view.pool.size, view.pool.max_overflow)
        if self._size is not None and self._size != size:
            (old, burst), (new, more) = self._size, size
            text = f"the pool was resized from {old}+{burst} to {new}+{more}"
            self._note(monotonic, "resize", text, count=False)
        self._size = size
        if lag >= LATE:
            text = f"the event loop was busy for {lag:.1f} s: everything was late then, not only the database"
            self._note(monotonic, "loop", text)
        known = {connection.number for connection in view.census.connections}
        for number in self._leases.keys() - known:  # a lease whose end nobody told
            self._forget(number)

    def _remember(self, view: PoolView, now: float) -> None:
        moment = self.moment_of(view, now)
        held = any(connection["seconds"] >= LONG for connection in moment["connections"])
        if held or moment["waiters"] or view.pool.leased >= 0.8 * view.pool.size:
            self.moments.add(moment)
            self._write({"k": "moment"} | moment)

    def moment_of(self, view: PoolView, now: float) -> dict[str, Any]:
        """Who holds and who waits, in the form in which it is kept."""
        held = [connection for connection in view.census.connections if connection.holder is not None]
        held.sort(key=lambda connection: -connection.seconds)
        waiters = sorted(view.census.waiters, key=lambda waiter: -waiter.seconds)
        opening = [each.seconds for each in view.census.connections if each.state in ("opening", "stuck")]
        return {
            "at": round(now, 2),
            "opening": round(max(opening, default=0.0), 2),
            "at_ceiling": {
                each.name: each.max_connections
                for each in view.workloads
                if each.max_connections is not None and each.held >= each.max_connections
            },
            "queued": 0 if view.shared is None else view.shared["queued"],
            "connections": [self.holding(each, view) for each in held[:SHOWN_CONNECTIONS]],
            "waiters": [waiting(each) for each in waiters[:SHOWN_WAITERS]],
            "more": {
                "connections": max(0, len(held) - SHOWN_CONNECTIONS),
                "waiters": max(0, len(waiters) - SHOWN_WAITERS),
            },
        }

    def holding(self, connection: ConnectionInfo, view: PoolView) -> dict[str, Any]:
        """What is known of a connection: its state, who has it, and what runs on it or was the last to."""
        facts: dict[str, Any] = {
            "number": connection.number,
            "state": connection.state,
            "seconds": round(connection.seconds, 2),
        }
        if connection.holder is None:
            return facts
        facts |= {"holder": connection.holder[:LONGEST_NAME], "workload": connection.workload}
        facts["in_transaction"] = connection.number in view.in_transaction
        if connection.number in self._leaking:
            facts["leak"] = True
        if written := self._written.by(connection.number):
            facts["written"] = written
        if connection.statement is not None:
            facts["running"] = connection.statement
            facts["executing"] = round(connection.executing or 0.0, 2)
            usual = self.statements.usual(connection.statement)
            if usual is not None:
                facts["usually"] = round(usual, 4)
        last = self._last_statement.get(connection.number)
        if last is not None:
            facts["statement"] = last[0]
            facts["quiet"] = round(self._clock.monotonic() - last[1], 2)
        return facts

    # -- as a document -----------------------------------------------------------------------------------------------

    def recording(self) -> Recording:
        """Everything that is remembered."""
        return self.frozen()()

    def frozen(self) -> Callable[[], Recording]:
        """What is remembered now; what this returns puts it together, which takes a while (use a thread)."""
        pool, at, settings = self.pool, self.now, dict(self.settings)
        seconds, minutes, moments = self.seconds.copy(), self.minutes.copy(), self.moments.copy()
        journal = tuple(replace(note) for note in self.journal)
        tops = tuple(self.tops)
        arrivals, unfinished = self._arrivals.copy(), self._unfinished()
        statements = tuple(self.statements.table(MOST_STATEMENTS))
        return lambda: Recording(
            pool=pool,
            at=at,
            settings=settings,
            seconds=tuple(seconds.since(0)),
            minutes=tuple(minutes.since(0)),
            journal=journal,
            moments=tuple(moments),
            tops=tops,
            arrivals=(*arrivals, *unfinished),
            statements=statements,
        )

    def _unfinished(self) -> list[Arrival]:
        return [
            Arrival(self.when(arrived), waited, None, workload, SERVED)
            for arrived, waited, workload in self._leases.values()
        ]

    def restore(self, recording: Recording) -> None:
        """Take back what an earlier process wrote, before anything else is recorded."""
        for row in recording.seconds:
            self.seconds.add(row)
        for row in recording.minutes:
            self.minutes.add(row)
        for arrival in recording.arrivals:
            self._arrivals.add(arrival)
        self.journal.restore(recording.journal)
        for moment in recording.moments:
            self.moments.add(moment)
        self.tops.restore(recording.tops)
        self.statements.restore(recording.statements)

    def _write(self, line: dict[str, Any]) -> None:
        if self.keeps_lines:
            self._lines.append(line)

    def lines(self) -> list[dict[str, Any]]:
        """The lines for the file since this was last asked."""
        lines = list(self._lines)
        self._lines.clear()
        lines += [{"k": "note"} | note.as_json() for note in self.journal.changed()]
        fresh, self._fresh = self._fresh, []
        return [*lines, arrivals_line(fresh)] if fresh else lines

    def notes(self, since: float, until: float) -> list[Note]:
        """The journal of that time, oldest first."""
        return self.journal.between(since, until)


def _measured(view: PoolView) -> dict[str, float]:
    pool = view.pool
    listener = str(view.listener["state"]) if view.listener is not None else ""
    return {
        "size": pool.size,
        "overflow": pool.max_overflow,
        "leased": pool.leased,
        "idle": pool.idle,
        "opening": pool.opening,
        "closing": pool.closing,
        "waiting": view.waiting,
        "breaker": view.breaker != "closed",
        "listener": LISTENER_STATES.index(listener) if listener in LISTENER_STATES else -1,
    }


def waiting(waiter: WaiterInfo) -> dict[str, Any]:
    """What is known of a caller who waits; `left` is null where there is no end."""
    return {
        "holder": waiter.holder[:LONGEST_NAME],
        "workload": waiter.workload,
        "seconds": round(waiter.seconds, 2),
        "left": round(waiter.left, 2) if math.isfinite(waiter.left) else None,
    }
