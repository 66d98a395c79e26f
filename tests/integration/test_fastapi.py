"""The web layer over the real Database on a real Postgres, through a network that can fail."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from steadypool import Database, DatabaseSettings
from steadypool.fastapi import install, lifespan, session_dependency
from steadypool_lab import FaultProxy, Mode

pytestmark = pytest.mark.anyio

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


@pytest.fixture(params=["asyncpg", "psycopg", "steadypool"])
def settings(request: pytest.FixtureRequest, proxied_url: str) -> DatabaseSettings:
    url = proxied_url.replace("postgresql://", f"postgresql+{request.param}://")
    return DatabaseSettings(url=url, pool_size=1, max_overflow=1, pool_timeout=1.0, statement_timeout=2.0)


def make_app(database: Database) -> FastAPI:
    app = FastAPI(lifespan=lifespan(database))
    install(app, database)
    app.state.entered = asyncio.Semaphore(0)
    app.state.leave = asyncio.Event()
    session_of_request = Depends(session_dependency(database), scope="function")

    @app.get("/one")
    async def one(session: AsyncSession = session_of_request) -> int:
        return (await session.execute(text("select 1"))).scalar_one()

    @app.get("/hold")
    async def hold(session: AsyncSession = session_of_request) -> int:
        value = (await session.execute(text("select 1"))).scalar_one()
        app.state.entered.release()
        await app.state.leave.wait()
        return value

    @app.get("/sleep")
    async def sleep(session: AsyncSession = session_of_request) -> None:
        await session.execute(text("select pg_sleep(30)"))

    return app


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


async def test_exhausted_answers_503_with_the_seeds_message_and_then_recovers(
    settings: DatabaseSettings,
) -> None:
    app = make_app(Database(settings))
    async with served(app) as client:
        holding = [asyncio.create_task(client.get("/hold")) for _ in range(2)]
        async with asyncio.timeout(60):
            for _ in holding:
                await app.state.entered.acquire()
        refused = await client.get("/one")
        ready = await client.get("/readyz")
        app.state.leave.set()
        held = [await task for task in holding]
        after = await client.get("/one")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["detail"].startswith(
        "QueuePool limit of size 1 overflow 1 reached, connection timed out, timeout 1.00"
    )
    assert ready.status_code == 200, "an exhausted instance still serves what waits"
    assert [response.status_code for response in (*held, after)] == [200, 200, 200]


async def test_a_statement_over_its_limit_is_a_504_and_the_next_request_is_fine(
    settings: DatabaseSettings,
) -> None:
    async with served(make_app(Database(settings))) as client:
        late, after = await client.get("/sleep"), await client.get("/one")
    assert (late.status_code, late.json()["type"]) == (504, "urn:steadypool:statement-timeout")
    assert "pg_sleep" not in late.text
    assert after.status_code == 200


async def test_the_clients_shorter_deadline_ends_a_statement(settings: DatabaseSettings) -> None:
    async with served(make_app(Database(settings.replace(statement_timeout=20)))) as client:
        assert (await client.get("/one")).status_code == 200  # connecting is not what is to take too long
        late = await client.get("/sleep", headers={"X-Request-Timeout": "0.2"})
    assert (late.status_code, late.json()["type"]) == (504, "urn:steadypool:deadline-exceeded")


async def test_starts_without_a_database_says_so_and_recovers_when_it_comes(
    settings: DatabaseSettings, proxy: FaultProxy
) -> None:
    proxy.mode = Mode.REFUSE
    app = make_app(Database(settings.replace(connection_timeout=5)))
    async with served(app) as client:
        live, ready = await client.get("/livez"), await client.get("/readyz")
        refused = await client.get("/one", headers={"X-Request-Timeout": "0.3"})
        proxy.mode = Mode.PASS
        async with asyncio.timeout(60):
            while (await client.get("/readyz")).status_code != 200:
                pass
        after = await client.get("/one")
    assert (live.status_code, ready.status_code, after.status_code) == (200, 503, 200)
    assert refused.status_code == 503
    assert refused.headers["content-type"] == "application/problem+json"
    assert str(proxy.port) not in refused.text


async def test_readyz_answers_within_a_second_when_the_database_is_silent(
    settings: DatabaseSettings, proxy: FaultProxy
) -> None:
    proxy.mode = Mode.SILENT
    app = make_app(Database(settings.replace(connection_timeout=5, close_grace=0)))
    async with served(app) as client:
        took: list[float] = []
        for _ in range(3):
            began = asyncio.get_running_loop().time()
            assert (await client.get("/readyz")).status_code == 503
            took.append(asyncio.get_running_loop().time() - began)
    assert min(took) < 1.0, took  # a busy machine only adds to it


async def test_the_example_in_the_readme_runs(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.setenv("DATABASE_URL", database_url)
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    async with served(names["app"]) as client:
        async with names["database"].connection() as connection:
            await connection.execute("create table tracks ()")
            await connection.execute("create table plays ()")
        answers = [await client.get(path) for path in ("/tracks", "/report", "/readyz")]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert answers[0].json() == 0
