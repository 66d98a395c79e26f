"""Opening one asyncpg connection: every address, TLS, the proof of the server, log-in, inside one end of time."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import asyncpg  # pyright: ignore[reportMissingTypeStubs]

from steadypool.clock import SYSTEM_CLOCK, Clock
from steadypool.connect.attempt import Attempt, GuardsRefused, NotTheRole, guarded, open_with
from steadypool.connect.channel_binding import PROVEN, Login, ProvenCertificates, pin, prove, unpin
from steadypool.connect.dsn import ConnectTarget, Host
from steadypool.connect.options import ASYNCPG, asyncpg_arguments, checked_options
from steadypool.connect.outcome import BindingRefused, CertificateNotProven
from steadypool.settings import Password

_asyncpg: Any = asyncpg  # it has no type stubs


async def open_asyncpg(
    target: ConnectTarget,
    *,
    timeout: float,
    guards: Mapping[str, str] | None = None,
    socket_options: Mapping[str, str] | None = None,
    password: Password | None = None,
    on_guards_refused: GuardsRefused | None = None,
    proven: ProvenCertificates = PROVEN,
    clock: Clock = SYSTEM_CLOCK,
    **arguments: Any,
) -> Any:
    """Open one `asyncpg.Connection`.

    Args:
        target: where to connect, and how.
        timeout: seconds for everything together: the password, names, all addresses, TLS and log-in.
        guards: server settings for the start of the session; the target's own win.
        socket_options: libpq's `keepalives*` and `tcp_user_timeout` for the socket; the target's own win.
        password: in place of the target's; a function is asked before every connect, and once more when the
            server refuses what it gave.
        on_guards_refused: called with what the server said when it, or a pooler before it, refuses the guards; the
            connection is then opened without them, and the caller sets them in another way. Without this function
            such a refusal is an error.
        proven: where it is remembered which certificates are proven (`channel_binding=require`).
        clock: what measures the time for the report.
        **arguments: for `asyncpg.connect`, such as `statement_cache_size`; they win over the target's.

    Raises:
        ConnectTimeout: not connected in time.
        ConnectFailed: refused, unreachable, or not to be trusted; `final` says whether to try again.
        ConfigurationError: asyncpg cannot honour one of the target's options.
    """
    asyncpg_arguments(target)  # refuses before anything is opened
    attempt = Attempt(target, timeout, clock)
    options = {**(socket_options or {}), **checked_options(target, ASYNCPG)}

    async def open_one(host: Host | None, role: str, secret: str | None) -> Any:
        async def log_in(guards: Mapping[str, str]) -> Any:
            given = asyncpg_arguments(_only(target, host, role), password=secret, guards=guards)
            return await let_in(host, role, {**given, **arguments, "timeout": None})

        return await guarded(log_in, guards or {}, on_guards_refused)

    async def let_in(host: Host | None, role: str, given: dict[str, Any]) -> Any:
        login = Login(target.user, given.get("password"), target.database)
        binding = options.get("channel_binding") == "require"
        if binding and (host is None or host.is_socket):
            raise BindingRefused("channel_binding=require, but there is no TLS on a Unix socket")
        for again in (False, True):
            dialling = _Dialling(attempt, host, options, (login, proven) if binding else None)
            try:
                return await _connect(dialling, given, role)
            except CertificateNotProven:
                # Another server of a fleet, or a new certificate: it gets the chance to prove itself, once.
                if again:
                    raise
                dialling.forget_proofs()
        raise AssertionError("the second round returns or raises")

    return await open_with(attempt, password, open_one)


def _only(target: ConnectTarget, host: Host | None, role: str) -> ConnectTarget:
    options = dict(target.options)
    if options.get("target_session_attrs") == "prefer-standby":
        options["target_session_attrs"] = role
    return dataclasses.replace(target, hosts=() if host is None else (host,), options=options)


async def _connect(dialling: _Dialling, arguments: dict[str, Any], role: str) -> Any:
    try:
        connection = await _asyncpg.connect(loop=dialling, **arguments)
    except _asyncpg.TargetServerAttributeNotMatched as error:
        raise NotTheRole(role) from error
    except BaseException:
        # Also when cancelled. asyncpg closes politely, which over TLS waits for the other end.
        dialling.abort()
        raise
    connection._loop = dialling.loop
    return connection


class _Dialling:
    """The event loop as asyncpg sees it while it connects: the same, but its sockets are opened our way.

    asyncpg asks its loop for connections by name and with no limit of their own. Here every address gets its share
    of the time, the socket its guards, a certificate is checked before a word of the log-in is said, and what was
    opened is known, so that it can be aborted. asyncpg still connects by name, which SNI and verify-full need.
    """

    def __init__(
        self,
        attempt: Attempt,
        host: Host | None,
        options: Mapping[str, str],
        binding: tuple[Login, ProvenCertificates] | None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._attempt = attempt
        self._host = host
        self._options = options
        self._binding = binding
        self._transports: list[asyncio.BaseTransport] = []
        # asyncpg's protocol keeps asking its loop for these, with every statement
        self.create_future = self.loop.create_future
        self.call_soon = self.loop.call_soon
        self.call_later = self.loop.call_later

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loop, name)

    def abort(self) -> None:
        """Close whatever was opened, at once."""
        for transport in self._transports:
            abort = getattr(transport, "abort", None)
            if abort is not None:
                abort()

    def forget_proofs(self) -> None:
        """Ask for a new proof at the next certificate."""
        if self._binding is not None:
            login, proven = self._binding
            proven.doubt(self._place(login))

    async def create_connection(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int, *, ssl: Any = None
    ) -> Any:
        """As the loop's, for a TCP connection; `ssl` means TLS from the first byte (sslnegotiation=direct)."""
        place = self._host or Host(host, port)
        sock = await self._attempt.dial(place, self._options)
        try:
            if ssl is not None and self._binding is not None:
                await self._prepare(ssl, place, sock.getpeername(), direct=True)
            self._attempt.doing(f"waiting for {place} to let us in")
            transport, protocol = await self.loop.create_connection(
                factory, sock=sock, ssl=ssl, server_hostname=None if ssl is None else host
            )
        except BaseException:  # also when cancelled: nobody else knows this socket
            sock.close()
            raise
        self._transports.append(transport)
        return transport, protocol

    async def create_unix_connection(self, factory: Callable[[], asyncio.BaseProtocol], path: str) -> Any:
        """As the loop's."""
        self._attempt.doing(f"waiting for {path} to let us in")
        transport, protocol = await self.loop.create_unix_connection(factory, path)
        self._transports.append(transport)
        return transport, protocol

    async def start_tls(
        self,
        transport: asyncio.WriteTransport,
        protocol: asyncio.BaseProtocol,
        context: ssl.SSLContext,
        *,
        server_hostname: str,
    ) -> asyncio.Transport | None:
        """As the loop's, to a server that has proven itself where that was asked for."""
        if self._binding is not None:
            place = self._host or Host(server_hostname)
            await self._prepare(context, place, transport.get_extra_info("peername"), direct=False)
        self._attempt.doing(f"waiting for {server_hostname} to let us in")
        secured = await self.loop.start_tls(transport, protocol, context, server_hostname=server_hostname)
        if secured is not None:
            self._transports.append(secured)
        return secured

    def _place(self, login: Login) -> tuple[str, int, str | None]:
        host = self._host or Host("localhost")
        return host.name, host.port, login.user

    async def _prepare(self, context: ssl.SSLContext, host: Host, peer: Any, *, direct: bool) -> None:
        """Let `context` accept proven certificates only; where none is proven yet, ask for a proof first."""
        if self._binding is None:
            return
        login, proven = self._binding
        place = self._place(login)
        if proven.needs_proof(place):
            self._attempt.doing(f"waiting for {host} to prove that it knows the password")
            unpin(context)
            certificate = await prove(context, host.name, peer, login, direct=direct)
            proven.add(place, certificate)
        pin(context, proven.of(place))
