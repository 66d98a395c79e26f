"""What a caller of the shared way is told: names for what ended its statement. SQL's own errors pass as they are."""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from steadypool import errors
from steadypool._sql.fingerprint import fingerprint
from steadypool._sqlstate import LOCK_NOT_AVAILABLE, QUERY_CANCELED, said
from steadypool.deadline import EARLY
from steadypool.errors import Elapsed, Phase, PoolSnapshot, Report
from steadypool.multiplex.request import Request
from steadypool.pipeline import BatchTimeout, ConnectionClosed, ResultTooLarge, SessionModified
from steadypool.pool import rejections


def deadline_passed(call: Request, now: float, pool: PoolSnapshot) -> errors.DeadlineExceeded:
    """The caller gave up; what was not sent yet will not be."""
    sent = call.sent
    phase = Phase.EXECUTING if sent else Phase.WAITING
    seconds = now - call.since if call.deadline is None else call.deadline.seconds
    doing = "executing" if sent else "waiting for its turn, nothing was sent"
    return errors.DeadlineExceeded(
        f"deadline of {seconds:.2f}s passed while {doing}: {fingerprint(call.sql)}",
        _report(call, now, pool, phase=phase, maybe_executed=sent),
    ).with_report(deadline=seconds)


def named(
    call: Request,
    error: psycopg.Error,
    now: float,
    pool: PoolSnapshot,
    timed_out: Callable[[Request, float], None],
    lock_timeout: float,
) -> errors.SteadypoolError | None:
    """A name for what the driver raised; None where it is the statement's own error."""
    name, took = fingerprint(call.sql), now - call.since
    report = _report(call, now, pool, maybe_executed=call.sent)
    if isinstance(error, SessionModified):
        return errors.NotMultiplexable(
            f"{error}; the connection was dropped, and with it what the statement left behind: {name}", report
        )
    if isinstance(error, BatchTimeout):
        timed_out(call, call.allowed)
        return errors.StatementTimeout(
            f"statement ended after {took:.2f}s, limit {call.allowed:.2f}s: {name}. "
            "The server did not answer; the connection was dropped",
            report,
        )
    if isinstance(error, ConnectionClosed):
        because = said(error.sqlstate, error.words)
        effect = "Whether the statement took effect is not known" if error.sent else "Nothing was sent"
        return errors.ConnectionLost(
            f"a shared connection was lost after {took:.2f}s in: {name} ({because}). {effect}",
            _report(call, now, pool, maybe_executed=error.sent),
        )
    if isinstance(error, ResultTooLarge):
        return rejections.too_large(call.sql, call.byte_limit or 0, report)
    if error.sqlstate == LOCK_NOT_AVAILABLE and call.took >= lock_timeout - EARLY:
        timed_out(call, lock_timeout)
        return rejections.locked_out(call.sql, lock_timeout, _report(call, now, pool, maybe_executed=False))
    if error.sqlstate == QUERY_CANCELED and call.took >= call.allowed - EARLY:
        timed_out(call, call.allowed)
        return errors.StatementTimeout(
            f"statement ended after {call.took:.2f}s, limit {call.allowed:.2f}s on the shared way: {name}. "
            "Make it faster, give it a longer timeout=, or use db.connection() (DATABASE_SHARED_STATEMENT_TIMEOUT)",
            _report(call, now, pool, maybe_executed=False),
        )
    return None


def _report(
    call: Request, now: float, pool: PoolSnapshot, *, phase: Phase = Phase.EXECUTING, maybe_executed: bool
) -> Report:
    total, executing = now - call.since, call.took
    waiting = max(0.0, total - executing) if executing else total if phase is Phase.WAITING else 0.0
    return Report(
        phase,
        Elapsed(waiting=waiting, executing=max(0.0, total - waiting)),
        maybe_executed=maybe_executed,
        pool=pool,
    )
