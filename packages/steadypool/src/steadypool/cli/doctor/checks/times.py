"""Whether the limits are in force, in the right order, and shorter than what else ends connections."""

from __future__ import annotations

from steadypool.cli.doctor.console import ConsoleClosed, PoolerConfig
from steadypool.cli.doctor.examination import CheckContext
from steadypool.cli.doctor.finding import Finding, check, note, ok, problem, warning
from steadypool.connect.session_settings import session_guards
from steadypool.settings.database import IdlePolicy

NEON_SUSPENDS = 300.0
"""Seconds without use after which Neon suspends a database by default (its manual, "Scale to zero")."""


@check("server-timeouts")
async def server_timeouts(x: CheckContext) -> list[Finding]:
    """The limits that are in force on the server for a session that is opened as the service opens its own."""
    guards = session_guards(x.settings)
    rows = await x.rows(
        "SELECT name, reset_val, source FROM pg_settings WHERE name = ANY(%s)", [*guards, *_OTHERS]
    )
    actual = {row.name: row.reset_val for row in rows}
    no_tcp = (all(host.is_socket for host in x.target.hosts) and bool(x.target.hosts)) or bool(
        await x.signs_of_pooler()
    )
    missing = {
        name: actual.get(name)
        for name, value in guards.items()
        if actual.get(name) != value and not (name.startswith("tcp_") and no_tcp)
    }
    said = ", ".join(
        f"{name} {_milliseconds(actual[name])}" for name in ("statement_timeout", *_OTHERS) if name in actual
    )
    if not missing:
        return [ok(said)]
    lacking = ", ".join(f"{name} is {value}, asked for {guards[name]}" for name, value in missing.items())
    if "statement_timeout" in missing:
        why = (
            "They do not arrive at the start, so they travel with each transaction, and autocommit has none."
        )
        change = "let the pooler pass them on, or DATABASE_URL without the pooler"
        return [warning(lacking, why, change, "poolers")]
    return [note(lacking, "The server does not know or does not allow them.", "")]


def _milliseconds(value: str) -> str:
    return "off" if value == "0" else f"{int(value) / 1000:g} s"


_OTHERS = (
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "transaction_timeout",
    "lock_timeout",
)


@check("timeout-order")
async def timeout_order(x: CheckContext) -> list[Finding]:
    """Connecting before waiting before the request, and a statement before the request."""
    s = x.settings
    acquire, end = max(s.pool_timeout, s.connection_timeout), s.request_deadline
    said = (
        f"connect {s.connection_timeout:g} s, acquire {acquire:g} s, statement {s.statement_timeout:g} s, "
        f"request {'without end' if end is None else f'{end:g} s'}"
    )
    found: list[Finding] = []
    if s.pool_timeout < s.connection_timeout:
        why = "A caller who waits while connections are busy gives up before a new one could be opened."
        change = f"DATABASE_POOL_TIMEOUT={s.connection_timeout:g}"
        found.append(
            warning(
                f"DATABASE_POOL_TIMEOUT below DATABASE_CONNECTION_TIMEOUT: {said}", why, change, "deadlines"
            )
        )
    if end is None:
        why = "A request may take the sum of everything it does."
        found.append(warning(said, why, f"DATABASE_REQUEST_DEADLINE={1.5 * acquire:g}", "deadlines"))
    elif end <= acquire or end <= s.statement_timeout:
        why = "The request ends first, by an error that does not say what was slow."
        change = f"DATABASE_REQUEST_DEADLINE={1.5 * max(acquire, s.statement_timeout):g}"
        found.append(
            warning(f"DATABASE_REQUEST_DEADLINE is not the longest: {said}", why, change, "deadlines")
        )
    return found or [ok(said)]


@check("lifetimes")
async def lifetimes(x: CheckContext) -> list[Finding]:
    """Recycling and idle time against what else ends connections: idle_session_timeout, a pooler, a suspend."""
    s = x.settings
    rows = await x.rows(
        "SELECT reset_val::float8 / 1000 AS seconds FROM pg_settings WHERE name = 'idle_session_timeout'"
    )
    server_ends = rows[0].seconds if rows else 0.0
    idle = min(s.idle_timeout or float("inf"), s.pool_recycle or float("inf"))
    config = await x.pooler_config()
    said = (
        f"recycled {_after(s.pool_recycle)}, closed for being idle {_after(s.idle_timeout)}; the server ends idle "
        f"sessions {_after(server_ends or None)}; {_in_between(config)}"
    )
    found: list[Finding] = []
    if server_ends and idle >= server_ends:
        why = "The server ends idle connections first, by 57P05."
        change = f"DATABASE_POOL_IDLE_TIMEOUT={max(1.0, server_ends * 0.8):g}"
        said_too = f"idle_session_timeout {server_ends:g} s; {said}"
        found.append(warning(said_too, why, change, "connection-lost"))
    if isinstance(config, PoolerConfig) and 0 < config.client_idle_timeout <= idle:
        why = "PgBouncer ends idle connections first, and whoever needs one next waits for another to be opened."
        change = f"DATABASE_POOL_IDLE_TIMEOUT={config.client_idle_timeout * 0.8:g}"
        found.append(
            warning(
                f"client_idle_timeout {config.client_idle_timeout:g} s; {said}",
                why,
                change,
                "connection-lost",
            )
        )
    if isinstance(config, ConsoleClosed) and s.pool_recycle is None:
        why = (
            "A pooler ends idle clients by its client_idle_timeout (PgBouncer: off by default), and nobody looks at "
            "the age of these."
        )
        found.append(
            warning(
                said, why, "DATABASE_POOL_RECYCLE below the pooler's client_idle_timeout", "connection-lost"
            )
        )
    if any(host.name.endswith(".neon.tech") for host in x.target.hosts):
        found += _neon(x, said)
    return found or [ok(said)]


def _in_between(config: PoolerConfig | ConsoleClosed | None) -> str:
    """The pooler's times. Those of its server connections end none of ours: it waits until we let go of one."""
    if config is None:
        return "no pooler in between"
    if isinstance(config, ConsoleClosed):
        return f"a pooler in between; {config}"
    return (
        f"PgBouncer in between ({config.pool_mode} mode) ends idle clients "
        f"{_after(config.client_idle_timeout or None)}, its own connections when they are idle "
        f"{_after(config.server_idle_timeout or None)} and when they are free {_after(config.server_lifetime or None)}"
    )


def _neon(x: CheckContext, said: str) -> list[Finding]:
    s = x.settings
    if s.pool_recycle is not None and s.pool_recycle < NEON_SUSPENDS:
        why = (
            f"It keeps nothing awake that suspends after {NEON_SUSPENDS:g} s; it only reconnects more often."
        )
        return [problem(said, why, "DATABASE_POOL_RECYCLE=7200", "cold-start")]
    if s.idle_policy is IdlePolicy.KEEP_AWAKE:
        return [
            note(
                f"{said}; a listener keeps the database awake, which is billed",
                "",
                "DATABASE_IDLE_POLICY=allow_sleep",
            )
        ]
    return []


def _after(seconds: float | None) -> str:
    return "never" if seconds is None else f"after {seconds:g} s"
