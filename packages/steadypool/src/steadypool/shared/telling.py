"""Tells what became of a statement that went over a shared connection, where somebody wants to know."""

from __future__ import annotations

from typing import Any

from steadypool.events import StatementFinished
from steadypool.pool import Pool
from steadypool.shared.call import Call
from steadypool.shared.pace import Pace
from steadypool.sqlstate import sqlstate_in
from steadypool.whereabouts import endpoint


def tell(pool: Pool[Any], call: Call, pace: Pace, rows: int | None, error: BaseException | None) -> None:
    """Tell of a call that has ended; what it did not spend executing it spent waiting for its turn."""
    now = pool.clock.monotonic()
    elapsed = now - call.since
    segment = call.segment
    seconds = min(segment.took, elapsed) or (elapsed if segment.sent else 0.0)
    pool.events.emit(
        StatementFinished(
            pool.name,
            now,
            pace.name.fingerprint,
            "shared",
            seconds,
            rows,
            elapsed - seconds,
            0.0,
            None,
            call.connection,
            None if error is None else sqlstate_in(error),
            None if error is None else type(error).__name__,
            endpoint(),
            pace.name.summary,
        )
    )
