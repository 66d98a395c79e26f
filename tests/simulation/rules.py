"""The rules of the pool, checked against the server's books and against the callers' own notes.

`Rules` is told what callers do and listens to the pool's events. It looks at everything after each turn of the
loop, and more closely whenever the loop rests: then every change has had its consequences, and whoever still
waits must have a reason. The numbers:

- R1 never more connections than the limit, none lost · R2 first come, first served · R3 connecting is the pool's work
- R4 woken by every change · R5 every wait ends, by the right name · R7 proven before it is handed over
- R8 returned means clean · R9 lifetime with jitter, in the background · R11 leaving is bounded and counted
- S turned away early only who would come too late · R12 eviction · R13 close
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from steadypool import errors, events
from steadypool._sqlstate import Disposition
from steadypool._virtual_time import LoopClock, VirtualLoop
from steadypool.pool import Pool
from steadypool.pool.admission import REMEMBERED
from steadypool.pool.entries import CONNECTING, LIVE, EntryTable
from steadypool.pool.lease import EntryState, Lease, PoolEntry

from .schedule import Config
from .server import Connection, RuleBroken, Server

NEAR = 1e-3
"""Seconds: two moments closer than this are one."""
NONE_YET = dict.fromkeys(EntryState, 0)
IDLE, LEASED, OPENING = EntryState.IDLE, EntryState.LEASED, EntryState.OPENING
PROVING, RESETTING, SILENT = EntryState.PROVING, EntryState.RESETTING, EntryState.SILENT


class Caller:
    """One who asks for a connection, and what we know of it."""

    __slots__ = (
        "busy_until", "cancel_asked", "deadline_at", "ended", "kept", "latest", "lease", "limit", "name",
        "settled", "since", "task", "timeout", "workload"
    )  # fmt: skip

    def __init__(self, name: str, workload: str | None, timeout: float | None, limit: float | None) -> None:
        self.name = name
        self.workload = workload
        self.timeout = timeout
        self.limit = limit
        self.since = self.busy_until = self.latest = 0.0
        self.kept = False
        self.deadline_at: float | None = None
        self.lease: Lease[Connection] | None = None
        self.task: asyncio.Task[None] | None = None
        self.settled = self.ended = self.cancel_asked = False


class Ending:
    """One call of `close`."""

    __slots__ = ("began", "done", "grace")

    def __init__(self, began: float, grace: float) -> None:
        self.began = began
        self.grace = grace
        self.done = False


class RecordingRoster(EntryTable[Connection]):
    """The pool's own roster, that also notes when each slot came into its state."""

    def __init__(self, rules: Rules) -> None:
        super().__init__(LoopClock(rules.loop))
        self.rules = rules
        self.version = 0
        self.since: dict[int, float] = {}
        self.idle_order: list[int] = []

    def add(self, generation: int) -> PoolEntry[Connection]:
        self.version += 1
        slot = super().add(generation)
        self.since[slot.number] = self.rules.loop.now
        return slot

    def move(self, slot: PoolEntry[Connection], state: EntryState) -> None:
        self.version += 1
        before = slot.state
        self.rules.transitions.add((before, state))
        if before is IDLE:
            self.rules.leaves_idle(slot.number)
            if state is LEASED:
                self.rules.takes_from_idle(slot, self.idle_order)
            self.idle_order.remove(slot.number)
        if state is IDLE:
            self.idle_order.append(slot.number)
        if state is EntryState.GONE:
            self.since.pop(slot.number, None)
        else:
            self.since[slot.number] = self.rules.loop.now
        super().move(slot, state)


class Rules:
    """What must hold, always."""

    def __init__(self, config: Config, loop: VirtualLoop) -> None:
        self.options = config.options
        self.ceilings = config.ceilings
        self.loop = loop
        self.waiting: dict[str, Caller] = {}
        self.holding: list[Caller] = []
        self.handed: dict[int, Caller] = {}
        self.callers: dict[str, Caller] = {}
        self.held_by: dict[str | None, int] = {}
        self.transitions: set[tuple[EntryState, EntryState]] = set()
        self.pairs: set[tuple[EntryState, str]] = set()
        self.endings: list[Ending] = []
        self.began_to_close: float | None = None
        self.connects: dict[type[events.Event], int] = dict.fromkeys(
            (events.ConnectStarted, events.ConnectSucceeded, events.ConnectAttemptFailed), 0
        )
        self.acquired = self.released = self.pool_closed_events = 0
        self._seen_version = (-1, -1)
        self.refusals = 0
        self.enough = 3
        self.held_for: dict[str | None, list[float]] = {None: []}
        self.expectations: dict[BaseException, tuple[float, float]] = {}
        self.refused_errors: dict[BaseException, tuple[int, str, bool]] = {}
        self.passed_over: dict[Caller, tuple[int, str]] = {}
        self.pending_at = 0.0
        self._was_pending = False
        self._fault: str | None = None
        self._to_prove = set[int]()

    def attach(self, pool: Pool[Connection], server: Server, roster: RecordingRoster) -> None:
        """Begin to watch."""
        self.pool, self.server, self.roster = pool, server, roster
        pool._forecast.enough = self.enough  # schedules are short
        pool.events.subscribe(self._observe)

    def blame(self, fault: str) -> None:
        """Note a broken rule where an exception would be swallowed; the next look raises it."""
        self._fault = self._fault or fault

    def seen(self, event: str) -> None:
        """Note which states an event met, for the table of what was reached."""
        for state, count in self.roster.counts.items():
            if count:
                self.pairs.add((state, event))
        if not len(self.roster):
            self.pairs.add((EntryState.GONE, event))

    def version(self) -> tuple[int, int]:
        """Changes whenever something happens."""
        return self.roster.version, self.server.changes

    # -- what callers do ---------------------------------------------------------------------------------------

    def arrives(self, caller: Caller, deadline_at: float | None) -> None:
        """A caller is about to ask."""
        now = self.loop.now
        timeout = self.options.pool_timeout if caller.timeout is None else caller.timeout
        patience = max(self.options.pool_timeout, self.options.connect_timeout)
        caller.since = now
        caller.deadline_at = deadline_at
        if deadline_at is None:
            caller.busy_until = now + timeout
            caller.latest = now + max(timeout, patience)
        else:
            caller.busy_until = min(now + timeout, deadline_at)
            caller.latest = deadline_at
        self.callers[caller.name] = caller
        self.waiting[caller.name] = caller

    def cancels(self, caller: Caller) -> None:
        """Somebody cancels a caller."""
        caller.cancel_asked = True
        self.waiting.pop(caller.name, None)

    def cancelled(self, caller: Caller) -> None:
        """A caller leaves because it was cancelled; it may have been refused in the same moment, and never know."""
        caller.settled = True
        self.passed_over.pop(caller, None)
        if not caller.cancel_asked:
            raise RuleBroken(f"caller {caller.name} was cancelled by nobody")
        if caller in self.handed.values():
            raise RuleBroken("R1: a cancelled caller kept its connection")
        self.seen("caller cancelled")

    def served(self, caller: Caller, lease: Lease[Connection]) -> None:
        """A caller has got a connection."""
        caller.settled = True
        caller.lease = lease
        if caller in self.passed_over:
            self._check_passed_over()
        if caller.cancel_asked:
            raise RuleBroken("a cancelled caller was served")
        if lease.active:
            self.holding.append(caller)
        elif not self.pool.closed:
            raise RuleBroken("a caller got a lease that had ended")

    def refused(self, caller: Caller, error: errors.SteadypoolError) -> None:
        """A caller goes without."""
        caller.settled = True
        self.waiting.pop(caller.name, None)
        now = self.loop.now
        refusal, pending, room = self.refused_errors.pop(error, (0, "", True))
        passed, _ = self.passed_over.get(caller, (refusal, ""))
        if refusal <= passed:
            self.passed_over.pop(caller, None)
        self.seen("refused " + type(error).__name__)
        if not str(error).strip():
            raise RuleBroken("R5: an error without a message")
        if isinstance(error, errors.PoolClosed):
            if not self.pool.closed:
                raise RuleBroken("R13: PoolClosed from an open pool")
            return
        self._check_refusal(caller, error, now)
        if error.report.early:
            self.seen("turned away early")
            return
        if pending == "unreachable" and room and type(error) is errors.PoolTimeout:
            raise RuleBroken("R5: PoolTimeout though the database could not be reached")
        if pending and room and self._by_time(error) and now < caller.latest - NEAR:
            raise RuleBroken(f"R5: {error!r} {caller.latest - now:.3f}s too early: a connect was pending")
        waited = now - caller.since
        if error.pool is None or abs(error.elapsed.total - waited) > NEAR:
            raise RuleBroken(f"R5: {error!r} reports {error.elapsed}, but it was {waited:.3f}s")

    @staticmethod
    def _by_time(error: errors.SteadypoolError) -> bool:
        return not isinstance(error, errors.PoolQueueFull | errors.DatabaseUnavailable) and not (
            isinstance(error, errors.ConnectFailed) and error.final
        )

    def _check_passed_over(self) -> None:
        for other, (_, winner) in self.passed_over.items():
            raise RuleBroken(f"R2: caller {winner} was served before caller {other.name}, who came earlier")

    def _check_unavailable(self, caller: Caller, error: errors.DatabaseUnavailable, now: float) -> None:
        """At once, or not at all; only while nothing could serve the caller and the next attempt comes too late."""
        assert error.retry_after is not None
        if now > caller.since + NEAR:
            raise RuleBroken("R6: DatabaseUnavailable after a wait")
        if self.server.connecting or self.roster.count(*LIVE):
            raise RuleBroken("R6: DatabaseUnavailable though something was under way")
        if not error.final and caller.latest > now + error.retry_after + NEAR:
            raise RuleBroken("R6: DatabaseUnavailable though the next attempt was in time")

    def _check_refusal(self, caller: Caller, error: errors.SteadypoolError, now: float) -> None:
        name = type(error).__name__
        if isinstance(error, errors.PoolQueueFull):
            if now > caller.since + NEAR or len(self.waiting) < self.options.max_waiting:
                raise RuleBroken("R5: PoolQueueFull though the queue was not full")
            return
        if isinstance(error, errors.DatabaseUnavailable):
            self._check_unavailable(caller, error, now)
            return
        if error.report.early:
            self._check_early(caller, error, now)
            return
        if isinstance(error, errors.ConnectFailed) and error.final:
            if error.pool is not None and error.pool.leased and now < caller.busy_until - NEAR:
                raise RuleBroken("R5: a final refusal though somebody may give a connection back")
            return
        if now < caller.busy_until - NEAR:
            raise RuleBroken(f"R5: {name} {caller.busy_until - now:.3f}s too early")
        left = None if caller.deadline_at is None else caller.deadline_at - now
        too_early = isinstance(error, errors.DeadlineExceeded) and (left is None or left > NEAR)
        too_late = not isinstance(error, errors.DeadlineExceeded) and left is not None and left < -NEAR
        if too_early or too_late:
            raise RuleBroken(f"R5: {name}, but the deadline was {caller.deadline_at}, it is {now}")
        if type(error) is errors.PoolTimeout and error.pool is not None and error.pool.leased == 0:
            raise RuleBroken("R5: PoolTimeout though nobody held a connection")

    def gives_back(self, lease: Lease[Connection], fate: Disposition) -> None:
        """A caller is about to release."""
        if fate is Disposition.EVICT_AND_PROVE and lease.active:
            self.doubts()

    def doubts(self, since: float = math.inf) -> None:
        """Every live connection has to prove itself, unless it has answered since then."""
        for slot in self.roster:
            connection = slot.connection
            if slot.state in LIVE and connection is not None and connection.answered_at < since:
                connection.doubted = True

    def proves_idle(self, ask: Callable[[], None]) -> None:
        """Somebody wants all idle connections to prove themselves, now."""
        for slot in self.roster:
            if slot.connection is not None:
                slot.connection.asked = 0  # this is not for a caller
        most = max(self.roster.count(PROVING), self.options.max_connecting)
        self._to_prove = set(self.roster.idle_order)
        ask()
        if self.roster.count(PROVING) > most:
            self.blame(f"R7: {self.roster.count(PROVING)} connections are asked at once, {most} allowed")

    def drains(self, same: Callable[[Connection], bool]) -> None:
        """Somebody wants these connections replaced."""
        drained = [slot.connection for slot in self.roster if slot.connection is not None]
        for connection in drained:
            connection.drained = connection.drained or same(connection)
        self.pool.drain(same)
        self._check_drained()

    def _check_drained(self) -> None:
        for slot in self.roster:
            if slot.state is IDLE and slot.connection is not None and slot.connection.drained:
                self.blame("R12: a drained connection is idle")

    def leaves_idle(self, number: int) -> None:
        """A connection is not idle any more: it is asked, or used, or closed."""
        self._to_prove.discard(number)

    def _check_proofs(self) -> None:
        """Whoever was to prove itself is asked, as many at a time as are allowed."""
        if self.roster.count(PROVING) < self.options.max_connecting:
            raise RuleBroken(f"R7: {self._to_prove} are idle and not asked for a sign of life")

    def closes(self, grace: float) -> Ending:
        """Somebody calls `close`."""
        ending = Ending(self.loop.now, grace)
        self.endings.append(ending)
        if self.began_to_close is None:
            self.began_to_close = ending.began
        return ending

    def closed(self, ending: Ending) -> None:
        """`close` has come back, or was cancelled."""
        ending.done = True
        self.seen("close ended")
        if self.pool.count():
            raise RuleBroken(f"R13: {self.pool.count()} connections are left after close")
        for connection in self.server.backends.values():
            if connection.aborted_at is None:
                raise RuleBroken(f"R13: close left {connection} open")

    # -- what the pool says ------------------------------------------------------------------------------------

    def _observe(self, event: events.Event) -> None:
        if isinstance(event, events.Acquired):
            self._acquired(event)
        elif isinstance(event, events.Released):
            self._released(event)
        elif type(event) in self.connects:
            self.connects[type(event)] += 1
        elif isinstance(event, events.AcquireFailed):
            # Noted now: between this moment and the caller's next step the world may change.
            self.refusals += 1
            pending = "connecting" if self.server.connecting else ""
            if self.server.last_open_failed:
                pending = "unreachable"
            self.refused_errors[event.error] = (self.refusals, pending, self._has_room(event.workload))
            if isinstance(event.error, errors.SteadypoolError) and event.error.report.early:
                self.expectations[event.error] = self._expectation(event.workload)
            for_good = isinstance(event.error, errors.ConnectFailed) and event.error.final
            if for_good and not self.server.last_open_final:
                self.blame("R5: a final refusal though the last connect did not fail for good")
        elif isinstance(event, events.Closed):
            self.seen("gone " + event.reason)
        elif isinstance(event, events.PoolClosedEvent):
            self.pool_closed_events += 1

    def _released(self, event: events.Released) -> None:
        self.released += 1
        caller = self.handed.pop(event.connection, None)
        if caller is None:
            self.blame("R1: a connection was released that nobody had")
            return
        self.held_by[caller.workload] -= 1
        self.held_for[None].append(event.seconds)
        if caller.workload is not None:
            self.held_for.setdefault(caller.workload, []).append(event.seconds)
        if caller in self.holding:  # not given back: the pool is closed and its patience is over
            self.holding.remove(caller)
            caller.ended = True
            if not self.pool.closed:
                self.blame("R1: a connection was taken from its holder")
        if event.kept:
            self.seen("released kept")

    def _expectation(self, workload: str | None) -> tuple[float, float]:
        """Seconds until somebody's turn who comes now, on average, and the longest that one of late has held."""
        own = self._has_room(workload)
        held = self.held_for.get(None if own else workload, [])[-REMEMBERED:]
        if len(held) < self.enough:
            return 0.0, 0.0
        waiting = sum(own or caller.workload == workload for caller in self.waiting.values())
        places = self.options.limit if own else self.ceilings[workload or ""]
        return waiting * sum(held) / len(held) / places, max(self.held_for[None][-REMEMBERED:])

    def _check_early(self, caller: Caller, error: errors.SteadypoolError, now: float) -> None:
        """Only who would come too late on average, too, is turned away early."""
        expected, longest = self.expectations.pop(error)
        deadline = isinstance(error, errors.DeadlineExceeded)
        if not deadline and type(error) is not errors.PoolTimeout:
            raise RuleBroken(f"S: {error!r} is no name for who is turned away early")
        if caller.busy_until - now > expected + (longest if deadline else 0.0) + NEAR:
            raise RuleBroken(
                f"S: {caller.name} was turned away {caller.busy_until - now:.3f}s early, "
                f"its turn was expected in {expected:.3f}s"
            )

    def _acquired(self, event: events.Acquired) -> None:
        self.acquired += 1
        slot = next(slot for slot in self.roster if slot.number == event.connection)
        lease, connection, now = slot.lease, slot.connection, self.loop.now
        if lease is None or connection is None or event.connection in self.handed:
            self.blame("R1: a connection was handed to two callers, or to none")
            return
        caller = self.callers[lease.name]
        self.handed[event.connection] = caller
        self._check_turn_of(caller)
        self.waiting.pop(caller.name, None)
        workload = caller.workload
        self.held_by[workload] = self.held_by.get(workload, 0) + 1
        if workload in self.ceilings and self.held_by[workload] > self.ceilings[workload]:
            self.blame(f"ceiling: {workload} holds {self.held_by[workload]}")
        connection.asked = 0
        if connection.drained:
            self.blame("R12: a drained connection was handed over")
        if connection.dirty:
            self.blame("R8: a connection was handed over unclean")
        if not connection.open:
            self.blame("R7: a connection was handed over that was known to be dead")
        if self._stale(slot, now) and connection.opened_at < now - NEAR:
            self.blame("R7: a connection was handed over unproven")
        if self._too_old(connection, now):
            self.blame("R9: a connection was handed over after the end of its life")
        if self.pool.closed:
            self.blame("R13: a closed pool handed a connection over")

    def _check_turn_of(self, caller: Caller) -> None:
        """Rule 2: nobody who came before, and could have been served, is still waiting."""
        for other in self.waiting.values():
            if other is caller:
                return
            if self._has_room(other.workload):
                # Unless it has been refused in this moment and does not know it yet.
                self.passed_over.setdefault(other, (self.refusals, caller.name))

    def _has_room(self, workload: str | None) -> bool:
        top = self.ceilings.get(workload or "")
        return top is None or self.held_by.get(workload, 0) < top

    def _stale(self, slot: PoolEntry[Connection], now: float) -> bool:
        """Whether a connection has to prove itself, by the callers' notes or by the pool's own suspicion."""
        connection, limit = slot.connection, self.options.ping_after_idle
        if connection is None:
            return True
        long_ago = limit is not None and now - connection.answered_at > limit + NEAR
        return connection.doubted or long_ago

    def _too_old(self, connection: Connection, now: float) -> bool:
        life = self.options.recycle
        return life is not None and now > connection.opened_at + life + NEAR

    def takes_from_idle(self, slot: PoolEntry[Connection], order: list[int]) -> None:
        """Rule 2: last in, first out (or the reverse), among the connections that can be had at once."""
        place = order.index(slot.number)
        passed = order[place + 1 :] if self.options.use_lifo else order[:place]
        now, limit = self.loop.now, self.options.ping_after_idle
        for number in passed:
            other = self.roster._slots[number]
            fresh = limit is None or now - other.proven_at < limit - NEAR
            usable = fresh and not other.suspect and other.connection is not None and other.connection.open
            if usable and now < other.expires_at - NEAR:
                self.blame("R2: an idle connection was taken out of turn")

    # -- after every turn of the loop --------------------------------------------------------------------------

    def after_turn(self) -> None:
        """What must hold at every moment."""
        if self._fault is not None:
            raise RuleBroken(self._fault)
        version = self.version()
        if version == self._seen_version:
            return
        self._seen_version = version
        if self._was_pending or self._is_pending():  # also for less than a moment
            self.pending_at = self.loop.now
        self._was_pending = self._is_pending()
        pool, server, roster = self.pool, self.server, self.roster
        limit = self.options.limit
        if server.connecting + server.counted > limit or len(roster) > limit:
            raise RuleBroken(
                f"R1: {server.connecting} connecting and {server.counted} connected, {limit} allowed"
            )
        counts = NONE_YET.copy()
        owned = set[int]()
        for slot in roster._slots.values():
            counts[slot.state] += 1
            if slot.connection is not None:
                owned.add(slot.connection.number)
        if counts != roster.counts:
            raise RuleBroken(f"R1: the counts are wrong: {counts}, {roster.counts}")
        if counts[IDLE] != len(pool._idle) or counts[IDLE] > self.options.size:
            raise RuleBroken(f"R8: {counts[IDLE]} idle ({len(pool._idle)} listed), size {self.options.size}")
        if len(self.handed) != counts[LEASED] or self.acquired - self.released != counts[LEASED]:
            raise RuleBroken("events: Acquired and Released do not add up")
        self._check_lost(owned)

    def _check_lost(self, owned: set[int]) -> None:
        if len(self.server.backends) > len(owned) or not owned.issuperset(self.server.backends):
            for number, connection in self.server.backends.items():
                if number not in owned and not connection.excused and not self.pool.closed:
                    raise RuleBroken(f"R11: the server still has {connection}, the pool does not count it")

    # -- when the loop rests -----------------------------------------------------------------------------------

    def at_rest(self) -> None:
        """What must hold once every change has had its consequences."""
        self.after_turn()
        now = self.loop.now
        self._check_limits(now)
        self._check_passed_over()
        if len(self.waiting) != self.pool.waiting:
            raise RuleBroken(f"R4: {len(self.waiting)} callers wait, the pool knows {self.pool.waiting}")
        if set(self.handed.values()) != set(self.holding):
            raise RuleBroken("R1: a connection was handed to a caller who never got it")
        if self.waiting:
            self._check_waiting(now)
        if self.endings:
            self._check_ending(now)
        if self._to_prove:
            self._check_proofs()

    def _check_limits(self, now: float) -> None:
        options = self.options
        for slot in self.roster._slots.values():
            state, since = slot.state, self.roster.since[slot.number]
            if state is IDLE:
                self._check_idle(slot, now)
                continue
            if state is LEASED:
                continue
            limit = options.leave_timeout
            if state in CONNECTING:
                limit = options.connect_timeout
            elif state in (PROVING, SILENT):
                limit = options.connect_timeout / 2
            if now > since + limit + NEAR:
                raise RuleBroken(f"R5: connection {slot.number} is {state.value} for {now - since:.3f}s")

    def _check_idle(self, slot: PoolEntry[Connection], now: float) -> None:
        connection, life = slot.connection, self.options.recycle
        if connection is None or connection.dirty:
            raise RuleBroken("R8: an idle connection is not clean")
        if slot.generation != self.pool._generation or connection.drained:
            raise RuleBroken("R12: an evicted connection is idle again")
        if life is None:
            return
        if not life * 0.9 - NEAR <= slot.expires_at - connection.opened_at <= life + NEAR:
            raise RuleBroken(
                f"R9: a life of {slot.expires_at - connection.opened_at:.3f}s instead of {life}s"
            )
        if life and abs(slot.expires_at - slot.opened_at - life) < 1e-9:
            raise RuleBroken("R9: no jitter")
        # A life of less than a second ends when somebody asks for the connection, a longer one by itself.
        if life >= 1.0 and now > slot.expires_at + NEAR:
            raise RuleBroken("R9: an idle connection has outlived itself")

    def _check_waiting(self, now: float) -> None:
        """Rules 4 and 5: whoever waits has a reason to, and a time left to do it."""
        pool, roster = self.pool, self.roster
        if self._is_pending():
            self.pending_at = now
        for caller in self.waiting.values():
            if now > caller.latest + NEAR:
                raise RuleBroken(f"R5: caller {caller.name} waits {now - caller.latest:.3f}s too long")
            if now < caller.busy_until - NEAR or caller.kept:
                continue
            caller.kept = (
                self.pending_at >= caller.busy_until - NEAR
            )  # it was the server that kept it until now
            if now > caller.busy_until + NEAR and not caller.kept:
                raise RuleBroken(f"R5: caller {caller.name} waits on, and nothing was being opened")
        takers = self._takers()
        if not takers:
            return
        if roster.count(IDLE):
            usable = sum(not pool._needs_proof(slot, now) for slot in pool._idle)
            if usable or roster.count(PROVING) < min(takers, roster.count(IDLE, PROVING)):
                raise RuleBroken(f"R4: {takers} wait, {roster.count(IDLE)} are idle, {usable} of them usable")
        self._check_opening(takers, now)

    def _is_pending(self) -> bool:
        """Whether an answer of the server is awaited."""
        server = self.server
        asked = self.roster.count(*CONNECTING, PROVING, SILENT)
        return bool(server.connecting or server.last_open_failed or asked)

    def _check_opening(self, takers: int, now: float) -> None:
        pool, roster = self.pool, self.roster
        opening = roster.count(OPENING)
        lacking = takers - opening - roster.count(PROVING, RESETTING)
        if lacking <= 0 or len(roster) >= self.options.limit:
            return
        stuck = roster.count(EntryState.STUCK)
        if pool.breaker.allowance(now=now, opening=opening, stuck=stuck, live=roster.trusted()):
            raise RuleBroken(f"R4: {lacking} wait, there is room, and nothing is being opened")
        if opening or stuck > 1:
            return
        timer = pool._wake_timer
        if timer is None or timer.cancelled() or timer.when() > pool.breaker.not_before + NEAR:
            raise RuleBroken("R4: callers wait for the breaker, and nothing will wake them")

    def _takers(self) -> int:
        left = {name: top - self.held_by.get(name, 0) for name, top in self.ceilings.items()}
        takers = 0
        for caller in self.waiting.values():
            if caller.workload in left:
                left[caller.workload] -= 1
                if left[caller.workload] < 0:
                    continue
            takers += 1
        return takers

    def _check_ending(self, now: float) -> None:
        roster = self.roster
        if self.server.connecting or roster.count(*CONNECTING, PROVING, SILENT, IDLE):
            raise RuleBroken(f"R13: a closed pool goes on: {self.pool.snapshot()}")
        if self.waiting:
            raise RuleBroken("R13: callers wait for a closed pool")
        first_end = min((e.began + e.grace for e in self.endings), default=now)
        if now > first_end + NEAR and len(roster):
            raise RuleBroken("R13: the grace time is over, and connections are left")
        for ending in self.endings:
            if not ending.done and not len(roster) and not self.pool._tasks:
                raise RuleBroken("R13: everything is closed, and close has not noticed")
            if not ending.done and now > ending.began + ending.grace + self.options.leave_timeout + NEAR:
                raise RuleBroken("R13: close takes longer than its grace time")

    # -- at the end --------------------------------------------------------------------------------------------

    def after_everybody_left(self) -> None:
        """Fair weather, nobody holds or waits."""
        self.at_rest()
        roster = self.roster
        if roster.count(LEASED) or self.handed or self.waiting or self.pool.waiting:
            raise RuleBroken("R1: somebody seems to hold or to wait though everybody has left")
        if not self.pool.closed and roster.count(IDLE, PROVING, SILENT) > self.options.size:
            raise RuleBroken("R8: more idle connections than the pool's size")
        if any(self.held_by.values()):
            raise RuleBroken(f"ceiling: {self.held_by} is held though everybody has left")

    def after_close(self) -> None:
        """The pool is closed and the server had time to notice."""
        self.at_rest()
        if self.server.backends or self.server.connecting:
            raise RuleBroken(f"R1: the server still has {list(self.server.backends.values())}")
        started, succeeded, failed = self.connects.values()
        if succeeded + failed > started:
            raise RuleBroken("events: more connects ended than began")
        if self.pool_closed_events != 1:
            raise RuleBroken(f"events: the pool said {self.pool_closed_events} times that it is closed")
        if any(connection for connection in self.pool._held.values()):
            raise RuleBroken(f"ceiling: the pool thinks that {dict(self.pool._held)} is held")
