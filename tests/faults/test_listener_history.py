"""The checker of histories finds what is wrong, accepts what is right, and each of its rules is needed."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from . import history as checker

LATE = 0.5


def kinds(module: Any, **parts: Any) -> list[str]:
    return sorted(
        violation.kind.name for violation in module.check(module.History(**parts), propagation=LATE)
    )


def write(
    m: Any, revision: int, began: float, ended: float | None = -1.0, instance: str = "", key: str = "k"
) -> Any:
    return m.Write(key, revision, began, began + 0.1 if ended == -1.0 else ended, instance)


def read(m: Any, revision: int, began: float, instance: str = "b", key: str = "k") -> Any:
    return m.Read(instance, key, revision, began, began + 0.1)


Case = Callable[[Any], tuple[dict[str, Any], list[str]]]


def nothing_at_all(_m: Any) -> tuple[dict[str, Any], list[str]]:
    return {}, []


def reads_that_are_fresh(m: Any) -> tuple[dict[str, Any], list[str]]:
    reads = [read(m, 0, 0.0), read(m, 0, 1.3), read(m, 1, 1.7), read(m, 2, 3.0), read(m, 0, 3.0, key="other")]
    return {"writes": [write(m, 1, 1.0), write(m, 2, 2.0)], "reads": reads}, []


def a_stale_read(m: Any) -> tuple[dict[str, Any], list[str]]:
    return {"writes": [write(m, 1, 1.0)], "reads": [read(m, 0, 1.65)]}, ["STALE"]


def two_winners(m: Any) -> tuple[dict[str, Any], list[str]]:
    return {"writes": [write(m, 1, 1.0), write(m, 1, 1.05), write(m, 1, 1.0, None)]}, ["TWO_WON"]


def the_same_revision_of_two_keys(m: Any) -> tuple[dict[str, Any], list[str]]:
    return {"writes": [write(m, 1, 1.0), write(m, 1, 1.05, key="other")]}, []


def a_hole(m: Any) -> tuple[dict[str, Any], list[str]]:
    return {"writes": [write(m, 1, 1.0), write(m, 3, 2.0)]}, ["MISSING_REVISION"]


def a_hole_that_a_lost_answer_explains(m: Any) -> tuple[dict[str, Any], list[str]]:
    return {"writes": [write(m, 1, 1.0), write(m, 2, 1.5, None), write(m, 3, 2.0)]}, []


def against_the_order_of_time(m: Any) -> tuple[dict[str, Any], list[str]]:
    return {"writes": [write(m, 2, 1.0), write(m, 1, 2.0)]}, ["OUT_OF_ORDER"]


def at_the_same_time_in_any_order(m: Any) -> tuple[dict[str, Any], list[str]]:
    return {"writes": [write(m, 2, 1.0, 1.2), write(m, 1, 1.1, 1.3), write(m, 3, 1.3, 1.4)]}, []


def read_before_it_was_written(m: Any) -> tuple[dict[str, Any], list[str]]:
    return {"writes": [write(m, 1, 1.0)], "reads": [read(m, 1, 0.5)]}, ["FROM_NOWHERE"]


def a_write_of_unknown_end_may_be_read_or_not(m: Any) -> tuple[dict[str, Any], list[str]]:
    reads = [read(m, 1, 3.0), read(m, 0, 5.0, "c"), read(m, 2, 9.0)]
    return {"writes": [write(m, 1, 1.0, None)], "reads": reads}, ["FROM_NOWHERE"]


def back_in_time(m: Any) -> tuple[dict[str, Any], list[str]]:
    reads = [read(m, 1, 1.2), read(m, 0, 1.31), read(m, 0, 1.2, "c")]
    return {"writes": [write(m, 1, 1.0)], "reads": reads}, ["WENT_BACK"]


def ones_own_write_at_once(m: Any) -> tuple[dict[str, Any], list[str]]:
    parts = {"writes": [write(m, 1, 1.0, 1.1, "b")], "deafness": [m.Deafness("b", 0.5)]}
    return parts | {"reads": [read(m, 0, 1.15), read(m, 0, 1.15, "c")]}, ["STALE"]


def deaf_and_stale(m: Any) -> tuple[dict[str, Any], list[str]]:
    """What was committed while it was deaf, or just before, it need not know; somebody else has to."""
    parts = {"writes": [write(m, 1, 1.0), write(m, 2, 2.0)], "deafness": [m.Deafness("b", 1.5, 9.0)]}
    return parts | {"reads": [read(m, 1, 5.0), read(m, 1, 5.0, "c")]}, ["STALE"]


def deaf_but_not_to_what_was_before(m: Any) -> tuple[dict[str, Any], list[str]]:
    parts = {"writes": [write(m, 1, 1.0)], "deafness": [m.Deafness("b", 1.5, 9.0)]}
    return parts | {"reads": [read(m, 0, 5.0)]}, ["STALE"]


def deaf_for_ever(m: Any) -> tuple[dict[str, Any], list[str]]:
    parts = {"writes": [write(m, 1, 1.0)], "deafness": [m.Deafness("b", 0.5)]}
    return parts | {"reads": [read(m, 0, 5.0)]}, []


def caught_up_at_once(m: Any) -> tuple[dict[str, Any], list[str]]:
    parts = {"writes": [write(m, 1, 2.7), write(m, 2, 2.95)], "deafness": [m.Deafness("b", 0.5, 3.0)]}
    return parts | {"reads": [read(m, 0, 3.0), read(m, 1, 3.0)]}, ["STALE"]


def the_latest_is_not_the_greatest(m: Any) -> tuple[dict[str, Any], list[str]]:
    return {"writes": [write(m, 2, 1.0, 1.2), write(m, 1, 1.1, 1.3)], "reads": [read(m, 1, 5.0)]}, ["STALE"]


def caught_up_and_deaf_again(m: Any) -> tuple[dict[str, Any], list[str]]:
    deafness = [m.Deafness("b", 0.5, 3.0), m.Deafness("b", 2.0, 6.0)]
    return {"writes": [write(m, 1, 2.5)], "deafness": deafness, "reads": [read(m, 0, 5.0)]}, []


def not_heard(m: Any) -> tuple[dict[str, Any], list[str]]:
    parts = {"writes": [write(m, 1, 1.0)], "listening": {"b": (0.0, 9.0), "c": (0.0, 9.0)}}
    return parts | {"deliveries": [m.Delivery("b", "k", 1, 1.05)]}, ["NOT_HEARD"]


def heard_too_late(m: Any) -> tuple[dict[str, Any], list[str]]:
    parts = {"writes": [write(m, 1, 1.0), write(m, 1, 1.0, key="o")], "listening": {"b": (0.0, 9.0)}}
    return parts | {"deliveries": [m.Delivery("b", "k", 1, 1.7), m.Delivery("b", "o", 1, 1.55)]}, [
        "NOT_HEARD"
    ]


def heard_of_a_later_one(m: Any) -> tuple[dict[str, Any], list[str]]:
    parts = {"writes": [write(m, 1, 1.0), write(m, 2, 1.1)], "listening": {"b": (0.0, 9.0)}}
    return parts | {"deliveries": [m.Delivery("b", "k", 2, 1.2)]}, []


def said_that_it_may_have_missed_it(m: Any) -> tuple[dict[str, Any], list[str]]:
    parts = {"writes": [write(m, 1, 1.0), write(m, 2, 3.0)], "listening": {"b": (0.0, 9.0)}}
    return parts | {"deafness": [m.Deafness("b", 1.05, 2.0)]}, ["NOT_HEARD"]


def a_gap_that_begins_too_late(m: Any) -> tuple[dict[str, Any], list[str]]:
    parts = {"writes": [write(m, 1, 1.0)], "listening": {"b": (0.0, 9.0)}}
    return parts | {"deafness": [m.Deafness("b", 1.2, 2.0)]}, ["NOT_HEARD"]


def not_listening_yet_or_any_more(m: Any) -> tuple[dict[str, Any], list[str]]:
    writes = [write(m, 1, 1.0), write(m, 2, 2.0), write(m, 3, 3.0), write(m, 4, 4.0, None)]
    return {"writes": writes, "listening": {"b": (1.5, 3.5)}}, ["NOT_HEARD"]


CASES: list[Case] = [
    thing
    for name, thing in list(globals().items())
    if callable(thing)
    and getattr(thing, "__module__", "") == __name__
    and name not in ("kinds", "write", "read")
]


def wrong(module: Any) -> Iterator[str]:
    """The cases in which a checker is not right."""
    for case in CASES:
        parts, expected = case(module)
        if kinds(module, **parts) != expected:
            yield case.__name__


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_judges(case: Case) -> None:
    parts, expected = case(checker)
    assert kinds(checker, **parts) == expected


MUTANTS = [
    ("if one.revision == other.revision:", "if False:"),
    ("- written\n", "- {w.revision for w in done}\n"),
    ("        if missing:", "        if False:"),
    ("(before := finished.at(", "(before := -finished.at("),
    ("finished.at(math.nextafter(write.began, -math.inf))", "finished.at(write.began + 0.15)"),
    ("held_to = moment - propagation", "held_to = moment"),
    ("held_to = moment - propagation", "held_to = moment - 2 * propagation"),
    ("held_to = max(held_to, deaf.until)", "pass"),
    ("held_to = min(held_to, deaf.since)", "pass"),
    ("held_to = min(held_to, deaf.since)", "held_to = -math.inf"),
    ("if deaf.until <= moment:", "if deaf.until < moment:"),
    ("must = max(must, known_at_once", "must = max(must, 0 * known_at_once"),
    ("if read.revision < must:", "if False:"),
    ("if read.revision < must:", "if read.revision <= must:"),
    ("if read.revision > begun.get", "if False and begun.get"),
    ("ended.at(math.nextafter(read.began, -math.inf))", "ended.at(-1)"),
    ("groups[read.instance, read.key]", "groups['', read.key]"),
    (".at(write.ended + propagation) >= write.revision", ".at(write.ended) >= write.revision"),
    (".at(write.ended + propagation) >= write.revision", ".at(math.inf) >= write.revision"),
    (".at(write.ended + propagation) >= write.revision", ".at(write.ended + propagation) == write.revision"),
    ("d.since <= write.ended and write.began <= d.until", "d.since <= write.ended"),
    ("d.since <= write.ended and write.began <= d.until", "write.began <= d.until"),
    ("if write.ended is None or write.began < begin or", "if write.ended is None or"),
    ("or write.ended + propagation > end:", "or False:"),
    ("rising.get((instance, write.key), nothing)", "rising.get((instance, 'k'), nothing)"),
    ("accumulate((revision for _, revision in ordered), max)", "(revision for _, revision in ordered)"),
    ("for key, all_of_key in _by_key(writes).items():", "for key, all_of_key in {'': writes}.items():"),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=range(len(MUTANTS)))
def test_every_rule_is_needed(mutant: tuple[str, str]) -> None:
    source = Path(checker.__file__).read_text()
    old, new = mutant
    assert source.count(old) == 1, old
    module = ModuleType("mutant")
    sys.modules["mutant"] = module  # dataclasses look their module up
    try:
        exec(compile(source.replace(old, new), "mutant", "exec"), module.__dict__)
        assert list(wrong(module)), f"nobody notices {new!r}"
    finally:
        del sys.modules["mutant"]


def test_judges_a_long_history() -> None:
    rng = random.Random(1)
    found = checker.History()
    now = 0.0
    revisions: dict[str, int] = {}
    for number in range(20_000):
        key = f"k{rng.randrange(20)}"
        revisions[key] = revisions.get(key, 0) + 1
        found.writes.append(checker.Write(key, revisions[key], now, now + 0.0001, "a"))
        found.deliveries.append(checker.Delivery("b", key, revisions[key], now + 0.0002))
        if number % 2:
            found.reads.append(checker.Read("b", key, revisions[key], now + 0.0003, now + 0.0004))
        now += 0.0005
    found.listening["b"] = (0.0, now)
    found.deafness = [checker.Deafness("b", moment, moment + 1) for moment in range(0, 10, 2)]
    assert checker.check(found, propagation=0.00015) == []
    stolen = found.writes[10_000]
    found.writes.append(checker.Write(stolen.key, stolen.revision, stolen.began, stolen.ended, "b"))
    assert [violation.kind for violation in checker.check(found, propagation=0.00015)] == [
        checker.Kind.TWO_WON
    ]
