"""What the shared way tells of a statement, to whoever wants to know."""

from __future__ import annotations

from steadypool.events import StatementFinished
from steadypool.fingerprint import fingerprint
from steadypool.shared.call import Call
from steadypool.whereabouts import endpoint


def finished(
    pool: str, now: float, call: Call, rows: int | None, error: BaseException | None
) -> StatementFinished:
    """The event of a statement that ended, well or not; told in the caller's own context."""
    executing = call.segment.took
    state = getattr(error, "sqlstate", None) or getattr(getattr(error, "__cause__", None), "sqlstate", None)
    return StatementFinished(
        pool,
        now,
        fingerprint(call.sql),
        "shared",
        executing,
        rows,
        waiting=max(0.0, now - call.since - executing),
        connection=call.connection,
        sqlstate=state,
        error_type=None if error is None else type(error).__name__,
        request=endpoint(),
    )
