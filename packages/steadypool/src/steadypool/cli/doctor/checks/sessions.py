"""Who holds up whom: blocked, long and idle-in-transaction sessions. Statements are shown without their values."""

from __future__ import annotations

from typing import Any, LiteralString

from steadypool._sql.fingerprint import fingerprint
from steadypool.cli.doctor.examination import CLIENTS, CheckContext
from steadypool.cli.doctor.finding import Finding, check, note, ok, problem, unknown, warning

LONG = 5.0
"""Seconds after which a running statement is worth a line."""
IDLE = 1.0
"""Seconds that a transaction may do nothing: a service that awaits something else in it takes longer."""

OFTEN = 0.01
"""Share of all sessions that may end in another way than by their client."""

_WHO: LiteralString = (
    """
    SELECT pid, coalesce(usename, '?') AS who, coalesce(application_name, '') AS application, state,
        coalesce(query, '') AS query, extract(epoch FROM now() - query_start)::float8 AS running,
        extract(epoch FROM now() - state_change)::float8 AS resting,
        extract(epoch FROM now() - xact_start)::float8 AS open, pg_blocking_pids(pid) AS blockers
    FROM pg_stat_activity
    WHERE pid <> pg_backend_pid() AND """
    + CLIENTS
)


_HIDDEN = "<insufficient privilege>"
"""What the server shows instead of another role's statement, with neither state nor times."""


def _named(row: Any) -> str:
    application = f" ({row.application})" if row.application else ""
    doing = "a statement that this role may not see" if row.query == _HIDDEN else fingerprint(row.query)
    return f"{row.pid} {row.who}{application}: {doing}"


def _for(seconds: float | None, what: str = "") -> str:
    return "" if seconds is None else f"{what} for {seconds:.1f} s"


@check("blocked")
async def blocked(x: CheckContext) -> list[Finding]:
    """Sessions that wait for a lock, and who has it."""
    rows = {row.pid: row for row in await x.rows(_WHO)}
    found: list[Finding] = []
    for row in rows.values():
        holders = [pid for pid in row.blockers if pid in rows]
        if not row.blockers:
            continue
        by = "; ".join(_named(rows[pid]) + _for(rows[pid].resting, f", {rows[pid].state}") for pid in holders)
        said = f"{_named(row)} waits{_for(row.running)}: {by or f'process {row.blockers}'} has the lock"
        why = "It holds a connection while it waits, and everybody who comes after it waits as well."
        pid = row.blockers[0]
        change = (
            f"shorten the transaction that has the lock; to end it now: SELECT pg_terminate_backend({pid})"
        )
        found.append(problem(said, why, change, "statement-timeouts"))
    return found or [ok("nobody waits for a lock")]


@check("long-statements")
async def long_statements(x: CheckContext) -> list[Finding]:
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
async def idle_in_transaction(x: CheckContext) -> list[Finding]:
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


@check("ended-sessions")
async def ended_sessions(x: CheckContext) -> list[Finding]:
    """Sessions that the server, its operator or the network ended, of all since the statistics were reset."""
    (row,) = await x.rows(
        "SELECT d->>'sessions' AS sessions, d->>'sessions_killed' AS killed, d->>'sessions_fatal' AS fatal,"
        " d->>'sessions_abandoned' AS abandoned"
        " FROM (SELECT to_jsonb(s) AS d FROM pg_stat_database s WHERE datname = current_database()) found"
    )
    if row.sessions is None:
        return [unknown("the server counts them from version 14 on")]
    total, killed, fatal, abandoned = (
        int(value) for value in (row.sessions, row.killed, row.fatal, row.abandoned)
    )
    said = (
        f"of {total:,} sessions {killed:,} were ended by an operator or a shutdown, {fatal:,} by a fatal error (one of "
        f"the idle timeouts is one), {abandoned:,} lost their client"
    )
    if killed + fatal > OFTEN * total:
        why = "Whoever uses such a connection loses what it was doing; an idle one is replaced."
        change = "the server's log says which: look for FATAL and for 'terminating connection'"
        return [warning(said, why, change, "connection-lost")]
    return [ok(said)]
