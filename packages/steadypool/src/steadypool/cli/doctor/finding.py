"""What a check finds, and the list of all checks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steadypool.cli.doctor.examination import CheckContext


class Level(StrEnum):
    """How much it matters."""

    OK = "ok"
    """As it should be."""
    NOTE = "note"
    """Good to know; nothing has to be done."""
    WARNING = "warning"
    """It will go wrong one day, or costs more than it should."""
    PROBLEM = "problem"
    """It goes wrong now."""
    UNKNOWN = "unknown"
    """It could not be looked at; the evidence says why."""


WORTH_ATTENTION = (Level.WARNING, Level.PROBLEM)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    `evidence` is what was seen; `why` it matters, `change` is the line to change, and `symptom` the page of
    `steadypool why` that has the rest.
    """

    level: Level
    evidence: str
    why: str = ""
    change: str = ""
    symptom: str = ""


def ok(evidence: str) -> Finding:
    """As it should be."""
    return Finding(Level.OK, evidence)


def note(evidence: str, why: str = "", change: str = "") -> Finding:
    """Good to know."""
    return Finding(Level.NOTE, evidence, why, change)


def warning(evidence: str, why: str, change: str, symptom: str = "") -> Finding:
    """It will go wrong one day."""
    return Finding(Level.WARNING, evidence, why, change, symptom)


def problem(evidence: str, why: str, change: str, symptom: str = "") -> Finding:
    """It goes wrong now."""
    return Finding(Level.PROBLEM, evidence, why, change, symptom)


def unknown(evidence: str) -> Finding:
    """It could not be looked at."""
    return Finding(Level.UNKNOWN, evidence)


Look = Callable[["CheckContext"], Awaitable[list[Finding]]]


@dataclass(frozen=True, slots=True)
class Check:
    """A small function with a name; `asked_for` ones run only when they are named, or asked for by an option."""

    name: str
    group: str
    looks_at: str
    look: Look
    asked_for: bool = False


CHECKS: dict[str, Check] = {}
"""All of them by name, in the order in which they run: each may rely on what the ones before it found out."""


def check(name: str, *, asked_for: bool = False) -> Callable[[Look], Look]:
    """Put a function on the list; its group is its module, what it looks at is its docstring."""

    def added(look: Look) -> Look:
        group = look.__module__.rpartition(".")[2]
        summary = " ".join((look.__doc__ or "").split())
        CHECKS[name] = Check(name, group, summary, look, asked_for)
        return look

    return added
