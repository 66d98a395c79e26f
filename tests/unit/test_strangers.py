"""How `make strangers` reads and compares the suites of other packages, and that its two tables are whole."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from strangers.catalogue import (
    DRIVERS,
    HERE,
    KINDS,
    Difference,
    Variant,
    read_differences,
    read_suites,
    read_without_tests,
)
from strangers.comparing import compare
from strangers.page import DIFFERENCES, PAGE, RESULTS, page
from strangers.running import Outcome, Results, plain_name, pytest_command, read_results

SUITE = replace(next(iter(read_suites().values())), name="suite")
OURS = Variant("ours", "steadypool")


def results(**outcomes: str) -> Results:
    return Results(
        {f"a.py::{name}": Outcome(result, "", f"a.py::{name}") for name, result in outcomes.items()}
    )


def difference(*tests: str, sometimes: bool = False, drivers: tuple[str, ...] = DRIVERS) -> Difference:
    return Difference(
        suite="suite",
        drivers=drivers,
        tests=tests,
        kind="wanted",
        reason="so",
        section="so",
        sometimes=sometimes,
    )


@pytest.mark.parametrize(
    ("stock", "ours", "is_worse"),
    [
        ("passed", "failed", True),
        ("passed", "skipped", True),
        ("passed", "hung", True),
        ("skipped", "error", True),
        ("failed", "hung", True),
        ("failed", "error", False),
        ("failed", "passed", False),
        ("passed", "passed", False),
    ],
)
def test_worse_is_what_stock_does_better(stock: str, ours: str, is_worse: bool) -> None:
    found = compare(SUITE, OURS, results(test=stock), results(test=ours), [])
    assert bool(found.unexpected) is is_worse
    assert found.is_good is not is_worse


def test_a_test_that_is_not_there_any_more_is_worse_and_a_new_one_that_fails_is() -> None:
    found = compare(SUITE, OURS, results(one="passed"), results(two="failed"), [])
    assert [worse.test for worse in found.unexpected] == ["a.py::one", "a.py::two"]


def test_an_expected_difference_is_good_until_it_is_gone() -> None:
    table = [difference("a.py::one")]
    worse = compare(SUITE, OURS, results(one="passed"), results(one="failed"), table)
    assert worse.is_good
    assert [row.reason for _, row in worse.expected] == ["so"]
    mended = compare(SUITE, OURS, results(one="passed"), results(one="passed"), table)
    assert mended.stale == ["a.py::one"]
    assert not mended.is_good
    assert "STALE" in mended.problems()[0]


def test_a_line_covers_parameters_and_what_is_in_a_class_and_nothing_that_only_begins_alike() -> None:
    row = difference("a.py::Of", "a.py::test_one")
    assert row.covers("a.py::Of::test_b")
    assert row.covers("a.py::test_one[3]")
    assert not row.covers("a.py::test_one_more")


def test_a_line_is_for_its_drivers() -> None:
    table = [difference("a.py::one", drivers=("asyncpg",))]
    assert not compare(SUITE, OURS, results(one="passed"), results(one="failed"), table).is_good
    assert compare(SUITE, OURS, results(one="passed"), results(one="passed"), table).is_good


def test_what_differs_sometimes_is_never_stale_and_a_part_says_nothing_of_the_rest() -> None:
    same = results(one="passed")
    assert compare(SUITE, OURS, same, same, [difference("a.py::one", sometimes=True)]).is_good
    assert compare(SUITE, OURS, same, same, [difference("a.py::two")], in_part=True).is_good
    assert not compare(SUITE, OURS, same, same, [difference("a.py::one")], in_part=True).is_good


def test_a_run_that_broke_off_is_a_failure_and_what_it_was_doing_hung(tmp_path: Path) -> None:
    rows = [
        {"id": "a.py::one", "outcome": "started", "text": ""},
        {"id": "a.py::one", "outcome": "passed", "text": ""},
        {"id": "a.py::one", "outcome": "error", "text": "at tear-down"},
        {"id": "a.py::two", "outcome": "started", "text": ""},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_results(file, "ended after 600 seconds")
    assert {name: outcome.result for name, outcome in read.outcomes.items()} == {
        "a.py::one": "error",
        "a.py::two": "hung",
    }
    assert "ended after 600 seconds" in read.broken
    assert not compare(SUITE, OURS, results(), read, [difference("a.py")]).is_good


def test_a_run_without_tests_is_a_failure(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"id": "", "outcome": "finished", "text": "0"}) + "\n")
    assert read_results(file, "0").broken == "no test was found"


def test_a_second_run_is_of_its_tests_alone() -> None:
    suite = replace(SUITE, select=("--dburi={url}", "tests/a.py", "-k", "one or two"))
    first = pytest_command(suite, Path("python"), {"url": "there"}, [])
    second = pytest_command(
        suite, Path("python"), {"url": "there"}, ["tests/a.py::Of_postgresql+asyncpg_18::one"]
    )
    assert first[-4:] == ["--dburi=there", "tests/a.py", "-k", "one or two"]
    assert second[-2:] == ["--dburi=there", "tests/a.py::Of::one"]


@pytest.mark.parametrize(
    ("node", "plain"),
    [
        ("test/a.py::Of_postgresql+psycopg_async_18_4::test_b", "test/a.py::Of::test_b"),
        ("test/a.py::Of_postgresql+asyncpg_async_18_6_1::test_b[x]", "test/a.py::Of::test_b[x]"),
        ("test/test_asyncpg.py::test[asyncpg_engine]", "test/test_asyncpg.py::test[DRIVER_engine]"),
        ("test/a.py::test[psycopg2]", "test/a.py::test[psycopg2]"),
        ("test/a.py", "test/a.py"),
    ],
)
def test_a_test_has_one_name_on_all_drivers(node: str, plain: str) -> None:
    assert plain_name(node) == plain


def test_the_steadypool_driver_is_compared_with_the_one_whose_types_it_has() -> None:
    assert OURS.baseline == Variant("stock", "psycopg")
    assert Variant("ours", "asyncpg").baseline == Variant("stock", "asyncpg")


def test_every_suite_is_pinned() -> None:
    suites = read_suites()
    for suite in suites.values():
        assert re.fullmatch(r"[0-9a-f]{64}", suite.source.sha256)
        pinned = (HERE / "requirements" / f"{suite.environment}.txt").read_text()
        requirements = re.findall(r"^(\S+)==\S+(?: ;.*)? \\$", pinned, re.M)
        assert requirements, suite.environment
        assert len(re.findall(r"^\S", pinned, re.M)) == len(requirements), "every line has its hashes"
        assert f"\n{suite.source.package}=={suite.source.version} \\" in f"\n{pinned}"
        assert set(suite.drivers) <= set(DRIVERS)


def test_every_difference_has_its_suite_kind_and_reason() -> None:
    suites = read_suites()
    for row in read_differences():
        assert row.suite in suites
        assert set(row.drivers) <= set(suites[row.suite].drivers)
        assert row.kind in KINDS
        assert row.reason
        assert re.fullmatch(r"[a-z0-9-]+", row.section)
        assert row.tests


def test_every_difference_that_stays_has_its_section() -> None:
    headings = re.findall(r"^##+ (.+)$", DIFFERENCES.read_text(), re.M)
    sections = {"-".join(re.findall(r"\w+", heading.lower())) for heading in headings}
    assert {row.section for row in read_differences() if row.kind != "fault"} <= sections


def test_the_page_says_what_is_worse_and_not_expected_and_what_has_not_been_measured() -> None:
    counts = {"passed": 5, "failed": 3, "skipped": 0}
    driver = {"stock": counts, "ours": counts, "worse": {"wanted": 1}, "unexpected": 2}
    suites = {"pgvector": read_suites()["pgvector"]}
    made = page(suites, {"pgvector": {"psycopg": driver}}, [], {})
    assert "| not measured yet | 5 / 3 : 5 / 3 | not measured yet | 2 unexpected, 1 wanted |\n" in made


def test_the_page_is_what_the_results_and_the_table_give() -> None:
    made = page(read_suites(), json.loads(RESULTS.read_text()), read_differences(), read_without_tests())
    assert PAGE.read_text() == made, "python -m strangers.page writes it"
