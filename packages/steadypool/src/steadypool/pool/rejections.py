"""What a caller is told who does not get a connection. Pure: from what is known to a named error."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeGuard

from steadypool import errors
from steadypool._sql.fingerprint import fingerprint
from steadypool._sqlstate import sqlstate_in
from steadypool.deadline import Deadline
from steadypool.errors import Elapsed, Phase, PoolSnapshot, Report, words_of

LATE = 0.25
"""Seconds by which a busy event loop may be late before it is mentioned."""

RETRY_AFTER = 1.0
"""Seconds after which a refused caller is invited to come back."""


def report(phase: Phase, waited: float, deadline: Deadline | None, pool: PoolSnapshot) -> Report:
    """A report in which the whole time, `waited` seconds, went into one phase."""
    connecting = phase is Phase.CONNECTING
    return Report(
        phase=phase,
        elapsed=Elapsed(connecting=waited) if connecting else Elapsed(waiting=waited),
        deadline=None if deadline is None else deadline.seconds,
        retry_after=RETRY_AFTER,
        pool=pool,
    )


def out_of_time(
    *,
    now: float,
    since: float,
    limit: float,
    deadline: Deadline | None,
    pool: PoolSnapshot,
    cause: BaseException | None,
    ceiling: str | None = None,
) -> errors.SteadypoolError:
    """The error for a caller whose time is up.

    Args:
        now: the moment, on the pool's clock.
        since: when the caller came.
        limit: seconds it was to wait for a busy pool.
        deadline: the caller's own, or None.
        pool: the pool at this moment.
        cause: what the last attempt to connect said, or None if it succeeded.
        ceiling: the caller's workload, if that holds as many connections as it may.
    """
    busy = ceiling is not None or is_busy(pool, cause)
    waited = now - since
    facts = report(Phase.WAITING if busy else Phase.CONNECTING, waited, deadline, pool)
    error: errors.SteadypoolError
    if deadline is not None and now >= deadline.at:
        doing = "waiting for a connection" if busy else "connecting to the database"
        error = errors.DeadlineExceeded(
            f"deadline of {deadline.seconds:.2f}s passed after {waited:.2f}s of {doing} ({pool})"
            + (f"; the last attempt to connect said: {words_of(cause)}" if cause else ""),
            facts,
        )
    elif busy:
        said = exhausted(limit, pool) if ceiling is None else at_ceiling(ceiling, limit, pool)
        error = errors.PoolTimeout(said, facts)
    elif cause is not None and is_bug(cause):
        return connect_failed(cause, waited, deadline, pool)
    elif cause is not None and not isinstance(cause, errors.ConnectTimeout):
        error = errors.ConnectFailed(
            f"no connection to the database within {waited:.2f}s; the last attempt said: {words_of(cause)}",
            facts,
            final=is_final(cause),
        )
    else:
        error = errors.ConnectTimeout(
            f"the database did not answer within {waited:.2f}s"
            + (f"; the last attempt said: {words_of(cause)}" if cause else ""),
            facts,
        )
    error.message += _said_late(waited - limit)
    error.__cause__ = cause
    return error


def _said_late(seconds: float) -> str:
    """What is added where the event loop did not get round to saying so in time: then the pool is not to blame."""
    if seconds < LATE:
        return ""
    return (
        f". The event loop was busy, so this is said {seconds:.2f}s late, and everything else in this process was as "
        "late: look for what blocks it"
    )


def too_late(
    *,
    left: float,
    limit: float,
    deadline: Deadline | None,
    waited: float,
    pool: PoolSnapshot,
    expected: float | None,
    ceiling: str | None = None,
) -> errors.SteadypoolError:
    """The error for a caller who is turned away before its time is over, since that would not be enough.

    Args:
        left: seconds that it could still wait.
        limit: seconds it was to wait in all.
        deadline: its own, if that is what ends its time.
        waited: seconds it has waited.
        pool: the pool at this moment.
        expected: seconds until its turn, on average; None if it is there.
        ceiling: its workload, if that holds as many connections as it may.
    """
    facts = replace(
        report(Phase.WAITING, waited, deadline, pool),
        early=True,
        retry_after=max(RETRY_AFTER, expected or 0.0),
    )
    turn = "its turn is now" if expected is None else f"the expected wait is {expected:.2f}s"
    why = f"turned away early: {turn} and {left:.2f}s are left"
    if deadline is not None:
        return errors.DeadlineExceeded(
            f"deadline of {deadline.seconds:.2f}s cannot be met, {why}, which is less than what uses of a connection "
            f"take ({pool})"
            if expected is None
            else f"deadline of {deadline.seconds:.2f}s cannot be met, {why} ({pool})",
            facts,
        )
    said = exhausted(limit, pool, why) if ceiling is None else at_ceiling(ceiling, limit, pool, why)
    return errors.PoolTimeout(said, facts)


def is_busy(pool: PoolSnapshot, cause: BaseException | None) -> bool:
    """Whether callers wait for those who hold the connections, rather than for the database to let more of them in."""
    if cause is not None or not pool.leased:
        return False
    there = pool.leased + pool.idle + pool.opening + pool.closing
    full = pool.max_overflow >= 0 and there >= pool.size + pool.max_overflow
    # Idle connections, while somebody waits, are such as have not answered a ping yet; and where more are being
    # opened than are in use it is the server that lets nobody in.
    return (full and pool.leased >= pool.opening) or not (pool.opening or pool.idle)


def at_ceiling(workload: str, timeout: float, pool: PoolSnapshot, why: str = "") -> str:
    """What is said where the pool has room, but not for this workload."""
    return (
        f"the workload {workload!r} holds as many connections as it may, connection timed out, "
        f"timeout {timeout:0.2f}{why and '; '}{why} ({pool}). Find out what holds them, or raise its max_connections"
    )


def exhausted(timeout: float, pool: PoolSnapshot, why: str = "") -> str:
    """What SQLAlchemy's QueuePool says, word for word, and then who holds what and what to do."""
    return (
        f"QueuePool limit of size {pool.size} overflow {pool.max_overflow} reached, "
        f"connection timed out, timeout {timeout:0.2f}{why and '; '}{why} ({pool}). "
        "Find out what holds the connections, or raise DATABASE_POOL_SIZE or DATABASE_MAX_OVERFLOW"
    )


def queue_full(max_waiting: int, deadline: Deadline | None, pool: PoolSnapshot) -> errors.PoolQueueFull:
    """The error for a caller who is turned away because too many wait already."""
    return errors.PoolQueueFull(
        f"{pool.waiting} callers wait for a connection already, as many as DATABASE_MAX_WAITING allows "
        f"({max_waiting}); turned away at once ({pool})",
        report(Phase.WAITING, 0.0, deadline, pool),
    )


def connect_failed(
    failure: BaseException, waited: float, deadline: Deadline | None, pool: PoolSnapshot
) -> errors.SteadypoolError:
    """The error for a caller whose connect cannot succeed until somebody changes something."""
    facts = report(Phase.CONNECTING, waited, deadline, pool)
    error: errors.SteadypoolError
    if is_bug(failure):
        error = type(failure)(failure.message, facts)
        error.__cause__ = failure.__cause__ or failure
    else:
        error = errors.ConnectFailed(words_of(failure), facts, final=is_final(failure))
        error.__cause__ = failure
    return error


def hook_failed(failure: BaseException) -> str:
    """What is said about code of the application, or of ours, that failed in the middle of a connect."""
    return (
        f"opening a connection raised {type(failure).__name__}: {words_of(failure)}. Neither the network nor the "
        "server did this; look at on_connect and at the handlers of connect events"
    )


def said_by_server(failure: BaseException) -> BaseException | None:
    """What the server said to SQL that the application runs while a connection is opened; None for other failures."""
    cause = failure.__cause__ if isinstance(failure, errors.HookFailed) else None
    return cause if cause is not None and sqlstate_in(cause) else None


def is_bug(failure: BaseException) -> TypeGuard[errors.SteadypoolError]:
    """Whether it has a name that says nothing about the server: a hook that failed, a setting that cannot work."""
    return isinstance(failure, errors.SteadypoolError) and not isinstance(failure, errors.ConnectFailed)


def is_final(failure: BaseException) -> bool:
    """Whether connecting again cannot help. What is not a known connect error is a bug, so it is final too."""
    return not isinstance(failure, errors.ConnectFailed) or failure.final


def not_for_sharing(sql: str, why: str) -> errors.NotMultiplexable:
    """The error for a statement that `multiplex.eligibility` refuses; it was not sent."""
    return errors.NotMultiplexable(
        f"refused on the shared way: {why}. Use db.session() or db.connection() for: {fingerprint(sql)}",
        Report(phase=Phase.WAITING),
    )


def too_large(sql: str, limit: int, facts: Report) -> errors.ResultTooLarge:
    """The error for a result of more bytes than single statements may have."""
    return errors.ResultTooLarge(
        f"the result has more than {limit:,} bytes, the limit of a shared connection "
        f"(DATABASE_SHARED_RESULT_LIMIT): {fingerprint(sql)}. Ask for less, or use db.fetch_iter() or db.connection()",
        facts,
    )


def locked_out(sql: str, limit: float, facts: Report) -> errors.StatementTimeout:
    """The error for a single statement that waited too long for a lock."""
    return errors.StatementTimeout(
        f"statement ended after waiting {limit:.2f}s for a lock that somebody holds: {fingerprint(sql)}. "
        "Look for who holds it (pg_blocking_pids), or use db.session() or db.connection(), which may wait longer "
        "(DATABASE_SHARED_LOCK_TIMEOUT)",
        facts,
    )


def closed(name: str) -> errors.PoolClosed:
    """The error for whoever uses a pool after its end."""
    return errors.PoolClosed(f"the pool {name!r} is closed", Report(phase=Phase.CLOSING))


def unavailable(
    failure: BaseException | None, pause: float, deadline: Deadline | None, pool: PoolSnapshot
) -> errors.DatabaseUnavailable:
    """The error for a caller who is turned away because recent attempts failed and no other comes in time."""
    facts = replace(report(Phase.CONNECTING, 0.0, deadline, pool), retry_after=max(pause, 0.0))
    error = errors.DatabaseUnavailable(
        f"not even tried: the last attempt to connect failed, the next is due in {pause:.2f}s"
        + (f"; the last one said: {words_of(failure)}" if failure else ""),
        facts,
        final=failure is not None and is_final(failure),
    )
    error.__cause__ = failure
    return error
