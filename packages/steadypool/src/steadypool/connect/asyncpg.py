"""Opening one asyncpg connection: TLS, the proof of the server and log-in over the socket that won the race."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import ssl
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import asyncpg  # pyright: ignore[reportMissingTypeStubs]

from steadypool._clock import SYSTEM_CLOCK, Clock
from steadypool.connect.abort import close_transport
from steadypool.connect.addresses import NETWORK, AddressBook, Candidate
from steadypool.connect.attempt import Attempt, GuardsRefused, Steps, guarded, open_with
from steadypool.connect.channel_binding import PROVEN, Login, ProvenCertificates, pin, prove, unpin
from steadypool.connect.dsn import ConnectTarget, Host
from steadypool.connect.failure import BindingRefused, CertificateNotProven, NotTheRole
from steadypool.connect.last_words import listen_for_last_words
from steadypool.connect.options import ASYNCPG, asyncpg_arguments, checked_options, with_environment
from steadypool.connect.sockets import SocketDial, connected_socket
from steadypool.settings.database import Password

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
    network: AddressBook = NETWORK,
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
        network: what is known about addresses, and who is asked for more.
        clock: what measures the time for the report.
        **arguments: for `asyncpg.connect`, such as `statement_cache_size`; they win over the target's.
            `server_settings` are added to the guards, win over them, and are kept where those are refused.

    Raises:
        ConnectTimeout: not connected in time.
        ConnectFailed: refused, unreachable, or not to be trusted; `final` says whether to try again.
        ConfigurationError: asyncpg cannot honour one of the target's options.
    """
    target = with_environment(target, ASYNCPG)
    asyncpg_arguments(target)  # refuses before anything is opened
    attempt = Attempt(target, timeout, clock)
    options = {**(socket_options or {}), **checked_options(target, ASYNCPG)}

    def begin(candidate: Candidate, _role: str, _secret: str | None) -> SocketDial:
        return SocketDial(candidate, options)

    async def log_in(candidate: Candidate, dial: SocketDial | None, role: str, secret: str | None) -> Any:
        host = candidate.host
        binding = options.get("channel_binding") == "require"
        if binding and (host is None or host.is_socket):
            raise BindingRefused("channel_binding=require, but there is no TLS on a Unix socket")

        async def with_guards(guards: Mapping[str, str]) -> Any:
            given = asyncpg_arguments(_only(target, host, role), password=secret, guards=guards)
            settings: dict[str, str] = {
                **given.get("server_settings", {}),
                **(arguments.get("server_settings") or {}),
            }
            given |= {"connection_class": _Connection, **arguments, "timeout": None}
            if settings:
                given["server_settings"] = settings
            login = Login(target.user, given.get("password"), target.database)
            for again in (False, True):
                proof = (login, proven) if binding else None
                dialling = _Dialling(attempt, candidate, dial, network, options, proof)
                try:
                    return await _connect(dialling, given, role)
                except CertificateNotProven:
                    # Another server of a fleet, or a new certificate: it gets the chance to prove itself, once.
                    if again:
                        raise
                    dialling.forget_proofs()
            raise AssertionError("the second round returns or raises")

        return await guarded(with_guards, guards or {}, on_guards_refused)

    return await open_with(attempt, password, Steps(begin, log_in), network)


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
    listen_for_last_words(connection)
    return connection


class Transaction(_asyncpg.transaction.Transaction):
    """asyncpg's; where its connection was aborted, leaving the block replaces no exception."""

    async def __aexit__(
        self,
        extype: type[BaseException] | None,
        ex: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if ex is None or not self._connection.is_closed():  # else the server has rolled back by itself
            await super().__aexit__(extype, ex, tb)  # pyright: ignore[reportUnknownMemberType]


class _Connection(_asyncpg.Connection):
    """asyncpg's, with transactions that keep a cancellation."""

    __slots__ = ()

    def transaction(self, **options: Any) -> Transaction:
        """As asyncpg's."""
        return Transaction(self, **{"isolation": None, "readonly": False, "deferrable": False, **options})

    def __del__(self) -> None:
        # Where the loop does not run, a pool closes it, and the collector may come here before it comes to the pool.
        # Of what no pool has, the transport warns.
        if self._loop.is_running():
            super().__del__()  # pyright: ignore[reportUnknownMemberType]


class _Dialling:
    """The event loop as asyncpg sees it while it connects: the same, but its sockets are opened our way.

    asyncpg asks its loop for connections by name and with no limit of their own. Here it gets the socket that won
    the race, with its guards, a certificate is checked before a word of the log-in is said, and what was opened is
    known, so that it can be aborted. asyncpg still connects by name, which SNI and verify-full need.
    """

    def __init__(
        self,
        attempt: Attempt,
        candidate: Candidate,
        dial: SocketDial | None,
        network: AddressBook,
        options: Mapping[str, str],
        binding: tuple[Login, ProvenCertificates] | None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._attempt = attempt
        self._candidate = candidate
        self._dial = dial
        self._network = network
        self._host = candidate.host
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
            if not self.loop.is_running():
                close_transport(transport)
                continue
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
        sock = (None if self._dial is None else self._dial.take()) or await self._dial_again(place)
        try:
            if ssl is not None and self._binding is not None:
                await self._prepare(ssl, place, sock.getpeername(), direct=True)
            self._attempt.doing(f"waiting for {self._candidate.where} to let us in")
            transport, protocol = await self.loop.create_connection(
                factory, sock=sock, ssl=ssl, server_hostname=None if ssl is None else host
            )
        except BaseException:  # also when cancelled: nobody else knows this socket
            sock.close()
            raise
        self._transports.append(transport)
        return transport, protocol

    async def _dial_again(self, place: Host) -> socket.socket:
        """To the address that won the race, for another try at TLS or without the guards."""
        candidates = [self._candidate]
        if self._candidate.address is None:  # the driver's default host, a name that only asyncpg knew
            found = await self._network.names.look_up(place.name, place.port)
            if found.error is not None:
                raise found.error
            candidates = [Candidate(place, address) for address in found.addresses]
        last: OSError | None = None
        for candidate in candidates:
            self._attempt.doing(f"opening a socket to {candidate.where}")
            try:
                return await connected_socket(candidate, self._options)
            except OSError as error:
                last = error
        assert last is not None  # an answer without an error has an address
        raise last

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
        self._attempt.doing(f"waiting for {self._candidate.where} to let us in")
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
