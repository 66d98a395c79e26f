"""What the statistics know: slow statements, tables read as a whole, indexes nobody uses, and plans on request."""

from __future__ import annotations

import re
from typing import Any

import psycopg
from psycopg import sql

from steadypool._sql.fingerprint import fingerprint
from steadypool.cli.doctor.examination import MARK, CheckContext, bytes_text, milliseconds_text
from steadypool.cli.doctor.finding import Finding, check, note, ok, unknown, warning

LARGE = 10_000
"""Rows from which reading a whole table matters."""
MANY = 1_000_000
"""Rows read by sequential scans since the statistics were reset."""
LARGE_INDEX = 2**20
MOST = 5
_P99 = 2.33
"""Standard deviations above the mean at which the 99th percentile lies, if times were spread normally."""

_PRELOAD = (
    "shared_preload_libraries = 'pg_stat_statements' (a restart), then CREATE EXTENSION pg_stat_statements"
)


async def _top(x: CheckContext) -> list[Any] | Finding:
    """The statements that took most of the server's time, or why they are not known."""
    where = await x.rows(
        "SELECT n.nspname AS schema FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
        " WHERE e.extname = 'pg_stat_statements'"
    )
    why = "Without it nobody knows which statements take the server's time."
    if not where:
        return note("pg_stat_statements is not in this database", why, _PRELOAD)
    query = sql.SQL(
        "SELECT query, calls, total_exec_time / 1000 AS total, mean_exec_time / 1000 AS mean,"
        " stddev_exec_time / 1000 AS deviation, rows FROM {} s WHERE query IS NOT NULL"
        " AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " ORDER BY total_exec_time DESC LIMIT 60"
    ).format(sql.Identifier(where[0].schema, "pg_stat_statements"))
    try:
        rows = await x.rows(query.as_bytes(None))
    except psycopg.errors.ObjectNotInPrerequisiteState as error:
        return note(str(error.diag.message_primary), why, _PRELOAD)
    return [row for row in rows if not _UTILITY.match(row.query) and MARK not in row.query]


_UTILITY = re.compile(
    r"\s*(?:BEGIN|COMMIT|ROLLBACK|SET|SHOW|RESET|DISCARD|LISTEN|NOTIFY|START|END|SAVEPOINT|RELEASE|DEALLOCATE|EXPLAIN|<insuff)",
    re.IGNORECASE,
)


@check("statements")
async def statements(x: CheckContext) -> list[Finding]:
    """pg_stat_statements: what takes most of the server's time, and what comes near its limit."""
    top = await _top(x)
    if isinstance(top, Finding):
        return [top]
    found: list[Finding] = []
    slow = x.settings.slow_query_after or x.settings.statement_timeout / 2
    for row in top[:MOST]:
        p99 = row.mean + _P99 * row.deviation
        calls = "1 call" if row.calls == 1 else f"{row.calls:,} calls"
        said = (
            f"{fingerprint(row.query)}: {calls}, {milliseconds_text(row.mean)} each, "
            f"about {milliseconds_text(p99)} at the 99th percentile, {milliseconds_text(row.total)} in all"
        )
        if p99 > x.settings.statement_timeout:
            why = f"DATABASE_STATEMENT_TIMEOUT is {x.settings.statement_timeout:g} s: one in a hundred may be ended."
            found.append(
                warning(
                    said,
                    why,
                    "steadypool doctor --only plans; then an index, or a workload",
                    "statement-timeouts",
                )
            )
        elif row.mean > slow:
            why = "It holds its connection for that long each time."
            found.append(warning(said, why, "steadypool doctor --only plans", "statement-timeouts"))
        else:
            found.append(ok(said))
    return found or [ok("no statement recorded yet")]


@check("sequential-scans")
async def sequential_scans(x: CheckContext) -> list[Finding]:
    """Large tables that are read as a whole, again and again."""
    rows = await x.rows(
        "SELECT schemaname || '.' || relname AS name, seq_scan, seq_tup_read, coalesce(idx_scan, 0) AS idx_scan,"
        " greatest(n_live_tup, seq_tup_read / greatest(seq_scan, 1)) AS size FROM pg_stat_user_tables"
        " WHERE seq_tup_read > %s AND seq_scan > 10 ORDER BY seq_tup_read DESC LIMIT %s",
        MANY,
        MOST,
    )
    why = "Each of them reads every row; an index reads those that are asked for."
    change = "CREATE INDEX CONCURRENTLY on the columns of its WHERE: steadypool doctor --only plans"
    return [
        warning(
            f"{row.name}: {row.seq_scan:,} sequential scans of about {row.size:,} rows, {row.idx_scan:,} by an index",
            why,
            change,
            "statement-timeouts",
        )
        for row in rows
        if row.size >= LARGE
    ] or [ok("none of a large table")]


@check("unused-indexes")
async def unused_indexes(x: CheckContext) -> list[Finding]:
    """Indexes that cost every write and that no statement has used."""
    rows = await x.rows(
        "SELECT s.schemaname || '.' || s.indexrelname AS name, s.relname, pg_relation_size(s.indexrelid) AS size"
        " FROM pg_stat_user_indexes s JOIN pg_index i USING (indexrelid)"
        " WHERE s.idx_scan = 0 AND NOT i.indisunique AND NOT i.indisexclusion"
        " AND pg_relation_size(s.indexrelid) > %s ORDER BY size DESC LIMIT %s",
        LARGE_INDEX,
        MOST,
    )
    why = "Every write maintains it. A standby may use it, and the statistics may be young: look there first."
    return [
        note(
            f"{row.name} on {row.relname}, {bytes_text(row.size)}", why, f"DROP INDEX CONCURRENTLY {row.name}"
        )
        for row in rows
    ] or [ok("none")]


@check("plans", asked_for=True)
async def plans(x: CheckContext) -> list[Finding]:
    """The estimated plans (EXPLAIN, never ANALYZE: nothing is run) of the statements that take most of the time."""
    if (await x.row("SELECT current_setting('server_version_num')::int AS number")).number < 160_000:
        return [unknown("plans of statements with parameters need PostgreSQL 16 (GENERIC_PLAN)")]
    top = await _top(x)
    if isinstance(top, Finding):
        return [top]
    found: list[Finding] = []
    for row in [row for row in top if _EXPLAINABLE.match(row.query)][:MOST]:
        found.append(await _plan(x, row.query))
    return found or [ok("no statement recorded yet")]


_EXPLAINABLE = re.compile(r"\s*(?:SELECT|WITH|INSERT|UPDATE|DELETE|VALUES)\b", re.IGNORECASE)
_SCAN = re.compile(r"Seq Scan on (\S+)")


async def _plan(x: CheckContext, query: str) -> Finding:
    try:
        rows = await x.rows(b"EXPLAIN (GENERIC_PLAN) " + query.encode())
    except psycopg.Error as error:
        return unknown(f"{fingerprint(query)}: {error.diag.message_primary}")
    lines = [row[0] for row in rows]
    said = f"{fingerprint(query)}: {lines[0].strip()}"
    names = sorted({name.strip('"') for name in _SCAN.findall("\n".join(lines))})
    scans = await x.rows(
        "SELECT relname, max(reltuples)::bigint AS size FROM pg_class WHERE relname = ANY(%s) AND relkind IN ('r', 'p')"
        " GROUP BY 1 HAVING max(reltuples) >= %s ORDER BY 1",
        names,
        LARGE,
    )
    if not scans:
        return ok(said)
    tables = ", ".join(f"{scan.relname} ({scan.size:,} rows)" for scan in scans)
    why = "It reads whole tables."
    return warning(
        f"{said}; sequential scan on {tables}",
        why,
        "an index on the columns of its WHERE",
        "statement-timeouts",
    )
