"""The whole comparison: every kind of work, every contestant, several numbers of callers, two distances.

    make bench                                         everything; about an hour
    python -m speed --quick                            fewer callers, shorter rounds
    python -m speed --kind 'single read' --callers 1 100 --distance 0

One process, rounds interleaved, their order rotated. Results are compared within one run only: a machine that other
work is on slows all contestants alike. Written to bench/results/, as JSON and as plots.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import platform
import subprocess
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
import uvloop

from steadypool_lab import EmbeddedPostgres

from . import http, node, report
from .distance import Relay
from .measure import Round, jain, percentile, run_round
from .ours import OURS
from .peers import PEERS
from .work import SET_UP, Contestant, Kind, Request

BENCH = Path(__file__).parent.parent

ENOUGH = 10_000
"""Samples of which it makes sense to say what one in a thousand exceeds."""


@dataclass
class Cell:
    """One contestant at one kind of work, callers and distance. Times in ms, rates a second, CPU in seconds."""

    kind: str
    contestant: str
    callers: int
    distance_ms: float
    rates: list[float] = field(default_factory=list)
    samples: int = 0
    p50: float = 0.0
    p99: float = 0.0
    p999: float | None = None
    cpu_per_1000: float = 0.0
    jain: float = 0.0
    errors: int = 0
    error: str | None = None


@dataclass
class Crossing:
    """What one request costs, warm, counted between client and server."""

    kind: str
    contestant: str
    round_trips: float
    statements: float


async def most_backends(observer: Any, stop: asyncio.Event) -> int:
    """The most connections at a time, looked at ten times a second."""
    most = 0
    while not stop.is_set():
        most = max(
            most,
            await observer.fetchval(
                "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
            ),
        )
        try:
            await asyncio.wait_for(stop.wait(), 0.1)
        except TimeoutError:
            continue
    return most


async def opened(kinds: list[type[Contestant]], url: str, stack: AsyncExitStack) -> list[Contestant]:
    ready: list[Contestant] = []
    for kind in kinds:
        contestant = kind(url)
        await contestant.open()
        stack.push_async_callback(contestant.close)
        ready.append(contestant)
    return ready


async def compare(
    ready: list[Contestant], kind: Kind, callers: int, distance: float, args: argparse.Namespace
) -> list[Cell]:
    """One row of the table: all contestants, round by round, each round in another order."""
    able = [one for one in ready if kind in one.requests()]
    rounds: dict[str, list[Round]] = {one.name: [] for one in able}
    for one in able:
        await run_round(one, kind, callers, args.seconds / 4, seed=0)
    gc.collect()
    gc.freeze()  # what is there by now need not be looked through before each round
    for number in range(args.rounds):
        turn = number % max(1, len(able))
        for one in able[turn:] + able[:turn]:
            gc.collect()
            rounds[one.name].append(await run_round(one, kind, callers, args.seconds, seed=number))
    return [summed_up(one, kind, callers, distance, rounds[one.name]) for one in able]


def summed_up(one: Contestant, kind: Kind, callers: int, distance: float, rounds: list[Round]) -> Cell:
    ordered = sorted(latency for each in rounds for latency in each.latencies)
    counts = [sum(each.per_caller[caller] for each in rounds) for caller in range(callers)]
    return Cell(
        kind=kind.value,
        contestant=one.name,
        callers=callers,
        distance_ms=distance,
        rates=[round(sum(each.per_caller) / each.elapsed, 1) for each in rounds],
        samples=len(ordered),
        p50=round(percentile(ordered, 0.5) * 1000, 3),
        p99=round(percentile(ordered, 0.99) * 1000, 3),
        p999=round(percentile(ordered, 0.999) * 1000, 3) if len(ordered) >= ENOUGH else None,
        cpu_per_1000=round(sum(each.cpu for each in rounds) / max(1, sum(counts)) * 1000, 3),
        jain=round(jain(counts), 3),
        errors=sum(each.errors for each in rounds),
        error=next((each.error for each in rounds if each.error), None),
    )


async def backends_used(kinds: list[type[Contestant]], url: str, callers: int) -> dict[str, int]:
    """Connections on the server while `callers` read, each contestant alone."""
    used: dict[str, int] = {}
    observer: Any = await asyncpg.connect(url)
    try:
        for kind in kinds:
            async with AsyncExitStack() as stack:
                [one] = await opened([kind], url, stack)
                stop = asyncio.Event()
                watching = asyncio.create_task(most_backends(observer, stop))
                await run_round(one, Kind.READ, callers, 0.5, seed=0)
                stop.set()
                used[one.name] = await watching
    finally:
        await observer.close()
    return used


async def crossings(kinds: list[type[Contestant]], url: str) -> list[Crossing]:
    """Round trips and statements of one request, the mean of ten warm ones, each contestant alone."""
    found: list[Crossing] = []
    for kind in kinds:
        with Relay(url, 0.002) as relay:
            async with AsyncExitStack() as stack:
                [one] = await opened([kind], relay.url, stack)
                for work, request in one.requests().items():
                    if work is not Kind.MIXED:
                        found.append(await crossing(one, work, request, relay))
    return found


async def crossing(one: Contestant, work: Kind, request: Request, relay: Relay) -> Crossing:
    for _ in range(8):  # past every library's threshold for preparing a statement
        await request(1)
    await asyncio.sleep(0.05)  # what is sent and not waited for belongs to the request before
    before = relay.counts()
    for _ in range(10):
        await request(1)
    await asyncio.sleep(0.05)
    after = relay.counts()
    trips, statements = ((after[name] - before[name]) / 10 for name in ("round_trips", "statements"))
    return Crossing(work.value, one.name, trips, statements)


async def all_rows(
    kinds: list[type[Contestant]], url: str, args: argparse.Namespace, done: list[dict[str, Any]]
) -> None:
    rows = [(d, k, c) for k in args.kind for d in args.distance for c in args.callers]
    for number, (distance, kind, callers) in enumerate(rows, 1):
        began = time.monotonic()
        with Relay(url, distance / 2000) as relay:
            async with AsyncExitStack() as stack:
                ready = await opened(kinds, relay.url if distance else url, stack)
                cells = await compare(ready, kind, callers, distance, args)
        done += [asdict(cell) for cell in cells]
        print(
            f"[{number}/{len(rows)}] {kind.value}, {callers} callers, {distance:g} ms: {time.monotonic() - began:.0f} s"
        )
        print(report.row(cells, kind.value, callers, distance), flush=True)


async def compare_all(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Fill the results, part by part: whoever interrupts it keeps those that there are."""
    kinds = [one for one in (*OURS, *PEERS) if not args.contestant or one.name in args.contestant]
    results |= {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.machine()}",
        "rounds": args.rounds,
        "seconds": args.seconds,
        "crossings": [],
        "backends at 100 callers": {},
        "cells": [],
        "http": [],
        "node": [],
    }
    with TemporaryDirectory() as directory:
        async with EmbeddedPostgres(Path(directory), settings={"max_connections": "400"}) as server:
            url = await server.create_database("bench")
            connection: Any = await asyncpg.connect(url)
            for statement in SET_UP.split(";"):
                await connection.execute(statement)
            await connection.close()
            if not args.no_crossings:
                results["crossings"] = [asdict(cost) for cost in await crossings(kinds, url)]
                print(report.costs(results["crossings"]), flush=True)
                results["backends at 100 callers"] = await backends_used(kinds, url, 100)
            if not args.no_node:
                results["node"] = await node.measure(url, args)
            if not args.no_http:
                results["http"] = await http.compare(url, args)
            await all_rows(kinds, url, args, results["cells"])


def commit() -> str:
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=BENCH, capture_output=True, text=True)
    return asked.stdout.strip() or "unknown"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="speed", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kind", nargs="+", type=Kind, default=list(Kind), help=", ".join(Kind))
    parser.add_argument("--contestant", nargs="+", help="names as in the tables")
    parser.add_argument("--callers", nargs="+", type=int, default=[1, 15, 100, 1000])
    parser.add_argument("--distance", nargs="+", type=float, default=[0.0, 1.0], help="ms of a round trip")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a round")
    parser.add_argument("--quick", action="store_true", help="1 and 100 callers, 3 rounds of 0.3 s")
    parser.add_argument("--no-http", action="store_true")
    parser.add_argument("--no-node", action="store_true")
    parser.add_argument("--no-crossings", action="store_true")
    parser.add_argument("--output", type=Path, help="a folder; bench/results/ if not given")
    args = parser.parse_args()
    if args.quick:
        args.callers, args.rounds, args.seconds = [1, 100], 3, 0.3
    return args


if __name__ == "__main__":
    chosen, measured = arguments(), dict[str, Any]()
    try:
        uvloop.run(compare_all(chosen, measured))
    finally:
        if measured.get("cells"):
            report.write(measured, chosen.output or BENCH / "results")
