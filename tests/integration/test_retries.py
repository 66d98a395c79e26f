"""Whole transactions are repeated where the database asks for it, and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

import steadypool
from steadypool import Database, DatabaseSettings

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncpg", "psycopg", "steadypool"])
async def db(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[Database]:
    url = database_url.replace("postgresql://", f"postgresql+{request.param}://")
    async with Database(DatabaseSettings(url=url)) as database:
        async with database.session() as session:
            await session.execute(text("create table counters (name text primary key, value int)"))
            await session.execute(text("insert into counters values ('a', 0), ('b', 0)"))
            await session.commit()
        yield database


async def value(db: Database, name: str) -> int:
    async with db.session() as session:
        query = text("select value from counters where name = :name")
        return (await session.execute(query, {"name": name})).scalar_one()


async def test_serialization_failures_are_repeated_until_all_are_done(db: Database) -> None:
    async def increment(session: AsyncSession) -> None:
        await session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        seen = (await session.execute(text("select value from counters where name = 'a'"))).scalar_one()
        await session.execute(text("update counters set value = :next where name = 'a'"), {"next": seen + 1})

    await asyncio.gather(*(db.transaction(increment, attempts=50) for _ in range(6)))
    assert await value(db, "a") == 6


async def test_deadlocks_are_repeated(db: Database) -> None:
    both_inside, one_is_done = asyncio.Barrier(2), asyncio.Event()
    tries = 0

    async def update(session: AsyncSession, first: str, second: str) -> None:
        nonlocal tries
        tries += 1
        if tries > 2:
            # The victim may overtake the other one, which is about to take the row that was let go, and meet it again.
            await one_is_done.wait()
        query = text("update counters set value = value + 1 where name = :name")
        await session.execute(query, {"name": first})
        if tries <= 2:
            await both_inside.wait()
        await session.execute(query, {"name": second})

    async def transfer(first: str, second: str) -> None:
        await db.transaction(lambda session: update(session, first, second))
        one_is_done.set()

    await asyncio.gather(transfer("a", "b"), transfer("b", "a"))
    assert (await value(db, "a"), await value(db, "b")) == (2, 2)
    assert tries == 3


async def test_what_cannot_be_helped_is_not_repeated(db: Database) -> None:
    tries = 0

    async def twice_the_same(session: AsyncSession) -> None:
        nonlocal tries
        tries += 1
        await session.execute(text("insert into counters values ('a', 1)"))

    with pytest.raises(IntegrityError):
        await db.transaction(twice_the_same)
    assert tries == 1


async def test_a_connection_lost_before_commit_is_repeated(db: Database, pg: Any) -> None:
    tries = 0

    async def increment(session: AsyncSession) -> None:
        nonlocal tries
        tries += 1
        await session.execute(text("update counters set value = value + 1 where name = 'a'"))
        if tries == 1:
            await pg.terminate()
        await session.execute(text("select 1"))

    await db.transaction(increment)
    assert (tries, await value(db, "a")) == (2, 1)


async def test_a_connection_lost_in_commit_is_told_and_not_repeated(db: Database, pg: Any) -> None:
    async with db.session() as session:
        await session.execute(
            text(
                "create function slow() returns trigger language plpgsql as "
                "$$ begin perform pg_sleep(10); return null; end $$"
            )
        )
        await session.execute(
            text(
                "create constraint trigger slow after update on counters deferrable initially deferred "
                "for each row execute function slow()"
            )
        )
        await session.commit()
    tries = 0

    async def increment(session: AsyncSession) -> None:
        nonlocal tries
        tries += 1
        await session.execute(text("update counters set value = value + 1 where name = 'a'"))

    async def committing() -> bool:
        return any(b.state == "active" and b.query.startswith("COMMIT") for b in await pg.backends())

    task = asyncio.create_task(db.transaction(increment))
    await pg.wait_until(committing)
    await pg.terminate()
    with pytest.raises(steadypool.CommitUnknown) as caught:
        await task
    assert caught.value.maybe_executed
    assert tries == 1
