"""What the doctor says, to people and to programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from steadypool.cli.doctor.finding import Check, Level
from steadypool.cli.doctor.run import Result, verdict
from steadypool.cli.output import Output, plain
from steadypool.settings.database import DatabaseSettings

_MARKS = {
    Level.OK: "[green]✓[/]",
    Level.NOTE: "[blue]i[/]",
    Level.WARNING: "[yellow]![/]",
    Level.PROBLEM: "[red]✗[/]",
    Level.UNKNOWN: "[magenta]?[/]",
}
_ORDER = (Level.PROBLEM, Level.WARNING, Level.UNKNOWN, Level.NOTE, Level.OK)


def contents(checks: Sequence[Check]) -> Table:
    """The list of all checks."""
    table = Table("group", "check", "looks at")
    for check in checks:
        table.add_row(
            check.group, check.name, plain(check.looks_at) + (" (when asked for)" if check.asked_for else "")
        )
    return table


def show(out: Output, results: Sequence[Result], *, verbose: bool) -> None:
    """The findings, the worst first; what is fine only when asked for."""
    for result in sorted(results, key=lambda result: _ORDER.index(result.finding.level)):
        finding = result.finding
        if finding.level is Level.OK and not verbose:
            continue
        took = f" [dim]({result.seconds:.2f} s)[/]" if verbose else ""
        out.text(f"{_MARKS[finding.level]} [bold]{result.check.name}[/]: {plain(finding.evidence)}{took}")
        for label, text in (("why it matters", finding.why), ("change", finding.change)):
            if text:
                out.text(f"    {label}: {plain(text)}")
        if finding.symptom:
            out.text(f"    more: steadypool why {finding.symptom}")
    fine = sum(result.finding.level is Level.OK for result in results)
    found = len(results) - fine
    out.text(
        f"{fine} fine{'' if verbose else ' (-v shows them)'}, {found} to look at" if found else f"{fine} fine"
    )


def as_dict(settings: DatabaseSettings, results: Sequence[Result]) -> dict[str, Any]:
    """For JSON."""
    return {
        "url": settings.safe_url,
        "verdict": verdict(results).value,
        "findings": [result.as_dict() for result in results],
    }
