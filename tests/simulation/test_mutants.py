"""The simulation bites: each pool that is broken on purpose is found out within a few schedules."""

from __future__ import annotations

import pytest

from . import overload
from .campaign import attempt
from .mutants import MUTANTS
from .schedule import draw

ENOUGH = 1000
"""Schedules within which every mutant must be found; most are within ten. `make test` runs twenty times as many."""


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_pool_is_found_out(name: str) -> None:
    rule, mutant = MUTANTS[name]
    if rule == "S":
        faults = (overload.run(range(12), pattern, mutant).fault for pattern in overload.FORESEEABLE)
        assert any(faults), f"{name} breaks {rule}, and overload did not show it"
        return
    for seed in range(ENOUGH):
        if attempt(draw(seed), mutant)[1] is not None:
            return
    raise AssertionError(f"{name} breaks {rule}, and {ENOUGH} schedules did not notice")


def test_there_is_a_mutant_for_every_rule() -> None:
    rules = {rule for rule, _ in MUTANTS.values()}
    assert rules == {
        "R1", "R2", "R3", "R4", "R5", "R7", "R8", "R9", "R11", "R12", "R13", "S", "ceiling", "events"
    }  # fmt: skip
