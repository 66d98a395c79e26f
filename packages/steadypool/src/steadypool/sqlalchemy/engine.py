"""`create_async_engine`: SQLAlchemy's, with a pool that keeps its promises."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, cast
from urllib.parse import unquote

import sqlalchemy.ext.asyncio as stock
from sqlalchemy import URL, make_url
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.ext.asyncio import AsyncEngine

from steadypool._clock import SYSTEM_CLOCK
from steadypool.connect.dsn import parse_url
from steadypool.connect.options import ASYNCPG, PSYCOPG
from steadypool.connect.session_settings import milliseconds
from steadypool.connect.versions import check_versions
from steadypool.errors import ConfigurationError
from steadypool.events import Events, SessionLimitsLost
from steadypool.pool.lease import PoolOptions
from steadypool.settings.database import ConnectRetry, Password, Pooler, Reset
from steadypool.settings.validators import HIDDEN, is_secret_option, redact_url
from steadypool.sqlalchemy.arguments import chosen, coerced, limits_of
from steadypool.sqlalchemy.dialects.base import TIMEOUT_OPTION, BoundedDialect, Guards
from steadypool.sqlalchemy.dialects.drivers import OURS, PIPELINED
from steadypool.sqlalchemy.error_handler import WORKLOAD_OPTION, name_errors
from steadypool.sqlalchemy.pool import SteadyPool, current_workload
from steadypool.sqlalchemy.session_reset import SessionReset
from steadypool.telemetry.log import with_leaks_logged

_stock_create_async_engine = stock.create_async_engine
"""SQLAlchemy's own, whatever its module is made to say later."""

NOTICE_VANISHED_CLIENT = {"client_connection_check_interval": "1000"}
"""Milliseconds after which a backend notices in the middle of a statement that its client has gone. Without it an
aborted statement runs on for its whole length."""


def create_async_engine(
    url: str | URL,
    *,
    connection_timeout: float | None = None,
    connect_retry: ConnectRetry | Literal["wake", "never"] | None = None,
    statement_timeout: float | None = None,
    server_settings: Mapping[str, str] | None = None,
    socket_options: Mapping[str, str] | None = None,
    ping_after_idle: float = 0.5,
    max_waiting: int = 1000,
    max_connecting: int = 4,
    close_grace: float = 5.0,
    leak_after: float | None = 60.0,
    idle_timeout: float | None = None,
    breaker: bool = True,
    leave_timeout: float = 2.0,
    password: Password | None = None,
    pooler: Pooler | Literal["auto", "none", "session", "transaction"] = Pooler.AUTO,
    reset: Reset | Literal["touched", "always", "never"] = Reset.NEVER,
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
        connection_timeout: seconds for a whole connect; the driver's `connect_args` value, or 30, by default. Where
            neither is given, but `pool_timeout` is, a caller waits no longer than that, a second at least.
        connect_retry: `wake` lets callers wait for a database that refuses connects, until their time is up;
            `never` fails at once, as SQLAlchemy does. By default as `wake`, except that a connect which this
            machine itself refuses fails at once until one has succeeded: the port is probably wrong.
        statement_timeout: seconds that a statement may run, enforced by the server and, half a second later, by
            the client; no limit by default. Here and for the other limits in seconds, 0 means none.
        server_settings: Postgres settings for every session, as start-up options; what the URL says wins.
        socket_options: libpq's `keepalives*` and `tcp_user_timeout`, for either driver; what the URL says wins.
        ping_after_idle: with `pool_pre_ping=True`, a connection that answered less than this many seconds ago is
            not asked again. `pool_pre_ping="select1"` asks every time, by SELECT 1.
        max_waiting: callers that may wait for a connection at the same time.
        max_connecting: connections that may be opened at the same time.
        close_grace: seconds that closing waits for connections in use.
        leak_after: seconds after which a connection in use is reported, once, with where it was acquired: by a warning
            on the logger `steadypool`, and by `LeakSuspected`. None for no report.
        idle_timeout: seconds after which an idle connection is closed.
        breaker: whether one attempt at a time goes out while the server does not let us in.
        leave_timeout: seconds that rollback, reset or close of one connection may take.
        password: asked for a password before each connect.
        pooler: what stands before the server; `auto` looks once, and takes any pooler for one in transaction mode.
        reset: when a session is made clean before the next holder gets it: `never`, as SQLAlchemy's pool does,
            `touched`, after a use whose statements may have changed it, or `always`. A pool of the caller's own never
            does.
        pool_name: what errors and events call the pool.
        events: where the pool tells what happens.
        ceilings: for a workload, the most connections it may hold.
        **arguments: SQLAlchemy's own.

    Raises:
        errors.ConfigurationError: the URL is not Postgres's, or asks for what its driver cannot do; an argument has a
            value that means nothing; the driver is too old.

    Example:
        >>> engine = create_async_engine("postgresql+asyncpg://app:secret@db.example/plyr", pool_size=10)
        >>> engine.pool.status()
        'Pool size: 10  Connections in pool: 0 Current Overflow: -10 Current Checked out connections: 0'
    """
    if "steadypool_guards" in arguments:  # this function stands in the place of SQLAlchemy's, which it calls
        return _stock_create_async_engine(url, **arguments)
    given = _without_word_for_none(sqlalchemy_url(url))
    dialect_name = _our_name(given)
    connect_args = dict(arguments.pop("connect_args", None) or {})
    limits = limits_of(
        connect_args,
        connection_timeout=connection_timeout,
        pool_timeout=arguments.get("pool_timeout"),
        statement_timeout=statement_timeout,
        leave_timeout=leave_timeout,
        leak_after=leak_after,
        idle_timeout=idle_timeout,
        ping_after_idle=ping_after_idle,
        close_grace=close_grace,
    )
    retry = None if connect_retry is None else chosen(ConnectRetry, "connect_retry", connect_retry)
    if arguments.get("pool") is None and arguments.get("poolclass") is None:
        retries = retry is not ConnectRetry.NEVER
        options = limits.pool_options(max_waiting, max_connecting, retry_connects=retries)
        arguments |= _pool_arguments(options, arguments.pop("pool_pre_ping", False), dialect_name)
        arguments |= {"steady_name": pool_name, "steady_events": with_leaks_logged(events)}
        arguments |= {"steady_breaker": breaker, "steady_ceilings": ceilings}
        arguments |= {"session_reset": _session_reset(reset, arguments)}
    guards = Guards(
        statement_timeout=limits.statement,
        connect_timeout=limits.connect,
        connect_retry=retry,
        leave_timeout=limits.leave,
        password=password,
        socket_options=socket_options or {},
        pooler=chosen(Pooler, "pooler", pooler),
        on_guards_lost=lambda reason: _tell(events, pool_name, reason),
        server_settings=_at_start(limits.statement) | dict(server_settings or {}),
    )
    return _built(given, {**arguments, "connect_args": connect_args, "steadypool_guards": guards})


def async_engine_from_config(
    configuration: Mapping[str, Any], prefix: str = "sqlalchemy.", **arguments: Any
) -> AsyncEngine:
    """SQLAlchemy's `async_engine_from_config`, for steadypool's `create_async_engine`.

    Args:
        configuration: such as a section of an INI file; `prefix` + "url" is the URL, text becomes numbers and truth.
        prefix: of the names that are meant.
        **arguments: as `create_async_engine`'s; they win.

    Example:
        >>> config = {"sqlalchemy.url": "postgresql+asyncpg://app@h/d", "sqlalchemy.pool_size": "3"}
        >>> async_engine_from_config(config).pool.size()
        3
    """
    given: dict[str, Any] = {"_coerce_config": True}
    for name, value in configuration.items():
        if name.startswith(prefix):
            short = name.removeprefix(prefix)
            given[short] = coerced(short, value) if isinstance(value, str) else value
    given |= arguments
    url = given.pop("url")
    return create_async_engine(url, **given)


_LIBRARIES = {name: ASYNCPG if name.endswith(ASYNCPG) else PSYCOPG for name in OURS.values()}


class _OurUrl(URL):
    """A URL that leads to our dialect, and is what was asked for to all who look at it while the engine is made."""

    __slots__ = ()

    def _instantiate_plugins(self, kwargs: Mapping[str, Any]) -> tuple[URL, list[Any], dict[str, Any]]:
        url, plugins, left = super()._instantiate_plugins(kwargs)
        return _OurUrl(*url), plugins, left

    def _get_entrypoint(self) -> type[Dialect]:
        return URL(*self).set(drivername=OURS[self.drivername])._get_entrypoint()


def _built(given: URL, arguments: dict[str, Any]) -> AsyncEngine:
    library = _LIBRARIES[OURS[given.drivername]]
    try:
        check_versions("sqlalchemy", library)
        if OURS[given.drivername] == PIPELINED:
            from steadypool.pipeline.libpq import check_libpq  # psycopg may not be installed

            check_libpq()
        engine = stock.create_async_engine(_OurUrl(*given), **arguments)
    except ModuleNotFoundError as error:
        raise _missing(given, error) from error
    sync_engine = engine.sync_engine
    if type(sync_engine.pool) is SteadyPool and not {"creator", "async_creator"} & arguments.keys():
        cast(BoundedDialect, sync_engine.dialect).check_connect_args(arguments["connect_args"])
    sync_engine.url = _without_secrets(URL(*sync_engine.url))
    name_errors(sync_engine)
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
        return _parsed(url, url)
    parsed = _parsed(f"{scheme}://{userinfo}{at}{slash}{path}{mark}{query}", url)
    if "host" in parsed.query:  # which wins, as in libpq
        return parsed
    return parsed.update_query_pairs([("host", unquote(host)) for host in hosts.split(",")])


def _parsed(url: str, given: str) -> URL:
    """SQLAlchemy's object for `url`; its own error for a port that is none quotes it, and that may be the password.

    Raises:
        errors.ConfigurationError: it cannot be read; shows `given` without its passwords.
    """
    with suppress(ValueError):
        return make_url(url)
    parse_url(given)  # says what is wrong, where that is known
    raise ConfigurationError(f"{redact_url(given)}: SQLAlchemy cannot read this URL")


def _without_secrets(url: URL) -> URL:
    """The URL of an engine: a password in the options goes where SQLAlchemy hides it, other secrets become `***`."""
    password = url.query.get("password")
    if isinstance(password, str):
        url = url.difference_update_query(["password"]).set(password=password)
    hidden = {name: HIDDEN for name in url.query if is_secret_option(name)}
    return url.update_query_dict(hidden) if hidden else url


def _at_start(statement_timeout: float | None) -> dict[str, str]:
    """What every session is told when it begins."""
    if statement_timeout is None:
        return NOTICE_VANISHED_CLIENT
    return {**NOTICE_VANISHED_CLIENT, "statement_timeout": milliseconds(statement_timeout)}


def _pool_arguments(options: PoolOptions, pre_ping: bool | str, dialect_name: str) -> dict[str, Any]:
    """What SQLAlchemy passes on to our pool; `select1` means a real SELECT before every use.

    Over the pipelined driver BEGIN travels with the first statement, and its answer is the ping.
    """
    by_select = pre_ping == "select1"
    return {
        "poolclass": SteadyPool,
        "pool_pre_ping": bool(pre_ping),
        "ping_by_select": by_select,
        "first_use_proves": dialect_name == PIPELINED and not by_select,
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


def _session_reset(reset: str, arguments: Mapping[str, Any]) -> SessionReset | None:
    mode = chosen(Reset, "reset", reset)
    own_creator = any(arguments.get(name) is not None for name in ("creator", "async_creator"))
    return None if mode is Reset.NEVER else SessionReset(mode, own_creator=own_creator)


def _tell(events: Events | None, pool_name: str, reason: str) -> None:
    if events is not None:
        events.emit(SessionLimitsLost(pool=pool_name, at=SYSTEM_CLOCK.monotonic(), reason=reason))


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
