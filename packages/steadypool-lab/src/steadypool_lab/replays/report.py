"""The replays as one HTML page: a table, a plot for each, nothing from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from steadypool_lab.plots import BAD, GOOD, HUNG, NEUTRAL, figure, inline_svg
from steadypool_lab.replays.incidents import INCIDENTS
from steadypool_lab.replays.run import Replay

_COLOURS = {"served": GOOD, "failed": BAD, "hung": HUNG}
_MARKS = {"served": "o", "failed": "x", "hung": "^"}
_SHOWN = 400.0
"""Longest time in a plot, in the incident's seconds."""

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1d2733 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .3rem .8rem; border-bottom: 1px solid #ccd3da;
text-align: right; vertical-align: top } th:first-child, td:first-child { text-align: left }
svg { max-width: 100%; height: auto } .note { color: #55606c; font-size: .9em } h2 { margin-top: 3rem }
"""


def write_report(replays: Sequence[Replay], path: Path) -> None:
    """Write the page.

    Raises:
        LabError: matplotlib is not installed.
    """
    dates = list(dict.fromkeys(replay.incident for replay in replays))
    sections = "\n".join(_section(date, [one for one in replays if one.incident == date]) for date in dates)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Three outages, replayed</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        "<h1>Three outages, replayed</h1>"
        "<p>A real server, real connections, the requests of that day. All times are the incident's; they were "
        f"played {replays[0].speed:g} times as fast, with all timeouts shortened likewise.</p>"
        f"{sections}</body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)


def _section(date: str, replays: Sequence[Replay]) -> str:
    incident = INCIDENTS[date]
    rows = "".join(_row(replay) for replay in replays)
    ways = "".join(f"<li><b>{one.name}</b>: {html.escape(incident.ways[one.way])}</li>" for one in replays)
    heads = "".join(f"<th>{name}</th>" for name in COLUMNS)
    return (
        f"<h2>{date}: {html.escape(incident.title)}</h2><p>{html.escape(incident.story)}</p>"
        f'<table><tr>{heads}</tr>{rows}</table><ul class="note">{ways}</ul>{_plot(replays)}{_errors(replays)}'
    )


COLUMNS = ("", "requests", "served", "failed", "hung", "slowest", "attempts", "time to recover")
"""Of the table, on the page and on the terminal."""


def cells(replay: Replay) -> tuple[str, ...]:
    """One line of the table."""
    f = replay.figures
    recovered = "never" if replay.recovered is None else f"{replay.recovered:.0f} s"
    slowest = f"{f.slowest:.1f} s"
    return (
        replay.name,
        *map(str, (f.requests, f.served, f.failed, f.hung)),
        slowest,
        str(replay.attempts),
        recovered,
    )


def _row(replay: Replay) -> str:
    return f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells(replay))}</tr>"


def _errors(replays: Sequence[Replay]) -> str:
    said = "".join(
        f"<li><b>{replay.name}</b>, {times} ×: {html.escape(error)}</li>"
        for replay in replays
        for error, times in list(replay.figures.errors.items())[:3]
    )
    return f'<details class="note"><summary>What the errors said</summary><ul>{said or "<li>none</li>"}</ul></details>'


def _plot(replays: Sequence[Replay]) -> str:
    """A panel for each way: when each request came, and how long it took."""
    incident = INCIDENTS[replays[0].incident]
    drawing = figure(10, 1.9 * len(replays) + 0.6)
    panels = drawing.subplots(len(replays), 1, sharex=True, squeeze=False)[:, 0]
    for panel, replay in zip(panels, replays, strict=True):
        panel.axvspan(*incident.fault, color=NEUTRAL, alpha=0.25, linewidth=0)
        for ended, colour in _COLOURS.items():
            ones = [one for one in replay.requests if one.ended == ended]
            times = [min(max(one.seconds, 0.005), _SHOWN) for one in ones]
            label = f"{ended} ({len(ones)})"
            panel.scatter(
                [one.began for one in ones], times, s=9, c=colour, marker=_MARKS[ended], label=label
            )
        for moment, _ in replay.notes:
            panel.axvline(moment, color=NEUTRAL, linewidth=0.8, linestyle=":")
        panel.set_yscale("log")
        panel.set_ylim(0.004, _SHOWN * 1.5)
        panel.set_ylabel("seconds")
        panel.set_title(replay.name, loc="left", fontsize=10)
        panel.legend(loc="upper right", fontsize=7, ncols=3)
    panels[-1].set_xlabel("seconds since the beginning; grey: something is broken")
    drawing.tight_layout()
    notes = "; ".join(f"{moment:.0f} s: {html.escape(text)}" for moment, text in replays[0].notes)
    return f'{inline_svg(drawing)}<p class="note">{notes}</p>'
