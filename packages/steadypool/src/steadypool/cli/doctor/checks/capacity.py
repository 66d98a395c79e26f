"""Whether the server has room for what the service may take, and how much of that is taken."""

from __future__ import annotations

import psycopg

from steadypool.cli.doctor.examination import CLIENTS, CheckContext, bytes_text
from steadypool.cli.doctor.finding import Finding, check, ok, problem, warning

MEMORY_SHARE = 3
"""Times shared_buffers (usually a quarter of the memory) that statements may take before it is worth a warning."""
_LISTENER = 1


def wanted(x: CheckContext) -> int:
    """The most connections that all processes of the service together may have."""
    return x.processes * (x.settings.pool_size + x.settings.max_overflow + _LISTENER)


@check("capacity")
async def capacity(x: CheckContext) -> list[Finding]:
    """max_connections, what is reserved or limited, who has how many, and what the configured processes may take."""
    row = await x.row(
        "SELECT current_setting('max_connections')::int AS most,"
        " current_setting('superuser_reserved_connections')::int"
        " + coalesce(current_setting('reserved_connections', true)::int, 0) AS reserved,"
        " r.rolconnlimit AS role_limit, d.datconnlimit AS database_limit, r.rolname AS role, d.datname AS database"
        " FROM pg_roles r, pg_database d WHERE r.rolname = current_user AND d.datname = current_database()"
    )
    others = await x.rows(
        "SELECT coalesce(usename, '?') || '@' || coalesce(datname, '?') AS who, count(*) AS number"
        " FROM pg_stat_activity WHERE " + CLIENTS + " AND pid <> pg_backend_pid()"
        " GROUP BY 1 ORDER BY 2 DESC LIMIT 5"
    )
    limits = {f"max_connections {row.most} less {row.reserved} reserved": row.most - row.reserved}
    if row.role_limit >= 0:
        limits[f"the limit of role {row.role}"] = row.role_limit
    if row.database_limit >= 0:
        limits[f"the limit of database {row.database}"] = row.database_limit
    name = min(limits, key=lambda key: limits[key])
    need, have = wanted(x), limits[name]
    now = ", ".join(f"{other.who} {other.number}" for other in others) or "nobody else"
    sum_of = f"{x.processes} x ({x.settings.pool_size} + {x.settings.max_overflow} + listener)"
    said = f"{sum_of} = {need}; {name}: {have}; now: {now}"
    share = max(1, (have // max(1, x.processes)) - _LISTENER - x.settings.max_overflow)
    change = f"DATABASE_POOL_SIZE={share}, fewer processes, or a pooler in between"
    if need > have:
        why = "Under load the server refuses the rest with 53300 (too many connections)."
        return [problem(said, why, change, "too-many-connections")]
    if 2 * need > have:
        why = "During a deployment old and new processes run side by side, and twice this does not fit."
        return [warning(said, why, change, "too-many-connections")]
    return [ok(said)]


@check("memory")
async def memory(x: CheckContext) -> list[Finding]:
    """What a backend takes, and what all of the service's may."""
    row = await x.row(
        "SELECT (SELECT pg_size_bytes(current_setting('work_mem'))) AS work_mem,"
        " coalesce(current_setting('hash_mem_multiplier', true)::float8, 1) AS factor,"
        " (SELECT pg_size_bytes(current_setting('shared_buffers'))) AS shared"
    )
    try:
        used = (await x.row("SELECT sum(total_bytes)::bigint AS used FROM pg_backend_memory_contexts")).used
        own = f"a backend has {bytes_text(used)} now"
    except psycopg.Error:  # only some may look, and only from version 14 on
        own = "what a backend has now, this role may not see"
    each = int(row.work_mem * row.factor)
    total = each * wanted(x)
    said = (
        f"{own}; a statement may take work_mem x hash_mem_multiplier = {bytes_text(each)} for each sort or hash: "
        f"{bytes_text(total)} in {wanted(x)} backends; shared_buffers {bytes_text(row.shared)}"
    )
    if total > MEMORY_SHARE * row.shared:
        why = "Where the memory ends, the system kills a backend, and with it every connection."
        return [
            warning(said, why, "lower work_mem for this role, or fewer connections", "too-many-connections")
        ]
    return [ok(said)]


@check("pool-use")
async def pool_use(x: CheckContext) -> list[Finding]:
    """How many of the connections that the service may have are there, and what they do."""
    row = await x.row(
        "SELECT count(*) AS number, count(*) FILTER (WHERE state = 'active') AS active,"
        " count(*) FILTER (WHERE state LIKE 'idle in transaction%') AS idle_in_transaction,"
        " coalesce(extract(epoch FROM max(now() - xact_start)), 0)::float8 AS longest"
        " FROM pg_stat_activity WHERE usename = current_user AND datname = current_database()"
        " AND " + CLIENTS + " AND pid <> pg_backend_pid()"
        " AND application_name NOT LIKE 'steadypool %'"
    )
    limit = x.processes * (x.settings.pool_size + x.settings.max_overflow)
    busy = row.active + row.idle_in_transaction
    said = (
        f"{busy} of {limit} in use: {row.active} run a statement, {row.idle_in_transaction} are idle in a transaction, "
        f"the longest transaction has lasted {row.longest:.1f} s; {row.number} are open"
    )
    if busy >= limit:
        why = "The pool is exhausted: whoever comes now waits, and fails after DATABASE_POOL_TIMEOUT."
        change = "end what holds them: steadypool doctor --only long-statements,idle-in-transaction,blocked"
        return [problem(said, why, change, "exhaustion")]
    if busy > 0.8 * limit:
        why = "Above 80 % a little more load, or one slow statement, exhausts it."
        return [
            warning(
                said, why, "steadypool advise http://127.0.0.1:8000/pool says which sizes fit", "exhaustion"
            )
        ]
    return [ok(said)]
