"""Each contract test runs six times: on SQLAlchemy's engine and on ours, with each of the three drivers."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import sqlalchemy.ext.asyncio as stock
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.util import greenlet_spawn

import steadypool.sqlalchemy as ours
from steadypool_lab import EmbeddedPostgres

# Run by test_compliance.py and test_dropin.py, in processes of their own.
collect_ignore = ["compliance", "dropin"]

_numbers = itertools.count(1)

EVENTS = (
    "first_connect",
    "connect",
    "checkout",
    "checkin",
    "reset",
    "invalidate",
    "soft_invalidate",
    "close",
    "detach",
    "close_detached",
)
"""SQLAlchemy's pool events, all of them."""


class Wanted(NamedTuple):
    """A difference that is wanted: its section in docs/reference/differences.md, and what it is."""

    section: str
    what: str


WANTED_DIFFERENCES = {
    "dead connections are not counted": Wanted(
        "counts-and-records", "an invalidated connection leaves the pool; stock keeps its record"
    ),
    "a record is one connection": Wanted(
        "counts-and-records", "so record_info ends with it; stock connects the same record again"
    ),
    "what is evicted says so": Wanted(
        "pool-events", "a soft invalidated connection fires invalidate before close"
    ),
    "psycopg can be terminated": Wanted(
        "terminate", "a collected or detached connection is closed; stock drops it, open"
    ),
    "handlers run for nobody": Wanted(
        "pool-events", "a handler that fails in the background is logged, and raised to nobody"
    ),
    "a failing checkin handler costs no place": Wanted("pool-events", "stock never gets the place back"),
    "connect errors have a name": Wanted(
        "connect-errors", "ConnectFailed or ConnectTimeout with the cause; stock: whatever the driver raised"
    ),
    "refused connects are tried again": Wanted(
        "refused-connect", "until the caller's time is up; stock fails at once"
    ),
    "a pause after a failure": Wanted(
        "pause-after-a-failure",
        "callers are refused at once where the next attempt cannot help them; stock tries",
    ),
    "the cancelled caller leaves its connect behind": Wanted("cancellation", "for the next; stock aborts it"),
    "lost connections have a name": Wanted(
        "lost-connections", "ConnectionLost, an OperationalError, for both drivers"
    ),
    "the message says more": Wanted("exhaustion", "the exhaustion message goes on after stock's words"),
    "one loss does not close the rest": Wanted(
        "lost-connections", "the others prove themselves; stock replaces all that are older"
    ),
    "dispose closes what comes back": Wanted(
        "dispose", "a connection in use at dispose() is closed when returned; stock keeps it"
    ),
    "first come, first served": Wanted(
        "first-come-first-served", "stock lets a newcomer take a connection before those who wait"
    ),
    "recycled in the background": Wanted("recycling", "stock does it in the caller, who waits for it"),
    "one loop, said clearly": Wanted("event-loop", "WrongEventLoop; stock fails in the driver"),
    "cleaned behind SQLAlchemy's back": Wanted(
        "open-transaction", "a transaction begun by hand is rolled back at return"
    ),
    "what answered just now is not asked": Wanted(
        "pre-ping", "pre-ping leaves out what answered within ping_after_idle, 0.5 s"
    ),
    "a commit that was a rollback is told": Wanted(
        "swallowed-errors", "TransactionRolledBack where an error was swallowed; stock is silent"
    ),
    "not a QueuePool": Wanted(
        "pool-class", "isinstance(engine.pool, QueuePool) is False; so are listeners for that class only"
    ),
}
"""Where ours is not like stock and wants not to be. Each has a test that asserts what both do."""


@dataclass
class Maker:
    """Makes engines of one kind for one driver, and disposes of them after the test."""

    kind: str
    driver: str
    url: str
    engines: list[AsyncEngine] = field(default_factory=list)

    @property
    def is_ours(self) -> bool:
        return self.kind == "ours"

    def differs(self, name: str) -> bool:
        """Whether this is the engine that wants to differ in what WANTED_DIFFERENCES calls so."""
        assert name in WANTED_DIFFERENCES
        return self.is_ours

    @property
    def function(self) -> Callable[..., AsyncEngine]:
        return ours.create_async_engine if self.is_ours else stock.create_async_engine

    @property
    def terminates(self) -> bool:
        """Whether a connection that nobody closed is closed; stock's psycopg dialect leaves it open."""
        return self.driver != "psycopg" or self.differs("psycopg can be terminated")

    def __call__(self, url: Any = None, **arguments: Any) -> AsyncEngine:
        engine = self.function(self.url if url is None else url, **arguments)
        self.engines.append(engine)
        return engine

    async def let_go(self, raw: Any) -> None:
        """Close a connection that was detached; stock's psycopg dialect leaves it open."""
        driver_connection = raw.dbapi_connection.driver_connection
        await greenlet_spawn(raw.close)
        if not self.terminates:
            assert not driver_connection.closed
            await driver_connection.close()
        assert driver_connection.is_closed() if self.driver == "asyncpg" else driver_connection.closed

    def recorded(self, *names: str, **arguments: Any) -> tuple[AsyncEngine, list[str]]:
        """An engine, and the list to which the names of its pool events will be added."""
        engine = self(**arguments)
        seen: list[str] = []
        for name in names or EVENTS:
            listen(engine, name, seen)
        return engine, seen


def listen(engine: AsyncEngine, name: str, seen: list[str]) -> None:
    def append(*_arguments: Any) -> None:
        seen.append(name)

    event.listen(engine.sync_engine, name, append)


@pytest.fixture(scope="session")
def shared_database(server: EmbeddedPostgres) -> Iterator[str]:
    """A database for tests that create nothing in it."""
    name = f"contract_{os.getpid()}_{next(_numbers)}"
    yield server.blocking.create_database(name)
    server.blocking.drop_database(name)


@pytest.fixture(params=["asyncpg", "psycopg", "steadypool"])
def driver(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["stock", "ours"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def make(kind: str, driver: str, shared_database: str, anyio_backend: object) -> AsyncIterator[Maker]:
    """Makes engines on the shared database."""
    maker = Maker(kind, driver, shared_database.replace("postgresql://", f"postgresql+{driver}://"))
    yield maker
    for engine in maker.engines:
        await engine.dispose()


@pytest.fixture
def counts() -> Callable[[AsyncEngine], tuple[int, int, int, int]]:
    """The four numbers of a QueuePool: size, checked in, overflow, checked out."""

    def numbers(engine: AsyncEngine) -> tuple[int, int, int, int]:
        pool: Any = engine.pool
        return pool.size(), pool.checkedin(), pool.overflow(), pool.checkedout()

    return numbers


@pytest.fixture
def pid_of() -> Callable[[AsyncConnection], Awaitable[int]]:
    """Which backend serves a connection; leaves no transaction behind."""

    async def pid(connection: AsyncConnection) -> int:
        found = (await connection.execute(text("select pg_backend_pid()"))).scalar_one()
        await connection.rollback()
        return found

    return pid


@pytest.fixture
def eventually() -> Callable[..., Awaitable[None]]:
    """Waits until a condition holds: what stock does in the caller, ours may do in the background."""

    async def wait(condition: Callable[[], object], *, seconds: float = 5.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.002)

    return wait


@pytest.fixture
def wanted_differences() -> dict[str, Wanted]:
    return WANTED_DIFFERENCES


@pytest.fixture
def private_port() -> int:
    """A port of this machine where nobody listens."""
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", 0))
        return somebody.getsockname()[1]
