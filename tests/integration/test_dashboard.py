"""The live page over real sockets: who may see it, that it says what is true, and that nothing of others is markup."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import text
from starlette.requests import Request

from conditions import until
from steadypool import Database, DatabaseSettings, errors
from steadypool.fastapi import install, lifespan
from steadypool.fastapi.dashboard import ASSETS, asset, dashboard
from steadypool.monitor import Recording
from steadypool_lab import FaultProxy

pytestmark = pytest.mark.anyio

HOSTILE = '<img src=x onerror="window.ran=true"></script><script>window.ran=true</script>'

HOSTILE_NAME = '"' + HOSTILE.replace('"', '""') + '"'


@dataclass
class Running:
    """A service with the page on."""

    url: str
    database: Database
    client: httpx.AsyncClient

    async def now(self) -> dict[str, Any]:
        answer = await self.client.get("/pool/now.json")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def looked(self, times: int = 1) -> None:
        """The pool was looked at again."""
        for _ in range(times):
            assert await self.database.watch.next_look(60.0)


@asynccontextmanager
async def running(
    settings: DatabaseSettings,
    *,
    allow: Callable[[Request], Any] | None = None,
    host: str = "127.0.0.1",
    **config: Any,
) -> AsyncIterator[Running]:
    database = Database(settings)
    database.workload("uploads", statement_timeout=30, max_connections=1)
    app = FastAPI(lifespan=lifespan(database))
    install(app, database, deadline=None)
    page = dashboard(app, database, allow=allow)
    listener = socket.create_server((host, 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", **config))
    serving = asyncio.create_task(server.serve([listener]))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            while not server.started:
                assert not serving.done(), serving
                await asyncio.sleep(0.01)
            yield Running(url, database, client)
    finally:
        page.end_streams()
        server.should_exit = True
        await serving


def own_address() -> str | None:
    """An address of this machine that is not a loopback one; no packet is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def settings(url: str, **values: Any) -> DatabaseSettings:
    return DatabaseSettings(
        url=url,
        **({"dashboard": "loopback", "pool_size": 2, "max_overflow": 0, "pool_timeout": 0.5} | values),
    )


NOWHERE = "postgresql://app:s3cret@127.0.0.1:1/nowhere"
PATHS = (
    "/pool",
    "/pool/events",
    "/pool/now.json",
    "/pool/series.json",
    "/pool/moment.json",
    "/pool/export.json",
    "/pool/assets/page.js",
)

# -- who may see it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "headers", "status"),
    [
        ("off", {}, 404),
        ("loopback", {}, 200),
        ("loopback", {"Host": "localhost:8000"}, 200),
        ("loopback", {"Host": "[::1]:8000"}, 200),
        ("loopback", {"Sec-Fetch-Site": "same-origin"}, 200),
        ("loopback", {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),
        ("loopback", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        # a proxy was in between, whatever it says
        ("loopback", {"X-Forwarded-For": "127.0.0.1"}, 404),
        ("loopback", {"X-Forwarded-For": "203.0.113.9"}, 404),
        ("loopback", {"X-Forwarded-For": "127.0.0.1, 127.0.0.1"}, 404),
        ("loopback", {"Forwarded": "for=127.0.0.1"}, 404),
        ("loopback", {"X-Real-IP": "127.0.0.1"}, 404),
        ("loopback", {"X-Forwarded-Proto": "https"}, 404),
        ("loopback", {"Via": "1.1 proxy"}, 404),
        # a website that somebody on this machine has open
        ("loopback", {"Host": "evil.example"}, 404),
        ("loopback", {"Host": "127.0.0.1.evil.example"}, 404),
        ("loopback", {"Origin": "https://evil.example"}, 404),
        ("loopback", {"Origin": "null"}, 404),
        ("loopback", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}, 404),
        ("loopback", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, 404),
        # who is signed in may come from anywhere, who comes from here is not signed in by that
        ("signed_in", {}, 404),
        ("signed_in", {"Authorization": "Bearer operator", "X-Forwarded-For": "203.0.113.9"}, 200),
        ("loopback", {"Authorization": "Bearer operator", "X-Forwarded-For": "203.0.113.9"}, 200),
        ("signed_in", {"Authorization": "Bearer guest"}, 404),
        ("off", {"Authorization": "Bearer operator"}, 404),
        ("signed_in", {"Authorization": "Bearer operator", "Origin": "https://evil.example"}, 404),
    ],
)
async def test_who_may_see_it(mode: str, headers: dict[str, str], status: int) -> None:
    async def allow(request: Request) -> bool:
        return request.headers.get("authorization") == "Bearer operator"

    # As careless as a server can be: it believes every header about where a request came from.
    believing = {"proxy_headers": True, "forwarded_allow_ips": "*"}
    async with running(settings(NOWHERE, dashboard=mode), allow=allow, **believing) as service:
        for path in PATHS:
            async with service.client.stream("GET", path, headers=headers) as answer:
                assert answer.status_code == status, path
                if status == 404:
                    assert await answer.aread() == b"Not Found"


async def test_another_machine_is_not_this_one() -> None:
    """The nearest to another machine that there is here: the socket's other end has an address of the network."""
    address = own_address()
    assert address is None or not address.startswith("127.")
    if address is not None:
        async with running(settings(NOWHERE), host="0.0.0.0") as service:
            port = service.url.rpartition(":")[2]
            async with httpx.AsyncClient() as client:
                answer = await client.get(f"http://{address}:{port}/pool", headers={"Host": "localhost"})
                assert answer.status_code == 404
            assert (await service.client.get("/pool")).status_code == 200


# -- what is sent ------------------------------------------------------------------------------------------------------


async def test_the_page_is_small_and_loads_nothing_from_elsewhere() -> None:
    async with running(settings(NOWHERE)) as service:
        page = await service.client.get("/pool")
        sizes = {"/pool": len(page.content)}
        linked = set(re.findall(r'(?:src|href)="([^"#]+)"', page.text)) - {"data:,", "/pool/export.json"}
        assert linked == {f"/pool/assets/{name}" for name in ASSETS}
        for path in linked:
            answer = await service.client.get(path)
            assert answer.status_code == 200, f"{path}: is it packed? sh scripts/pack_page.sh"
            assert answer.headers["x-content-type-options"] == "nosniff"
            sizes[path] = len(answer.content)
        assert sum(sizes.values()) <= 200 * 1024, sizes
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert not re.search(r"<script(?! src=)|<style|\son\w+=|style=", page.text)
        assert (await service.client.get("/pool/assets/..%2F__init__.py")).status_code == 404
        assert (await service.client.get("/pool/assets/page.html")).status_code == 404


def test_nothing_of_the_page_names_another_place() -> None:
    for name in ("page.html", *ASSETS):
        content = asset(name).decode()
        found = [
            url
            for url in re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", content)
            if "github.com/leeoniya" not in url
        ]
        assert found == [], name
        assert not re.search(
            r"innerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", content
        ), name


def test_the_packed_plots_are_those_of_the_lock_file() -> None:
    root = Path(__file__).resolve().parents[2]
    lock = json.loads((root / "packages/steadypool/npm/package-lock.json").read_text())
    uplot = lock["packages"]["node_modules/uplot"]
    assert uplot["integrity"].startswith("sha512-")
    assert "resolved" not in uplot, "where packages come from is the choice of whoever installs"
    content = asset("uplot.js").decode()
    assert f"(v{uplot['version']})" in content
    assert "Permission is hereby granted" in content, "its licence travels with it"
    declared = (root / "packages/steadypool/pyproject.toml").read_text()
    assert 'artifacts = ["src/steadypool/fastapi/dashboard/static/uplot.*"]' in declared


# -- what it says ------------------------------------------------------------------------------------------------------


@dataclass
class Crowd:
    """Two who hold all connections of a pool, and one who waits."""

    tasks: list[asyncio.Task[None]]
    leave: asyncio.Event

    async def go(self) -> None:
        self.leave.set()
        await asyncio.gather(*self.tasks)


async def crowd(database: Database) -> Crowd:
    leave = asyncio.Event()
    holders = [
        asyncio.create_task(hold_until(database, leave, "uploads"), name="nightly report"),
        asyncio.create_task(hold_until(database, leave), name="another"),
    ]
    await until(lambda: database.pool.checkedout() == 2, seconds=60)
    waiter = asyncio.create_task(hold_until(database, leave), name="GET /waits")
    await until(lambda: database.pool.core.waiting == 1, seconds=60)
    return Crowd([*holders, waiter], leave)


async def test_it_shows_who_holds_who_waits_and_for_how_long(database_url: str) -> None:
    async with running(settings(database_url, pool_timeout=20)) as service:
        people = await crowd(service.database)
        await service.looked(2)
        now = await service.now()
        assert now["counts"]["leased"] == 2
        held = {each["holder"]: each for each in now["connections"]}
        assert set(held) == {"nightly report", "another"}
        assert held["nightly report"]["workload"] == "uploads"
        assert held["nightly report"]["in_transaction"]
        assert held["nightly report"]["statement"].endswith("select ? as held")
        assert "running" not in held["nightly report"]
        assert "2 of them were idle in a transaction" in now["verdict"]["reasons"][0]["text"]
        (waiting,) = now["waiters"]
        assert waiting["holder"] == "GET /waits"
        assert waiting["seconds"] + waiting["left"] == pytest.approx(20, abs=0.1)
        assert now["verdict"]["level"] == "bad"
        assert now["verdict"]["reasons"][0]["runbook"] == "exhaustion"
        assert "1 by nightly report" in now["verdict"]["reasons"][0]["text"]
        assert now["workloads"] == [
            {"name": "uploads", "statement_timeout": 30, "max_connections": 1, "held": 1}
        ]
        await people.go()


async def test_it_shows_what_runs_on_a_connection(database_url: str) -> None:
    async with running(settings(database_url)) as service:
        database = service.database

        async def in_a_session() -> None:
            async with database.session() as session:
                await session.execute(text("select pg_sleep(3), 'by session'"))

        async def alone() -> None:
            async with database.connection() as connection:
                await connection.execute("select pg_sleep(3), 'alone'")

        tasks = [
            asyncio.create_task(in_a_session(), name="session"),
            asyncio.create_task(alone(), name="alone"),
        ]
        await until(
            lambda: (
                sum(each.executing is not None for each in database.pool.core.connections().connections) == 2
            ),
            seconds=60,
        )
        await service.looked()
        now = await service.now()
        held = {each["holder"]: each for each in now["connections"]}
        assert {each["running"].split("] ")[1] for each in held.values()} == {"select pg_sleep(?), ?"}
        assert all(0 < each["executing"] < 3 for each in held.values())
        assert "idle in a transaction" not in now["verdict"]["reasons"][0]["text"]
        await asyncio.gather(*tasks)
        assert "running" not in json.dumps((await service.now())["connections"])


async def test_it_shows_the_shared_way(database_url: str) -> None:
    url = database_url.replace("postgresql://", "postgresql+steadypool://")
    async with running(settings(url, shared_connections=1, shared_window=5)) as service:
        assert (await service.now())["shared"] is None
        assert await service.database.fetchval("select 7") == 7
        with pytest.raises(errors.NotMultiplexable):
            await service.database.fetchval("listen x")
        shared = (await service.now())["shared"]
        wanted = {"connections": 1, "most_connections": 1, "window": 5, "statements": 1, "refused": 1}
        assert shared.items() >= (wanted | {"queued": 0, "in_flight": 0, "collateral": 0}).items()
        await service.looked()
        (cell,) = (await service.now())["connections"]
        assert cell["holder"] == "shared statements"
        assert (await service.now())["latency"]["waiting"]["count"] >= 1


async def test_it_remembers_who_held_and_who_waited(database_url: str) -> None:
    async with running(settings(database_url, pool_timeout=20)) as service:
        people = await crowd(service.database)
        await service.looked(2)
        at = service.database.recorder.now
        await people.go()
        await service.looked(2)
        past = (await service.client.get(f"/pool/moment.json?since={at - 1.5}&until={at + 0.5}")).json()
        assert {each["holder"] for each in past["moment"]["connections"]} == {"nightly report", "another"}
        assert [each["holder"] for each in past["moment"]["waiters"]] == ["GET /waits"]
        assert past["verdict"]["reasons"][0]["runbook"] == "exhaustion"
        assert any(each["fingerprint"].endswith("select ? as held") for each in past["statements"])
        series = (await service.client.get(f"/pool/series.json?since={at - 60}")).json()
        assert 1.0 in series["utilization"]
        assert len(series["at"]) == len(series["utilization"]) == len(series["waiting"])
        exported = await service.client.get("/pool/export.json")
        assert exported.headers["content-disposition"].startswith("attachment")
        recording = Recording.parse(exported.text)
        assert max(arrival.waited for arrival in recording.arrivals) > 1.0
        assert {arrival.workload for arrival in recording.arrivals} == {None, "uploads"}
        assert recording.settings["workloads"]["uploads"]["max_connections"] == 1


async def hold_until(database: Database, leave: asyncio.Event, workload: str | None = None) -> None:
    async with database.session(workload=workload) as session:
        await session.execute(text("select 42 as held"))
        await leave.wait()


async def test_it_lives_while_the_database_is_away_and_the_pool_is_full(
    proxied_url: str, proxy: FaultProxy
) -> None:
    async with running(settings(proxied_url, connection_timeout=5, request_deadline=5)) as service:
        leave = asyncio.Event()
        holders = [asyncio.create_task(hold_until(service.database, leave)) for _ in range(2)]
        await until(lambda: service.database.pool.checkedout() == 2, seconds=60)
        proxy.mode = "silent"
        seen: list[dict[str, Any]] = []
        async with service.client.stream("GET", "/pool/events") as events:
            assert events.headers["content-type"].startswith("text/event-stream")
            async for line in events.aiter_lines():
                if line.startswith("data: "):
                    seen.append(json.loads(line[6:]))
                if len(seen) == 3:
                    break
        assert [each["counts"]["leased"] for each in seen] == [2, 2, 2]
        assert seen[2]["at"] - seen[0]["at"] < 10.0
        assert (await service.client.get("/pool")).status_code == 200
        proxy.mode = "pass"
        leave.set()
        await asyncio.gather(*holders)


async def test_the_page_opens_no_connection(database_url: str, pg: Any) -> None:
    async with running(settings(database_url)) as service:
        for path in PATHS:
            async with service.client.stream("GET", path) as answer:
                assert answer.status_code == 200
        await service.looked(2)
        assert await pg.is_quiet()
        assert service.database.stats().totals.acquired == 0


async def test_what_others_wrote_is_text_and_no_secret_is_shown(database_url: str) -> None:
    """As JSON it is data; that the page makes text of it is shown in the browser's tests."""
    async with running(settings(database_url)) as service:
        leave = asyncio.Event()
        task = asyncio.create_task(hold_until(service.database, leave), name=HOSTILE + "x" * 1000)
        await until(lambda: service.database.pool.checkedout() == 1, seconds=60)
        async with service.database.session() as session:
            await session.execute(text(f"select 'p4ssw0rd' as {HOSTILE_NAME}"))
        answer = await service.client.get("/pool/now.json")
        assert answer.headers["content-type"] == "application/json"
        (holder,) = [each["holder"] for each in answer.json()["connections"] if "holder" in each]
        assert holder.startswith(HOSTILE)
        assert len(holder) == 200
        assert "p4ssw0rd" not in answer.text
        leave.set()
        await task
    async with running(settings(NOWHERE)) as service:
        with pytest.raises(errors.ConnectFailed):
            async with service.database.session() as session:
                await session.execute(text("select 1"))
        await service.looked()
        export = await service.client.get("/pool/export.json")
        assert "s3cret" not in export.text + (await service.client.get("/pool/now.json")).text
        assert json.loads(export.text)["journal"]


async def test_a_stream_ends_when_the_server_does() -> None:
    async with running(settings(NOWHERE)) as service:
        streaming = asyncio.create_task(read_all(service))
        await until(lambda: not streaming.done(), seconds=60)
        await service.looked()
    await asyncio.wait_for(streaming, 10)


async def read_all(service: Running) -> int:
    async with (
        httpx.AsyncClient(timeout=30) as client,
        client.stream("GET", f"{service.url}/pool/events") as events,
    ):
        return len([line async for line in events.aiter_lines() if line.startswith("data: ")])


RECORDING = """
import asyncio, contextlib, sys
from steadypool import Database, DatabaseSettings, errors

async def main():
    settings = DatabaseSettings(url=sys.argv[1], recorder_file=sys.argv[2], connection_timeout=0.5)
    async with Database(settings) as database:
        while True:
            with contextlib.suppress(errors.ConnectFailed):
                async with database.connection():
                    pass
            await database.watch.next_look(60.0)

asyncio.run(main())
"""


async def test_what_was_recorded_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "recorder.jsonl"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", RECORDING, NOWHERE, str(path))
    await until(lambda: path.exists() and path.read_text().count('"k":"row"') >= 2, seconds=60)
    process.kill()
    await process.wait()
    async with Database(settings(NOWHERE, recorder_file=path)) as database:
        recording = database.recorder.recording()
    assert len(recording.seconds) >= 2
    assert sum(row["connect_failures"] for row in recording.seconds) >= 1
    kinds = [note.kind for note in recording.journal]
    assert "connect_failures" in kinds
    assert kinds[-1] == "start"
    assert "s3cret" not in path.read_text()


async def test_the_recorder_can_be_off_and_its_file_is_read_again(database_url: str, tmp_path: Path) -> None:
    async with Database(settings(database_url, recorder=False)) as database:
        assert not database.watch.running
        async with database.session() as session:
            await session.execute(text("select 1"))
        assert database.recorder.recording().seconds == ()
    path = tmp_path / "recorder.jsonl"
    for run in (1, 2):
        async with Database(settings(database_url, recorder_file=path)) as database:
            async with database.session() as session:
                await session.execute(text("select 1"))
            assert await database.watch.next_look(60.0)
            recording = database.recorder.recording()
            assert sum(row["acquired"] for row in recording.seconds) == run
    written = Recording.load(path)
    assert sum(row["acquired"] for row in written.seconds) == 2
    assert len(written.arrivals) == 2
    assert [note.kind for note in written.journal] == ["close", "start", "close"]
