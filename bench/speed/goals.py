"""The goals that were set for speed, each against what one run measured; the table in docs/explanation/speed.md.

    python -m speed.goals results/2026-01-01-abcdef0.json

A ratio compares medians of one run, whatever machine it was.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READ, TRANSACTION, MIXED = "single read", "read transaction", "mixed"


@dataclass(frozen=True)
class Goal:
    """One contestant against another at one kind of work: for each distance in ms the least ratio by callers."""

    ours: str
    theirs: str
    kind: str
    least: dict[float, dict[int, float]]


RATES = (
    Goal(
        "steadypool shared",
        "asyncpg.Pool",
        READ,
        {0.0: {1: 3, 100: 5, 1000: 4}, 1.0: {1: 2, 100: 4, 1000: 8}},
    ),
    Goal("steadypool shared", "asyncpg.Pool, no reset", READ, {0.0: {1: 2, 100: 3, 1000: 2}}),
    Goal(
        "steadypool session",
        "seed's settings",
        TRANSACTION,
        {0.0: {1: 4, 15: 3, 100: 3}, 1.0: {1: 7, 15: 4, 100: 3}},
    ),
    Goal(
        "steadypool session",
        "SQLAlchemy, defaults",
        TRANSACTION,
        {0.0: {1: 1.8, 15: 1.3, 100: 1.3}, 1.0: {1: 2.6, 15: 1.5, 100: 1.5}},
    ),
    Goal(
        "steadypool dedicated",
        "asyncpg.Pool",
        READ,
        {0.0: {1: 3, 15: 2.5, 1000: 2.5}, 1.0: {1: 2, 15: 2, 1000: 2}},
    ),
)


def table(results: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown."""
    cells = {(c["contestant"], c["kind"], c["callers"], c["distance_ms"]): c for c in results["cells"]}
    yield "| what | callers | distance | goal | measured | |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for goal in RATES:
        for distance, by_callers in goal.least.items():
            for callers, least in by_callers.items():
                place = (goal.kind, callers, distance)
                ours, theirs = cells.get((goal.ours, *place)), cells.get((goal.theirs, *place))
                if ours is not None and theirs is not None:
                    ratio = _middle(ours["rates"]) / _middle(theirs["rates"])
                    what = f"{goal.kind}, {goal.ours} : {goal.theirs}"
                    yield _row(
                        what, str(callers), distance, f"≥ {least:g} ×", f"{ratio:.1f} ×", ratio >= least
                    )
    yield from _mixed(cells)
    yield from _backends(results, cells)
    yield from _node(results, cells)
    yield from _http(results)


def _mixed(cells: dict[tuple[Any, ...], dict[str, Any]]) -> Iterator[str]:
    for distance in (0.0, 1.0):
        place = (MIXED, 15, distance)
        ours, theirs = cells.get(("steadypool shared", *place)), cells.get(("asyncpg.Pool", *place))
        if ours is not None and theirs is not None:
            ratio = ours["p99"] / theirs["p99"]
            what = "mixed load, p99 of the fast statements, steadypool shared : asyncpg.Pool"
            yield _row(what, "15", distance, "≤ 1.2 ×", f"{ratio:.1f} ×", ratio <= 1.2)


def _backends(results: dict[str, Any], cells: dict[tuple[Any, ...], dict[str, Any]]) -> Iterator[str]:
    """The shared way's own number, where its p99 is no worse than asyncpg.Pool's, which has 15 connections."""
    needed = results["backends at 100 callers"].get("steadypool shared")
    for distance in (0.0, 1.0):
        place = (READ, 100, distance)
        ours, theirs = cells.get(("steadypool shared", *place)), cells.get(("asyncpg.Pool", *place))
        if ours is not None and theirs is not None and needed is not None:
            reached = ours["p99"] <= theirs["p99"]
            measured = f"{needed}: {ours['p99']:.1f} ms against {theirs['p99']:.1f} ms"
            what = "backends of steadypool shared for the p99 of asyncpg.Pool with 15"
            yield _row(what, "100", distance, "≤ 4", measured, reached and needed <= 4)


def _node(results: dict[str, Any], cells: dict[tuple[Any, ...], dict[str, Any]]) -> Iterator[str]:
    ours = cells.get(("steadypool shared", READ, 100, 0.0))
    for node in results["node"]:
        if ours is not None:
            ratio = _middle(ours["rates"]) / _middle(node["rates"])
            what = "single read, steadypool shared : postgres.js on Node, two connections each"
            yield _row(what, "100", 0.0, "≥ 2 ×", f"{ratio:.1f} ×", ratio >= 2)


def _http(results: dict[str, Any]) -> Iterator[str]:
    rows = {(r["way"], r["users"], r["distance_ms"]): r for r in results["http"]}
    for (way, users, distance), theirs in rows.items():
        if way != "seed's settings":
            continue
        least = 2 if distance == 0 else 3
        for own in ("steadypool session", "steadypool shared"):
            ours = rows[own, users, distance]
            rate = _middle(ours["rates"]) / _middle(theirs["rates"])
            p99 = theirs["p99"] / ours["p99"]
            what = f"HTTP, {own} : seed's settings, requests a second and p99"
            reached = min(rate, p99) >= least
            yield _row(what, str(users), distance, f"≥ {least} ×", f"{rate:.1f} ×, {p99:.1f} ×", reached)


def _middle(rates: list[float]) -> float:
    return statistics.median(rates)


def _row(what: str, callers: str, distance: float, goal: str, measured: str, reached: bool) -> str:
    far = f"{distance:g} ms" if distance else "none"
    return f"| {what} | {callers} | {far} | {goal} | {measured} | {'reached' if reached else 'missed'} |"


if __name__ == "__main__":
    print("\n".join(table(json.loads(Path(sys.argv[1]).read_text()))))
