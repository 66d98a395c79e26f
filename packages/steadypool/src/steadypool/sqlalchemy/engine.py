"""`create_async_engine`: SQLAlchemy's, with a pool that keeps its promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import sqlalchemy.ext.asyncio as stock
from sqlalchemy import URL, event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from steadypool.clock import SYSTEM_CLOCK
from steadypool.connect.guards import milliseconds
from steadypool.errors import ConfigurationError
from steadypool.events import Events, GuardsLost
from steadypool.lease import PoolOptions
from steadypool.settings import Password, Pooler
from steadypool.sqlalchemy.dialects import OURS, PIPELINED
from steadypool.sqlalchemy.guarded import TIMEOUT_OPTION, Guards
from steadypool.sqlalchemy.naming import WORKLOAD_OPTION, name_error
from steadypool.sqlalchemy.pool import SteadyPool, current_workload

DEFAULT_CONNECTION_TIMEOUT = 30.0
"""Seconds that connecting may take where nothing says otherwise: as long as SQLAlchemy's pool waits."""

NOTICE_VANISHED_CLIENT = {"client_connection_check_interval": "1000"}
"""Milliseconds after which a backend notices in the middle of a statement that its client has gone. Without it an
aborted statement runs on for its whole length."""


def create_async_engine(
    url: str | URL,
    *,
    connection_timeout: float | None = None,
    statement_timeout: float | None = None,
    server_settings: Mapping[str, str] | None = None,
    socket_options: Mapping[str, str] | None = None,
    ping_after_idle: float = 0.5,
    max_waiting: int = 1000,
    max_connecting: int = 4,
    close_grace: float = 5.0,
    leak_after: float | None = None,
    idle_timeout: float | None = None,
    breaker: bool = True,
    leave_timeout: float = 2.0,
    password: Password | None = None,
    pooler: Pooler = Pooler.AUTO,
    pool_name: str = "main",
    events: Events | None = None,
    ceilings: dict[str, int] | None = None,
    **arguments: Any,
) -> AsyncEngine:
    """SQLAlchemy's `create_async_engine`, with steadypool's pool and bounds. Reads no `DATABASE_*` variable.

    All of SQLAlchemy's arguments mean what they mean there and have its defaults. With `poolclass` or `pool` the
    caller's own pool is used, and only the bounds on statements, commit, rollback and close remain.

    Args:
        url: `postgresql://…`, which is `postgresql+steadypool://…`: psycopg's types over pipelined connections; or
            `postgresql+asyncpg://…`, `postgresql+psycopg://…`.
        connection_timeout: seconds for a whole connect; the driver's `connect_args` value, or 30, by default.
        statement_timeout: seconds that a statement may run, enforced by the server and, half a second later, by
            the client; no limit by default.
        server_settings: Postgres settings for every session, as start-up options; what the URL says wins.
        socket_options: libpq's `keepalives*` and `tcp_user_timeout`, for either driver; what the URL says wins.
        ping_after_idle: with `pool_pre_ping=True`, a connection that answered less than this many seconds ago is
            not asked again. `pool_pre_ping="select1"` asks every time, by SELECT 1.
        max_waiting: callers that may wait for a connection at the same time.
        max_connecting: connections that may be opened at the same time.
        close_grace: seconds that closing waits for connections in use.
        leak_after: seconds after which a connection in use is reported, once, with where it was acquired.
        idle_timeout: seconds after which an idle connection is closed.
        breaker: whether one attempt at a time goes out while the server does not let us in.
        leave_timeout: seconds that rollback, reset or close of one connection may take.
        password: asked for a password before each connect.
        pooler: what stands before the server; `auto` looks once, and takes any pooler for one in transaction mode.
        pool_name: what errors and events call the pool.
        events: where the pool tells what happens.
        ceilings: for a workload, the most connections it may hold.
        **arguments: SQLAlchemy's own.

    Raises:
        errors.ConfigurationError: the URL is not Postgres's, or asks for what its driver cannot do.

    Example:
        >>> engine = create_async_engine("postgresql+asyncpg://app:secret@db.example/plyr", pool_size=10)
        >>> engine.pool.status()
        'Pool size: 10  Connections in pool: 0 Current Overflow: -10 Current Checked out connections: 0'
    """
    given = _without_word_for_none(sqlalchemy_url(url))
    guarded = given.set(drivername=_our_name(given))
    connect_args = dict(arguments.pop("connect_args", {}))
    limit = connection_timeout or _driver_timeout(connect_args) or DEFAULT_CONNECTION_TIMEOUT
    if arguments.get("pool") is None and arguments.get("poolclass") is None:
        options = PoolOptions(
            connect_timeout=limit,
            ping_after_idle=ping_after_idle,
            leave_timeout=leave_timeout,
            max_waiting=max_waiting,
            max_connecting=max_connecting,
            close_grace=close_grace,
            leak_after=leak_after,
            idle_timeout=idle_timeout,
        )
        arguments |= _pool_arguments(options, arguments.pop("pool_pre_ping", False), guarded) | {
            "steady_name": pool_name,
            "steady_events": events,
            "steady_ceilings": ceilings,
            "steady_breaker": breaker,
        }
    guards = Guards(
        statement_timeout=statement_timeout,
        connect_timeout=limit,
        leave_timeout=leave_timeout,
        password=password,
        socket_options=socket_options or {},
        pooler=pooler,
        on_guards_lost=lambda reason: _tell(events, pool_name, reason),
        server_settings=_at_start(statement_timeout) | dict(server_settings or {}),
    )
    arguments |= {"connect_args": connect_args, "steadypool_guards": guards}
    return _built(guarded, given, arguments)


def _built(guarded: URL, given: URL, arguments: dict[str, Any]) -> AsyncEngine:
    try:
        engine = stock.create_async_engine(guarded, **arguments)
    except ModuleNotFoundError as error:
        raise _missing(given, error) from error
    sync_engine = engine.sync_engine
    # The dialect was found by our name for it; everybody who looks at the URL sees what was asked for.
    sync_engine.url = sync_engine.url.set(drivername=given.drivername)
    event.listen(sync_engine, "handle_error", name_error)
    return engine


def sqlalchemy_url(url: str | URL) -> URL:
    """SQLAlchemy's object for a URL, also for one with several hosts written as libpq wants them: it cannot read that.

    Example:
        >>> sqlalchemy_url("postgresql://app@one:5432,two:5433/plyr").query["host"]
        ('one:5432', 'two:5433')
    """
    if isinstance(url, URL):
        return url
    before_query, mark, query = url.partition("?")
    scheme, _, rest = before_query.partition("://")
    authority, slash, path = rest.partition("/")
    userinfo, at, hosts = authority.rpartition("@")
    if "," not in hosts:
        return make_url(url)
    parsed = make_url(f"{scheme}://{userinfo}{at}{slash}{path}{mark}{query}")
    if "host" in parsed.query:  # which wins, as in libpq
        return parsed
    return parsed.update_query_pairs([("host", unquote(host)) for host in hosts.split(",")])


def _at_start(statement_timeout: float | None) -> dict[str, str]:
    """What every session is told when it begins."""
    if statement_timeout is None:
        return NOTICE_VANISHED_CLIENT
    return {**NOTICE_VANISHED_CLIENT, "statement_timeout": milliseconds(statement_timeout)}


def _pool_arguments(options: PoolOptions, pre_ping: bool | str, url: URL) -> dict[str, Any]:
    """What SQLAlchemy passes on to our pool; `select1` means a real SELECT before every use.

    Over the pipelined driver BEGIN travels with the first statement, and its answer is the ping.
    """
    by_select = pre_ping == "select1"
    return {
        "poolclass": SteadyPool,
        "pool_pre_ping": bool(pre_ping),
        "ping_by_select": by_select,
        "first_use_proves": url.drivername == PIPELINED and not by_select,
        "steady_options": replace(options, ping_after_idle=0.0) if by_select else options,
    }


def engine_for_workload(
    engine: AsyncEngine, *, workload: str | None, statement_timeout: float | None, read_only: bool
) -> AsyncEngine:
    """A view of an engine on the same pool, whose connections are acquired and bounded as a workload's."""
    options: dict[str, Any] = {}
    if workload is not None:
        options[WORKLOAD_OPTION] = workload
    if statement_timeout is not None:
        options[TIMEOUT_OPTION] = statement_timeout
    if read_only:
        options["postgresql_readonly"] = True
    view = engine.execution_options(**options)
    sync_view: Any = view.sync_engine

    def raw_connection() -> Any:
        token = current_workload.set(workload)
        try:
            return engine.sync_engine.raw_connection()
        finally:
            current_workload.reset(token)

    sync_view.raw_connection = raw_connection
    return view


def _tell(events: Events | None, pool_name: str, reason: str) -> None:
    if events is not None:
        events.emit(GuardsLost(pool=pool_name, at=SYSTEM_CLOCK.monotonic(), reason=reason))


def _without_word_for_none(url: URL) -> URL:
    """`postgres://`, which many providers still print, is `postgresql://`."""
    return url.set(drivername="postgresql") if url.drivername == "postgres" else url


def _our_name(url: URL) -> str:
    name = OURS.get(url.drivername)
    if name is None:
        raise ConfigurationError(
            f"{url.drivername}:// is not for steadypool; allowed: {', '.join(f'{known}://' for known in OURS)}. "
            "For other databases use sqlalchemy.ext.asyncio.create_async_engine"
        )
    return name


def _missing(url: URL, error: ModuleNotFoundError) -> Exception:
    """What to install for a URL whose driver is not there; the error itself if it is about something else."""
    driver = (error.name or "").partition(".")[0]
    if driver not in ("asyncpg", "psycopg"):
        return error
    other = "; with asyncpg installed, write postgresql+asyncpg://" if driver == "psycopg" else ""
    return ConfigurationError(
        f"{url.drivername}:// needs {driver}: pip install 'steadypool[sqlalchemy,{driver}]'{other}"
    )


def _driver_timeout(connect_args: Mapping[str, Any]) -> float | None:
    """What the drivers call it: `timeout` for asyncpg, `connect_timeout` for libpq; both in seconds."""
    for name in ("timeout", "connect_timeout"):
        if connect_args.get(name):
            return float(connect_args[name])
    return None
