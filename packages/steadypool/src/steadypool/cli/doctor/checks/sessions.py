"""Who holds up whom: blocked, long and idle-in-transaction sessions. Statements are shown without their values."""

from __future__ import annotations

from typing import Any

from steadypool.cli.doctor.examination import Examination
from steadypool.cli.doctor.finding import Finding, check, note, ok, problem, warning
from steadypool.fingerprint import fingerprint

LONG = 5.0
"""Seconds after which a running statement is worth a line."""
IDLE = 1.0
"""Seconds that a transaction may do nothing: a service that awaits something else in it takes longer."""

_WHO = """
    SELECT pid, coalesce(usename, '?') AS who, coalesce(application_name, '') AS application, state,
        coalesce(query, '') AS query, extract(epoch FROM now() - query_start)::float8 AS running,
        extract(epoch FROM now() - state_change)::float8 AS resting,
        extract(epoch FROM now() - xact_start)::float8 AS open, pg_blocking_pids(pid) AS blockers
    FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


def _named(row: Any) -> str:
    application = f" ({row.application})" if row.application else ""
    return f"{row.pid} {row.who}{application}: {fingerprint(row.query)}"


@check("blocked")
async def blocked(x: Examination) -> list[Finding]:
    """Sessions that wait for a lock, and who has it."""
    rows = {row.pid: row for row in await x.rows(_WHO)}
    found: list[Finding] = []
    for row in rows.values():
        holders = [pid for pid in row.blockers if pid in rows]
        if not row.blockers:
            continue
        by = "; ".join(
            f"{_named(rows[pid])}, {rows[pid].state} for {rows[pid].resting:.1f} s" for pid in holders
        )
        said = f"{_named(row)} waits {row.running:.1f} s for {by or f'process {row.blockers}'}"
        why = "It holds a connection while it waits, and everybody who comes after it waits as well."
        pid = row.blockers[0]
        change = (
            f"shorten the transaction that has the lock; to end it now: SELECT pg_terminate_backend({pid})"
        )
        found.append(problem(said, why, change, "statement-timeouts"))
    return found or [ok("nobody waits for a lock")]


@check("long-statements")
async def long_statements(x: Examination) -> list[Finding]:
    """Statements that have been running for long."""
    limit = x.settings.statement_timeout
    found: list[Finding] = []
    for row in await x.rows(_WHO + " AND state = 'active' ORDER BY query_start"):
        said = f"{_named(row)}, running for {row.running:.1f} s"
        if row.running > limit:
            why = (
                f"DATABASE_STATEMENT_TIMEOUT is {limit:g} s: it is another workload's, or nothing limits it."
            )
            change = f"to end it now: SELECT pg_cancel_backend({row.pid})"
            found.append(warning(said, why, change, "statement-timeouts"))
        elif row.running > min(LONG, limit / 2):
            why = "It holds its connection all the time."
            found.append(
                warning(said, why, "EXPLAIN it; or move it into the background", "statement-timeouts")
            )
    return found or [ok("none")]


@check("idle-in-transaction")
async def idle_in_transaction(x: Examination) -> list[Finding]:
    """Sessions that hold a transaction open and do nothing."""
    found: list[Finding] = []
    for row in await x.rows(_WHO + " AND state LIKE 'idle in transaction%' ORDER BY state_change"):
        said = f"{_named(row)}, idle for {row.resting:.1f} s in a transaction of {row.open:.1f} s"
        if row.resting > IDLE:
            why = "It holds a connection and its locks while the program does something else."
            change = "end the transaction before the program waits for anything else"
            found.append(warning(said, why, change, "leaks"))
        else:
            found.append(note(said))
    return found or [ok("none")]
