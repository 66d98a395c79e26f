"""Tables for people, JSON for comparisons, plots for the documentation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot

OURS = "#1f77b4"
THEIRS = "#b0b7c0"


def row(cells: Iterable[Any], kind: str, callers: int, distance: float) -> str:
    """The contestants of one row, the fastest first."""
    chosen = [c for c in cells if (c.kind, c.callers, c.distance_ms) == (kind, callers, distance)]
    lines = [
        f"  {'':30}{'a second':>12}{'spread':>9}{'p50 ms':>9}{'p99':>9}{'p99.9':>9}{'CPU s/1000':>13}{'Jain':>7}"
    ]
    for cell in sorted(chosen, key=lambda c: -statistics.median(c.rates)):
        trouble = f"  {cell.errors} errors: {cell.error}" if cell.errors else ""
        middle = statistics.median(cell.rates)
        spread = (max(cell.rates) - min(cell.rates)) / middle if middle else 0.0
        rare = f"{cell.p999:9.2f}" if cell.p999 is not None else f"{'':9}"
        lines.append(
            f"  {cell.contestant:30}{middle:12,.0f}{spread:9.0%}{cell.p50:9.2f}{cell.p99:9.2f}{rare}"
            f"{cell.cpu_per_1000:13.1f}{cell.jain:7.2f}{trouble}"
        )
    return "\n".join(lines)


def costs(crossings: list[dict[str, Any]]) -> str:
    """Round trips / statements of each contestant, a column a kind of work."""
    kinds = list(dict.fromkeys(cost["kind"] for cost in crossings))
    lines = [f"  {'round trips / statements':30}" + "".join(f"{kind:>20}" for kind in kinds)]
    for name in dict.fromkeys(cost["contestant"] for cost in crossings):
        own = {cost["kind"]: cost for cost in crossings if cost["contestant"] == name}
        texts = [
            f"{own[k]['round_trips']:.1f} / {own[k]['statements']:.1f}" if k in own else "" for k in kinds
        ]
        lines.append(f"  {name:30}" + "".join(f"{text:>20}" for text in texts))
    return "\n".join(lines)


def write(results: dict[str, Any], folder: Path) -> None:
    """`<day>-<commit>.json` and one picture a distance."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{results['made'][:10]}-{results['commit']}"
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    for distance in sorted({cell["distance_ms"] for cell in results["cells"]}):
        plot(results, distance, folder / f"{name}-{distance:g}ms.svg")
    print(f"written: {folder / name}.json")


def plot(results: dict[str, Any], distance: float, path: Path) -> None:
    """Requests a second: a panel for each kind of work and number of callers, ours in colour."""
    cells = [cell for cell in results["cells"] if cell["distance_ms"] == distance]
    kinds = list(dict.fromkeys(cell["kind"] for cell in cells))
    callers = sorted({cell["callers"] for cell in cells})
    figure, axes = pyplot.subplots(
        len(kinds),
        len(callers),
        figsize=(4.2 * len(callers), 2.9 * len(kinds)),
        squeeze=False,
        layout="constrained",
    )
    for across, kind in zip(axes, kinds, strict=True):
        for axis, number in zip(across, callers, strict=True):
            own = [cell for cell in cells if cell["kind"] == kind and cell["callers"] == number]
            own.sort(key=lambda cell: statistics.median(cell["rates"]))
            axis.barh(
                [cell["contestant"] for cell in own],
                [statistics.median(cell["rates"]) for cell in own],
                color=[OURS if cell["contestant"].startswith("steadypool") else THEIRS for cell in own],
            )
            axis.set_title(f"{kind}, {number:,} callers", fontsize=9)
            axis.tick_params(labelsize=7)
            axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"requests a second at {distance:g} ms, {results['machine']}", fontsize=10)
    figure.savefig(path)
    pyplot.close(figure)
