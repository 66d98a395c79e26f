"""`steadypool lab proxy`: a network that can be made to fail, before any server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from contextlib import AsyncExitStack
from dataclasses import asdict, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from steadypool.cli.output import Output
from steadypool_lab.cli.signals import stop_event

if TYPE_CHECKING:
    from steadypool_lab import Direction, FaultProxy
    from steadypool_lab.network.proxy import Link

_HELP = (
    "pass | silent | half-open | reset | refuse | drop | up KEY=VALUE … | down KEY=VALUE … | both KEY=VALUE … | "
    "connections | connection NUMBER silent | pass | half-open | reset | drop | up KEY=VALUE … | … | "
    "status | help | quit; keys: delay, jitter, slice, slice_pause, rate, cut_after, silent"
)
_WHOLE = ("slice", "cut_after")


async def proxy(
    to: str,
    *,
    mode: Literal["pass", "silent", "half-open", "reset", "refuse"] = "pass",
    delay: float = 0.0,
    jitter: float = 0.0,
    tls: bool = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Put a network that can fail before a server; commands on stdin change it while it runs.

    Commands: pass, silent, half-open, reset, refuse; drop; up, down or both with delay=, jitter=, slice=, rate=,
    cut_after=, silent=; connections lists those that are open, and connection NUMBER before a command does it to
    that one alone; status; help; quit.

    **Examples.**

        # Twenty milliseconds each way, and silence after a minute:
        (sleep 60; echo silent; sleep 60) | steadypool lab proxy localhost:5432 --delay 0.02

    Parameters
    ----------
    to
        The server, as host:port.
    mode
        What the network does at first.
    delay
        Seconds that bytes spend on the way, each way.
    jitter
        Seconds by which that varies.
    tls
        Offer TLS to clients, with a certificate of its own, for a server that has none.
    as_json
        Print the state as a JSON object a line, at the start and after each command.
    """
    from steadypool_lab import Direction, FaultProxy, TlsFront, self_signed

    output = Output(as_json=as_json)
    host, _, port = to.rpartition(":")
    if not port.isdigit() or not host:
        output.fail(f"{to!r} is not a server; write host:port")
        return 2
    async with AsyncExitStack() as stack:
        stop = stack.enter_context(stop_event())
        upstream, root = (host, int(port)), None
        if tls:
            certificate = self_signed(Path(stack.enter_context(TemporaryDirectory())))
            front = await stack.enter_async_context(TlsFront(*upstream, certificate))
            upstream, root = ("127.0.0.1", front.port), str(certificate.path)
        network = await stack.enter_async_context(FaultProxy(*upstream))
        network.up = network.down = Direction(delay=delay, jitter=jitter)
        network.mode = mode
        _tell(
            output,
            network,
            f"127.0.0.1:{network.port} leads to {to}{f', certificate {root}' if root else ''}",
        )
        await _obey(output, network, stop)
    return 0


async def _obey(output: Output, network: FaultProxy, stop: asyncio.Event) -> None:
    """Until the stop signal or `quit`; the end of stdin only means that nothing more is to be obeyed."""
    lines = _stdin_lines()
    stopped = asyncio.create_task(stop.wait())
    try:
        while not stopped.done():
            line = asyncio.create_task(lines.get())
            await asyncio.wait({stopped, line}, return_when=asyncio.FIRST_COMPLETED)
            if not line.done():
                line.cancel()
            elif not _command(output, network, line.result().split()):
                return
    finally:
        stopped.cancel()


def _stdin_lines() -> asyncio.Queue[str]:
    """Lines as they come. In a thread, since stdin may be a file, which no event loop can wait for."""
    loop, lines = asyncio.get_running_loop(), asyncio.Queue[str]()

    def read() -> None:
        rest = b""
        # os.read and not sys.stdin: a thread inside the latter's lock would stand in the way of the interpreter's end.
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the command
            while data := os.read(0, 4096):
                *whole, rest = (rest + data).split(b"\n")
                for line in whole:
                    loop.call_soon_threadsafe(lines.put_nowait, line.decode(errors="replace"))

    threading.Thread(target=read, name="steadypool reads stdin", daemon=True).start()
    return lines


def _command(output: Output, network: FaultProxy, words: list[str]) -> bool:
    """Do what the line says; False to quit."""
    from steadypool_lab import Mode

    match words:
        case []:
            return True
        case ["quit" | "exit"]:
            return False
        case ["help"]:
            output.say(_HELP)
            return True
        case ["drop"]:
            network.drop_all()
        case ["status"]:
            pass
        case ["connections"]:
            _list(output, network)
            return True
        case ["connection", number, *command] if command:
            link = next((one for one in network.links if str(one.number) == number), None)
            if link is None:
                output.fail(f"no connection {number!r}: `connections` lists them")
            elif not (_directed(output, link, command) or _treated(link, command)):
                output.fail(f"unknown command {' '.join(words)!r}: {_HELP}")
        case _ if _directed(output, network, words):
            pass
        case [mode] if mode in tuple(Mode):
            network.mode = mode
        case _:
            output.fail(f"unknown command {' '.join(words)!r}: {_HELP}")
    _tell(output, network, str(network.mode))
    return True


def _directed(output: Output, what: FaultProxy | Link, words: list[str]) -> bool:
    """Change the directions of the network or of one connection; False where the words are about something else."""
    match words:
        case ["up" | "down" | "both" as which, *settings] if settings:
            try:
                if which in ("up", "both"):
                    what.up = _changed(what.up, settings)
                if which in ("down", "both"):
                    what.down = _changed(what.down, settings)
            except ValueError as error:
                output.fail(str(error))
            return True
        case _:
            return False


def _treated(link: Link, words: list[str]) -> bool:
    """Do to one connection what the modes do to all; False where the words are about something else."""
    match words:
        case ["pass"]:
            link.up = link.down = None
        case ["silent"]:
            link.up, link.down = replace(link.up, silent=True), replace(link.down, silent=True)
        case ["half-open"]:
            link.lose_server()
        case ["reset" | "drop" as how]:
            link.end(reset=how == "reset")
        case _:
            return False
    return True


def _list(output: Output, network: FaultProxy) -> None:
    """Each open connection, and what becomes of its bytes."""
    found = [
        {"connection": link.number, "up": asdict(link.up), "down": asdict(link.down)}
        for link in network.links
        if link.is_open
    ]
    text = "\n".join(f"{one['connection']}: up {one['up']}, down {one['down']}" for one in found)
    output.line({"connections": found}, text or "no connection is open")


def _changed(direction: Direction, settings: list[str]) -> Direction:
    """The direction with `key=value` applied; `key=off` takes it away."""
    known = {field.name: field for field in fields(direction)}
    changes: dict[str, Any] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in known or not value:
            raise ValueError(f"{setting!r}: write KEY=VALUE; keys: {', '.join(known)}")
        if value == "off":
            changes[name] = known[name].default
        elif name == "silent":
            changes[name] = value in ("on", "true", "1", "yes")
        else:
            changes[name] = int(value) if name in _WHOLE else float(value)
    return replace(direction, **changes)


def _tell(output: Output, network: FaultProxy, text: str) -> None:
    state = {
        "port": network.port,
        "mode": str(network.mode),
        "open": network.open,
        "accepted": network.accepted,
        "bytes_up": network.bytes_up,
        "bytes_down": network.bytes_down,
        "round_trips": network.round_trips,
    }
    output.line(
        state, f"{text} ({network.open} open, {network.accepted} accepted, {network.round_trips} round trips)"
    )
