"""An engine of `steadypool.sqlalchemy.create_async_engine`, as `install` sees it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from steadypool.errors import ConfigurationError, PoolSnapshot
from steadypool.sqlalchemy.dialects.base import BoundedDialect
from steadypool.sqlalchemy.pool import SteadyPool


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """An engine has no settings: requests have a deadline where `install` or their client gives one."""

    request_deadline: float | None = None


@dataclass(frozen=True, slots=True)
class EngineTotals:
    """`connects` is 1 where any connect of the engine has succeeded: nothing counts them."""

    connects: int


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """What the pool of an engine knows."""

    pool: PoolSnapshot
    totals: EngineTotals
    closed: bool = False
    listener: None = None


UNKNOWN = PoolSnapshot(0, 0, last_connect_failure="the pool is not steadypool's, which does not say")
"""Of a pool of the caller's own: it has to be asked."""


@dataclass(frozen=True, slots=True)
class EngineServed:
    """What `install` needs of an engine.

    Args:
        engine: made by `steadypool.sqlalchemy.create_async_engine`.

    Raises:
        errors.ConfigurationError: it is another engine, whose errors have no names.
    """

    engine: AsyncEngine
    settings: EngineSettings = field(default_factory=EngineSettings)

    def __post_init__(self) -> None:
        """Refuse an engine whose errors could not be answered."""
        if not isinstance(self.engine.dialect, BoundedDialect):
            raise ConfigurationError(
                "install() got an engine of SQLAlchemy's own, whose errors have no names; "
                "make it by steadypool.sqlalchemy.create_async_engine"
            )

    def connection(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Yield a connection."""
        return self.engine.connect()

    def stats(self) -> EngineStatistics:
        """Count."""
        pool, dialect = self.engine.pool, self.engine.dialect  # `dispose()` replaces the pool
        if not isinstance(pool, SteadyPool):
            return EngineStatistics(UNKNOWN, EngineTotals(0))
        assert isinstance(dialect, BoundedDialect)
        snapshot = pool.core.snapshot()
        connected = dialect.has_connected or snapshot.leased + snapshot.idle > 0
        return EngineStatistics(snapshot, EngineTotals(int(connected)), pool.core.closed)
