"""Opening one psycopg connection: TLS and log-in by libpq, over the socket that won the race.

libpq does the log-in. What it cannot do is done elsewhere: names are looked up off the event loop, all addresses
race, a refusal keeps its code.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

from psycopg import pq
from psycopg.abc import AdaptContext
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import make_conninfo

from steadypool._clock import SYSTEM_CLOCK, Clock
from steadypool.connect.addresses import NETWORK, AddressBook, Candidate
from steadypool.connect.attempt import Attempt, GuardsRefused, Steps, guarded, open_with
from steadypool.connect.dsn import ConnectTarget
from steadypool.connect.failure import NotTheRole
from steadypool.connect.inspection import Inspection
from steadypool.connect.libpq_errors import DEFAULT, VERBOSE, refusal, set_verbosity, was_let_in
from steadypool.connect.options import PSYCOPG, merged_options, psycopg_arguments, with_environment
from steadypool.connect.psycopg_connection import SteadyAsyncConnection
from steadypool.connect.sockets import borrowed, socket_ready
from steadypool.settings.database import Password

_ROLE = "target_session_attrs"


async def open_psycopg(
    target: ConnectTarget,
    *,
    timeout: float,
    guards: Mapping[str, str] | None = None,
    socket_options: Mapping[str, str] | None = None,
    password: Password | None = None,
    on_guards_refused: GuardsRefused | None = None,
    network: AddressBook = NETWORK,
    clock: Clock = SYSTEM_CLOCK,
    autocommit: bool = False,
    prepare_threshold: int | None = 5,
    context: AdaptContext | None = None,
    row_factory: Any = None,
    cursor_factory: Any = None,
    **parameters: Any,
) -> SteadyAsyncConnection[Any]:
    """Open one `psycopg.AsyncConnection`.

    Args:
        target: where to connect, and how.
        timeout: seconds for everything together: the password, names, all addresses, TLS and log-in.
        guards: server settings for the start of the session; the target's own win.
        socket_options: libpq's `keepalives*` and `tcp_user_timeout`; the target's own win.
        password: in place of the target's; a function is asked before every connect, and once more when the
            server refuses what it gave.
        on_guards_refused: called with what the server said when it, or a pooler before it, refuses the guards; the
            connection is then opened without them, and the caller sets them in another way. Without this function
            such a refusal is an error.
        network: what is known about addresses, and who is asked for more.
        clock: what measures the time for the report.
        autocommit: as psycopg's own.
        prepare_threshold: as psycopg's own.
        context: as psycopg's own.
        row_factory: as psycopg's own.
        cursor_factory: as psycopg's own.
        **parameters: libpq's; they win over the target's.

    Raises:
        ConnectTimeout: not connected in time.
        ConnectFailed: refused, unreachable, or not to be trusted; `final` says whether to try again.
        ConfigurationError: psycopg cannot honour one of the target's options.
    """
    target = with_environment(target, PSYCOPG)
    psycopg_arguments(target)  # refuses before anything is opened
    attempt = Attempt(target, timeout, clock)

    def conninfo(candidate: Candidate, role: str, secret: str | None, guards: Mapping[str, str]) -> str:
        own = {**(socket_options or {}), **psycopg_arguments(target, guards=guards)}
        own |= {name: str(value) for name, value in parameters.items()}
        if "options" in parameters:
            own["options"] = merged_options(str(parameters["options"]), guards)
        for name in ("host", "hostaddr", "port", "connect_timeout"):
            own.pop(name, None)  # ours to do
        own = _encoding(own) | own
        secrets = {} if secret is None else {"password": secret}
        return make_conninfo("", **{**own, **_where(candidate), _ROLE: role} | secrets)

    def begin(candidate: Candidate, role: str, secret: str | None) -> _LibpqDial:
        return _LibpqDial(conninfo(candidate, role, secret, guards or {}))

    async def log_in(
        candidate: Candidate, dial: _LibpqDial | None, role: str, secret: str | None
    ) -> SteadyAsyncConnection[Any]:
        async def with_guards(guards: Mapping[str, str]) -> SteadyAsyncConnection[Any]:
            # libpq got the guards when it was dialled; without them it has to dial again
            pgconn = None if dial is None else dial.take()
            if pgconn is None:
                pgconn = await _dialled(conninfo(candidate, role, secret, guards))
            return SteadyAsyncConnection(await _log_in(pgconn, role))

        return await guarded(with_guards, guards or {}, on_guards_refused)

    connection = await open_with(attempt, password, Steps(begin, log_in), network)
    try:
        await connection.set_autocommit(autocommit)
        connection.prepare_threshold = prepare_threshold
        connection.row_factory = row_factory or connection.row_factory
        connection.cursor_factory = cursor_factory or connection.cursor_factory
        if context is not None:
            connection._adapters = AdaptersMap(context.adapters)  # pyright: ignore[reportPrivateUsage]
    except BaseException:  # also when cancelled: nobody else knows this connection
        connection.abort()
        raise
    return connection


def _encoding(parameters: Mapping[str, str]) -> dict[str, str]:
    """UTF-8, unless the caller or the environment chose: the server's own may be none, and then texts are bytes."""
    options = parameters.get("options", os.environ.get("PGOPTIONS", ""))
    chosen = "PGCLIENTENCODING" in os.environ or "client_encoding" in options
    return {} if chosen else {"client_encoding": "UTF8"}


def _where(candidate: Candidate) -> dict[str, str]:
    """libpq's parameters for one place: the name for TLS, and the address, so that it looks nothing up."""
    if candidate.host is None:
        return {}
    where = {"host": candidate.host.name, "port": str(candidate.host.port)}
    return where if candidate.address is None else where | {"hostaddr": candidate.numeric}


class _LibpqDial:
    """libpq on its way to one address: it has the socket of the race itself, so that nobody connects twice."""

    def __init__(self, conninfo: str) -> None:
        self._pgconn: pq.abc.PGconn | None = _started(conninfo)
        self._descriptor = self._pgconn.socket

    def fileno(self) -> int:
        """libpq's socket."""
        return self._descriptor

    def established(self) -> None:
        """Raises OSError where the connection failed."""
        pgconn = self._pgconn
        assert pgconn is not None
        with borrowed(self._descriptor) as sock:
            result = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if result:
            raise OSError(result, os.strerror(result))
        # One step, to "connected": the next one would begin the log-in, which is the winner's.
        if pgconn.connect_poll() == pq.PollingStatus.FAILED:
            raise refusal(pgconn)

    def take(self) -> pq.abc.PGconn | None:
        """libpq's connection, once; who takes it finishes it."""
        pgconn, self._pgconn = self._pgconn, None
        return pgconn

    def close(self) -> None:
        """Close it, unless it was taken."""
        pgconn = self.take()
        if pgconn is not None:
            pgconn.finish()


def _started(conninfo: str) -> pq.abc.PGconn:
    pgconn = pq.PGconn.connect_start(conninfo.encode())
    try:
        set_verbosity(pgconn, VERBOSE)
        if pgconn.status == pq.ConnStatus.BAD:
            raise refusal(pgconn)
    except BaseException:
        pgconn.finish()
        raise
    return pgconn


async def _dialled(conninfo: str) -> pq.abc.PGconn:
    """Connected without a race: to a Unix socket, or a second time to the address that won."""
    pgconn = _started(conninfo)
    try:
        await socket_ready(pgconn.socket, writing=True)
    except BaseException:  # also when cancelled: nobody else knows it
        pgconn.finish()
        raise
    return pgconn


async def _log_in(pgconn: pq.abc.PGconn, role: str) -> pq.abc.PGconn:
    """Drive libpq until the connection is open; leaves no socket behind when it is not."""
    inspection = Inspection(pgconn)
    try:
        while True:
            before = pgconn.status
            polled = pgconn.connect_poll()
            if polled == pq.PollingStatus.OK:
                break
            if polled == pq.PollingStatus.FAILED:
                if role != "any" and was_let_in(pgconn):
                    raise NotTheRole(role)
                raise refusal(pgconn, before)
            if polled == pq.PollingStatus.WRITING:
                await socket_ready(pgconn.socket, writing=True)
            else:
                await inspection.ready_to_read()
        set_verbosity(pgconn, DEFAULT)
        pgconn.nonblocking = 1
    except BaseException:  # also when cancelled
        pgconn.finish()
        raise
    return pgconn
