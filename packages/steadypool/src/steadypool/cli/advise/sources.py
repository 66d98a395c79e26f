"""Where recorded load comes from: a recorder's file, a running service's page, or the log of Postgres."""

from __future__ import annotations

import base64
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from http.client import HTTPException, InvalidURL
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote_to_bytes, urlsplit, urlunsplit

from steadypool.errors import ConfigurationError, words_of
from steadypool.monitor import Arrival, Recording
from steadypool.monitor.histogram import Histogram
from steadypool.monitor.recording import SERVED
from steadypool.settings.validators import redact_url

FETCH_WITHIN = 10.0
EXPORT = "/export.json"
WHAT_THERE_IS = (
    "what can be read is the file of DATABASE_RECORDER_FILE, an export of the page or its address, and a log of "
    "Postgres with log_min_duration_statement"
)


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
    """
    if re.match(r"https?://", source):
        address, source = source, redact_url(source)
        found = _of_recording(source, Recording.parse(_fetched(address)))
    else:
        text = _read(source)
        try:
            found = (
                _of_log(source, text)
                if _DURATION.search(text)
                else _of_recording(source, Recording.parse(text))
            )
        except ConfigurationError as error:
            raise ConfigurationError(f"{source}: {words_of(error)}; {WHAT_THERE_IS}") from error
    if len(found.arrivals) < 2:
        raise ConfigurationError(f"{source}: there is no load in it; record while the service is used")
    return found


def _read(source: str) -> str:
    try:
        return Path(source).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise ConfigurationError(f"{source}: there is no such file; {WHAT_THERE_IS}") from None
    except OSError as error:
        raise ConfigurationError(f"{source}: {error.strerror}; {WHAT_THERE_IS}") from error


def _fetched(address: str) -> str:
    """The export of a page; `user:password@` in its address is basic authentication."""
    address = address if address.endswith(".json") else address.rstrip("/") + EXPORT
    shown = redact_url(address)
    try:
        parts = urlsplit(address)
        userinfo, _, host = parts.netloc.rpartition("@")
        request = urllib.request.Request(urlunsplit(parts._replace(netloc=host)))
        if userinfo:
            credentials = base64.b64encode(unquote_to_bytes(userinfo)).decode()
            request.add_unredirected_header("Authorization", f"Basic {credentials}")
        with urllib.request.urlopen(request, timeout=FETCH_WITHIN) as answer:
            return answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        raise ConfigurationError(
            f"{shown}: answered {error.code}; the page is for this machine and for those who are signed in"
        ) from error
    except (ValueError, InvalidURL):
        problem = f"{shown}: this is no address of a page"
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ConfigurationError(
            f"{shown}: nobody answers ({reason}); is the service running, with its page switched on?"
        ) from error
    raise ConfigurationError(problem)  # outside of the except block: what urllib says quotes the address


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

_DURATION = re.compile(
    r"duration: (\d+(?:\.\d+)?) ms  (?:statement|execute [^:]*|fetch [^:]*): *(?P<verb>[A-Za-z]*)"
)
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?)")
_PROCESS = re.compile(r'\[(\d+)\]|"pid": ?(\d+)')
_BEGINS, _ENDS = ("BEGIN", "START"), ("COMMIT", "ROLLBACK", "END", "ABORT")


@dataclass(frozen=True, slots=True)
class _Logged:
    """A statement that the log has: by which process, when it ended, how long it took, and its first word."""

    process: str
    ended: float
    seconds: float
    verb: str
    application: str | None


def _of_log(source: str, text: str) -> Load:
    statements = list(_statements(text.splitlines()))
    applications = {each.application for each in statements}
    executing = Histogram()
    for each in statements:
        if each.verb not in (*_BEGINS, *_ENDS):
            executing.add(each.seconds)
    arrivals = sorted(_holds(statements, named=len(applications) > 1), key=lambda arrival: arrival.at)
    return Load(source, tuple(arrivals), executing=executing, whole=False)


def _holds(statements: Iterable[_Logged], *, named: bool) -> Iterator[Arrival]:
    """How long connections were held: a transaction from its BEGIN to its end, else a statement.

    Applications are told apart where there are several: one name for everything says no more than none.
    """
    open_since: dict[str, float] = {}
    for each in statements:
        if each.verb in _BEGINS and each.process:
            open_since.setdefault(each.process, each.ended - each.seconds)
        elif each.process in open_since:
            if each.verb in _ENDS:
                began = open_since.pop(each.process)
                yield Arrival(began, 0.0, each.ended - began, each.application if named else None, SERVED)
        elif each.verb not in _ENDS:  # else nothing was open, or its BEGIN is older than the log
            yield Arrival(
                each.ended - each.seconds, 0.0, each.seconds, each.application if named else None, SERVED
            )


def _statements(lines: Iterable[str]) -> Iterator[_Logged]:
    """Each line that says how long a statement took: of `log_destination` stderr or jsonlog."""
    for line in lines:
        duration, moment, process = _DURATION.search(line), _MOMENT.search(line), _PROCESS.search(line)
        if duration is None or moment is None:
            continue
        # Only differences count, so the time zone, which all lines share, does not.
        ended = datetime.fromisoformat(moment[1]).timestamp()
        yield _Logged(
            "" if process is None else process[1] or process[2],
            ended,
            float(duration[1]) / 1000,
            duration["verb"].upper(),
            _application(line) if line.startswith("{") else None,
        )


def _application(line: str) -> str | None:
    try:
        entry = cast("dict[str, Any]", json.loads(line))
    except (ValueError, RecursionError):
        return None
    return entry.get("application_name") or None
