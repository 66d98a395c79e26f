"""Twenty thousand random schedules, on all processors; the rules hold in each, and together they reach everything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from steadypool.pool.lease import EntryState

from . import coverage
from .schedule import LEAST_STEPS

SCHEDULES = 20_000
CHUNK = 1_000
CHUNKS = range(0, SCHEDULES, CHUNK)
TESTS = Path(__file__).resolve().parents[1]

Result = dict[str, Any]


def run_chunk(first: int) -> Result:
    """Run the schedules of some seeds in a process of their own, after all others: those race clocks."""
    done = subprocess.run(
        ["nice", "-n", "19", sys.executable, "-m", "simulation", str(CHUNK), "--first", str(first), "--json"],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr, done.stderr
    result: Result = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def chunks() -> Iterator[dict[int, Future[Result]]]:
    """All results to come. Every test below waits for its own, so that progress can be seen."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        futures = {first: threads.submit(run_chunk, first) for first in CHUNKS}
        yield futures
        for future in futures.values():
            future.cancel()


@pytest.mark.parametrize("first", CHUNKS)
def test_the_rules_hold(chunks: dict[int, Future[Result]], first: int) -> None:
    result = chunks[first].result()
    assert result["failure"] is None, result["failure"]
    assert result["schedules"] == CHUNK
    assert result["steps"] >= CHUNK * LEAST_STEPS


def test_every_event_was_met_in_every_state(chunks: dict[int, Future[Result]]) -> None:
    pairs = {(EntryState(s), event) for f in chunks.values() for s, event in f.result()["pairs"]}
    moves = {(EntryState(a), EntryState(b)) for f in chunks.values() for a, b in f.result()["transitions"]}
    assert coverage.missing(pairs) == []
    assert moves >= coverage.MOVES
    assert coverage.impossible(pairs, moves) == []
