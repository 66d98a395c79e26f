"""Gives every failure of a statement its name: a `handle_error` listener that acts by the table in sqlstate.py."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import event

from steadypool import errors
from steadypool._sql.fingerprint import fingerprint
from steadypool._sql.texts import not_encodable
from steadypool._sqlstate import QUERY_CANCELED, Disposition, cause_of_loss, fate_of, said
from steadypool.deadline import EARLY
from steadypool.errors import Elapsed, Phase, Report
from steadypool.events import ConnectionLost as LostEvent
from steadypool.events import StatementTimedOut
from steadypool.sqlalchemy.dialects.base import BoundedDialect, LimitReached
from steadypool.sqlalchemy.errors import ConnectionLost, StatementTimeout, sqlstate_of
from steadypool.sqlalchemy.instrumentation import COMMIT, commit_seconds, lease_of, pool_of, tell_statement
from steadypool.sqlalchemy.pool import SteadyPool

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine, ExceptionContext

WORKLOAD_OPTION = "steadypool_workload"
"""Execution option: the class of work a statement belongs to."""


def name_errors(engine: Engine) -> None:
    """Give the failures of an engine's statements their names.

    The application's own handlers of `handle_error` have the last word on whether the connection is lost.
    """
    event.listen(engine, "handle_error", name_error)
    dispatch: Any = engine.dialect.dispatch
    listeners = dispatch.handle_error.for_modify(dispatch)
    listeners.listeners = _ThenTheLast(listeners.listeners)


class _ThenTheLast(deque[Callable[..., Any]]):
    """The listeners of `handle_error`, and after them `_keep_connection`, whenever they were added."""

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        return chain(super().__iter__(), (_keep_connection,))


def _keep_connection(context: ExceptionContext) -> BaseException | None:
    """Undo the name of a lost connection where a handler has said that it is not lost."""
    named: BaseException | None = getattr(context, "chained_exception", None)  # unset while there is none
    if isinstance(named, ConnectionLost) and not context.is_disconnect:
        return context.sqlalchemy_exception
    return None


def name_error(context: ExceptionContext) -> BaseException | None:
    """What is raised instead of the driver's exception; None where SQLAlchemy's own name is right already."""
    if context.is_pre_ping:
        return None  # no caller hears of it: the connection is replaced
    named = _named(context)
    _tell(context, named or context.sqlalchemy_exception or context.original_exception)
    return named


def _tell(context: ExceptionContext, seen: BaseException) -> None:
    """Tell of the statement that failed, once, if it was one."""
    execution: Any = context.execution_context
    original = context.original_exception
    fairy = getattr(context.connection, "_dbapi_connection", None)
    if isinstance(seen, errors.ConnectionLost):
        pool, lease = pool_of(fairy), lease_of(fairy)
        if pool is not None and lease is not None:
            number, cause = lease.slot.number, cause_of_loss(_last_words(context)[0])
            now = pool.core.clock.monotonic()
            pool.observers.emit(LostEvent(pool.core.name, now, number, cause, lease.workload))
    state, commit = sqlstate_of(original), commit_seconds(original)
    if commit is not None:
        tell_statement(fairy, COMMIT, seconds=commit, sqlstate=state, error=seen)
    elif not getattr(execution, "steadypool_told", True):
        execution.steadypool_told = True
        tell_statement(fairy, execution.statement, seconds=_elapsed(context), sqlstate=state, error=seen)


def _named(context: ExceptionContext) -> BaseException | None:
    original = context.original_exception
    if isinstance(original, errors.SteadypoolError) or not isinstance(original, Exception):
        return None  # named already, or a cancellation, which is the caller's own doing
    if isinstance(original, UnicodeEncodeError):
        return not_encodable(original)
    if isinstance(original, TimeoutError) and original.errno is None:
        return _given_up(context, original)
    sqlstate, words = _last_words(context)
    if sqlstate == QUERY_CANCELED:
        limit = _dialect(context).statement_timeout(context.execution_context)
        if limit is not None and _elapsed(context) >= limit - EARLY:
            return _timeout(context, limit)
        return None
    fate = fate_of(sqlstate, words=f"{original} {words}") if sqlstate else Disposition.KEEP
    if fate is Disposition.BACK_OFF and (pool := _pool(context)) is not None:
        pool.judge(fate, _driver_connection(context), f"the server said {sqlstate}")
    gone = fate in (Disposition.EVICT, Disposition.EVICT_AND_PROVE)
    gone = gone or _dialect(context).is_confused(original)
    if context.is_disconnect or gone or isinstance(original, OSError):
        context.is_disconnect = True
        return _lost(context, said(sqlstate, words), sent=fate is not Disposition.BACK_OFF)
    if fate is Disposition.DRAIN_HOST and _meets_a_standby(context):
        context.is_disconnect = True
    return None


def _given_up(context: ExceptionContext, original: TimeoutError) -> BaseException:
    """The client gave a statement up: by our limit, or by asyncpg's own, whose TimeoutError says nothing.

    It may still be on its way, so nobody may use the connection again. That it did not answer says something about
    the others too, unless it was the caller's own deadline that was short.
    """
    by_deadline = isinstance(original, LimitReached) and original.deadline is not None
    context.is_disconnect = True
    context.invalidate_pool_on_disconnect = not by_deadline
    if isinstance(original, LimitReached) and by_deadline:
        return _deadline(context, original)
    limit = _dialect(context).statement_timeout(context.execution_context)
    return _timeout(context, _elapsed(context) if limit is None else limit)


def _meets_a_standby(context: ExceptionContext) -> bool:
    """Whether a write was refused because the server is a standby, and not because the transaction is READ ONLY.

    Then everything that is open to it leads to the wrong server. The error stays the server's: nothing took effect.
    """
    connection = _driver_connection(context)
    if connection is None or not _dialect(context).takes_no_writes(connection):
        return False
    return not _options(context).get("postgresql_readonly", False)


def _driver_connection(context: ExceptionContext) -> Any:
    fairy: Any = getattr(context.connection, "_dbapi_connection", None)
    return None if fairy is None or fairy.dbapi_connection is None else fairy.driver_connection


def _dialect(context: ExceptionContext) -> BoundedDialect:
    return cast(BoundedDialect, context.dialect)


def _pool(context: ExceptionContext) -> SteadyPool | None:
    engine_pool: Any = context.engine.pool if context.engine is not None else None
    return engine_pool if isinstance(engine_pool, SteadyPool) else None


def _elapsed(context: ExceptionContext) -> float:
    started = getattr(context.execution_context, "steadypool_started", None)
    if started is not None:
        return _dialect(context).guards.clock.monotonic() - started
    # BEGIN, COMMIT and ROLLBACK have no execution context; what they had to wait is known where a limit ended it.
    original = context.original_exception
    return original.seconds if isinstance(original, LimitReached) else 0.0


def _report(context: ExceptionContext, *, maybe_executed: bool) -> Report:
    pool = _pool(context)
    return Report(
        phase=Phase.EXECUTING,
        elapsed=Elapsed(executing=_elapsed(context)),
        maybe_executed=maybe_executed,
        pool=None if pool is None else pool.core.snapshot(),
    )


def _options(context: ExceptionContext) -> Mapping[str, Any]:
    return context.execution_context.execution_options if context.execution_context is not None else {}


def _workload(context: ExceptionContext) -> str | None:
    return _options(context).get(WORKLOAD_OPTION)


def _statement(context: ExceptionContext) -> str:
    # While rows are fetched only the execution context knows which statement they belong to.
    statement = context.statement or getattr(context.execution_context, "statement", None)
    return fingerprint(statement) if statement else "transaction control"


def _timeout(context: ExceptionContext, limit: float) -> StatementTimeout:
    workload = _workload(context)
    name = _statement(context)
    pool = _pool(context)
    if pool is not None:
        now = _dialect(context).guards.clock.monotonic()
        pool.observers.emit(StatementTimedOut(pool.core.name, now, name, limit, workload))
    what = f" on workload {workload!r}" if workload else ""
    original = context.original_exception
    unanswered = isinstance(original, TimeoutError)
    return StatementTimeout(
        f"statement ended after {_elapsed(context):.2f}s{what}, limit {limit:.2f}s: {name}. "
        + ("The server did not answer; the connection was dropped. " if unanswered else "")
        + "Make it faster, or give its workload a longer statement_timeout (DATABASE_STATEMENT_TIMEOUT)",
        _report(context, maybe_executed=unanswered),
        statement=context.statement,
        orig=original,
        connection_invalidated=context.is_disconnect,
    )


def _deadline(context: ExceptionContext, reached: LimitReached) -> errors.DeadlineExceeded:
    return errors.DeadlineExceeded(
        f"deadline passed while executing, {_elapsed(context):.2f}s into: {_statement(context)}",
        replace(_report(context, maybe_executed=True), deadline=reached.deadline),
    )


def _last_words(context: ExceptionContext) -> tuple[str | None, str]:
    return _dialect(context).last_words(_driver_connection(context), context.original_exception)


def _lost(context: ExceptionContext, because: str, *, sent: bool) -> ConnectionLost:
    """`sent` is false where a pooler has said that it did not pass the statement on."""
    return ConnectionLost(
        f"the connection was lost after {_elapsed(context):.2f}s in: {_statement(context)} ({because}). "
        + ("Whether the statement took effect is not known" if sent else "The statement was not passed on")
        + "; the next one gets another connection",
        _report(context, maybe_executed=sent),
        statement=context.statement,
        orig=context.original_exception,
        connection_invalidated=True,
    )
