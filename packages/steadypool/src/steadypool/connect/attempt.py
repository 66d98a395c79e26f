"""One attempt to connect: its end of time, whom it lets log in, and what each address said."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

from pydantic import SecretStr

from steadypool._clock import SYSTEM_CLOCK, Clock
from steadypool.connect.addresses import AddressBook, Candidate
from steadypool.connect.dsn import ConnectTarget
from steadypool.connect.failure import (
    BUGS,
    INVALID_PASSWORD,
    ConnectFailure,
    NotTheRole,
    classify_connect_error,
)
from steadypool.connect.happy_eyeballs import Candidates, DialT, NobodyAnswered, first_to_answer
from steadypool.errors import ConnectFailed, ConnectTimeout, Elapsed, Phase, Report
from steadypool.settings.database import Password

Connection = TypeVar("Connection")

GuardsRefused = Callable[[ConnectFailure], None]
"""Told that a session starts without its guards, and what the server said to them."""


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

    def failed(self, outcome: ConnectFailure) -> ConnectFailed:
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


@dataclass(frozen=True)
class Steps(Generic[Connection, DialT]):
    """How a driver opens a connection, in two steps.

    `begin` starts a TCP connection to an address, in a role and with a password, and waits for nothing. `log_in`
    does the rest over it; it gets None where there is no address (a Unix socket, the driver's default host), and
    raises NotTheRole where the server is not what was asked for. What it does not take over is closed for it.
    """

    begin: Callable[[Candidate, str, str | None], DialT]
    log_in: Callable[[Candidate, DialT | None, str, str | None], Awaitable[Connection]]


async def open_with(
    attempt: Attempt, password: Password | None, steps: Steps[Connection, DialT], network: AddressBook
) -> Connection:
    """Let the addresses of all hosts race inside the attempt's time; who answers first logs in.

    Args:
        attempt: whose time and trail it is.
        password: the caller's, asked again once when the server refuses it; None for the target's own.
        steps: the driver's.
        network: what is known about the addresses.

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
                    return await _in_role(_Round(attempt, secret, steps, network))
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


@dataclass
class _Round(Generic[Connection, DialT]):
    """All hosts, with one password."""

    attempt: Attempt
    secret: str | None
    steps: Steps[Connection, DialT]
    network: AddressBook

    async def run(self, role: str) -> Connection:
        """One race after the other, until somebody lets us in or nobody is left."""
        attempt = self.attempt
        field = Candidates(attempt.target, self.network, attempt.remaining, attempt.said)
        refusal: Exception | None = None
        while True:
            try:
                candidate, dial = await first_to_answer(
                    field,
                    lambda candidate: self.steps.begin(candidate, role, self.secret),
                    seconds=attempt.remaining,
                    said=attempt.said,
                    doubt=self.network.doubt,
                    doing=attempt.doing,
                )
            except NobodyAnswered as nobody:
                _give_up(attempt, refusal or nobody.last)
            try:
                return await self._log_in(candidate, dial, role, attempt.remaining / field.hosts_left)
            except Exception as error:  # noqa: BLE001 - judged here, and raised when nobody is left
                refusal = error
                self._judge(error, candidate, role, field)

    async def _log_in(self, candidate: Candidate, dial: DialT | None, role: str, share: float) -> Connection:
        """The winner's log-in. Another host must still have time when it falls silent."""
        self.attempt.doing(f"waiting for {candidate.where} to let us in")
        try:
            with self.network.logging_in(self.attempt.target, candidate):
                async with asyncio.timeout(share):
                    connection = await self.steps.log_in(candidate, dial, role, self.secret)
            self.network.leads_to(connection, candidate)
            return connection
        finally:
            if dial is not None:
                dial.close()  # also when cancelled: unless it was taken over, nobody else knows it

    def _judge(self, error: Exception, candidate: Candidate, role: str, field: Candidates) -> None:
        """Whether the next address may be tried: drops what need not be, or raises."""
        if isinstance(error, NotTheRole):
            self.attempt.said(candidate.where, f"is not {role}")
            field.drop(candidate)
            return
        silent = isinstance(error, TimeoutError) and error.errno is None  # errno: the kernel's own limit
        if silent and field.hosts_left == 1:
            raise error  # its share was all that was left
        outcome = classify_connect_error(error)
        self.attempt.said(candidate.where, outcome.summary)
        if outcome.concerns_all_hosts:
            _give_up(self.attempt, error)
        if silent or outcome.final or outcome.sqlstate is not None:
            field.drop_host(candidate.host)  # behind the same name, the same server
        else:
            self.network.doubt(candidate)
            field.drop(candidate)


async def _in_role(round_: _Round[Connection, DialT]) -> Connection:
    """In the role that is asked for; where a standby is only preferred, a part of the time is for finding one."""
    attempt = round_.attempt
    role = attempt.target.options.get("target_session_attrs", "any")
    if role == "prefer-standby":
        try:
            async with asyncio.timeout(attempt.remaining / 2):
                return await round_.run("standby")
        except (ConnectFailed, TimeoutError) as error:
            if classify_connect_error(error).concerns_all_hosts:
                raise
        role = "any"
    return await round_.run(role)


def _give_up(attempt: Attempt, error: Exception) -> NoReturn:
    if isinstance(error, BUGS):
        raise error  # not about the server, so it must not look like that
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
