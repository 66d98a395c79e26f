"""One run of one suite: a server of its own, pytest in the suite's environment, and what became of each test."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from steadypool_lab import EmbeddedPostgres
from strangers.catalogue import CACHE, HERE, Suite, Variant

RANK = {"passed": 0, "skipped": 1, "failed": 2, "error": 2, "hung": 3}
"""How bad an outcome is; of the phases of a test the worst counts."""

SETTINGS = {"max_prepared_transactions": "20", "max_connections": "300"}

_NOT_FOR_SUITES = ("PYTEST_", "PG", "DATABASE_", "PYTHON")
"""Variables of ours that would decide what a suite does. Without bytecode every run would compile all it imports."""

_ENDED_BY_PYTEST = {"0", "1"}
_DATABASE_IN_NAME = re.compile(r"_postgresql\+[a-z0-9_]+?_\d+(?:_\d+)*(?=::|$)")
_DRIVER_IN_NAME = re.compile(r"psycopg_async|asyncpg|psycopg(?!2)|steadypool")


@dataclass(frozen=True)
class Outcome:
    """What became of a test, and what its failure said."""

    result: str
    text: str
    node: str


@dataclass
class Results:
    """One run: the outcome of each test by its plain name, and why the run ended if not by itself."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    seconds: float = 0.0
    broken: str = ""

    @property
    def counts(self) -> Counter[str]:
        """How many passed, failed (errors and hung tests among them) and were skipped."""
        simple = {"error": "failed", "hung": "failed"}
        return Counter(simple.get(outcome.result, outcome.result) for outcome in self.outcomes.values())


def run(suite: Suite, variant: Variant, python: Path, folder: Path, only: Sequence[str] = ()) -> Results:
    """Run a suite, or only some of its tests, against a server of its own.

    A suite that does not end is ended; its results are those until then, and `broken` says so.
    """
    log_folder = CACHE / "logs" / suite.name
    log_folder.mkdir(parents=True, exist_ok=True)
    stem = log_folder / (f"{variant.engine}-{variant.driver}" + ("-again" if only else ""))
    results = stem.with_suffix(".jsonl")
    results.unlink(missing_ok=True)
    began = time.monotonic()
    server = EmbeddedPostgres.temporary(settings=SETTINGS)
    server.blocking.start()
    try:
        names = _prepare_database(suite, variant, server)
        command = pytest_command(suite, python, names, only)
        environ = _environ(suite, variant, names, results)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="run-") as scratch:
            # A suite may write into the folder that it runs in, and another run of it goes on beside this one.
            copy = shutil.copytree(folder, Path(scratch) / folder.name)
            status = _run_to_end(command, copy, environ, stem.with_suffix(".log"), suite.seconds)
    finally:
        server.blocking.close()
    read = read_results(results, status)
    read.seconds = time.monotonic() - began
    return read


def _prepare_database(suite: Suite, variant: Variant, server: EmbeddedPostgres) -> dict[str, str]:
    """Make the suite's database, and say what a suite may want to know about it."""
    if suite.database != "postgres":
        server.blocking.create_database(suite.database)
    plain = server.url.rpartition("/")[0] + "/" + suite.database
    known = conninfo_to_dict(plain)
    names = {name: str(known[name]) for name in ("host", "port", "user", "password", "dbname")}
    with psycopg.connect(plain, autocommit=True) as connection:
        for statement in suite.prepare:
            connection.execute(statement.format(**names).encode())
    names["plain"] = plain
    names["url"] = plain.replace("postgresql:", f"postgresql+{variant.driver}:")
    names["greenlet_url"] = names["url"].replace("+psycopg:", "+psycopg_async:")
    return names


def pytest_command(suite: Suite, python: Path, names: dict[str, str], only: Sequence[str]) -> list[str]:
    """What runs a suite, or `only` some of its tests: these by name, without what selects tests (`-k`, `-m`, paths).

    SQLAlchemy's plugin finds its classes by the names they have in the file, without the database that it appends.
    """
    plugins = ("record_results", "steadypool_engine", *suite.plugins)
    options = [part for plugin in plugins for part in ("-p", plugin)]
    tests = [part for part in suite.select if part.startswith("--") or not only]
    arguments = [part.format(**names) for part in tests]
    return [
        *(str(python), "-m", "pytest", *options, "-p", "no:cacheprovider", "-q", "--maxfail=1000000"),
        *(f"--timeout={suite.test_seconds}", *arguments, *(_DATABASE_IN_NAME.sub("", node) for node in only)),
    ]


def _environ(suite: Suite, variant: Variant, names: dict[str, str], results: Path) -> dict[str, str]:
    path = [HERE / "inject", *([HERE / "stubs"] if suite.stubs else ())]
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_SUITES)},
        **{f"PG{key.upper()}": names[key] for key in ("host", "port", "user", "password")},
        "PGDATABASE": names["dbname"],
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "PYTHONNOUSERSITE": "1",
        "SUITE_ENGINE": variant.engine,
        "SUITE_DRIVER": variant.driver,
        "SUITE_SWITCHES_DRIVER": "1" if suite.switches_driver else "0",
        "SUITE_RESULTS": str(results),
        **{name: value.format(**names) for name, value in suite.environ.items()},
    }


def _run_to_end(command: list[str], folder: Path, environ: dict[str, str], log: Path, seconds: float) -> str:
    """How the process ended: its exit status, or `too long`."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environ, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        _running.add(process)
        try:
            return str(process.wait(timeout=seconds))
        except subprocess.TimeoutExpired:
            return f"ended after {seconds} seconds"
        finally:
            _end(process)
            _running.discard(process)


_running: set[subprocess.Popen[bytes]] = set()


def end_all() -> None:
    """End the runs that go on, with all that they have started."""
    for process in tuple(_running):
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Also what the suite started and left behind, in the process group that was made for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_results(path: Path, status: str) -> Results:
    """What the recorder wrote. A test that began and said nothing more was running when the process ended: it hung."""
    results = Results()
    finished = False
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        if row["outcome"] == "finished":
            finished = True
        elif row["outcome"] == "started":
            results.outcomes.setdefault(plain_name(row["id"]), Outcome("hung", "it did not end", row["id"]))
        else:
            _note(results, row)
    if not finished or status not in _ENDED_BY_PYTEST:
        results.broken = f"pytest did not get to its end ({status})"
    elif not results.outcomes:
        results.broken = "no test was found"
    return results


def _note(results: Results, row: dict[str, str]) -> None:
    name, outcome = plain_name(row["id"]), Outcome(row["outcome"], row["text"], row["id"])
    known = results.outcomes.get(name)
    if known is None or known.result == "hung" or RANK[outcome.result] > RANK[known.result]:
        results.outcomes[name] = outcome


def plain_name(node: str) -> str:
    """A test's name without the database that SQLAlchemy appends, and alike for all drivers.

    Example:
        >>> plain_name("test/test_a.py::Of_postgresql+psycopg_async_18_4::test_b[asyncpg]")
        'test/test_a.py::Of::test_b[DRIVER]'
    """
    file, mark, rest = node.partition("::")
    return file + mark + _DRIVER_IN_NAME.sub("DRIVER", _DATABASE_IN_NAME.sub("", rest))
