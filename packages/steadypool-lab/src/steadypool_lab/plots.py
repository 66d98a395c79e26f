"""What the lab's pictures have in common; the only place that knows matplotlib."""

from __future__ import annotations

import io
import re
import zlib
from pathlib import Path
from typing import Any

from steadypool_lab.errors import LabError

# Told apart also by those who do not see red and green as different.
GOOD, BAD, NEUTRAL, HUNG = "#1b7f5c", "#d1495b", "#9aa5b1", "#7a1f3d"


def figure(width: float, height: float) -> Any:
    """An empty figure, so many inches wide and high; no window, no global state.

    Raises:
        LabError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LabError("pictures need matplotlib. Install it with: pip install steadypool-lab") from error
    matplotlib.rcParams["svg.hashsalt"] = "steadypool"  # the same figures make the same file
    return Figure(figsize=(width, height), dpi=110)


def save(drawing: Any, path: Path) -> None:
    """Write it; the name's ending chooses the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, facecolor="white", metadata={"Date": None} if path.suffix == ".svg" else None)


def inline_svg(drawing: Any) -> str:
    """The figure as an `<svg>` element for an HTML page, with nothing from elsewhere."""
    written = io.StringIO()
    drawing.savefig(written, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    # Names are made unique where several figures stand in one page.
    mark = f"f{zlib.crc32(svg.encode()):08x}-"
    svg = re.sub(r'\bid="', f'id="{mark}', svg)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{mark}", svg)
