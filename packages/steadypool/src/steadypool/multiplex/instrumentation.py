"""Tells what became of a statement that went over a shared connection, where somebody wants to know."""

from __future__ import annotations

from typing import Any

from steadypool._callsite import endpoint
from steadypool._sqlstate import sqlstate_in
from steadypool.errors import SteadypoolError
from steadypool.events import AcquireFailed, StatementFinished, StatementsFinished, StatementTiming, WaitEnded
from steadypool.multiplex.request import Request
from steadypool.pool.pool import Pool

NOISE = 0.001
"""Seconds of waiting that nobody is told of: the turn on a connection that others use too."""


def went_without(pool: Pool[Any], call: Request, error: BaseException) -> None:
    """Tell that nothing of a statement was sent, because there was no connection for it in time."""
    now = pool.clock.monotonic()
    pool.events.emit(AcquireFailed(pool.name, now, now - call.since, error, None))


def tell_together(pool: Pool[Any], connection: int, calls: list[Request], now: float) -> None:
    """Tell of calls that were answered on a connection at this moment, all of them well and quickly."""
    statements: list[StatementTiming] = []
    for call in calls:
        waited = now - call.since - call.took
        connecting = call.connecting
        if connecting:
            connecting = min(connecting, waited)
        name = call.pace.name
        rows = call.results[-1].affected
        statements.append(StatementTiming(name.fingerprint, call.took, waited - connecting, connecting, rows))
    pool.events.emit(StatementsFinished(pool.name, now, connection, statements))


def tell(pool: Pool[Any], call: Request, rows: int | None, error: BaseException | None) -> None:
    """Tell of a call that has ended; what it did not spend executing it spent waiting for its turn."""
    now = pool.clock.monotonic()
    elapsed = now - call.since
    seconds = min(call.took, elapsed) or (elapsed if call.sent else 0.0)
    waited, connecting = elapsed - seconds, min(call.connecting, elapsed - seconds)
    without = error if isinstance(error, SteadypoolError) and not call.sent else None
    if without is not None:
        connecting = without.elapsed.connecting
    if (without is not None or waited > NOISE) and pool.events.wanted(WaitEnded):
        ended_in = None if without is None else type(without).__name__
        pool.events.emit(
            WaitEnded(pool.name, now, waited, connecting, None, call.connection, ended_in, endpoint())
        )
    if without is not None:
        return  # it was not executed, as little as that of a caller whom the pool turns away
    name = call.pace.name
    pool.events.emit(
        StatementFinished(
            pool.name,
            now,
            name.fingerprint,
            "shared",
            seconds,
            rows,
            waited - connecting,
            connecting,
            None,
            call.connection,
            None if error is None else sqlstate_in(error),
            None if error is None else type(error).__name__,
            endpoint(),
            name.summary,
        )
    )
