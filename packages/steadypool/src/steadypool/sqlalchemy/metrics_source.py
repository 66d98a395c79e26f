"""What telemetry may ask of an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from steadypool.errors import ConfigurationError
from steadypool.pool.circuit_breaker import BreakerState
from steadypool.sqlalchemy.pool import SteadyPool
from steadypool.telemetry.source import ListenerInfo, Source

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


def source_of(
    engine: AsyncEngine,
    *,
    loop_lag: Callable[[], float] | None = None,
    listener: Callable[[], ListenerInfo | None] | None = None,
    collateral: Callable[[], int] | None = None,
    also_waiting: Callable[[], int] = lambda: 0,
) -> Source:
    """The pool of an engine, for `steadypool.telemetry`; `Database.source` has it with everything of a database.

    Args:
        engine: made by `steadypool.sqlalchemy.create_async_engine`.
        loop_lag: seconds by which the event loop is late.
        listener: what there is to know of the listener.
        collateral: statements that failed on a shared connection because of another caller's.
        also_waiting: callers who wait, and the pool does not know of them.

    Raises:
        ConfigurationError: the engine has another pool.

    Example:
        >>> stop = steadypool.telemetry.otel.instrument(source_of(engine))
    """

    def pool() -> SteadyPool:  # asked anew each time: `engine.dispose()` replaces it
        return _steady(engine)

    def limit() -> int | None:
        options = pool().options
        return None if options.max_overflow is None else options.size + options.max_overflow

    first = pool()
    return Source(
        name=first.core.name,
        driver=first.dialect.driver,
        events=first.observers,
        connections=lambda: pool().connections(),
        waiting=lambda: pool().core.waiting + also_waiting(),
        size=lambda: pool().options.size,
        limit=limit,
        breaker_open=lambda: pool().core.breaker.state is BreakerState.OPEN,
        loop_lag=loop_lag,
        listener=listener,
        collateral=collateral,
    )


def _steady(engine: AsyncEngine) -> SteadyPool:
    if not isinstance(engine.pool, SteadyPool):
        raise ConfigurationError(f"the engine has a {type(engine.pool).__name__}, which tells no numbers")
    return engine.pool
