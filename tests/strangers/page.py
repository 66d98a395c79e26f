"""The page `docs/reference/strangers.md`: what the last runs gave, and every expected difference with its reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from strangers.catalogue import (
    DRIVERS,
    HERE,
    KINDS,
    REPOSITORY,
    Difference,
    Suite,
    read_differences,
    read_suites,
    read_without_tests,
)
from strangers.comparing import Comparison
from strangers.running import Results

PAGE = REPOSITORY / "docs" / "reference" / "strangers.md"
DIFFERENCES = PAGE.with_name("differences.md")
RESULTS = HERE / "results.json"
"""The counts of the last run of each suite on each driver, from which the page is made."""

HEAD = """\
# Suites of other packages

`make strangers` runs the test suites of other packages on steadypool's engine, for `postgresql+asyncpg`,
`postgresql+psycopg` and `postgresql+steadypool`, each beside the same suite on SQLAlchemy's own engine in the same run.
The suites come from the source distributions of the package index, pinned by version and hash, and are not changed: a
pytest plugin replaces `create_async_engine`. A test that is worse on steadypool fails the run unless the table of
expected differences names it; a line of that table that is not needed any more fails it, too.

`make strangers SUITES="pgvector sqlalchemy-dialect"` runs some of them, `SUITES=quick` what every change must pass.
This page is made by `make strangers`.

## Results

Passed / failed of stock : of ours. A suite may fail some of its tests on stock: they need other services, or other
versions.
"""


def write_page(comparisons: Iterable[Comparison]) -> None:
    """Put new results in the place of the old ones of the same suites, and make the page."""
    known: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for comparison in comparisons:
        known.setdefault(comparison.suite.name, {})[comparison.variant.driver] = _summary(comparison)
    RESULTS.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
    PAGE.write_text(page(read_suites(), known, read_differences(), read_without_tests()))


def _summary(comparison: Comparison) -> dict[str, Any]:
    kinds = Counter(difference.kind for _, difference in comparison.expected)
    return {
        "stock": _counts(comparison.stock),
        "ours": _counts(comparison.ours),
        "seconds": round(comparison.ours.seconds),
        "worse": dict(sorted(kinds.items())),
        "unexpected": len(comparison.unexpected),
    }


def _counts(results: Results) -> dict[str, int]:
    return {name: results.counts[name] for name in ("passed", "failed", "skipped")}


def page(
    suites: Mapping[str, Suite],
    results: Mapping[str, Any],
    differences: Iterable[Difference],
    without_tests: Mapping[str, str],
) -> str:
    """The whole page."""
    rows = [_row(suite, results.get(name, {})) for name, suite in suites.items()]
    columns = ["suite", "of", *(f"`+{driver}`" for driver in DRIVERS), "worse"]
    return "\n".join(
        [
            HEAD,
            *_table(columns, rows),
            "\nPackages that were asked for, and whose source distributions have no tests to run:",
            "; ".join(f"{name} ({reason})" for name, reason in sorted(without_tests.items())) + ".",
            *_sections(
                sorted(differences, key=lambda row: (list(KINDS).index(row.kind), row.section, row.suite))
            ),
            "",
        ]
    )


def _row(suite: Suite, results: Mapping[str, Any]) -> list[str]:
    worse: Counter[str] = Counter()
    for driver in results.values():
        worse.update({**driver["worse"], "unexpected": driver["unexpected"]})
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(worse.items()) if count)
    return [
        suite.name,
        str(suite.source),
        *(_cell(suite, driver, results) for driver in DRIVERS),
        told or ("none" if results else ""),
    ]


def _cell(suite: Suite, driver: str, results: Mapping[str, Any]) -> str:
    if driver not in suite.drivers:
        return "not for it"
    if driver not in results:
        return "not measured yet"
    stock, ours = results[driver]["stock"], results[driver]["ours"]
    return f"{stock['passed']} / {stock['failed']} : {ours['passed']} / {ours['failed']}"


def _sections(differences: list[Difference]) -> list[str]:
    lines = ["\n## Expected differences"]
    for kind, meaning in KINDS.items():
        rows = [
            [
                row.suite,
                ", ".join(row.drivers),
                "<br>".join(f"`{_short(test)}`" for test in row.tests),
                _reason(row),
            ]
            for row in differences
            if row.kind == kind
        ]
        if rows:
            lines += [
                f"\n{meaning[0].upper()}{meaning[1:]}:\n",
                *_table(["suite", "drivers", "tests", "why"], rows),
            ]
    return lines


def _short(test: str) -> str:
    file, mark, rest = test.partition("::")
    return (rest if mark else file).replace("|", "\\|")


def _reason(row: Difference) -> str:
    often = " (not in every run)" if row.sometimes else ""
    linked = row.kind != "fault" and DIFFERENCES.exists()
    reason = f"[{row.reason}](differences.md#{row.section})" if linked else row.reason
    return reason + often


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{' --- |' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


if __name__ == "__main__":
    write_page([])
