"""What can happen to a pool, in which of its states: the table that a run of many schedules has to fill.

`TABLE`: an event is paired with every state in which some connection was when it happened; `gone` stands for
a pool without connections. `MOVES`: from which state a connection may come into which.
"""

from __future__ import annotations

from steadypool.pool.lease import EntryState

CLOSING, GONE, IDLE, LEASED = EntryState.CLOSING, EntryState.GONE, EntryState.IDLE, EntryState.LEASED
OPENING, PROVING, RESETTING, SILENT, STUCK = (
    EntryState.OPENING,
    EntryState.PROVING,
    EntryState.RESETTING,
    EntryState.SILENT,
    EntryState.STUCK,
)

Pair = tuple[EntryState, str]
Move = tuple[EntryState, EntryState]

EVERYWHERE = frozenset(EntryState)
THERE = EVERYWHERE - {GONE}
AFTER_CLOSE = frozenset({CLOSING, LEASED, RESETTING})
"""A closed pool has nothing idle, opens nothing and asks nothing."""

TABLE: dict[str, frozenset[EntryState]] = {
    # what callers do
    **dict.fromkeys(("acquire", "release", "release twice", "use", "cancel", "caller cancelled"), EVERYWHERE),
    # what an operator does
    **dict.fromkeys(
        ("evict", "cancel evict", "suspect all", "prove idle", "warm up", "abort idle", "close"), EVERYWHERE
    ),
    # what the world does
    **dict.fromkeys(("wait", "weather", "fair", "cut", "cut all", "silence", "silence all"), EVERYWHERE),
    "first use is silent": THERE,
    # what the server answers, which takes a connection
    **dict.fromkeys(("open ok", "open instant", "open refuse", "open final", "open bug"), THERE),
    **dict.fromkeys(("open says timeout", "open gives up", "open timeout", "open asleep"), THERE),
    **dict.fromkeys(("open stubborn", "ping ok", "ping failed", "ping timeout"), THERE),
    **dict.fromkeys(("reset ok", "reset failed", "reset timeout", "released kept"), THERE),
    **dict.fromkeys(
        ("close ok", "close instant", "close raises", "close timeout", "close after abort"), THERE
    ),
    # how connections end
    **dict.fromkeys(
        ("gone connect failed", "gone disposed", "gone drained", "gone evicted", "gone found dead"),
        EVERYWHERE,
    ),
    **dict.fromkeys(("gone not clean", "gone overflow", "gone recycled"), EVERYWHERE),
    # what callers are told
    **dict.fromkeys(
        ("refused ConnectTimeout", "refused DeadlineExceeded", "refused PoolQueueFull"), EVERYWHERE
    ),
    "refused PoolTimeout": THERE,
    "turned away early": THERE,
    "refused ConnectFailed": frozenset({CLOSING, GONE, LEASED, OPENING, STUCK}),
    "refused PoolClosed": AFTER_CLOSE | {GONE},
    "refused DatabaseUnavailable": frozenset({CLOSING, GONE}),
    # the end of the pool
    "close ended": frozenset({GONE}),
    "open cancelled": frozenset({CLOSING, GONE, LEASED}),
    "ping cancelled": frozenset({CLOSING, GONE, LEASED}),
    "reset cancelled": frozenset({GONE}),
    "close cancelled": frozenset({CLOSING, GONE, LEASED}),
    "gone aborted at close": frozenset({CLOSING, GONE, LEASED}),
    "gone pool closed": frozenset({CLOSING, GONE, LEASED}),
    "gone closed while opening": frozenset({CLOSING, GONE, LEASED}),
}
"""For each event the states that a run must have seen it in."""

NEVER: dict[str, frozenset[EntryState]] = {
    "close ended": THERE,
    "gone aborted at close": frozenset({IDLE}),
    "gone pool closed": frozenset({IDLE}),
    "refused PoolClosed": frozenset({IDLE}),
    "refused DatabaseUnavailable": THERE - {CLOSING},
    "open ok": frozenset({GONE}),
    "ping ok": frozenset({GONE}),
    "reset ok": frozenset({GONE}),
}
"""For some events states that would be a bug."""

MOVES: frozenset[Move] = frozenset(
    {
        (OPENING, IDLE),
        (OPENING, CLOSING),
        (OPENING, GONE),
        (OPENING, STUCK),
        (STUCK, IDLE),
        (STUCK, CLOSING),
        (STUCK, GONE),
        (IDLE, LEASED),
        (IDLE, PROVING),
        (IDLE, SILENT),
        (IDLE, CLOSING),
        (IDLE, GONE),  # abort_idle
        (PROVING, IDLE),
        (PROVING, SILENT),
        (PROVING, CLOSING),
        (SILENT, IDLE),
        (SILENT, CLOSING),
        (LEASED, IDLE),
        (LEASED, RESETTING),
        (LEASED, CLOSING),
        (LEASED, GONE),  # the grace time of close is over
        (RESETTING, IDLE),
        (RESETTING, CLOSING),
        (RESETTING, GONE),  # the same
        (CLOSING, GONE),
    }
)
"""The only ways from state to state; each must have been gone."""

RARE: frozenset[Move] = frozenset({(PROVING, GONE), (SILENT, GONE)})
"""Possible where a connection is being proven in the moment in which close runs out of time."""


def missing(pairs: set[Pair]) -> list[str]:
    """Events that were not met in a state in which they can happen."""
    return [
        f"{event} while {state.value}"
        for event, states in TABLE.items()
        for state in sorted(states, key=lambda s: s.value)
        if (state, event) not in pairs
    ]


def impossible(pairs: set[Pair], moves: set[Move]) -> list[str]:
    """What was seen and cannot be."""
    wrong = [f"{event} while {state.value}" for state, event in pairs if state in NEVER.get(event, ())]
    return wrong + [f"{a.value} -> {b.value}" for a, b in moves - MOVES - RARE]
