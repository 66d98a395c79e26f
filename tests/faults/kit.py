"""What the fault tests share: the scaled time, callers that are timed, and what an error has to be."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import text

from conditions import until
from steadypool import Database, deadline, errors
from steadypool.pool.lease import EntryState
from steadypool_lab import FaultProxy
from steadypool_lab.testing import Backend, Observer

T = 0.8
"""The timeouts of the pool under test, in seconds."""

CONNECTS_WITHIN = 5.0
"""Seconds for a connect that is to succeed: a server takes long to start a backend where the machine is busy."""

MARGIN = 2.0
"""Seconds that a busy machine may add to any bound."""

STATEMENT_GRACE = 0.5
"""Seconds by which the client waits longer than the server for the end of a statement."""


@dataclass
class Outcome:
    """How one caller ended: its result or its error, and after how many seconds."""

    seconds: float
    result: Any = None
    error: BaseException | None = None


async def timed(work: Awaitable[Any]) -> Outcome:
    """Await it, and tell how it ended."""
    started = time.monotonic()
    try:
        result = await work
    except Exception as error:  # noqa: BLE001 - the error is what the test looks at
        return Outcome(time.monotonic() - started, error=error)
    return Outcome(time.monotonic() - started, result=result)


async def at_once(count: int, call: Callable[[], Awaitable[Any]]) -> list[Outcome]:
    """That many callers at the same moment."""
    return await asyncio.gather(*(timed(call()) for _ in range(count)))


async def ask(db: Database, sql: str = "select 1", **arguments: Any) -> Any:
    """One statement in a session of its own."""
    async with db.session() as session:
        return (await session.execute(text(sql), arguments)).scalar()


def assert_named(error: BaseException | None, *kinds: type[BaseException]) -> None:
    """The error is one of ours, and says something that a person can use."""
    assert error is not None, "no error"
    seen = "".join(traceback.format_exception(error))
    assert isinstance(error, errors.SteadypoolError), seen
    assert isinstance(error, kinds or errors.SteadypoolError), seen
    assert len(str(error)) > 20, seen
    assert str(error).startswith(error.message), seen


def assert_served(outcomes: Sequence[Outcome]) -> None:
    """No caller failed."""
    failed = failures(outcomes)
    assert not failed, f"{len(failed)} of {len(outcomes)} failed: " + "".join(
        traceback.format_exception(failed[0])
    )


def assert_all_named(outcomes: Sequence[Outcome], within: float, *kinds: type[BaseException]) -> None:
    """Every caller got such an error, and in time."""
    for outcome in outcomes:
        assert_named(outcome.error, *kinds)
    slowest = max(outcome.seconds for outcome in outcomes)
    assert slowest < within, f"{slowest:.2f} s: {failures(outcomes)[0]!r}"


def failures(outcomes: Iterable[Outcome]) -> list[BaseException]:
    """The errors among them."""
    return [outcome.error for outcome in outcomes if outcome.error is not None]


def assert_at_rest(db: Database) -> None:
    """Nobody holds or waits for anything, and the counts are those of a pool in peace."""
    core = db.pool.core
    assert core.count(EntryState.LEASED, EntryState.OPENING, EntryState.CLOSING, EntryState.RESETTING) == 0, (
        core.snapshot()
    )
    assert core.waiting == 0
    assert core.count() <= core.options.size
    assert not db.pool.watched


async def rests(db: Database, seconds: float = 20.0) -> None:
    """Wait until the pool has nothing left to do, then look at it."""
    core = db.pool.core
    busy = (
        EntryState.LEASED,
        EntryState.OPENING,
        EntryState.CLOSING,
        EntryState.RESETTING,
        EntryState.PROVING,
    )
    await until(lambda: core.count(*busy) == 0, seconds)
    assert_at_rest(db)


async def serves(db: Database, callers: int = 5) -> None:
    """The pool works: that many callers, none of which fails, although an attempt may be at a pause."""

    async def call() -> None:
        with deadline(20.0):
            assert await ask(db) == 1

    assert_served(await at_once(callers, call))


async def strays(pg: Observer, db: Database) -> list[Backend]:
    """Backends of the database that run or hold something, or that the pool knows nothing about."""
    backends = await pg.backends()
    if len(backends) > db.pool.checkedin() + db.pool.checkedout():
        return backends
    return [backend for backend in backends if backend.state != "idle"]


async def nothing_strays(pg: Observer, db: Database, seconds: float = 5.0) -> None:
    """No backend runs on, stays in a transaction or outlives its connection."""

    async def gone() -> bool:
        return not await strays(pg, db)

    await pg.wait_until(gone, seconds=seconds)


@dataclass
class Peak:
    """The most connections that were open through a proxy at a time."""

    open: int = 0
    samples: list[int] = field(default_factory=list)


@asynccontextmanager
async def peak_of(proxy: FaultProxy) -> AsyncGenerator[Peak]:
    """Watch how many connections clients have open at a time."""
    peak = Peak()

    async def watch() -> None:
        while True:
            peak.open = max(peak.open, proxy.open)
            await asyncio.sleep(0.002)

    task = asyncio.create_task(watch())
    try:
        yield peak
    finally:
        task.cancel()


async def reached(place: asyncio.Event, task: asyncio.Task[Any]) -> None:
    """Wait until a task has got to a place; one that ends before has failed, and would be waited for in vain."""
    waiting = asyncio.create_task(place.wait())
    await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    assert place.is_set(), task.result()


def password_of(url: str) -> str:
    """The password in a URL."""
    found = urlsplit(url).password
    assert found
    return found


def everything_said(error: BaseException) -> str:
    """All the texts of an error and of the errors that it brings along."""
    seen: set[int] = set()
    texts: list[str] = []
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        texts += [str(current), repr(current)]
        pending += [current.__cause__, None if current.__suppress_context__ else current.__context__]
    return "\n".join(texts)
