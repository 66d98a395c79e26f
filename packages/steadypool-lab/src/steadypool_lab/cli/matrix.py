"""`steadypool lab matrix`: every peer through every fault, on this machine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.table import Table

from steadypool.cli.output import Output, plain

if TYPE_CHECKING:
    from steadypool_lab.matrix import Cell, Matrix


def matrix(
    *,
    peers: str = "asyncpg,psycopg_pool,sqlalchemy,steadypool",
    only: str = "",
    scale: float = 1.0,
    output: Path = Path("lab-matrix"),
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Put Postgres libraries through every fault, and see who keeps what is promised.

    Every timeout is T = 2 s. Each library is configured as its own documentation says. Takes about two minutes for
    each of them, on an otherwise quiet machine. Writes matrix.json (all raw figures), matrix.svg and matrix.png.

    Exit code 1 means that steadypool broke a promise.

    **Examples.**

        # Everything:
        steadypool lab matrix
        # steadypool alone, four times as fast, two rows:
        steadypool lab matrix --peers steadypool --scale 0.25 --only silent,asleep-held

    Parameters
    ----------
    peers
        Their names, with commas: asyncpg, psycopg_pool, psycopg_pool+check, sqlalchemy, steadypool/asyncpg,
        steadypool/psycopg, steadypool/steadypool; or steadypool for all of the last.
    only
        Keys of rows, with commas; all by default.
    scale
        Factor on all times. Below 0.5 the machine's own delays show.
    output
        The directory for the raw figures and the pictures.
    as_json
        Print the raw figures.
    """
    from steadypool_lab.clients import PEERS
    from steadypool_lab.matrix import SCENARIOS, run_matrix
    from steadypool_lab.matrix.picture import draw

    out = Output(as_json=as_json)
    names = [name for word in _words(peers) for name in PEERS if name == word or name.startswith(f"{word}/")]
    rows = _words(only)
    unknown = [
        word
        for word in _words(peers)
        if not any(name == word or name.startswith(f"{word}/") for name in PEERS)
    ]
    unknown += [row for row in rows if row not in {scenario.key for scenario in SCENARIOS}]
    if unknown or not scale > 0:
        out.fail(
            f"unknown: {', '.join(unknown) or f'scale {scale}'}. Peers: {', '.join(PEERS)}, steadypool. "
            f"Rows: {', '.join(scenario.key for scenario in SCENARIOS)}. The scale is above 0."
        )
        return 2

    count = len(names) * (len(rows) or len(SCENARIOS))
    with out.progress(count, "starting Postgres …") as step:

        def tell(peer: str, row: str, cell: Cell | None) -> None:
            if cell is None:
                step.doing(f"{row}: {peer}")
            else:
                step.done(
                    f"{row}: {peer}: {cell.summary}"
                    if cell.kept
                    else f"{row}: {peer}: {'; '.join(cell.broken)}"
                )

        measured = asyncio.run(run_matrix(names, rows, unit=2.0 * scale, on_progress=tell))

    output.mkdir(parents=True, exist_ok=True)
    (output / "matrix.json").write_text(json.dumps(measured.as_dict(), indent=2, default=str))
    for kind in ("svg", "png"):
        draw(measured, output / f"matrix.{kind}")
    out.show(_table(measured))
    for cell in measured.broken():
        out.show(f"[red]{cell.peer}[/red], {cell.scenario}: {plain('; '.join(cell.broken))}")
    out.result(measured.as_dict())
    out.say(f"raw figures and pictures: {output}")
    return 1 if measured.broken() else 0


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _table(measured: Matrix) -> Table:
    table = Table(title=f"Every timeout T = {measured.unit:g} s; served/requests, slowest", show_lines=True)
    table.add_column("what happens")
    for peer in measured.peers:
        table.add_column(peer)
    table.add_column("promised")
    for scenario in measured.scenarios:
        cells = [measured.cell(scenario.key, peer) for peer in measured.peers]
        table.add_row(scenario.title, *(_shown(cell) for cell in cells), scenario.promise)
    return table


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return f"[{'green' if cell.kept else 'red'}]{'✓' if cell.kept else '✗'} {plain(cell.summary)}[/]"
