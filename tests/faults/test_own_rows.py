"""Everything goes wrong at random, on every way to run SQL: nothing runs twice, and everybody gets their own rows."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from steadypool import Database, SteadypoolError
from steadypool._sqlstate import sqlstate_in
from steadypool_lab.network.proxy import FaultProxy
from steadypool_lab.testing import Observer

from .conftest import MakeDatabase

pytestmark = pytest.mark.anyio

WORKERS, USES = 20, 15
WRITE = "insert into written values ($1::int) returning n"


@dataclass
class History:
    """What callers were told."""

    done: set[int] = field(default_factory=set)
    not_done: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    reads: int = 0


async def by_fetch(db: Database, n: int) -> int:
    return await db.fetchval(WRITE, n)


async def by_session(db: Database, n: int) -> int:
    async with db.session() as session:
        found = await session.scalar(text(WRITE.replace("$1::int", "cast(:n as int)")), {"n": n})
        await session.commit()
    return found


async def by_connection(db: Database, n: int) -> int:
    async with db.connection() as connection:
        return await connection.fetchval(WRITE, n)


WAYS: tuple[Callable[[Database, int], Awaitable[int]], ...] = (by_fetch, by_fetch, by_session, by_connection)


async def write(db: Database, n: int, dice: random.Random, history: History) -> None:
    patience = dice.uniform(0.0, 0.03) if dice.random() < 0.2 else 10.0
    try:
        async with asyncio.timeout(patience):
            assert await dice.choice(WAYS)(db, n) == n
    except (TimeoutError, SteadypoolError, DBAPIError) as error:
        known = isinstance(error, SteadypoolError) and not error.maybe_executed
        (history.not_done if known else history.unknown).add(n)
    except Exception as error:
        if sqlstate_in(error) != "57014":  # somebody else's cancel
            raise
        history.not_done.add(n)
    else:
        history.done.add(n)


async def read(db: Database, n: int, history: History) -> None:
    try:
        assert await db.fetchval("select $1::int from pg_sleep(0.001)", n, read_only=True) == n
        history.reads += 1
    except SteadypoolError:
        pass
    except Exception as error:
        if sqlstate_in(error) != "57014":
            raise


async def wreck(proxy: FaultProxy, pg: Observer, dice: random.Random) -> None:
    """Until it is cancelled."""
    while True:
        await asyncio.sleep(dice.uniform(0.01, 0.08))
        victims = [backend.pid for backend in await pg.backends()]
        if not victims:
            continue
        match dice.randrange(4):
            case 0:
                proxy.drop_all(reset=dice.random() < 0.5)
            case 1:
                await pg.terminate(dice.choice(victims))
            case _:
                await pg.fetch("select pg_cancel_backend(%s)", dice.choice(victims))


async def test_nothing_runs_twice_and_everybody_gets_their_own(
    make_db: MakeDatabase, database_url: str, proxied_url: str, proxy: FaultProxy, pg: Observer
) -> None:
    db = make_db(
        proxied_url, pool_timeout=10, connection_timeout=10, statement_timeout=10, shared_statement_timeout=10
    )
    await db.execute("create table written (n int)")
    dice, history = random.Random(1), History()

    async def worker(number: int) -> None:
        own = random.Random(number)
        for use in range(USES):
            n = number * USES + use
            await (read(db, n, history) if own.random() < 0.3 else write(db, n, own, history))

    wrecking = asyncio.create_task(wreck(proxy, pg, dice))
    async with asyncio.timeout(300):
        await asyncio.gather(*map(worker, range(WORKERS)))
    wrecking.cancel()
    await asyncio.wait({wrecking})
    await db.close()
    await pg.wait_until(pg.is_quiet)
    with psycopg.connect(database_url) as connection:
        ran = Counter(n for (n,) in connection.execute("select n from written"))
    assert [n for n, times in ran.items() if times > 1] == [], "ran twice"
    assert history.done - set(ran) == set(), "said to be done"
    assert history.not_done & set(ran) == set(), "said not to be done"
    assert set(ran) <= history.done | history.unknown
    assert history.done
    assert history.reads > 10
    assert history.unknown or history.not_done
