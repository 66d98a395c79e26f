"""One attempt to connect: its end of time, the hosts and addresses it tries, and what each of them said."""

from __future__ import annotations

import asyncio
import inspect
import random
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import NoReturn, TypeVar

from pydantic import SecretStr

from steadypool.clock import SYSTEM_CLOCK, Clock
from steadypool.connect.dsn import ConnectTarget, Host
from steadypool.connect.guards import guard_socket
from steadypool.connect.outcome import INVALID_PASSWORD, ConnectOutcome, classify_connect_error
from steadypool.errors import ConnectFailed, ConnectTimeout, Elapsed, Phase, Report
from steadypool.settings import Password

Connection = TypeVar("Connection")

Address = tuple[int, tuple[str | int | bytes, ...]]
"""A family and what `connect` takes for it."""


GuardsRefused = Callable[[ConnectOutcome], None]
"""Told that a session starts without its guards, and what the server said to them."""


class NotTheRole(Exception):
    """The host is fine, but not what `target_session_attrs` asks for."""


class Attempt:
    """The state of one attempt.

    Args:
        target: where to connect.
        timeout: seconds for all of it.
        clock: what measures them.
    """

    def __init__(self, target: ConnectTarget, timeout: float, clock: Clock = SYSTEM_CLOCK) -> None:
        own = float(target.options.get("connect_timeout", "0"))
        self.timeout = min(timeout, own) if own > 0 else timeout  # libpq reads 0 as no limit
        self.target = target
        self._clock = clock
        self._started = clock.monotonic()
        self._said: dict[str, str] = {}
        self._doing = "starting"

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock.monotonic() - self._started

    @property
    def remaining(self) -> float:
        """Seconds left."""
        return max(0.0, self.timeout - self.elapsed)

    def doing(self, what: str) -> None:
        """What is being waited for, for the message of a timeout."""
        self._doing = what

    def said(self, where: str, what: str) -> None:
        """What a host or an address answered."""
        self._said[where] = what

    def report(self) -> Report:
        """For the error."""
        return Report(phase=Phase.CONNECTING, elapsed=Elapsed(connecting=self.elapsed))

    def failed(self, outcome: ConnectOutcome) -> ConnectFailed:
        """The error for an attempt that failed before its time was over."""
        said = [f"{where}: {what}" for where, what in self._said.items()] or [outcome.summary]
        code = f" (SQLSTATE {outcome.sqlstate})" if outcome.sqlstate else ""
        return ConnectFailed(
            f"cannot connect to {self.target}: {'; '.join(said)}{code}", self.report(), final=outcome.final
        )

    def timed_out(self) -> ConnectTimeout:
        """The error for an attempt whose time is over."""
        said = "".join(f"; {where}: {what}" for where, what in self._said.items())
        return ConnectTimeout(
            f"cannot connect to {self.target}: not connected within {self.timeout:g} s, while {self._doing}{said}",
            self.report(),
        )

    # -- names and addresses -----------------------------------------------------------------------------------

    async def addresses(self, host: Host) -> Sequence[Address]:
        """Every address of a host, looked up off the loop; in the order in which to try them."""
        self.doing(f"looking up {host.name}")
        found = await asyncio.get_running_loop().getaddrinfo(
            host.address or host.name, host.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )
        return list(dict.fromkeys((family, tuple(sockaddr)) for family, _, _, _, sockaddr in found))

    async def dial(self, host: Host, options: Mapping[str, str]) -> socket.socket:
        """A TCP connection to the first address of the host that answers.

        Each address gets an equal share of the time left, so that a silent one does not use up that of the others.
        """
        addresses = await self.addresses(host)
        last: OSError = OSError("the name has no address")
        for number, (family, address) in enumerate(addresses):
            where = f"{host} [{address[0]}]" if str(address[0]) != host.name else str(host)
            self.doing(f"opening a socket to {where}")
            share = self.remaining / (len(addresses) - number)
            try:
                async with asyncio.timeout(share):
                    return await _dial(family, address, options)
            except TimeoutError as error:
                last = error
                self.said(where, f"no answer within {share:.2g} s")
            except OSError as error:
                last = error
                self.said(where, classify_connect_error(error).summary)
        raise last


async def _dial(
    family: int, address: tuple[str | int | bytes, ...], options: Mapping[str, str]
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        guard_socket(sock, options)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:  # also when cancelled: nobody else knows this socket
        sock.close()
        raise
    return sock


def hosts_in_order(target: ConnectTarget) -> Iterator[tuple[Host | None, str]]:
    """The hosts to try with the role to ask of each; None is the driver's default host."""
    hosts: list[Host | None] = list(target.hosts) or [None]
    if target.options.get("load_balance_hosts") == "random":
        random.shuffle(hosts)
    role = target.options.get("target_session_attrs", "any")
    for asked in ("standby", "any") if role == "prefer-standby" else (role,):
        for host in hosts:
            yield host, asked


async def open_with(
    attempt: Attempt,
    password: Password | None,
    open_one: Callable[[Host | None, str, str | None], Awaitable[Connection]],
) -> Connection:
    """Try the hosts one after the other inside the attempt's time; the first connection wins.

    Args:
        attempt: whose time and trail it is.
        password: the caller's, asked again once when the server refuses it; None for the target's own.
        open_one: opens a connection to one host, in one role, with one password.

    Raises:
        ConnectTimeout: the time is over.
        ConnectFailed: nobody let us in.
    """
    asked_again = not callable(password)
    try:
        async with asyncio.timeout(attempt.timeout):
            while True:
                secret = None if password is None else await _ask(attempt, password)
                try:
                    return await _first_host(attempt, secret, open_one)
                except ConnectFailed as error:
                    if asked_again or classify_connect_error(error).sqlstate != INVALID_PASSWORD:
                        raise
                    asked_again = True  # the token may have been replaced while we used it
    except TimeoutError as error:
        if isinstance(error, ConnectFailed):
            raise
        raise attempt.timed_out() from error


async def _ask(attempt: Attempt, password: Password) -> str:
    attempt.doing("asking for the password")
    try:
        return await resolve_password(password)
    except Exception as error:
        raise ConnectFailed(
            f"cannot connect to {attempt.target}: asking for the password raised {type(error).__name__}",
            attempt.report(),
        ) from error


async def _first_host(
    attempt: Attempt,
    secret: str | None,
    open_one: Callable[[Host | None, str, str | None], Awaitable[Connection]],
) -> Connection:
    candidates = list(hosts_in_order(attempt.target))
    for number, (host, role) in enumerate(candidates):
        where = "the default host" if host is None else str(host)
        left = len(candidates) - number
        try:
            async with asyncio.timeout(attempt.remaining / left):
                return await open_one(host, role, secret)
        except NotTheRole as error:
            attempt.said(where, f"is not {role}")
            if left == 1:
                _give_up(attempt, error)
        except Exception as error:
            if left == 1 and isinstance(error, TimeoutError) and error.errno is None:
                raise  # the share of the last one is all that was left; errno would mean the kernel's own limit
            outcome = classify_connect_error(error)
            attempt.said(where, outcome.summary)
            if left == 1 or outcome.concerns_all_hosts:
                _give_up(attempt, error)
    raise AssertionError("there is always at least one candidate")


def _give_up(attempt: Attempt, error: Exception) -> NoReturn:
    raise attempt.failed(classify_connect_error(error)) from error


async def guarded(
    log_in: Callable[[Mapping[str, str]], Awaitable[Connection]],
    guards: Mapping[str, str],
    on_refused: GuardsRefused | None,
) -> Connection:
    """Log in with the guards; where they are refused, without them, if somebody is there to be told.

    Poolers know few settings at start-up, old servers not all of ours. Who is told sets them in another way.
    """
    try:
        return await log_in(guards)
    except Exception as error:
        outcome = classify_connect_error(error)
        if not guards or on_refused is None or not outcome.refuses_guards:
            raise
    connection = await log_in({})
    on_refused(outcome)
    return connection


async def resolve_password(password: Password) -> str:
    """The password itself; a function is asked, and awaited if it is async.

    Example:
        >>> asyncio.run(resolve_password(lambda: "token"))
        'token'
    """
    given = password() if callable(password) else password
    if inspect.isawaitable(given):
        given = await given
    return given.get_secret_value() if isinstance(given, SecretStr) else given
