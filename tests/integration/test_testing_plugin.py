"""The fixtures of `steadypool_lab.testing` do what they say."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from steadypool_lab import EmbeddedPostgres, FaultProxy, Mode
from steadypool_lab.testing import Backend, Databases, Observer

pytestmark = pytest.mark.anyio

Connection = psycopg.AsyncConnection[tuple[object, ...]]


async def connect(url: str) -> Connection:
    return await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=5)


@pytest.mark.parametrize("_again", [1, 2])
async def test_each_test_has_an_empty_database(database_url: str, _again: int) -> None:
    async with await connect(database_url) as connection:
        await connection.execute("create table mine (id int)")


async def test_the_database_is_dropped_under_who_is_still_connected(
    server: EmbeddedPostgres, database_url: str, pg: Observer
) -> None:
    async with await connect(server.url) as connection:
        cursor = await connection.execute("select count(*) from pg_database where datname like 'test_%'")
        assert await cursor.fetchone() == (1,), "databases of earlier tests are left"
    forgotten = await connect(await server.create_database("dropped"))
    await server.drop_database("dropped")
    with pytest.raises(psycopg.errors.AdminShutdown):
        await forgotten.execute("select 1")
    await forgotten.close()


async def test_the_observer_sees_who_is_connected(database_url: str, pg: Observer) -> None:
    assert await pg.is_quiet()
    connection = await psycopg.AsyncConnection.connect(database_url, application_name="mine")
    await connection.execute("select 42")
    [seen] = await pg.backends()
    assert seen.pid == connection.info.backend_pid
    assert (seen.state, seen.query, seen.application_name) == ("idle in transaction", "select 42", "mine")
    await connection.close()
    await pg.wait_until(pg.is_quiet)


async def test_a_database_is_handed_out_again_when_who_cleaned_it_is_gone(
    databases: Databases, server: EmbeddedPostgres
) -> None:
    name = databases.take()
    observer = await Observer.connect(server.url.rpartition("/")[0] + f"/{name}")
    seen: list[Backend] = []
    for _ in range(20):
        databases.give_back(name)
        seen += await observer.backends()
        assert databases.take() == name
    await observer.close()
    databases.give_back(name)
    assert seen == []


async def test_the_observer_says_what_it_saw_when_it_waited_in_vain(database_url: str, pg: Observer) -> None:
    async with await connect(database_url) as connection:
        await connection.execute("select 'here I am'")
        with pytest.raises(pytest.fail.Exception, match=r"(?s)is_quiet did not hold .*here I am"):
            await pg.wait_until(pg.is_quiet, seconds=0.05)


async def test_the_observer_ends_backends(database_url: str, pg: Observer) -> None:
    first, second = await connect(database_url), await connect(database_url)
    await pg.terminate(first.info.backend_pid)
    with pytest.raises(psycopg.errors.AdminShutdown):
        await first.execute("select 1")
    await second.execute("select 1")
    await pg.terminate()
    with pytest.raises(psycopg.errors.AdminShutdown):
        await second.execute("select 1")
    await first.close()
    await second.close()


async def test_the_proxied_url_goes_through_the_proxy(
    proxied_url: str, proxy: FaultProxy, pg: Observer
) -> None:
    async with await connect(proxied_url) as connection:
        assert (proxy.accepted, proxy.open) == (1, 1)
        before = proxy.round_trips
        await connection.execute("select 1")
        assert proxy.round_trips - before == 1
        async with connection.transaction():
            await connection.execute("select 1")
        # BEGIN, the statement, COMMIT.
        assert proxy.round_trips - before == 4
        proxy.mode = Mode.RESET
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("select 1")
    await pg.wait_until(pg.is_quiet)
    proxy.mode = Mode.REFUSE
    with pytest.raises(psycopg.OperationalError, match="refused"):
        await connect(proxied_url)


LEAKS = """
import asyncio
import pytest

pytestmark = pytest.mark.anyio
kept = []

async def test_leaks_a_task():
    kept.append(asyncio.create_task(asyncio.Event().wait(), name="forgotten"))

async def test_destroys_a_task():
    # What a task says when it is collected while it waits.
    asyncio.get_running_loop().call_exception_handler({"message": "Task was destroyed but it is pending!"})

async def test_ends_what_it_begins():
    task = asyncio.create_task(asyncio.Event().wait())
    task.cancel()

def test_is_not_async():
    pass
"""


def test_what_a_test_leaves_behind_fails_it(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parent.parent / "conftest.py", tmp_path)
    (tmp_path / "test_leaks.py").write_text(LEAKS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "4 passed, 2 errors" in done.stdout
    assert "the test left tasks behind: <Task pending name='forgotten'" in done.stdout
    assert "asyncio complained: Task was destroyed but it is pending!" in done.stdout
