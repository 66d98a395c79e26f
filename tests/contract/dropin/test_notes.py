"""The application's own tests. They know nothing of the pool's make."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from httpx import ASGITransport, AsyncClient
from notes.engine import engine, sessions
from notes.main import app, lifespan
from notes.models import Base
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def client() -> AsyncIterator[AsyncClient]:
    async with lifespan(app), AsyncClient(transport=ASGITransport(app), base_url="http://notes") as client:
        yield client
        assert engine.pool.checkedout() == 0
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.drop_all)


async def test_the_life_of_a_note(client: AsyncClient) -> None:
    made = await client.post("/notes", json={"title": "first", "body": "b", "tags": ["x", "y"]})
    assert made.status_code == 201
    where = f"/notes/{made.json()['id']}"
    assert made.json()["tags"] == [{"name": "x"}, {"name": "y"}]
    changed = await client.put(where, json={"title": "changed", "tags": ["y"]})
    assert changed.json()["tags"] == [{"name": "y"}]
    assert (await client.get(where)).json()["views"] == 1
    assert [note["title"] for note in (await client.get("/notes", params={"tag": "y"})).json()] == ["changed"]
    assert (await client.get("/notes", params={"tag": "x"})).json() == []
    assert (await client.delete(where)).status_code == 204
    assert (await client.get(where)).status_code == 404


async def test_a_title_is_unique_and_a_failure_leaves_nothing(client: AsyncClient) -> None:
    assert (await client.post("/notes", json={"title": "once"})).status_code == 201
    assert (await client.post("/notes", json={"title": "once", "tags": ["lost"]})).status_code == 409
    assert len((await client.get("/notes")).json()) == 1
    async with sessions() as session:
        assert await session.scalar(text("select count(*) from tags")) == 0


async def test_many_at_once(client: AsyncClient) -> None:
    made = await asyncio.gather(*(client.post("/notes", json={"title": f"n{i}"}) for i in range(20)))
    assert {answer.status_code for answer in made} == {201}
    number = made[0].json()["id"]
    await asyncio.gather(*(client.get(f"/notes/{number}") for _ in range(20)))
    assert (await client.get(f"/notes/{number}")).json()["views"] == 21
    exported = await client.get("/notes/export")
    assert len(exported.text.splitlines()) == 20


async def test_too_many_at_once_is_a_503(client: AsyncClient) -> None:
    held = [await engine.connect() for _ in range(3)]
    answer = await client.get("/notes")
    assert answer.status_code == 503
    assert answer.text.startswith("QueuePool limit of size 2 overflow 1 reached, connection timed out")
    for connection in held:
        await connection.close()
    assert (await client.get("/notes")).status_code == 200
    assert (await client.get("/pool")).json() == {"size": 2, "out": 0}


async def test_the_error_is_sqlalchemys(client: AsyncClient) -> None:
    held = [await engine.connect() for _ in range(3)]
    with pytest.raises(TimeoutError):
        await engine.connect()
    for connection in held:
        await connection.close()


async def test_a_client_that_goes_away(client: AsyncClient) -> None:
    for turns in range(0, 60, 5):
        request = asyncio.create_task(client.post("/notes", json={"title": f"gone {turns}"}))
        for _ in range(turns):
            await asyncio.sleep(0)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    async with asyncio.timeout(60):
        while engine.pool.checkedout():
            await asyncio.sleep(0.01)
    assert (await client.post("/notes", json={"title": "still here"})).status_code == 201


async def test_a_lost_database_connection(client: AsyncClient) -> None:
    assert (await client.post("/notes", json={"title": "kept"})).status_code == 201
    await asyncio.sleep(0.6)
    async with engine.connect() as connection:
        await connection.execute(
            text(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
                " and backend_type = 'client backend'"
            )
        )
    assert [note["title"] for note in (await client.get("/notes")).json()] == ["kept"]
