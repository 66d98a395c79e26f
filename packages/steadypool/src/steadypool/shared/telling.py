"""Tells what became of a statement that went over a shared connection, where somebody wants to know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from steadypool.events import StatementFinished
from steadypool.fingerprint import name_of
from steadypool.pipeline import Result
from steadypool.pool import Pool
from steadypool.shared.call import Call
from steadypool.sqlstate import sqlstate_in
from steadypool.whereabouts import endpoint


async def told(pool: Pool[Any], call: Call, run: Callable[[Call], Awaitable[Result]]) -> Result:
    """Run the call and tell of it; what it did not spend executing it spent waiting for its turn."""
    if not pool.events.wanted(StatementFinished):
        return await run(call)
    try:
        result = await run(call)
    except BaseException as error:
        _tell(pool, call, None, error)
        raise
    _tell(pool, call, result.affected, None)
    return result


def _tell(pool: Pool[Any], call: Call, rows: int | None, error: BaseException | None) -> None:
    now, name = pool.clock.monotonic(), name_of(call.sql)
    elapsed = now - call.since
    seconds = min(call.segment.took, elapsed) or (elapsed if call.segment.sent else 0.0)
    state = sqlstate_in(error)
    pool.events.emit(
        StatementFinished(
            pool.name,
            now,
            name.fingerprint,
            "shared",
            seconds,
            rows,
            waiting=elapsed - seconds,
            connection=call.connection,
            sqlstate=state,
            error_type=None if error is None else type(error).__name__,
            request=endpoint(),
            summary=name.summary,
        )
    )
