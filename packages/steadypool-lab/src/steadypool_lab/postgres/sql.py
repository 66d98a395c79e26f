"""One statement for the lab's own purposes, over a connection of its own."""

from __future__ import annotations

from typing import Any

import psycopg

APPLICATION_NAME = "steadypool-lab"


async def run_sql(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Run it in autocommit, and return its rows."""
    async with await psycopg.AsyncConnection[tuple[Any, ...]].connect(
        url, autocommit=True, application_name=APPLICATION_NAME
    ) as connection:
        cursor = await connection.execute(statement.encode())
        return await cursor.fetchall() if cursor.description else []
