"""How the listener connects, and how it behaves, as far as `DATABASE_*` settings say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from steadypool.connect.dsn import ConnectTarget, parse_url
from steadypool.connect.session_settings import session_guards, socket_guards
from steadypool.errors import ConfigurationError
from steadypool.listener.state import ListenerOptions
from steadypool.settings.database import DatabaseSettings, IdlePolicy

if TYPE_CHECKING:
    from steadypool.connect.psycopg_connection import SteadyConnection

_NO_ENCODING = "SQL_ASCII"
_ROLE = "target_session_attrs"
_PRIMARIES = ("primary", "read-write")


def options_for(settings: DatabaseSettings) -> ListenerOptions:
    """The times that go with DATABASE_IDLE_POLICY.

    Example:
        >>> options_for(DatabaseSettings(idle_policy="allow_sleep")).dormant_after
        60.0
    """
    if settings.idle_policy is IdlePolicy.KEEP_AWAKE:
        return ListenerOptions()
    return ListenerOptions(dormant_after=settings.idle_timeout)


def connector_for(settings: DatabaseSettings) -> Callable[[float], Awaitable[SteadyConnection]]:
    """A function that opens a connection to DATABASE_DIRECT_URL, or to DATABASE_URL where there is none.

    Raises:
        ConfigurationError: there is no URL, psycopg cannot honour one of its options, or psycopg is not installed.
    """
    try:
        from steadypool.connect.options import psycopg_arguments
        from steadypool.connect.psycopg import open_psycopg
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "listening needs psycopg, whatever driver the application uses: install steadypool[psycopg]"
        ) from error
    target = _primary(parse_url(settings.require_direct_url()))
    psycopg_arguments(
        target
    )  # what cannot work is said to whoever subscribes, not to the log again and again
    guards, socket_options = session_guards(settings), socket_guards(settings)

    async def connect(timeout: float) -> SteadyConnection:
        connection = await open_psycopg(
            target,
            timeout=timeout,
            guards=guards,
            socket_options=socket_options,
            password=settings.password,
            on_guards_refused=lambda _: None,  # a pooler's refusal must not hide that it is one
            autocommit=True,
            client_encoding="UTF8",
            fallback_application_name="steadypool listener",
        )
        try:
            if connection.info.parameter_status("server_encoding") == _NO_ENCODING:
                # Anything can be in a payload there, and the server would end our connection over what is not UTF-8.
                await connection.execute(f"SET client_encoding TO {_NO_ENCODING}")
        except BaseException:  # also when cancelled: nobody else knows this connection
            connection.abort()
            raise
        return connection

    return connect


def _primary(target: ConnectTarget) -> ConnectTarget:
    """LISTEN works on a primary only, so of several hosts it is looked for, and a lone standby is waited for."""
    if target.options.get(_ROLE) in _PRIMARIES:
        return target
    return replace(target, options={**target.options, _ROLE: "primary"})
