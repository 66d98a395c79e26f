"""SQLAlchemy's compliance suite for dialects, on `postgresql+steadypool://` over our pool.

Each run is a process of its own, because SQLAlchemy's pytest plugin takes over everything. `COMPLIANCE` names the runs,
with commas between them, `all` or `others`: those that `make test` leaves to `.ci/run`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import psycopg
import pytest
import sqlalchemy

from steadypool_lab import EmbeddedPostgres

HERE = Path(__file__).parent / "compliance"
SERIES = ".".join(sqlalchemy.__version__.split(".")[:2])
LEAST = {"2.0": 1550, "2.1": 1850}
"""Tests that a run passes at least: a suite that was not found would have no failures either."""


@dataclass(frozen=True)
class Run:
    driver: str
    pool: str

    def __str__(self) -> str:
        return f"{self.driver}-{self.pool}"


RUNS = {
    str(run): run
    for run in (
        Run("steadypool", "steadypool"),
        Run("steadypool", "stock"),
        Run("steadypool_psycopg", "steadypool"),
        Run("steadypool_asyncpg", "steadypool"),
        Run("psycopg_async", "stock"),
        Run("asyncpg", "stock"),
    )
}
ALWAYS = "steadypool-steadypool"
CHOSEN = {"all": list(RUNS), "others": [name for name in RUNS if name != ALWAYS]}
NAMED = os.environ.get("COMPLIANCE", ALWAYS)


@pytest.fixture(scope="module")
def roomy_server() -> Iterator[EmbeddedPostgres]:
    """The suite prepares transactions, which Postgres allows only when it is told so at its start."""
    server = EmbeddedPostgres.temporary(settings={"max_prepared_transactions": "10"})
    server.blocking.start()
    yield server
    server.blocking.close()


def with_schemas(server: EmbeddedPostgres, name: str) -> str:
    url = server.blocking.create_database(name)
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in (
            "create schema test_schema",
            "create schema test_schema_2",
            "create extension hstore",
            "create extension citext",
        ):
            connection.execute(statement)
    return url


def excluded(series: str) -> set[str]:
    lines = (HERE / "exclusions.txt").read_text().splitlines()
    rows = [line.split(maxsplit=2) for line in lines if line and not line.startswith("#")]
    assert all(len(row) == 3 for row in rows), "a test, a series, a reason"
    return {test for test, which, _reason in rows if which in ("*", series)}


@pytest.mark.parametrize("name", CHOSEN.get(NAMED) or NAMED.split(","))
def test_passes_sqlalchemys_suite(name: str, roomy_server: EmbeddedPostgres, tmp_path: Path) -> None:
    run, report = RUNS[name], tmp_path / "report.xml"
    url = with_schemas(roomy_server, name.replace("-", "_"))
    command = [sys.executable, "-m", "pytest", "-c", str(HERE / "setup.cfg"), str(HERE / "suite.py")]
    finished = subprocess.run(
        [
            *command,
            *("--dburi", url.replace("postgresql:", f"postgresql+{run.driver}:")),
            *("-q", "--tb=short", f"--junitxml={report}"),
        ],
        env={**os.environ, "COMPLIANCE_POOL": run.pool},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-20_000:]

    cases = ElementTree.parse(report).getroot().findall(".//testcase")
    left_out = {plain_name(case) for case in cases if case.find("skipped") is not None}
    assert left_out == excluded(SERIES)
    assert sum(case.find("skipped") is None for case in cases) >= LEAST[SERIES]


def plain_name(case: ElementTree.Element) -> str:
    """`Class.test`, without the database that SQLAlchemy appends and without parameters."""
    owner = case.attrib["classname"].rpartition(".")[2]
    return f"{re.sub(r'_postgresql.*', '', owner)}.{case.attrib['name'].partition('[')[0]}"
