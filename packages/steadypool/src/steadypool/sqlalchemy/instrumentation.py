"""Tells what became of each statement that SQLAlchemy executes and of each wait, where somebody wants to know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steadypool._callsite import current_endpoint, endpoint
from steadypool._sql.fingerprint import name_of
from steadypool._sqlstate import THE_DRIVERS_OWN
from steadypool.errors import SteadypoolError
from steadypool.events import StatementFinished, WaitEnded

if TYPE_CHECKING:
    from steadypool.pool.lease import Lease
    from steadypool.sqlalchemy.pool import SteadyPool

COMMIT = "COMMIT"


def pool_of(fairy: Any) -> SteadyPool | None:
    """The pool of SQLAlchemy's proxy of a connection, if it is one of ours; None while a new server is asked."""
    pool = getattr(fairy, "_pool", None)
    return pool if hasattr(pool, "observers") else None


def lease_of(fairy: Any) -> Lease[Any] | None:
    """The lease under which somebody has that connection; None once it was detached."""
    return getattr(getattr(fairy, "_connection_record", None), "lease", None)


def fairy_of(context: Any) -> Any:
    """SQLAlchemy's proxy of the connection that an execution uses."""
    return getattr(context.root_connection, "_dbapi_connection", None)


def mark_commit(error: BaseException, seconds: float) -> None:
    """Note on an exception that it came from a COMMIT that had taken so long: SQLAlchemy's handler is not told."""
    error.__dict__["steadypool_commit"] = seconds


def commit_seconds(error: BaseException) -> float | None:
    """How long the COMMIT took that failed with this; None if it was none."""
    return error.__dict__.get("steadypool_commit")


def tell_statement(
    fairy: Any,
    statement: str,
    *,
    seconds: float,
    rows: int | None = None,
    sqlstate: str | None = None,
    error: BaseException | None = None,
    now: float | None = None,
) -> None:
    """Emit `StatementFinished` for what was executed on a connection, if somebody wants it.

    Args:
        fairy: SQLAlchemy's proxy of the connection.
        statement: the SQL; only its fingerprint goes on.
        seconds: how long it executed.
        rows: returned or affected; None or below 0 where that is not known.
        sqlstate: what the server said, if it refused.
        error: what the caller sees, if it failed.
        now: what the clock says, where that is known.
    """
    # After every statement, so without `pool_of`, `lease_of` and `endpoint`, and what cost nothing is not asked for.
    pool: Any = getattr(fairy, "_pool", None)
    observers = getattr(pool, "observers", None)
    if observers is None or not observers.wanted(StatementFinished):
        return
    lease: Lease[Any] | None = getattr(getattr(fairy, "_connection_record", None), "lease", None)
    waiting, connecting = (0.0, 0.0) if lease is None or lease.told else lease.take_cost()
    name, ask = name_of(statement), current_endpoint.get()
    observers.emit(
        StatementFinished(
            pool.core.name,
            pool.core.clock.monotonic() if now is None else now,
            name.fingerprint,
            "session",
            seconds,
            rows if rows is not None and rows >= 0 else None,
            waiting,
            connecting,
            None if lease is None else lease.workload,
            None if lease is None else lease.slot.number,
            None if sqlstate in THE_DRIVERS_OWN else sqlstate,
            None if error is None else type(error).__name__,
            None if ask is None else ask(),
            name.summary,
        )
    )


def tell_wait(
    pool: SteadyPool,
    began: float,
    workload: str | None,
    lease: Lease[Any] | None,
    error: BaseException | None,
) -> None:
    """Emit `WaitEnded` for a caller who had to wait, or went without."""
    now = pool.core.clock.monotonic()
    if lease is not None:
        if lease.waited > 0:
            pool.observers.emit(
                WaitEnded(
                    pool.core.name,
                    now,
                    lease.waited,
                    lease.connecting,
                    workload,
                    lease.slot.number,
                    None,
                    endpoint(),
                )
            )
        return
    connecting = error.elapsed.connecting if isinstance(error, SteadypoolError) else 0.0
    pool.observers.emit(
        WaitEnded(
            pool.core.name,
            now,
            now - began,
            connecting,
            workload,
            None,
            None if error is None else type(error).__name__,
            endpoint(),
        )
    )
