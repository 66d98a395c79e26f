from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

# Imported here, since the first connect of a driver imports it, and the times of the tests are short.
import steadypool.connect.asyncpg
import steadypool.connect.psycopg
import steadypool.sqlalchemy.pipelined  # noqa: F401
from steadypool import Database, DatabaseSettings
from steadypool_lab import EmbeddedPostgres

pytest.register_assert_rewrite(f"{__package__}.kit")

from .kit import CONNECTS_WITHIN, T  # noqa: E402 - only what is imported after that is rewritten
from .live import LiveRules, rules_watched  # noqa: E402

MakeDatabase = Callable[..., Database]


@pytest.fixture(autouse=True)
def live_rules(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[LiveRules]]:
    """Every pool that a test makes is watched; one that breaks a rule fails the test."""
    with rules_watched(monkeypatch.setattr) as watched:
        yield watched


@pytest.fixture(scope="session")
def _shared_restartable() -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres.temporary()
    server.blocking.start()
    yield server
    server.blocking.close()


@pytest.fixture
def restartable(_shared_restartable: EmbeddedPostgres) -> EmbeddedPostgres:
    """A server that a test may kill and restart, and leaves running; what it commits there stays."""
    if not _shared_restartable.is_running:
        _shared_restartable.blocking.start()
    return _shared_restartable


@pytest.fixture(params=["asyncpg", "psycopg", "steadypool"])
def driver(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def make_db(driver: str, anyio_backend: str) -> AsyncIterator[MakeDatabase]:
    """Makes databases with the scaled timeouts for a URL without a driver; all of them are closed afterwards.

    Connecting has time enough for a busy machine; a test of how long it takes says so."""
    made: list[Database] = []

    def make(url: str, *, on_connect: Any = None, engine_arguments: Any = None, **settings: Any) -> Database:
        values = {
            "pool_size": 5,
            "max_overflow": 5,
            "pool_timeout": CONNECTS_WITHIN,
            "connection_timeout": CONNECTS_WITHIN,
            "statement_timeout": T,
            "ping_after_idle": 0.0,
            "close_grace": T,
        }
        chosen = DatabaseSettings(
            url=url.replace("postgresql://", f"postgresql+{driver}://"), **(values | settings)
        )
        arguments = {"leave_timeout": T} | (engine_arguments or {})
        made.append(Database(chosen, on_connect=on_connect, engine_arguments=arguments))
        return made[-1]

    yield make
    for db in made:
        if db.pool.core.count():
            await db.close(grace=0.0)


@pytest.fixture
async def db(make_db: MakeDatabase, proxied_url: str) -> Database:
    """A database behind the proxy."""
    return make_db(proxied_url)
