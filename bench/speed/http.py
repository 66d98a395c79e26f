"""End to end: one FastAPI route with three queries, the same application by several ways to the database.

The application runs in a process of its own (uvicorn, uvloop, one worker); this process sends the requests over
keep-alive connections and reads what the server's process used of the CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from . import ours, peers
from .distance import Relay
from .measure import percentile
from .work import READ, READ_100

WAYS: dict[str, Any] = {
    "steadypool session": ours.Session,
    "steadypool shared": ours.Shared,
    "steadypool session, asyncpg": ours.SessionAsyncpg,
    "seed's settings": peers.SeedsSettings,
    "SQLAlchemy, defaults": peers.SqlAlchemyDefault,
    "asyncpg.Pool": peers.AsyncpgPool,
}


def application() -> FastAPI:
    """What uvicorn serves: the way and the database come from the environment."""
    contestant = WAYS[os.environ["BENCH_WAY"]](os.environ["BENCH_URL"])

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[None]:
        await contestant.open()
        yield
        await contestant.close()

    app = FastAPI(lifespan=lifespan)
    one, two = READ.format("$1"), READ_100.format("$1")

    if isinstance(contestant, peers.Sessions):

        @app.get("/page/{row}")
        async def in_a_session(row: int) -> dict[str, Any]:
            async with contestant.session() as session:
                first = (await session.execute(peers.NAMED["READ"], {"a": row})).one()
                second = (await session.execute(peers.NAMED["READ"], {"a": row + 1})).one()
                rows = (await session.execute(peers.NAMED["READ_100"], {"a": row})).all()
            return {"first": first.name, "second": second.name, "rows": len(rows)}

    elif isinstance(contestant, ours.Shared):

        @app.get("/page/{row}")
        async def shared(row: int) -> dict[str, Any]:
            db = contestant.db
            first = await db.fetchrow(one, row)
            second = await db.fetchrow(one, row + 1)
            rows = await db.fetch(two, row)
            return {"first": first["name"], "second": second["name"], "rows": len(rows)}

    else:

        @app.get("/page/{row}")
        async def on_a_connection(row: int) -> dict[str, Any]:
            async with contestant.pool.acquire() as connection:
                first = await connection.fetchrow(one, row)
                second = await connection.fetchrow(one, row + 1)
                rows = await connection.fetch(two, row)
            return {"first": first["name"], "second": second["name"], "rows": len(rows)}

    return app


class Server:
    """The application's process."""

    def __init__(self, way: str, url: str) -> None:
        self.way = way
        self.process = subprocess.Popen(
            [sys.executable, "-m", "speed.http"],
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "BENCH_WAY": way, "BENCH_URL": url},
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def cpu(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)


async def user(port: int, row: int, until: float, latencies: list[float], failures: list[str]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = f"GET /page/{row} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
    try:
        while (began := time.perf_counter()) < until:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
            if head.startswith(b"http/1.1 200"):
                latencies.append(time.perf_counter() - began)
            else:
                failures.append(body[:200].decode())
    finally:
        writer.close()
        await writer.wait_closed()


async def compare(url: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of results for each distance and number of users."""
    rows: list[dict[str, Any]] = []
    for distance in args.distance:
        with Relay(url, distance / 2000) as relay:
            servers = [Server(way, relay.url if distance else url) for way in WAYS]
            try:
                for users in (15, 100):
                    rows += await compare_servers(servers, users, distance, args)
            finally:
                for server in servers:
                    server.close()
    return rows


async def compare_servers(
    servers: list[Server], users: int, distance: float, args: argparse.Namespace
) -> list[dict[str, Any]]:
    measured: dict[str, dict[str, Any]] = {
        server.way: {"rates": [], "latencies": [], "cpu": 0.0, "failures": []} for server in servers
    }
    for number in range(-1, args.rounds):
        turn = number % len(servers)
        for server in servers[turn:] + servers[:turn]:
            latencies: list[float] = []
            failures: list[str] = []
            cpu, began = server.cpu(), time.perf_counter()
            until = began + 2 * args.seconds
            await asyncio.gather(
                *(user(server.port, 1 + n * 7, until, latencies, failures) for n in range(users))
            )
            if number < 0:
                continue  # warm now
            one = measured[server.way]
            one["rates"].append(round(len(latencies) / (time.perf_counter() - began), 1))
            one["latencies"] += latencies
            one["cpu"] += server.cpu() - cpu
            one["failures"] += failures
    rows: list[dict[str, Any]] = []
    for way, one in measured.items():
        ordered = sorted(one["latencies"])
        rows.append(
            {
                "way": way,
                "users": users,
                "distance_ms": distance,
                "rates": one["rates"],
                "samples": len(ordered),
                "p50": round(percentile(ordered, 0.5) * 1000, 2),
                "p99": round(percentile(ordered, 0.99) * 1000, 2),
                "cpu_ms_per_request": round(one["cpu"] / max(1, len(ordered)) * 1000, 3),
                "failures": len(one["failures"]),
                "failure": one["failures"][0] if one["failures"] else None,
            }
        )
    print(f"HTTP, three queries a request, {users} users, {distance:g} ms")
    for row in sorted(rows, key=lambda r: -statistics.median(r["rates"])):
        print(
            f"  {row['way']:30}{statistics.median(row['rates']):10,.0f} a second  p50 {row['p50']:7.2f} ms  "
            f"p99 {row['p99']:7.2f} ms  CPU {row['cpu_ms_per_request']:.2f} ms"
            + (f"  {row['failures']} failures: {row['failure']}" if row["failures"] else ""),
            flush=True,
        )
    return rows


def main() -> None:
    """Serve the application; the port goes to standard output."""
    import socket

    import uvicorn

    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    server = uvicorn.Server(
        uvicorn.Config(application(), log_level="warning", access_log=False, loop="uvloop")
    )
    server.run(sockets=[listening])


if __name__ == "__main__":
    main()
