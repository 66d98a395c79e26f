"""Tells what became of a statement that went over a shared connection, where somebody wants to know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from steadypool.errors import SteadypoolError
from steadypool.events import AcquireFailed, StatementFinished, WaitEnded
from steadypool.fingerprint import name_of
from steadypool.pipeline import Result
from steadypool.pool import Pool
from steadypool.shared.call import Call
from steadypool.sqlstate import sqlstate_in
from steadypool.whereabouts import endpoint

NOISE = 0.001
"""Seconds of waiting that nobody is told of: the turn on a connection that others use too."""


def went_without(pool: Pool[Any], call: Call, error: BaseException) -> None:
    """Tell that nothing of a statement was sent, because there was no connection for it in time."""
    now = pool.clock.monotonic()
    pool.events.emit(AcquireFailed(pool.name, now, now - call.since, error, None))


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
    connecting = min(call.connecting, elapsed - seconds)
    error_type = None if error is None else type(error).__name__
    without = error is not None and not call.segment.sent
    if without and isinstance(error, SteadypoolError):
        connecting = error.elapsed.connecting
    if (without or elapsed - seconds > NOISE) and pool.events.wanted(WaitEnded):
        ended_in = error_type if without else None
        pool.events.emit(
            WaitEnded(
                pool.name, now, elapsed - seconds, connecting, None, call.connection, ended_in, endpoint()
            )
        )
    if without and isinstance(error, SteadypoolError):
        return  # it was never executed, as little as that of a caller whom the pool turns away
    pool.events.emit(
        StatementFinished(
            pool.name,
            now,
            name.fingerprint,
            "shared",
            seconds,
            rows,
            waiting=elapsed - seconds - connecting,
            connecting=connecting,
            connection=call.connection,
            sqlstate=sqlstate_in(error),
            error_type=error_type,
            request=endpoint(),
            summary=name.summary,
        )
    )
