"""The list of a pool's connections and how many are in each state. The only place where a slot changes its state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from steadypool import errors
from steadypool._clock import SYSTEM_CLOCK, Clock
from steadypool._sql.fingerprint import fingerprint
from steadypool.pool.inspection import ConnectionInfo
from steadypool.pool.lease import EntryState, PoolEntry, PoolOptions

T = TypeVar("T")

LIVE = frozenset({EntryState.IDLE, EntryState.PROVING, EntryState.LEASED, EntryState.RESETTING})
"""States in which there is a connection that may be used again."""
SUPPLY = frozenset({EntryState.PROVING, EntryState.RESETTING, EntryState.OPENING})
"""States that end in a connection for somebody who waits, if all goes well."""

CONNECTING = frozenset({EntryState.OPENING, EntryState.STUCK})
"""States in which there is no connection yet."""

ASKING = CONNECTING | {EntryState.PROVING, EntryState.SILENT}
"""States in which an answer of the server is awaited that nobody else can give."""


class EntryTable(Generic[T]):
    """All slots of a pool, opening and closing ones too; `clock` says since when each is what it is."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._slots: dict[int, PoolEntry[T]] = {}
        self.counts = dict.fromkeys(EntryState, 0)
        """How many slots are in each state, for a look that has to be quick; nobody else changes it."""
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[PoolEntry[T]]:
        return iter(tuple(self._slots.values()))

    def count(self, *states: EntryState) -> int:
        """How many slots are in one of these states."""
        total = 0
        for state in states:
            total += self.counts[state]
        return total

    def by_state(self) -> dict[EntryState, int]:
        """How many slots are in each state; may be called from another thread, since copying cannot be interrupted."""
        return self.counts.copy()

    def trusted(self) -> int:
        """How many connections are live and not under suspicion."""
        return sum(slot.state in LIVE and not slot.suspect for slot in self._slots.values())

    def add(self, generation: int) -> PoolEntry[T]:
        """A new slot, whose connection is about to be opened."""
        self._numbers += 1
        slot = PoolEntry[T](self._numbers, generation, self._clock.monotonic())
        self._slots[slot.number] = slot
        self.counts[slot.state] += 1
        return slot

    def move(self, slot: PoolEntry[T], state: EntryState) -> None:
        """Change a slot's state; GONE takes it off the list."""
        counts = self.counts
        counts[slot.state] -= 1
        slot.state = state
        slot.since = self._clock.monotonic()
        if state is EntryState.GONE:
            del self._slots[slot.number]
        else:
            counts[state] += 1

    def snapshot(
        self,
        options: PoolOptions,
        now: float,
        waiting: int,
        failure: BaseException | None,
        expected_wait: float | None = None,
    ) -> errors.PoolSnapshot:
        """Counts, and who holds what for how long."""
        leases = [slot.lease for slot in self._slots.values() if slot.lease is not None]
        return errors.PoolSnapshot(
            size=options.size,
            max_overflow=-1 if options.max_overflow is None else options.max_overflow,
            leased=self.count(EntryState.LEASED),
            idle=self.count(EntryState.IDLE, EntryState.PROVING, EntryState.SILENT),
            opening=self.count(*CONNECTING),
            closing=self.count(EntryState.CLOSING, EntryState.RESETTING),
            waiting=waiting,
            holders=tuple(errors.Holder(x.name, now - x.acquired_at, x.workload) for x in leases),
            last_connect_failure=None if failure is None else errors.words_of(failure),
            expected_wait=expected_wait,
        )

    def facts(self, now: float) -> tuple[ConnectionInfo, ...]:
        """What there is to know of each, in the order in which they were opened."""
        return tuple(_facts_of(slot, now) for slot in self._slots.values())


def _facts_of(slot: PoolEntry[T], now: float) -> ConnectionInfo:
    there, lease = slot.connection is not None, slot.lease
    running = None if lease is None else lease.running
    return ConnectionInfo(
        number=slot.number,
        state=slot.state.value,
        seconds=now - slot.since,
        age=now - slot.opened_at if there else None,
        proven=now - slot.proven_at if there else None,
        suspect=slot.suspect,
        leases=slot.leases,
        holder=None if lease is None else lease.name,
        workload=None if lease is None else lease.workload,
        statement=None if running is None else fingerprint(running[0]),
        executing=None if running is None else now - running[1],
    )
