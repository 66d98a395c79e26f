from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from steadypool import Database, DatabaseSettings

pytest.register_assert_rewrite(f"{__package__}.kit")

from .kit import T  # noqa: E402 - only what is imported after that is rewritten

MakeDatabase = Callable[..., Database]


@pytest.fixture(params=["asyncpg", "psycopg", "steadypool"])
def driver(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def make_db(driver: str, anyio_backend: str) -> AsyncIterator[MakeDatabase]:
    """Makes databases with the scaled timeouts for a URL without a driver; all of them are closed afterwards."""
    made: list[Database] = []

    def make(url: str, *, on_connect: Any = None, engine_arguments: Any = None, **settings: Any) -> Database:
        values = {
            "pool_size": 5,
            "max_overflow": 5,
            "pool_timeout": T,
            "connection_timeout": T,
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
