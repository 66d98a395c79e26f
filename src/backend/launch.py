"""Starting the service on this machine: port, database, migrations, demo, server; and ending it all again.

What goes wrong on the way is told in one message on stderr, with exit code 1.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Generator
from contextlib import AsyncExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sqlalchemy.exc import DBAPIError

from backend.config import ConfigError, ServerSettings, Settings, load_settings
from backend.log import start_log
from backend.process_limits import raise_descriptor_limit
from backend.start_error import StartError, one_line
from steadypool.errors import SteadypoolError
from steadypool.settings import Dashboard

if TYPE_CHECKING:
    from backend.server import Server

# How long requests in flight may take after the first signal; the second ends them at once.
SHUTDOWN_GRACE = 15
BACKLOG = 2048
FIRST_LOOK = 2.0
"""Seconds that the database has to be ready before the first request is taken; later, requests wait for it."""


def main() -> int:
    """Run until a signal; returns the exit code."""
    start_log()
    try:
        settings = load_settings()
        raise_descriptor_limit()
        with closing(_bind(settings.server)) as listener:
            asyncio.run(_run(settings, listener))
    except asyncio.CancelledError:
        pass  # a signal, before there was a server to stop
    except (StartError, ConfigError, SteadypoolError) as error:
        return _give_up(str(error))
    except DBAPIError as error:
        return _give_up(f"the database refused: {one_line(error.orig)}")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _give_up(
                f"the disk is full ({error.filename or error}); free some space, then start again"
            )
        return _give_up(str(error))
    return 0


def _give_up(message: str) -> int:
    print(f"plyr cannot start: {message}", file=sys.stderr, flush=True)
    return 1


def _say(text: str) -> None:
    _print(f"plyr: {text}")


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Whoever read this has gone. The service goes on, and so must everything that would say a word.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


# -- the port ------------------------------------------------------------------------------------------------


def _bind(server: ServerSettings) -> socket.socket:
    """Take the port before anything else: nothing is worse than to learn of it after half a minute."""
    try:
        found = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise StartError(f"HOST={server.host} is no address of this machine: {error.strerror}") from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        with _explain_port(server):
            listener.bind(address)
            # Two that only bind do not notice each other. Who connects now is served once everything is up.
            listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


@contextmanager
def _explain_port(server: ServerSettings) -> Generator[None]:
    where = f"port {server.port} on {server.host}"
    try:
        yield
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartError(
                f"{where} is taken; end what listens there, or choose another port: "
                f"PORT={server.port % 65535 + 1} make run"
            ) from error
        if error.errno == errno.EACCES:
            raise StartError(
                f"{where} needs more rights; choose one above 1023: PORT=8000 make run"
            ) from error
        raise StartError(f"cannot listen on {where}: {error.strerror}; check HOST and PORT") from error


# -- from nothing to serving ---------------------------------------------------------------------------------


async def _run(settings: Settings, listener: socket.socket) -> None:
    """Start the parts in order; the stack ends them in the opposite order, however this ends."""
    # They load the web framework and the drivers: not before the port is known to be free.
    from backend.preparation import Preparation
    from backend.server import Server

    loop = asyncio.get_running_loop()
    starting = asyncio.current_task()
    assert starting is not None
    server: Server | None = None

    def stop() -> None:
        if server is None:
            starting.cancel()
            return
        first = not server.is_stopping
        server.stop()
        if first:
            _say("stopping; requests in flight finish first, Ctrl-C again ends them at once")

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    async with AsyncExitStack() as stack:
        settings = _with_pool_page(await _with_database(settings, stack))
        preparation = Preparation(settings, _say)
        preparing = asyncio.create_task(preparation.run(), name="prepare the database")
        stack.push_async_callback(_end, preparing)
        with suppress(TimeoutError):
            await asyncio.wait_for(preparation.known.wait(), FIRST_LOOK)
        if not preparation.done.is_set() and preparing.done():
            await preparing
        ready = asyncio.Event()
        server = Server(settings, grace=SHUTDOWN_GRACE, on_ready=ready.set, prepared=preparation.done)
        announcing = asyncio.create_task(
            _announce(ready, preparing, listener, settings, server), name="announce"
        )
        stack.push_async_callback(_end, announcing)
        preparing.add_done_callback(lambda task: None if preparation.done.is_set() else stop())
        await server.serve([listener])
        if preparing.done():
            await preparing  # why it stopped, where that was the reason
        _say("stopped")


async def _with_database(settings: Settings, stack: AsyncExitStack) -> Settings:
    """The settings with a database in them: the one that DATABASE_URL names, or the embedded one."""
    if settings.database.url is not None:
        from backend.utilities.database import build_database

        build_database(settings)  # connects to nothing, and says what is wrong with the URL
        return settings
    from backend.database_role import ensure_role
    from steadypool_lab import EmbeddedPostgres, LabError

    home = settings.server.data_dir / "postgres"
    try:
        server = await stack.enter_async_context(EmbeddedPostgres(home, on_progress=_say))
    except LabError as error:
        raise StartError(str(error)) from error
    url = await asyncio.to_thread(ensure_role, server.url)
    return settings.model_copy(update={"database": settings.database.replace(url=url)})


def _with_pool_page(settings: Settings) -> Settings:
    """With the page about the pool, for whoever sits at this machine, unless DATABASE_DASHBOARD says something else."""
    if "dashboard" in settings.database.model_fields_set:
        return settings
    database = settings.database.replace(dashboard=Dashboard.LOOPBACK)
    return settings.model_copy(update={"database": database})


async def _announce(
    ready: asyncio.Event,
    preparing: asyncio.Task[str | None],
    listener: socket.socket,
    settings: Settings,
    server: Server,
) -> None:
    """Say where to click: at once where the database is there, else when it has come."""
    await ready.wait()
    if not preparing.done():
        _say(f"answers at {_address(listener)}/; who comes before the database waits for it")
    await asyncio.wait({preparing})
    if not preparing.cancelled() and preparing.exception() is None:
        token = preparing.result()
        code = None if token is None else server.sign_in_code(_demo_did())
        _tell(listener, settings, token, code)


def _demo_did() -> str:
    from backend.services.demo import DID

    return DID


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def _tell(listener: socket.socket, settings: Settings, token: str | None, code: str | None) -> None:
    """Where to click, and how to sign in."""
    url = _address(listener)
    lines = [f"plyr plays at {url}/"]
    if token is None or code is None:
        lines.append("This database has artists of its own, so there is no demo token.")
    else:
        lines += [
            f"Sign in as the demo artist, once and within ten minutes: {url}/#code={quote(code)}",
            f"For the plyrfm command: export PLYR_API_URL={url} and",
            f"PLYR_TOKEN={token}",
        ]
    if settings.database.dashboard is Dashboard.LOOPBACK:
        lines.append(f"Its pool, live, for this machine only: {url}/pool")
    _print("\n" + "\n".join(lines) + "\n\nCtrl-C ends it.")
