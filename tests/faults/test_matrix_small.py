"""The matrix and the replays in small: they run, they tell the good from the bad, and they write what they found."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from steadypool_lab.clients import DRIVERS
from steadypool_lab.matrix import Matrix, rows, run_matrix
from steadypool_lab.matrix.picture import draw
from steadypool_lab.replays import run_replays, write_report

pytestmark = [pytest.mark.anyio, pytest.mark.hedges, pytest.mark.quiet]

ROWS = ("silent", "mid-query", "idle-reset", "idle-silent", "asleep-held")


@pytest.fixture(autouse=True)
def busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `steadypool lab matrix` promises on a quiet machine needs more room here."""
    monkeypatch.setattr(rows, "MARGIN", 1.0)


async def test_steadypool_keeps_its_promises_with_every_driver(tmp_path: Path) -> None:
    seen: list[tuple[str, str, bool]] = []
    matrix = await run_matrix(
        [peer.name for peer in DRIVERS.values()],
        ROWS,
        unit=0.9,
        on_progress=lambda peer, row, cell: seen.append((peer, row, cell is not None)),
    )
    assert not matrix.broken(), [(cell.scenario, cell.peer, cell.broken) for cell in matrix.broken()]
    assert len(seen) == 2 * 3 * len(ROWS)
    written(matrix, tmp_path)


def written(matrix: Matrix, folder: Path) -> None:
    raw = json.loads(json.dumps(matrix.as_dict()))
    assert {cell["scenario"] for cell in raw["cells"]} == set(ROWS)
    assert raw["scenarios"]["silent"]["promise"]
    for kind in ("png", "svg"):
        draw(matrix, folder / f"matrix.{kind}")
    assert (folder / "matrix.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(folder / "matrix.svg").getroot().tag.endswith("svg")


async def test_a_broken_promise_is_seen() -> None:
    matrix = await run_matrix(("asyncpg",), ("silent",), unit=0.3)
    (cell,) = matrix.broken("asyncpg")
    assert cell.crashed is None
    assert (cell.figures.served, cell.figures.failed, cell.figures.hung) == (0, 30, 0)
    assert any("empty" in complaint for complaint in cell.broken)


async def test_a_row_that_cannot_be_played_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def breaks(*_: object) -> None:
        raise RuntimeError("the stage is on fire")

    broken = tuple(
        rows.Scenario(row.key, row.title, row.promise, breaks, row.judge) if row.key == "silent" else row  # type: ignore[arg-type]
        for row in rows.SCENARIOS
    )
    monkeypatch.setattr("steadypool_lab.matrix.run.SCENARIOS", broken)
    matrix = await run_matrix(("asyncpg",), ("silent", "idle-reset"), unit=0.3)
    first, second = matrix.cells
    assert first.crashed == "RuntimeError: the stage is on fire"
    assert not first.kept
    assert second.kept


async def test_an_outage_replayed(tmp_path: Path) -> None:
    notes: list[str] = []
    (replay,) = await run_replays(
        ["2025-12-02"],
        ["steadypool"],
        ["steadypool"],
        speed=15.0,
        on_note=lambda _moment, text: notes.append(text),
    )
    figures = replay.figures
    assert figures.requests == len(replay.requests) == figures.served + figures.failed
    assert figures.hung == figures.foreign == figures.unnamed == 0
    assert figures.served > 0.5 * figures.requests
    assert any("suspended" in note for note in notes)
    write_report([replay], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page
    assert "2025-12-02" in page
    assert "http-equiv" not in page
    assert 'src="' not in page
