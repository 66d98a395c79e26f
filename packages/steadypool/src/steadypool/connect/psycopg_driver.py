"""Opening one psycopg connection: every address, TLS, log-in, inside one end of time, with the server's SQLSTATE.

libpq does the log-in. What it cannot do is done here: names are looked up off the event loop, an address that does
not answer leaves time for the next, and a refusal keeps its code (libpq's message is in the server's language).
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
from psycopg import pq
from psycopg.abc import AdaptContext
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import make_conninfo

from steadypool.clock import SYSTEM_CLOCK, Clock
from steadypool.connect.attempt import Attempt, GuardsRefused, guarded, open_with
from steadypool.connect.dsn import ConnectTarget, Host
from steadypool.connect.options import psycopg_arguments
from steadypool.connect.outcome import ServerRefused
from steadypool.connect.psycopg_connection import SteadyAsyncConnection
from steadypool.settings import Password

_ROLE = "target_session_attrs"
_DEFAULT, _VERBOSE = 1, 2
_CODE = re.compile(r":  ([0-9A-Z]{5}): ")


async def open_psycopg(
    target: ConnectTarget,
    *,
    timeout: float,
    guards: Mapping[str, str] | None = None,
    socket_options: Mapping[str, str] | None = None,
    password: Password | None = None,
    on_guards_refused: GuardsRefused | None = None,
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
    psycopg_arguments(target)  # refuses before anything is opened
    attempt = Attempt(target, timeout, clock)

    async def open_one(host: Host | None, role: str, secret: str | None) -> SteadyAsyncConnection[Any]:
        async def log_in(guards: Mapping[str, str]) -> SteadyAsyncConnection[Any]:
            own = {**(socket_options or {}), **psycopg_arguments(target, guards=guards)}
            own |= {name: str(value) for name, value in parameters.items()}
            for name in ("host", "hostaddr", "port", "connect_timeout"):
                own.pop(name, None)  # ours to do
            where = {} if host is None else await _where(attempt, host, own)
            arguments = {**own, **where, _ROLE: role} | ({} if secret is None else {"password": secret})
            attempt.doing(f"waiting for {host or 'the default host'} to let us in")
            return SteadyAsyncConnection(await _log_in(make_conninfo("", **arguments)))

        return await guarded(log_in, guards or {}, on_guards_refused)

    connection = await open_with(attempt, password, open_one)
    try:
        await connection.set_autocommit(autocommit)
        connection.prepare_threshold = prepare_threshold
        if row_factory is not None:
            connection.row_factory = row_factory
        if cursor_factory is not None:
            connection.cursor_factory = cursor_factory
        if context is not None:
            connection._adapters = AdaptersMap(context.adapters)  # pyright: ignore[reportPrivateUsage]
    except BaseException:  # also when cancelled: nobody else knows this connection
        connection.abort()
        raise
    return connection


async def _where(attempt: Attempt, host: Host, options: Mapping[str, str]) -> dict[str, str]:
    """libpq's parameters for one host: the name for TLS, and an address that answers."""
    where = {"host": host.name, "port": str(host.port)}
    if host.is_socket:
        return where
    addresses = await attempt.addresses(host)
    chosen = str(addresses[0][1][0])
    if len(addresses) > 1:
        # libpq would wait for each in turn as long as for the log-in; which one answers is found out first
        with await attempt.dial(host, options) as sock:
            chosen = str(sock.getpeername()[0])
    return where | {"hostaddr": chosen}


async def _log_in(conninfo: str) -> pq.abc.PGconn:
    """Drive libpq until the connection is open; leaves no socket behind when it is not."""
    pgconn = pq.PGconn.connect_start(conninfo.encode())
    try:
        _set_verbosity(pgconn, _VERBOSE)
        while True:
            if pgconn.status == pq.ConnStatus.BAD:
                raise _refusal(pgconn)
            polled = pgconn.connect_poll()
            if polled == pq.PollingStatus.OK:
                break
            if polled == pq.PollingStatus.FAILED:
                raise _refusal(pgconn)
            await _socket_ready(pgconn.socket, polled == pq.PollingStatus.WRITING)
        _set_verbosity(pgconn, _DEFAULT)
        pgconn.nonblocking = 1
    except BaseException:  # also when cancelled
        pgconn.finish()
        raise
    return pgconn


async def _socket_ready(descriptor: int, writing: bool) -> None:
    # asked anew each time: libpq may go on with another socket
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    (loop.add_writer if writing else loop.add_reader)(descriptor, wake)
    try:
        await ready
    finally:
        (loop.remove_writer if writing else loop.remove_reader)(descriptor)


def _refusal(pgconn: pq.abc.PGconn) -> Exception:
    text = pgconn.get_error_message("utf-8").strip()
    code = _CODE.search(text)
    if code is not None:
        # the lines after the first are the DETAIL, which may hold data, and where in the server's source it happened
        return ServerRefused(text[code.end() :].partition("\n")[0], code[1])
    return psycopg.OperationalError(text)


# -- libpq's verbosity, which psycopg does not pass on ---------------------------------------------------------


def _set_verbosity(pgconn: Any, verbosity: int) -> None:
    """Let libpq write the SQLSTATE into its message; without it a refusal has no code, and is retried."""
    function = _verbosity_function()
    if function is not None:
        function(pgconn.pgconn_ptr, verbosity)


@functools.cache
def _verbosity_function() -> Any:
    """`PQsetErrorVerbosity` of the very libpq that psycopg has loaded, or None where it cannot be found."""
    for path in _libpq_candidates():
        try:
            # RTLD_NOLOAD: a second libpq, however similar, must not touch the first one's connections
            library = ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
        except OSError:
            continue
        function = library.PQsetErrorVerbosity
        function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int], ctypes.c_int
        return function
    return None


def _libpq_candidates() -> list[str]:
    if pq.__impl__ == "binary":
        import psycopg_binary

        package = Path(psycopg_binary.__file__).parent
        folders = (package.parent / "psycopg_binary.libs", package / ".dylibs")
        return [str(path) for folder in folders for path in sorted(folder.glob("libpq*"))]
    from psycopg.pq.misc import find_libpq_full_path

    found = find_libpq_full_path()
    return [] if found is None else [found]
