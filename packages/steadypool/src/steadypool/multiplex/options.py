"""How the shared way behaves, and what it tells of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RESET_LIMITS = ("RESET statement_timeout", "RESET lock_timeout")
"""Takes back what a connection gets when it begins to be shared."""


@dataclass(frozen=True, slots=True)
class MultiplexOptions:
    """Times are seconds.

    `window` is how many statements may be on their way at once on a connection: the most that can queue behind a
    slow one. `local` is for connections behind a transaction pooler: nothing may be set for a session there.
    """

    connections: int = 2
    window: int = 8
    statement_timeout: float = 2.0
    lock_timeout: float = 1.0
    result_limit: int = 16 * 2**20
    slow_after: float = 0.05
    """A statement that takes longer makes the others wait elsewhere; one that often does gets a connection alone."""
    prove_after: float | None = 0.5
    """A connection that has been silent for longer is asked for a sign of life before a statement that must not run
    twice; None for never."""
    rotate_after: float = 30.0
    """A connection is given back to the pool after this time, so that it can be recycled."""
    local: bool = False
    reset: Sequence[str] = RESET_LIMITS
    """What a connection is made clean with when it is given back: at least the limits that were set on it."""


@dataclass(frozen=True, slots=True)
class MultiplexStats:
    """The shared way at one moment, and what happened on it since the start.

    `collateral` are strangers' statements that failed because a connection was ended for somebody else's sake;
    `alone` are statements that got a connection of their own because they are slow, or their task holds one.
    `queued` statements wait for their turn; `waiting` is by how many those exceed what the pool counts, in whose queue
    the shared way itself may stand for all of them.
    """

    connections: int
    in_flight: int
    queued: int
    waiting: int
    statements: int
    alone: int
    refused: int
    withdrawn: int
    repeated: int
    collateral: int
    offences: int
