"""A class of work may have a longer limit than the rest: nothing on the client's side ends it earlier."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from steadypool import Database, errors

from .conftest import MakeDatabase
from .kit import STATEMENT_GRACE, T

pytestmark = pytest.mark.anyio

LONGER = 20.0
"""Seconds that a statement of the workload may run."""

SLOW = T + STATEMENT_GRACE + 0.3
"""Seconds that a statement runs: longer than the client waits for one without a workload."""

SLOW_COMMIT = (
    "create table slowly (n int)",
    f"""create function take_long() returns trigger language plpgsql as
        $$ begin perform pg_sleep({SLOW}); return null; end $$""",
    """create constraint trigger at_the_end after insert on slowly deferrable initially deferred
        for each row execute function take_long()""",
)


@pytest.fixture
async def db(make_db: MakeDatabase, proxied_url: str) -> AsyncIterator[Database]:
    db = make_db(proxied_url)
    db.workload("long", statement_timeout=LONGER)
    yield db
    # What it changed for a while it put back: the next user has the ordinary limit, here and on the server.
    started = time.monotonic()
    with pytest.raises(errors.StatementTimeout):
        async with db.connection() as connection:
            await connection.execute(f"select pg_sleep({LONGER})")
    assert time.monotonic() - started < LONGER / 2


async def test_what_a_stream_fetches(db: Database) -> None:
    rows, wait = 60, SLOW / 45  # the driver fetches 50 at a time, so every fetch is slow
    async with db.session(workload="long") as session:
        answer = await session.stream(text(f"select n, pg_sleep({wait}) from generate_series(1, {rows}) n"))
        assert len(await answer.all()) == rows


async def test_a_dedicated_connection(db: Database) -> None:
    async with db.connection(workload="long") as connection:
        assert await connection.fetchval("select $1 || pg_sleep($2)", "slept", SLOW) == "slept"
        async with connection.transaction():
            await connection.execute(f"select pg_sleep({SLOW})")


async def test_a_commit(db: Database) -> None:
    async with db.connection() as connection:
        for statement in SLOW_COMMIT:
            await connection.execute(statement)
    async with db.session(workload="long") as session:
        await session.execute(text("insert into slowly values (1)"))
        await session.commit()
    async with db.session() as session:
        assert (await session.execute(text("select count(*) from slowly"))).scalar() == 1
