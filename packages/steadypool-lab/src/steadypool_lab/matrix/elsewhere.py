"""Letting go of a peer from elsewhere than its event loop: that is closed, has stopped, runs in another thread, or is a
parent process's.

The peer has a thread and an event loop of its own here, as an application has them whose tests, or whose framework,
make a loop for each piece of work.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
import warnings
from collections.abc import AsyncGenerator, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from steadypool_lab.clients import Client
from steadypool_lab.load import Outcome, Requests, Tally, at_once, describe
from steadypool_lab.matrix.environment import MatrixEnvironment, counted

T = TypeVar("T")

PeerType = type[Client]

IDLE = 5
"""Connections that the peer has."""


async def loop_closed(stage: MatrixEnvironment, kind: PeerType) -> Tally:
    """As after `asyncio.run()`."""
    async with _living_elsewhere(stage, kind) as (home, peer):
        await home.close()
        return await _left(stage, peer)


async def loop_stopped(stage: MatrixEnvironment, kind: PeerType) -> Tally:
    """As between two calls of `run_until_complete()`."""
    async with _living_elsewhere(stage, kind) as (_, peer):
        return await _left(stage, peer)


async def another_thread(stage: MatrixEnvironment, kind: PeerType) -> Tally:
    """The loop goes on in its thread meanwhile."""
    async with _living_elsewhere(stage, kind) as (home, peer):
        home.go_on()
        return await _left(stage, peer)


async def forked_child(stage: MatrixEnvironment, kind: PeerType) -> Tally:
    """A child lets go of what it has inherited; then the parent uses it."""
    async with _living_elsewhere(stage, kind) as (home, peer):
        before = await _pids(stage)
        outcome = await _in_child(peer, stage.patience)
        after = Requests()
        await home.run(_asked(peer, after, stage.patience))
        figures = await counted(_one(outcome))
        figures.facts["parents_lost"] = len(before - await _pids(stage))
        figures.facts["served_after"] = sum(one.served for one in after.outcomes)
        return figures


async def _left(stage: MatrixEnvironment, peer: Client) -> Tally:
    requests = await at_once(1, peer.leave, stage.patience)
    figures = await counted(requests, backends_left=await stage.backends_left(stage.unit))
    await requests.let_go(stage.unit)
    return figures


async def _asked(peer: Client, requests: Requests, patience: float) -> None:
    for _ in range(IDLE):
        requests.begin(peer.ask)
    await requests.finish(patience)


async def _pids(stage: MatrixEnvironment) -> set[int]:
    return {pid for (pid,) in await stage.execute(f"select pid from pg_stat_activity where {stage.of_peers}")}


def _one(outcome: Outcome) -> Requests:
    requests = Requests()
    requests.outcomes.append(outcome)
    return requests


# -- the home ------------------------------------------------------------------------------------------------------


class Home:
    """An event loop that runs in a thread of its own, when it is told to."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lab home")
        self.loop = asyncio.new_event_loop()
        self._going: Future[None] | None = None
        self.loop.set_exception_handler(
            lambda _loop, _context: None
        )  # what is left there is no part of a row

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Let the loop run until that is done."""
        return await asyncio.wrap_future(self._thread.submit(self.loop.run_until_complete, work))

    def go_on(self) -> None:
        """Let the loop run until `end`."""
        self._going = self._thread.submit(self.loop.run_forever)

    async def close(self) -> None:
        """Close the loop, whatever is left on it."""
        await asyncio.wrap_future(self._thread.submit(self.loop.close))

    async def end(self) -> None:
        """End what is left on the loop, as far as it lets itself be ended, and close it."""
        if self._going is not None:
            self.loop.call_soon_threadsafe(self.loop.stop)
            await asyncio.wrap_future(self._going)
        if not self.loop.is_closed():
            await self.run(_end_tasks())
            await self.close()
        self._thread.shutdown(wait=False)


async def _end_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=2.0)


@asynccontextmanager
async def _living_elsewhere(stage: MatrixEnvironment, kind: PeerType) -> AsyncGenerator[tuple[Home, Client]]:
    """A peer with idle connections, and its home, which does not run."""
    home = Home()
    peer = kind(stage.server.url, stage.limits(size=IDLE))
    try:
        await home.run(peer.open())
        await home.run(peer.warm(IDLE))
        yield home, peer
    finally:
        await stage.clear()
        await home.end()


# -- a forked child ------------------------------------------------------------------------------------------------


async def _in_child(peer: Client, patience: float) -> Outcome:
    """Let a forked child let go of the peer; killed where it takes longer than that many seconds."""
    began = time.monotonic()
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # this process has threads, which the child does without
        child = os.fork()
    if child == 0:
        _be_child(peer, write)
    os.close(write)
    with os.fdopen(read) as answer:
        reading = asyncio.create_task(asyncio.to_thread(answer.read))
        await asyncio.wait({reading}, timeout=patience)
        hung = not reading.done()
        if hung:
            os.kill(child, signal.SIGKILL)
        said = await reading
    await asyncio.to_thread(os.waitpid, child, 0)
    return Outcome(
        began, time.monotonic() - began, RuntimeError(said) if said and not hung else None, hung=hung
    )


def _be_child(peer: Client, write: int) -> None:
    """Say what went wrong; end without the clean-up of the parent's interpreter."""
    said = "ended without a word"
    try:
        asyncio.run(peer.leave_in_child())
        said = ""
    except BaseException as error:  # noqa: BLE001 - the child reports and ends, whatever happened
        said = describe(error)
    finally:
        os.write(write, said.encode())
        os._exit(0)
