"""`steadypool doctor`: what is wrong with a database as this service would use it, and the line to change."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from steadypool.cli.output import Output
from steadypool.errors import ConfigurationError, words_of
from steadypool.settings.database import DatabaseSettings

if TYPE_CHECKING:
    from steadypool.cli.doctor.examination import CheckContext
    from steadypool.cli.doctor.finding import Check
    from steadypool.cli.doctor.run import Result

__all__ = ["doctor"]


@Parameter(name="*")
@dataclass(frozen=True)
class _How:
    """What to look at.

    Parameters
    ----------
    only
        Names of checks or of groups, with commas.
    plans
        Also explain the statements that take most of the server's time. Nothing is run.
    processes
        How many processes of the service use these settings at the same time; WEB_CONCURRENCY, or 1.
    migrations
        Alembic's script location, to compare its head with the database's revision.
    deadline
        Seconds for all of it.
    """

    only: str = ""
    plans: Annotated[bool, Parameter(negative="")] = False
    processes: int | None = None
    migrations: Path | None = None
    deadline: float = 30.0


def doctor(
    url: str | None = None,
    /,
    *,
    how: _How | None = None,
    list_checks: Annotated[bool, Parameter(negative="")] = False,
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], negative="")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Examine a database as this service would use it: what is wrong, why it matters, and the line to change.

    Reads DATABASE_* as the service does. Needs no rights beyond connecting, runs everything in transactions that can
    only read, changes nothing, and prints no password. One notification is sent on a channel of its own, and a pooler
    is asked once for PgBouncer's admin console, which may refuse. Works when
    the database is down as well: then it says at which step it stops.

    Exit code 1 means that something was found that is worth attention. Needs `pip install
    "steadypool[asyncpg,cli,psycopg,sqlalchemy]"`.

    **Examples.**

        # Everything about DATABASE_URL:
        steadypool doctor
        # Another database, and also what is fine:
        steadypool doctor postgresql://app@db.example/plyr -v
        # Why are requests slow just now:
        steadypool doctor --only sessions,pool-use
        # Do four processes fit:
        steadypool doctor --only capacity --processes 4
        # For a monitor:
        steadypool doctor --json --deadline 10

    Parameters
    ----------
    url
        The database; DATABASE_URL if not given.
    list_checks
        Say what is looked at, and look at nothing.
    verbose
        Also show what is as it should be.
    as_json
        Print the findings as JSON.
    """
    from steadypool.cli.doctor.run import all_checks, chosen_checks

    how = how or _How()
    out = Output(as_json=as_json)
    if list_checks:
        from steadypool.cli.doctor.report import contents

        out.result(
            [{"check": each.name, "group": each.group, "looks_at": each.looks_at} for each in all_checks()]
        )
        out.show(contents(all_checks()))
        return 0
    try:
        names = [word.strip() for word in how.only.split(",") if word.strip()]
        checks = chosen_checks(names, also=("plans",) if how.plans else ())
        settings = DatabaseSettings(url=url) if url is not None else DatabaseSettings()
        processes = (
            how.processes if how.processes is not None else int(os.environ.get("WEB_CONCURRENCY") or 1)
        )
    except LookupError as error:
        out.fail(f"there is no check {error}. What there is: steadypool doctor --list-checks")
        return 2
    except ConfigurationError as error:
        out.fail(words_of(error))
        return 2
    if processes < 1 or not how.deadline > 0:
        out.fail("--processes is 1 or more, --deadline is above 0 seconds")
        return 2
    return _examined(out, settings, checks, how, processes, verbose=verbose)


def _examined(
    out: Output,
    settings: DatabaseSettings,
    checks: Sequence[Check],
    how: _How,
    processes: int,
    *,
    verbose: bool,
) -> int:
    from steadypool.cli.doctor.examination import CheckContext
    from steadypool.cli.doctor.finding import WORTH_ATTENTION
    from steadypool.cli.doctor.report import as_dict, show
    from steadypool.cli.doctor.run import verdict

    examination = CheckContext(settings, processes, how.migrations, deadline=how.deadline)
    results = asyncio.run(_run(out, examination, checks))
    out.result(as_dict(settings, results))
    show(out, results, verbose=verbose)
    return 1 if verdict(results) in WORTH_ATTENTION else 0


async def _run(out: Output, examination: CheckContext, checks: Sequence[Check]) -> list[Result]:
    from steadypool.cli.doctor.run import examine

    with out.quiet_progress(len(checks), "looking …") as step:

        def tell(check: Any, done: bool) -> None:
            (step.done if done else step.doing)(check.name)

        return await examine(examination, checks, tell)
