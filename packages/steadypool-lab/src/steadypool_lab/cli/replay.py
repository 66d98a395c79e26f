"""`steadypool lab replay`: outages of the past, in three ways."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.table import Table

from steadypool.cli.output import Output

if TYPE_CHECKING:
    from steadypool_lab.replays import Replay


def replay(
    incident: Literal["2025-11-17", "2025-12-02", "2025-12-08", "all"],
    *,
    way: Annotated[Literal["before", "documented", "steadypool", "all"], Parameter(name="--with")] = "all",
    driver: Literal["asyncpg", "psycopg", "steadypool", "all"] = "all",
    speed: float = 10.0,
    output: Path = Path("lab-replay"),
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Play an outage of plyr.fm again: a real server, real connections, the requests of that day.

    Writes replay.json (every request) and replay.html (tables and plots, in one file). An incident takes about four
    and a half minutes in each way, divided by the speed.

    Exit code 1 means that with steadypool a request failed although it had time left.

    **Examples.**

        # The three outages, in all three ways, ten times as fast:
        steadypool lab replay all
        # The cold start of December 2025 as it was, and with steadypool:
        steadypool lab replay 2025-12-02 --with before
        steadypool lab replay 2025-12-02 --with steadypool

    Parameters
    ----------
    incident
        Its date, or all.
    way
        The configuration of that day, the one documented afterwards, steadypool, or all of them.
    driver
        With which driver steadypool plays; with each of them by default.
    speed
        How much faster than it was; all timeouts are shortened likewise. Above 20 the machine's own delays show.
    output
        The directory for the report.
    as_json
        Print the results as JSON, every request included.
    """
    from steadypool_lab.clients import DRIVERS
    from steadypool_lab.replays import INCIDENTS, WAYS, contestants, run_replays, write_report

    out = Output(as_json=as_json)
    if not speed > 0:
        out.fail(f"--speed {speed}: allowed: above 0")
        return 2
    dates = list(INCIDENTS) if incident == "all" else [incident]
    ways = WAYS if way == "all" else (way,)
    drivers = tuple(DRIVERS) if driver == "all" else (driver,)
    each = len(contestants(ways, drivers))
    seconds = sum(INCIDENTS[date].seconds for date in dates) * each / speed
    out.say(f"about {seconds:.0f} s; starting Postgres …")
    with out.progress(len(dates) * each, "starting Postgres …") as step:
        playing = run_replays(
            dates,
            ways,
            drivers,
            speed=speed,
            on_begin=lambda date, way: step.doing(f"{date}, {way}: {INCIDENTS[date].title}"),
            on_note=lambda moment, text: step.doing(f"{moment:4.0f} s: {text}"),
            on_end=lambda one: step.done(f"{one.incident}, {one.name}: {one.summary}"),
        )
        played = asyncio.run(playing)
    output.mkdir(parents=True, exist_ok=True)
    (output / "replay.json").write_text(json.dumps([one.as_dict() for one in played], indent=1))
    write_report(played, output / "replay.html")
    for date in dates:
        out.show(_table(date, INCIDENTS[date].title, [one for one in played if one.incident == date]))
    out.result([one.as_dict() for one in played])
    out.say(f"report: {output / 'replay.html'}")
    early = [one for one in played if one.early]
    for one in early:
        out.fail(f"{one.incident}: {one.early} requests failed with {one.name} although they had time left")
    return 1 if early else 0


def _table(date: str, title: str, replays: list[Replay]) -> Table:
    from steadypool_lab.replays.report import COLUMNS, cells

    table = Table(title=f"{date}: {title}")
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if number else "left")
    for one in replays:
        table.add_row(*cells(one))
    return table
