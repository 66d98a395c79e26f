"""Where recorded load comes from: a recorder's file, a running service's page, or the log of Postgres."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from steadypool.errors import ConfigurationError
from steadypool.telemetry.recorder import Arrival, Recording
from steadypool.telemetry.recorder.histogram import Histogram
from steadypool.telemetry.recorder.recording import SERVED

FETCH_WITHIN = 10.0
EXPORT = "/export.json"


@dataclass(frozen=True, slots=True)
class Load:
    """What was asked of the database, in the order of asking.

    `connecting` and `executing` are durations of connects and statements, where they are known. `whole` says whether
    all work is there; a log has only what was slower than its limit, and no waits.
    """

    source: str
    arrivals: tuple[Arrival, ...]
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    connecting: Histogram = field(default_factory=Histogram)
    executing: Histogram = field(default_factory=Histogram)
    whole: bool = True

    @property
    def seconds(self) -> float:
        """From the first arrival to the last."""
        return self.arrivals[-1].at - self.arrivals[0].at if self.arrivals else 0.0


def load(source: str) -> Load:
    """Read recorded load from a file or from the address of a page.

    Raises:
        ConfigurationError: it is nothing that can be read, or there is no work in it.
        OSError: it cannot be opened.
    """
    if re.match(r"https?://", source):
        found = _of_recording(source, Recording.parse(_fetched(source)))
    else:
        text = Path(source).read_text(encoding="utf-8", errors="replace")
        found = (
            _of_log(source, text) if _DURATION.search(text) else _of_recording(source, Recording.parse(text))
        )
    if len(found.arrivals) < 2:
        raise ConfigurationError(f"{source}: there is no load in it; record while the service is used")
    return found


def _fetched(address: str) -> str:
    address = address if address.endswith(".json") else address.rstrip("/") + EXPORT
    try:
        with urllib.request.urlopen(address, timeout=FETCH_WITHIN) as answer:
            return answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        raise ConfigurationError(
            f"{address}: answered {error.code}; the page is for this machine and for those who are signed in"
        ) from error


def _of_recording(source: str, recording: Recording) -> Load:
    rows = recording.seconds or recording.minutes
    return Load(
        source,
        tuple(sorted(recording.arrivals, key=lambda arrival: arrival.at)),
        recording.settings,
        Histogram().merge(row.connecting for row in rows),
        Histogram().merge(row.executing for row in rows),
    )


# -- the log of Postgres -------------------------------------------------------------------------------------------

_DURATION = re.compile(r"duration: (\d+(?:\.\d+)?) ms  (?:statement|execute [^:]*|fetch [^:]*):")
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?)")


def _of_log(source: str, text: str) -> Load:
    arrivals = sorted(_statements(text.splitlines()), key=lambda arrival: arrival.at)
    executing = Histogram()
    for arrival in arrivals:
        executing.add(arrival.held or 0.0)
    return Load(source, tuple(arrivals), executing=executing, whole=False)


def _statements(lines: Iterable[str]) -> Iterator[Arrival]:
    """Each line that says how long a statement took: of `log_destination` stderr or jsonlog."""
    for line in lines:
        duration, moment, workload = _DURATION.search(line), _MOMENT.search(line), None
        if duration is None or moment is None:
            continue
        if line.startswith("{"):
            workload = _application(line)
        took = float(duration[1]) / 1000
        # Only differences count, so the time zone, which all lines share, does not.
        ended = datetime.fromisoformat(moment[1]).timestamp()
        yield Arrival(ended - took, 0.0, took, workload, SERVED)


def _application(line: str) -> str | None:
    try:
        entry = cast("dict[str, Any]", json.loads(line))
    except ValueError:
        return None
    return entry.get("application_name") or None
