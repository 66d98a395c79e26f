"""`install(app, engine)`, for a service that has changed only its import: its own sessions, its own lifespan."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import sqlalchemy.ext.asyncio as stock
from fastapi import Depends, FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.pool import NullPool

import steadypool
from steadypool.deadline import current_deadline
from steadypool.fastapi import install
from steadypool.sqlalchemy import create_async_engine
from steadypool_lab import FaultProxy, Mode

pytestmark = pytest.mark.anyio

MakeEngine = Callable[..., AsyncEngine]


@pytest.fixture
async def make_engine(driver: str, proxied_url: str, anyio_backend: object) -> AsyncIterator[MakeEngine]:
    """Makes engines with one connection that reach the database through the proxy."""
    made: list[AsyncEngine] = []

    def make(**arguments: Any) -> AsyncEngine:
        url = proxied_url.replace("postgresql://", f"postgresql+{driver}://")
        if "poolclass" not in arguments:
            arguments = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.5, **arguments}
        made.append(create_async_engine(url, **arguments))
        return made[-1]

    yield make
    for engine in made:
        await engine.dispose()


@pytest.fixture(params=["asyncpg", "psycopg", "steadypool"])
def driver(request: pytest.FixtureRequest) -> str:
    return request.param


def make_app(engine: AsyncEngine, **arguments: Any) -> FastAPI:
    app = FastAPI()
    install(app, lambda: engine, **arguments)
    app.state.entered, app.state.leave = asyncio.Event(), asyncio.Event()
    make_session = async_sessionmaker(engine)

    async def get_session() -> AsyncIterator[AsyncSession]:
        async with make_session() as session:
            yield session

    of_request = Depends(get_session)

    @app.get("/one")
    async def one(session: AsyncSession = of_request) -> int:
        return (await session.execute(text("select 1"))).scalar_one()

    @app.get("/hold")
    async def hold(session: AsyncSession = of_request) -> int:
        value = (await session.execute(text("select 1"))).scalar_one()
        app.state.entered.set()
        await app.state.leave.wait()
        return value

    @app.get("/sleep")
    async def sleep(session: AsyncSession = of_request) -> None:
        await session.execute(text("select pg_sleep(30)"))

    return app


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def assert_invites(answer: httpx.Response, kind: str) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["type"] == f"urn:steadypool:{kind}"


async def test_exhausted_is_a_503_with_retry_after_and_ready(make_engine: MakeEngine) -> None:
    app = make_app(make_engine())
    async with client_of(app) as client:
        holding = asyncio.create_task(client.get("/hold"))
        await app.state.entered.wait()
        refused, ready = await client.get("/one"), await client.get("/readyz")
        app.state.leave.set()
        held, after = await holding, await client.get("/one")
    assert_invites(refused, "pool-timeout")
    assert refused.json()["detail"].startswith("QueuePool limit of size 1 overflow 0 reached")
    assert "/hold" not in refused.text
    assert (ready.status_code, held.status_code, after.status_code) == (200, 200, 200)


async def test_away_is_a_503_and_not_ready_until_it_comes(make_engine: MakeEngine, proxy: FaultProxy) -> None:
    proxy.mode = Mode.REFUSE
    app = make_app(make_engine(connection_timeout=5), deadline=0.3)
    async with client_of(app) as client:
        live, ready, refused = [await client.get(path) for path in ("/livez", "/readyz", "/one")]
        proxy.mode = Mode.PASS
        async with asyncio.timeout(60):
            while (await client.get("/readyz")).status_code != 200:
                pass
        after = await client.get("/one", headers={"X-Request-Timeout": "10"})
    assert (live.status_code, ready.status_code, after.status_code) == (200, 503, 200)
    assert_invites(refused, refused.json()["type"].rpartition(":")[2])
    assert str(proxy.port) not in refused.text


async def test_lost_in_use_is_a_503_and_unreachable_afterwards_as_well(
    make_engine: MakeEngine, proxy: FaultProxy
) -> None:
    async with client_of(make_app(make_engine(connection_timeout=1))) as client:
        assert (await client.get("/one")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        proxy.drop_all(reset=True)
        proxy.mode = Mode.REFUSE
        lost, refused = await client.get("/one"), await client.get("/one")
        not_ready = await client.get("/readyz")
    assert_invites(lost, "connection-lost")
    assert_invites(refused, "connect-failed")
    assert not_ready.status_code == 503


async def test_a_statement_over_its_limit_is_a_504(make_engine: MakeEngine) -> None:
    async with client_of(make_app(make_engine(statement_timeout=0.5))) as client:
        late, after = await client.get("/sleep"), await client.get("/one")
    assert (late.status_code, late.json()["type"]) == (504, "urn:steadypool:statement-timeout")
    assert after.status_code == 200


@pytest.mark.parametrize("by", ["install", "client"])
async def test_a_request_has_the_deadline_it_is_given(make_engine: MakeEngine, by: str) -> None:
    engine = make_engine()
    async with engine.connect():
        pass  # connecting is not what is to take too long
    app = make_app(engine, **({"deadline": 0.3} if by == "install" else {}))
    async with client_of(app) as client:
        late = await client.get("/sleep", headers={} if by == "install" else {"X-Request-Timeout": "0.3"})
    assert (late.status_code, late.json()["type"]) == (504, "urn:steadypool:deadline-exceeded")


async def test_without_any_deadline_a_request_has_none(make_engine: MakeEngine) -> None:
    app = make_app(make_engine())

    @app.get("/deadline")
    async def shown() -> bool:
        return current_deadline() is None

    async with client_of(app) as client:
        assert (await client.get("/deadline")).json() is True


async def test_ready_asks_once_and_goes_on_after_dispose(make_engine: MakeEngine, proxy: FaultProxy) -> None:
    engine = make_engine()
    async with client_of(make_app(engine)) as client:
        assert [(await client.get("/readyz")).status_code for _ in range(3)] == [200] * 3
        assert proxy.accepted == 1
        await engine.dispose()
        assert (await client.get("/readyz")).status_code == 200
        assert proxy.accepted == 1, "it wakes nothing that was let go"


async def test_a_pool_of_the_callers_own_is_asked_each_time(
    make_engine: MakeEngine, proxy: FaultProxy
) -> None:
    async with client_of(make_app(make_engine(poolclass=NullPool))) as client:
        assert (await client.get("/readyz")).status_code == 200
        proxy.mode = Mode.REFUSE
        assert (await client.get("/readyz")).status_code == 503
        refused = await client.get("/one")
    assert_invites(refused, "connect-failed")


async def test_takes_the_engine_itself_too(make_engine: MakeEngine) -> None:
    app = FastAPI()
    install(app, make_engine())
    async with client_of(app) as client:
        assert [(await client.get(path)).status_code for path in ("/livez", "/readyz")] == [200, 200]


def test_a_stock_engine_is_refused_at_once(driver: str) -> None:
    name = "psycopg" if driver == "steadypool" else driver
    engine = stock.create_async_engine(f"postgresql+{name}://app@localhost/app")
    with pytest.raises(steadypool.ConfigurationError, match="make it by steadypool"):
        install(FastAPI(), engine)
