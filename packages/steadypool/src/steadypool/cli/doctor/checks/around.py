"""What is around the database: whether telemetry records anything, and whether the schema is the service's."""

from __future__ import annotations

import importlib
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from steadypool.cli.doctor.examination import Examination
from steadypool.cli.doctor.finding import Finding, check, note, ok, unknown, warning

_SWITCH = "LOGFIRE_ENABLED"


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@check("instrumentation")
async def instrumentation(x: Examination) -> list[Finding]:
    """Whether what is installed can record, and is told to."""
    on = os.environ.get(_SWITCH, "").strip().lower() in ("1", "true", "yes", "on")
    logfire, upstream = _installed("logfire"), _installed("opentelemetry-instrumentation-sqlalchemy")
    sqlalchemy = _installed("sqlalchemy") or "0"
    found: list[Finding] = []
    if on and logfire is None:
        why = "It is switched on, and nothing is recorded."
        found.append(
            warning(f"{_SWITCH}=true, and logfire is not installed", why, 'pip install "steadypool[logfire]"')
        )
    if upstream is not None and sqlalchemy.startswith("2.1"):
        why = "It refuses SQLAlchemy 2.1 with one line in the log and records nothing."
        said = f"opentelemetry-instrumentation-sqlalchemy {upstream} with SQLAlchemy {sqlalchemy}"
        found.append(note(said, why, "leave it out"))
    state = f"{_SWITCH} is {'on' if on else 'off'}; logfire {logfire or 'not installed'}"
    return found or [ok(state)]


@check("migrations")
async def migrations(x: Examination) -> list[Finding]:
    """Whether the schema is at the head of Alembic's migrations."""
    exists = (await x.row("SELECT to_regclass('alembic_version') IS NOT NULL AS there")).there
    current = [row[0] for row in await x.rows("SELECT version_num FROM alembic_version")] if exists else []
    now = ", ".join(current) or "none"
    if x.migrations is None:
        return [ok(f"revision {now}; what the head is, --migrations FOLDER tells")]
    try:
        script: Any = importlib.import_module("alembic.script")  # the service's, not a dependency of ours
    except ModuleNotFoundError:
        return [unknown("Alembic is not installed here, so its head is not known")]
    heads: list[str] = script.ScriptDirectory(str(x.migrations)).get_heads()
    said = f"revision {now}, head {', '.join(heads) or 'none'}"
    if sorted(current) != sorted(heads):
        return [warning(said, "The code expects tables that are not like that.", "alembic upgrade head")]
    return [ok(said)]
