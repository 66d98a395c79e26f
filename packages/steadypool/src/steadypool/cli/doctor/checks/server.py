"""What the server is: its version, its role, what stands before it, how far away it is, and how it feels."""

from __future__ import annotations

from datetime import date

from steadypool.cli.doctor.console import ConsoleClosed, PoolerConfig
from steadypool.cli.doctor.examination import CLIENTS, CheckContext, bytes_text, milliseconds_text
from steadypool.cli.doctor.finding import Finding, check, note, ok, problem, unknown, warning
from steadypool.settings.database import Pooler

SUPPORTED_UNTIL = {
    14: date(2026, 11, 12),
    15: date(2027, 11, 11),
    16: date(2028, 11, 9),
    17: date(2029, 11, 8),
    18: date(2030, 11, 14),
}
"""The last minor release of each major version (postgresql.org, "Versioning Policy")."""
FAR = 0.01
"""Seconds of round-trip time that mean another region."""
COLD = 0.95
ENOUGH_READS = 10_000


@check("version")
async def version(x: CheckContext) -> list[Finding]:
    """The server's version, and until when it is maintained."""
    row = await x.row("SELECT current_setting('server_version_num')::int AS number, version() AS text")
    major = row.number // 10_000
    end = SUPPORTED_UNTIL.get(major)
    said = " ".join(row.text.split()[:2])
    if end is None and major > max(SUPPORTED_UNTIL):
        return [ok(said)]
    if end is None or end < x.today.date():
        why = "No fixes are made for it any more, not for security either."
        return [warning(f"{said}, maintained until {end or 'some time ago'}", why, "upgrade the server")]
    return [ok(f"{said}, maintained until {end}")]


@check("role")
async def role(x: CheckContext) -> list[Finding]:
    """Primary or standby, read-only by default or not, and whether the service logs in as a superuser."""
    row = await x.row(
        "SELECT pg_is_in_recovery() AS standby, current_user AS name, r.rolsuper AS super,"
        " (SELECT reset_val FROM pg_settings WHERE name = 'default_transaction_read_only') AS read_only"
        " FROM pg_roles r WHERE r.rolname = current_user"
    )
    found: list[Finding] = []
    if row.standby:
        change = "name all hosts and ?target_session_attrs=read-write in DATABASE_URL"
        found.append(problem("the server is a standby", "Every write fails with 25006.", change, "standby"))
    if row.read_only == "on":
        why = "Every write fails with 25006."
        change = f"ALTER ROLE {row.name} RESET default_transaction_read_only"
        found.append(warning("transactions are read-only by default", why, change, "standby"))
    if row.super:
        why = (
            "A mistake in the service can change everything, and it may use the connections reserved for you."
        )
        found.append(note(f"{row.name} is a superuser", why, "a role of its own for the service"))
    return found or [ok(f"primary, as {row.name}")]


@check("pooler")
async def pooler(x: CheckContext) -> list[Finding]:
    """Whether a pooler stands before the server, and whether the settings know."""
    signs, mode = await x.signs_of_pooler(), x.settings.pooler
    if not signs:
        return [ok("none: the process that the log-in named answers")]
    said, config = "; ".join(signs), await x.pooler_config()
    in_force = config.pool_mode if isinstance(config, PoolerConfig) else None
    if in_force is not None:
        said += f"; its console says pool_mode = {in_force}"
    if mode is Pooler.NONE or (mode is Pooler.SESSION and in_force not in (None, "session")):
        why = "Prepared statements and session settings of one caller meet those of another."
        said = f"a pooler, but DATABASE_POOLER={mode.value}: {said}"
        return [problem(said, why, "DATABASE_POOLER=auto", "poolers")]
    return [ok(f"a pooler, and DATABASE_POOLER={mode.value}: {said}")]


@check("pooler-queue")
async def pooler_queue(x: CheckContext) -> list[Finding]:
    """When PgBouncer's own queue gives up: after DATABASE_POOL_TIMEOUT, and before the request ends."""
    config = await x.pooler_config()
    if config is None:
        return [ok("no pooler")]
    if isinstance(config, ConsoleClosed):
        return [unknown(str(config))]
    s, wait = x.settings, config.query_wait_timeout
    acquire, end = max(s.pool_timeout, s.connection_timeout), s.request_deadline
    between = 1.2 * acquire if end is None or end <= acquire else (acquire + end) / 2
    change = f"query_wait_timeout = {between:g} in pgbouncer.ini"
    said = f"PgBouncer's query_wait_timeout is {f'{wait:g} s' if wait else 'off'}"
    if end is not None and acquire < end and (not wait or wait >= end):
        why = "The request ends first, as if its statement were slow, while PgBouncer had no server connection for it."
        return [note(f"{said}, DATABASE_REQUEST_DEADLINE {end:g} s", why, change)]
    if wait and wait < acquire:
        why = "PgBouncer closes the connection of whoever waits longer, and it has to be opened anew."
        return [note(f"{said}, a request waits {acquire:g} s for a connection", why, change)]
    return [ok(said)]


@check("round-trip")
async def round_trip(x: CheckContext) -> list[Finding]:
    """How long a statement that does nothing takes."""
    seconds = await x.round_trip()
    times = [answer for answer in x.handshakes.values() if not isinstance(answer, str)]
    said = f"{milliseconds_text(seconds)} a statement" + (
        f", {milliseconds_text(min(times))} a TCP handshake" if times else ""
    )
    if times and seconds > max(10 * min(times), FAR):
        why = "The network is fast and the server is not: it is busy, or a pooler lets statements wait."
        return [
            warning(said, why, "look at the server's CPU, or at the pooler's own pool", "connect-timeouts")
        ]
    if seconds > FAR:
        why = "Each statement pays for it, and each request for all of its round trips."
        return [warning(said, why, "run the service in the database's region")]
    return [ok(said)]


@check("load")
async def load(x: CheckContext) -> list[Finding]:
    """What the server is doing, and what went wrong since its statistics were reset."""
    row = await x.row(
        "SELECT count(*) FILTER (WHERE state = 'active' AND pid <> pg_backend_pid()) AS active,"
        " count(*) AS clients, count(*) FILTER (WHERE state IS NULL) AS hidden, current_user AS name,"
        " (SELECT row(d.deadlocks, d.temp_bytes)::text FROM pg_stat_database d"
        " WHERE d.datname = current_database()) AS totals FROM pg_stat_activity WHERE " + CLIENTS
    )
    deadlocks, temporary = (int(part) for part in row.totals.strip("()").split(","))
    said = f"{row.active} of {row.clients} clients run something; {deadlocks} deadlocks so far"
    found = [ok(said)]
    if row.hidden:
        why = "What they do is left out here and by the checks of sessions."
        change = f"GRANT pg_read_all_stats TO {row.name}, if the doctor shall see it"
        found.append(
            note(f"{row.hidden} sessions are other roles', whose state {row.name} may not see", why, change)
        )
    if temporary > 2**30:
        why = "Sorts and hashes that do not fit into work_mem go to the disk."
        found.append(
            note(
                f"{bytes_text(temporary)} written to temporary files",
                why,
                "steadypool why statement-timeouts",
            )
        )
    return found


@check("cache")
async def cache(x: CheckContext) -> list[Finding]:
    """How many of the blocks that were asked for were in the server's memory."""
    row = await x.row("SELECT blks_hit, blks_read FROM pg_stat_database WHERE datname = current_database()")
    total = row.blks_hit + row.blks_read
    share = row.blks_hit / total if total else 1.0
    said = f"{share:.1%} of {total:,} blocks"
    if row.blks_read > ENOUGH_READS and share < COLD:
        why = "The rest came from the disk: what is used often does not fit into memory, or is read without an index."
        return [warning(said, why, "steadypool doctor --only sequential-scans; or more shared_buffers")]
    return [ok(said)]
