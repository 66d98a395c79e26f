"""The service's one database: `get_engine()`, `get_session_maker()`, `db_session()`, `get_db()`.

Nothing is built at import. The running application installs its database with `use_database`; a script that asks
without one gets a database made from the environment the first time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from backend.config import Settings, get_settings
from steadypool import Database
from steadypool.listener.config import options_for

UPLOADS = "uploads"
"""The workload of everything that may take longer than a request of the API."""

_current: Database | None = None


def build_database(settings: Settings) -> Database:
    """A database by these settings, with the service's workloads; not opened yet."""
    listener = replace(
        options_for(settings.database),
        connect_timeout=settings.queue.connect_timeout,
        heartbeat_interval=settings.queue.heartbeat_interval,
    )
    database = Database(settings.database, name="plyr", listener=listener)
    database.workload(UPLOADS, statement_timeout=settings.uploads.statement_timeout)
    return database


def get_database() -> Database:
    """The database of this process."""
    global _current
    if _current is None:
        _current = build_database(get_settings())
    return _current


@contextmanager
def use_database(database: Database) -> Generator[Database]:
    """Make `database` the one of this process while the block runs."""
    global _current
    before, _current = _current, database
    try:
        yield database
    finally:
        _current = before


def get_engine() -> AsyncEngine:
    """The engine on steadypool's pool: `get_engine().pool.checkedout()`."""
    return get_database().engine


def get_session_maker() -> async_sessionmaker[AsyncSession]:
    """What makes sessions on the engine; objects stay readable after a commit."""
    return async_sessionmaker(get_engine(), expire_on_commit=False)


def db_session(
    workload: str | None = None, *, read_only: bool = False
) -> AbstractAsyncContextManager[AsyncSession]:
    """A session outside of a request: `async with db_session() as session`. Commit yourself.

    Args:
        workload: the class of work, for its own statement timeout.
        read_only: the transaction changes nothing.
    """
    return get_database().session(workload=workload, read_only=read_only)


async def get_db() -> AsyncIterator[AsyncSession]:
    """The session of one request, as a FastAPI dependency."""
    async with db_session() as session:
        yield session
