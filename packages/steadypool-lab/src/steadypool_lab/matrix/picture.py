"""The matrix as a picture: a row for each fault, a column for each peer, green where the promise is kept."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from steadypool_lab.matrix.run import Cell, Matrix
from steadypool_lab.plots import BAD, GOOD, figure, save

_ROW_INCHES = 0.62
_COLUMN_INCHES = 1.75
_TITLE_INCHES = 3.3


def draw(matrix: Matrix, path: Path) -> None:
    """Write the picture; the name's ending chooses the format: .png or .svg.

    Raises:
        LabError: matplotlib is not installed.
    """
    rows, peers = matrix.scenarios, matrix.peers
    width = _TITLE_INCHES + _COLUMN_INCHES * (len(peers) + 1)
    height = _ROW_INCHES * (len(rows) + 1.9)
    drawing = figure(width, height)
    axes = drawing.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    top = 1.5 * _ROW_INCHES
    axes.text(
        0.1,
        0.25,
        f"Faults, with every timeout T = {matrix.unit:g} s",
        fontsize=12,
        weight="bold",
        va="center",
    )
    axes.text(
        0.1, 0.55, f"served / requests, slowest · {matrix.machine} · {matrix.began}", fontsize=7, va="center"
    )
    for column, peer in enumerate([*peers, "promised"]):
        x = _TITLE_INCHES + (column + 0.5) * _COLUMN_INCHES
        axes.text(x, top - 0.2, peer, fontsize=9, weight="bold", ha="center", va="center")
    for number, scenario in enumerate(rows):
        y = top + (number + 0.5) * _ROW_INCHES
        _write(axes, 0.1, y, scenario.title, 42, align="left")
        for column, peer in enumerate(peers):
            cell = matrix.cell(scenario.key, peer)
            if cell is not None:
                _paint(axes, _TITLE_INCHES + column * _COLUMN_INCHES, top + number * _ROW_INCHES, cell)
        _write(axes, _TITLE_INCHES + (len(peers) + 0.5) * _COLUMN_INCHES, y, scenario.promise, 32, size=6)
    save(drawing, path)


def _paint(axes: Any, left: float, top: float, cell: Cell) -> None:
    axes.fill_between(
        [left + 0.04, left + _COLUMN_INCHES - 0.04],
        top + 0.03,
        top + _ROW_INCHES - 0.03,
        color=GOOD if cell.kept else BAD,
        alpha=0.25,
        linewidth=0,
    )
    # The mark says it without colours, too.
    _write(
        axes,
        left + _COLUMN_INCHES / 2,
        top + _ROW_INCHES / 2,
        f"{'✓' if cell.kept else '✗'} {cell.summary}",
        26,
    )


def _write(
    axes: Any, x: float, y: float, text: str, width: int, *, align: str = "center", size: float = 7.5
) -> None:
    axes.text(x, y, "\n".join(textwrap.wrap(text, width)), fontsize=size, ha=align, va="center")
