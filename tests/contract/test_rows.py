"""A row, and the values in it, mean the same on every driver."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import text

from steadypool import Database, DatabaseSettings
from steadypool.sqlalchemy import create_async_engine

pytestmark = pytest.mark.anyio

SQL = "select 1 as a, 2 as b, 3 as a"


@pytest.fixture(params=["asyncpg", "psycopg", "steadypool"])
async def db(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[Database]:
    url = database_url.replace("postgresql://", f"postgresql+{request.param}://")
    async with Database(DatabaseSettings(url=url)) as database:
        yield database


ASKED: list[Callable[[Any], Any]] = [
    lambda row: row["nope"],
    lambda row: row["a"],
    lambda row: row["b"],
    lambda row: (row[0], row[2], row[-1]),
    lambda row: row[5],
    lambda row: row[0:2],
    lambda row: row[None],
    lambda row: ("a" in row, 1 in row, "nope" in row),
    lambda row: (row.get("a"), row.get("nope"), row.get("nope", 9)),
    lambda row: (list(row), list(row.values())),
    lambda row: list(row.keys()),
    lambda row: list(row.items()),
    lambda row: row.keys() == ["a", "b", "a"],
    lambda row: (row == (1, 2, 3), row == (1, 2, 3), row == [1, 2, 3], row != (1, 2, 3), row < (1, 2, 4)),
    lambda row: hash(row) == hash((1, 2, 3)),
    lambda row: (len(row), bool(row)),
    lambda row: (dict(row), {**row}),
    lambda row: (repr(row), str(row), f"{row}"),
    lambda row: list(reversed(row)),
    lambda row: row.a,
]


def answers(row: Any) -> list[Any]:
    got: list[Any] = []
    for ask in ASKED:
        try:
            got.append(ask(row))
        except (KeyError, IndexError, AttributeError) as error:
            got.append(type(error))
    return got


async def test_a_row_is_what_asyncpgs_is(db: Database, database_url: str) -> None:
    stock = await asyncpg.connect(database_url)
    expected = answers(await stock.fetchrow(SQL))
    await stock.close()
    for _ in range(3):
        assert answers(await db.fetchrow(SQL)) == expected
        assert answers((await db.fetch(SQL))[0]) == expected
        assert answers(*[row async for row in db.fetch_iter(SQL)]) == expected
        async with db.connection() as connection:
            assert answers((await connection.fetch(SQL))[0]) == expected
    assert expected[0] is KeyError


async def test_a_row_of_a_statement_of_sqlalchemys_is_the_same(db: Database) -> None:
    statement = text(SQL)
    rows = await db.fetch(statement)
    assert answers(rows[0])[:2] == [KeyError, 3]


VALUES = [
    "interval 'infinity'",
    "array[interval '-infinity']",
    "interval '1 year 2 mons 3 days 04:05:06.7'",
    "interval '100000000 years'",
    "date 'infinity'",
    "date '-infinity'",
    "date '10000-01-01'",
    "date '0044-03-15 BC'",
    "timestamp 'infinity'",
    "timestamp '10000-01-01 00:00'",
    "timestamptz '-infinity'",
    "timestamptz '0001-01-01 BC'",
    "time '24:00'",
    "timetz '12:00+15:59:59'",
    "numeric 'NaN'",
    "numeric 'Infinity'",
    "numeric '-Infinity'",
    "float8 'NaN'",
    "float8 '-Infinity'",
    "float4 'Infinity'",
    "daterange('-infinity', 'infinity')",
    "tsrange(null, 'infinity')",
    "array[date 'infinity']",
]


async def got(fetch: Callable[[], Any]) -> str:
    try:
        return repr(await fetch())
    except Exception as error:  # noqa: BLE001 - what it is, is what is compared
        original = getattr(error, "orig", None) or error
        return type(original).__name__


@pytest.mark.parametrize("value", VALUES)
async def test_values_at_the_edge_are_read_as_psycopg_reads_them(value: str, database_url: str) -> None:
    sql = f"select {value}"
    async with await psycopg.AsyncConnection.connect(database_url) as stock:

        async def plain() -> Any:
            return (await (await stock.execute(sql.encode())).fetchone())[0]  # type: ignore[index]

        expected = await got(plain)
    url = database_url.replace("postgresql://", "postgresql+steadypool://")
    async with Database(DatabaseSettings(url=url)) as db:
        engine = create_async_engine(url)
        for _ in range(4):
            assert await got(lambda: db.fetchval(sql)) == expected
            async with db.connection() as connection:
                assert await got(lambda: connection.fetchval(sql)) == expected
            async with engine.connect() as session:
                assert await got(lambda: session.scalar(text(sql))) == expected
        await engine.dispose()
