"""Whether the database can be reached: settings, names, addresses, log-in, and whether it slept."""

from __future__ import annotations

import asyncio
import socket

from steadypool.cli.doctor.examination import CheckContext, NoConnection, milliseconds_text
from steadypool.cli.doctor.finding import Finding, Level, check, ok, problem, unknown, warning
from steadypool.cli.why.topics import find
from steadypool.connect.addresses import NETWORK, Candidate
from steadypool.connect.dsn import Host
from steadypool.connect.failure import classify_connect_error
from steadypool.connect.resolver import Address
from steadypool.connect.sockets import connected_socket
from steadypool.errors import ConfigurationError, words_of
from steadypool.settings.database import DatabaseSettings, variable_of

HANDSHAKE_LIMIT = 3.0
"""Seconds that an address may take to answer a TCP handshake."""
SLOW_NAME = 0.5
WAKES = 2.0
"""Seconds: a log-in that takes longer, where TCP answers at once, waits for a server that starts."""


@check("settings")
async def settings(x: CheckContext) -> list[Finding]:
    """What DATABASE_* says, where it differs from the defaults."""
    try:
        target = x.target
    except ConfigurationError as error:
        change = "DATABASE_URL=postgresql://user:password@host:5432/name"
        return [
            problem(
                words_of(error), "Without an address there is nothing to examine.", change, "configuration"
            )
        ]
    changed = [
        f"{variable_of(name)}={getattr(x.settings, name)}"
        for name in sorted(x.settings.model_fields_set)
        if not name.endswith("url")
        and getattr(x.settings, name) != DatabaseSettings.model_fields[name].default
    ]
    return [
        ok(f"{target}, driver {target.driver or 'asyncpg'}; {', '.join(changed) or 'all else as by default'}")
    ]


@check("names")
async def names(x: CheckContext) -> list[Finding]:
    """Each host's name: how many addresses it has, and how long the look-up takes."""
    found: list[Finding] = []
    for host in _hosts(x):
        if host.is_socket or host.address is not None:
            found.append(ok(f"{host}: no name to look up"))
            continue
        began = x.clock.monotonic()
        try:
            addresses = await _resolved(host)
        except (OSError, UnicodeError) as error:
            said = classify_connect_error(error).summary
            why = "No connection can be opened to a name without an address."
            found.append(
                problem(f"{host.name}: {said}", why, "the host in DATABASE_URL, or DNS", "connect-timeouts")
            )
            continue
        seconds = x.clock.monotonic() - began
        number = f"{len(addresses)} address{'' if len(addresses) == 1 else 'es'}"
        said = f"{host.name}: {number} in {milliseconds_text(seconds)}"
        if seconds > SLOW_NAME:
            why = "Each new connection pays for it, until an answer is remembered."
            found.append(warning(said, why, "the machine's name server", "connect-timeouts"))
        else:
            found.append(ok(said))
    return found or [ok("the driver's default host")]


def _hosts(x: CheckContext) -> tuple[Host, ...]:
    try:
        return x.target.hosts
    except ConfigurationError as error:
        raise NoConnection(words_of(error)) from error


async def _resolved(host: Host) -> list[Address]:
    answer = await NETWORK.names.look_up(host.address or host.name, host.port)
    if answer.error is not None:
        raise answer.error
    return list(answer.addresses)


@check("addresses")
async def addresses(x: CheckContext) -> list[Finding]:
    """Each address of each host: how long its TCP handshake takes."""
    candidates: list[Candidate] = []
    for host in _hosts(x):
        try:
            candidates += [
                Candidate(host, address) for address in ([] if host.is_socket else await _resolved(host))
            ]
        except (OSError, UnicodeError):
            continue  # told by the check of names
    if not candidates:
        return [ok("no address to knock at")]
    answers = await asyncio.gather(*(_handshake(x, candidate) for candidate in candidates))
    x.handshakes = {candidate.where: answer for candidate, answer in zip(candidates, answers, strict=True)}
    said = "; ".join(
        f"{where}: {answer if isinstance(answer, str) else milliseconds_text(answer)}"
        for where, answer in x.handshakes.items()
    )
    silent = [where for where, answer in x.handshakes.items() if isinstance(answer, str)]
    if len(silent) == len(candidates):
        why = "Nothing answers there, so nobody can connect."
        change = "is the server up, the port right, this machine on its list of allowed addresses?"
        return [problem(said, why, change, "connect-timeouts")]
    if silent:
        why = "Connects use the other addresses; a client that tries one after the other would hang on these."
        return [warning(said, why, "tell the provider which addresses do not answer", "connect-timeouts")]
    return [ok(said)]


async def _handshake(x: CheckContext, candidate: Candidate) -> float | str:
    began = x.clock.monotonic()
    try:
        async with asyncio.timeout(min(HANDSHAKE_LIMIT, x.left / 2)):
            sock: socket.socket = await connected_socket(candidate, {})
    except TimeoutError as error:
        waited = x.clock.monotonic() - began
        return classify_connect_error(error).summary if error.errno else f"no answer within {waited:.1f} s"
    except OSError as error:
        return classify_connect_error(error).summary
    sock.close()
    return x.clock.monotonic() - began


@check("log-in")
async def log_in(x: CheckContext) -> list[Finding]:
    """Whether the server lets us in, and how long that takes with names, TCP and TLS."""
    try:
        await x.connection()
    except NoConnection:
        if x.failure is None:
            return [unknown("the connection was lost before")]
        said = words_of(x.failure)
        found = find(str(x.failure))
        topic = None if found is None else found.topic
        why = "" if topic is None else f"{topic.title}."
        change = topic.remedies[0] if topic is not None and topic.remedies else ""
        return [problem(said, why, change, "" if topic is None else topic.key)]
    said = f"let in after {milliseconds_text(x.logged_in_after)}"
    if x.logged_in_after > x.settings.connection_timeout * 0.8:
        why = f"DATABASE_CONNECTION_TIMEOUT is {x.settings.connection_timeout:g} s: a little more, and it fails."
        change = f"DATABASE_CONNECTION_TIMEOUT={max(1.0, round(x.logged_in_after * 2)):g}"
        return [warning(said, why, change, "connect-timeouts")]
    return [ok(said)]


@check("wake-up")
async def wake_up(x: CheckContext) -> list[Finding]:
    """Whether the database slept and was woken by this look, and how long that took."""
    row = await x.row("SELECT extract(epoch FROM now() - pg_postmaster_start_time())::float8 AS up")
    times = [answer for answer in x.handshakes.values() if not isinstance(answer, str)]
    handshake = min(times, default=0.0)
    up = f"the server has been up for {row.up:.0f} s"
    if x.logged_in_after - handshake < WAKES:
        return [ok(f"it was awake; {up}")]
    took = milliseconds_text(x.logged_in_after)
    said = f"TCP answered in {milliseconds_text(handshake)}, the log-in took {took}; {up}"
    if row.up > x.logged_in_after + 60:
        why = "It was awake all the time, so it is overloaded, or the way through its proxy is."
        return [warning(said, why, "look at its CPU, memory and disk", "connect-timeouts")]
    why = "The first requests after an idle time pay for it."
    change = "DATABASE_IDLE_POLICY=keep_awake (billed), or a longer suspend time"
    return [Finding(Level.NOTE, f"it slept and woke: {said}", why, change, "cold-start")]
