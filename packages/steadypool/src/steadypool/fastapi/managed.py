"""What the web layer needs of a database, and how it gets at it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from steadypool.errors import PoolSnapshot

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession


class Settings(Protocol):
    """The settings that matter here."""

    @property
    def request_deadline(self) -> float | None:
        """Seconds that a request may take, or None."""
        ...


class ListenerStatistics(Protocol):
    """The numbers of the listener that matter here."""

    @property
    def state(self) -> str:
        """How it is."""
        ...

    @property
    def lag(self) -> float | None:
        """Seconds that the last heartbeat took."""
        ...

    @property
    def silent_for(self) -> float | None:
        """Seconds since anything was heard."""
        ...

    @property
    def behind(self) -> int:
        """Subscribers that do not hear yet."""
        ...

    @property
    def connects(self) -> int:
        """How often it began to hear."""
        ...

    @property
    def gaps(self) -> int:
        """How often something may have been missed."""
        ...


class TotalStatistics(Protocol):
    """The counts that matter here."""

    @property
    def connects(self) -> int:
        """Connections opened since the start."""
        ...


class Statistics(Protocol):
    """The numbers that matter here."""

    @property
    def closed(self) -> bool:
        """Whether the database was closed."""
        ...

    @property
    def pool(self) -> PoolSnapshot:
        """The pool as it is now."""
        ...

    @property
    def totals(self) -> TotalStatistics:
        """What happened since the start."""
        ...

    @property
    def listener(self) -> ListenerStatistics | None:
        """The listener as it is now; None where nobody listens."""
        ...


class Served(Protocol):
    """What `install` needs of a database, or of an engine."""

    @property
    def settings(self) -> Settings:
        """What it was made from."""
        ...

    def connection(self) -> AbstractAsyncContextManager[Any]:
        """Yield a connection."""
        ...

    def stats(self) -> Statistics:
        """Count."""
        ...


class ManagedDatabase(Served, Protocol):
    """The part of `steadypool.Database` that a web application uses."""

    async def open(self) -> Any:
        """Begin."""
        ...

    async def close(self) -> Any:
        """End, with grace."""
        ...

    def session(
        self, *, workload: str | None = None, read_only: bool = False
    ) -> AbstractAsyncContextManager[AsyncSession]:
        """Yield a session."""
        ...


DatabaseOrGetter: TypeAlias = ManagedDatabase | Callable[[], ManagedDatabase]
EngineOrGetter: TypeAlias = "AsyncEngine | Callable[[], AsyncEngine]"


def resolve(database: DatabaseOrGetter) -> ManagedDatabase:
    """The database itself, whichever of the two was given."""
    return database() if callable(database) else database


def served(database: DatabaseOrGetter | EngineOrGetter) -> Served:
    """The database, or the engine as one, whether it or its getter was given.

    Raises:
        errors.ConfigurationError: it is an engine that steadypool did not make.
    """
    given: Any = database() if callable(database) else database
    if not hasattr(given, "sync_engine"):
        return given
    from steadypool.fastapi.engines import EngineServed  # a database needs none of it

    return EngineServed(given)
