"""A pytest plugin that writes what happens to a file as it happens, so that a run that is killed leaves its results.

One line of JSON for each test that starts, each phase that decides its outcome, and each file that cannot be collected.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(Path(os.environ["SUITE_RESULTS"])))


class Recorder:
    """Appends to the file that `SUITE_RESULTS` names."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(id=nodeid, outcome="started", text="")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if hasattr(report, "wasxfail"):  # what the suite itself expects, either way
            outcome = "skipped"
        elif report.failed:
            outcome = "failed" if report.when == "call" else "error"
        elif report.skipped:
            outcome = "skipped"
        elif report.when == "call":
            outcome = "passed"
        else:
            return
        self._write(id=report.nodeid, outcome=outcome, text=_last_line(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(id=report.nodeid, outcome="error", text=_last_line(report))

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self._write(id="", outcome="finished", text=str(int(exitstatus)))

    def _write(self, **row: Any) -> None:
        self._file.write(json.dumps(row) + "\n")


def _last_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    """What the failure says, in one line."""
    if not report.failed:
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message) if crash is not None else str(report.longrepr)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if crash is not None else lines[-1])[:500] if lines else ""
