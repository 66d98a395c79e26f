"""The fixtures of `steadypool.testing` do what they say."""

from __future__ import annotations

import psycopg
import pytest

from steadypool.lab import EmbeddedPostgres, FaultProxy
from steadypool.testing import Observer

pytestmark = pytest.mark.anyio


async def test_each_test_has_an_empty_database(database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        cursor = await connection.execute("select count(*) from pg_class where relname = 'mine'")
        assert await cursor.fetchone() == (0,)
        await connection.execute("create table mine (id int)")
