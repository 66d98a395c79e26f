"""Runs checks, each within its time; what goes wrong in one is a finding of that one and of no other."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import entry_points
from typing import Any

import psycopg
from sqlalchemy.exc import SQLAlchemyError

from steadypool.cli.doctor.examination import CheckContext, NoConnection
from steadypool.cli.doctor.finding import CHECKS, WORTH_ATTENTION, Check, Finding, Level, problem, unknown
from steadypool.errors import SteadypoolError, words_of
from steadypool.settings.validators import HIDDEN, redact_url

GROUPS = ("reach", "tls", "server", "capacity", "times", "ways", "sessions", "statements", "around")
MORE_CHECKS = "steadypool.doctor"
"""Entry points of other distributions: modules whose functions are checks of a group above."""
LOG_IN = "log-in"
LONGEST_CHECK = 15.0
"""Seconds that one check may take."""


@dataclass(frozen=True, slots=True)
class Result:
    """A finding, of which check, and how long that took (seconds)."""

    check: Check
    finding: Finding
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return (
            {"check": self.check.name, "group": self.check.group}
            | asdict(self.finding)
            | {"seconds": self.seconds}
        )


def all_checks() -> list[Check]:
    """Every check there is, in their order."""
    for group in GROUPS:
        importlib.import_module(f"{__package__}.checks.{group}")
    for more in entry_points(group=MORE_CHECKS):
        more.load()
    return sorted(CHECKS.values(), key=lambda check: GROUPS.index(check.group))


def chosen_checks(names: Sequence[str], *, also: Iterable[str] = ()) -> list[Check]:
    """Those of these names and groups, or all that need not be asked for.

    Raises:
        LookupError: a name that nothing has.
    """
    known = all_checks()
    unknown_names = [name for name in names if name not in CHECKS and name not in GROUPS]
    if unknown_names:
        raise LookupError(", ".join(unknown_names))
    wanted = {
        check.name for check in known if check.name in names or (check.group in names and not check.asked_for)
    }
    if not names:
        wanted = {check.name for check in known if not check.asked_for}
    return [check for check in known if check.name in wanted or check.name in also]


async def examine(
    examination: CheckContext,
    checks: Sequence[Check],
    tell: Callable[[Check, bool], None] = lambda _check, _done: None,
) -> list[Result]:
    """Run the checks one after the other within the examination's time. Never raises what a check raises.

    Args:
        examination: what they look at.
        checks: which ones.
        tell: called before and after each, for those who watch.
    """
    examination.start()
    results: list[Result] = []
    unasked: list[Check] = []
    try:
        for check in checks:
            tell(check, False)
            try:
                results += await _looked(examination, check)
            except NoConnection:
                unasked.append(check)
            tell(check, True)
        if unasked and not any(result.check.name == LOG_IN for result in results):
            results += await _looked(examination, CHECKS[LOG_IN])
        if unasked:
            names = ", ".join(check.name for check in unasked)
            said = unknown(f"without a connection nothing is known of: {names}")
            results.append(Result(replace(CHECKS[LOG_IN], name="not-asked"), said, 0.0))
    finally:
        await examination.close()
    return results


async def _looked(examination: CheckContext, check: Check) -> list[Result]:
    began = examination.clock.monotonic()
    limit = min(examination.left, LONGEST_CHECK)
    try:
        async with asyncio.timeout(limit):
            findings = await check.look(examination)
    except NoConnection:
        raise
    except TimeoutError as error:
        examination.lose("it fell silent")
        said = words_of(error) if isinstance(error, SteadypoolError) else f"no answer within {limit:.1f} s"
        findings = [
            problem(said, "A check that hangs means that requests hang as well.", "", "connect-timeouts")
            if limit > 1
            else unknown(f"no time was left for it; give more by --deadline (now {examination.deadline:g} s)")
        ]
    except psycopg.errors.InsufficientPrivilege as error:
        findings = [unknown(f"this role may not look: {error.diag.message_primary}")]
    except (SteadypoolError, psycopg.Error, SQLAlchemyError, OSError) as error:
        findings = [unknown(f"{type(error).__name__}: {words_of(error).splitlines()[0]}")]
    seconds = examination.clock.monotonic() - began
    return [Result(check, _discreet(finding, examination), seconds) for finding in findings]


def _discreet(finding: Finding, examination: CheckContext) -> Finding:
    """Without a password, wherever it may have come from."""
    secrets: list[str] = []
    for url in (examination.settings.url, examination.settings.direct_url):
        if url is not None:
            text = url.get_secret_value()
            secrets.append(text)
    texts = {name: getattr(finding, name) for name in ("evidence", "why", "change")}
    for secret in secrets:
        texts = {name: text.replace(secret, redact_url(secret)) for name, text in texts.items()}
    for password in _passwords(examination):
        texts = {name: text.replace(password, HIDDEN) for name, text in texts.items()}
    return Finding(finding.level, symptom=finding.symptom, **texts)


def _passwords(examination: CheckContext) -> list[str]:
    try:
        password = examination.target.password
    except SteadypoolError:
        return []
    # A password of one or two characters would blot out ordinary text, and protects nothing.
    return [password.get_secret_value()] if password and len(password.get_secret_value()) > 2 else []


def verdict(results: Sequence[Result]) -> Level:
    """The worst that was found."""
    order = [Level.OK, Level.NOTE, Level.UNKNOWN, *WORTH_ATTENTION]
    return max((result.finding.level for result in results), key=order.index, default=Level.OK)
