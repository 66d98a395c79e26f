"""Letting go of a pool from elsewhere: its loop is closed, has stopped, runs in another thread, or is the parent's.

Each row is a home, what its connections are doing, a driver and a way to let go. Whatever the row: it comes back at
once, no backend of this process stays, the parent's connections go on, and one line in the log says so.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import sqlalchemy as sa
import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine

from steadypool import Database, DatabaseSettings, errors
from steadypool.sqlalchemy import create_async_engine

DRIVERS = ("asyncpg", "psycopg", "steadypool")
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
SOON = 4.0
"""Seconds: a loop that does not answer is waited for one, and the machine may be busy; never is another thing."""


class Watcher:
    """Who is connected to a database, by a blocking connection that it does not count."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._name = parts.path.lstrip("/")
        self._connection = psycopg.connect(parts._replace(path="/postgres").geturl(), autocommit=True)

    def backends(self) -> list[int]:
        rows = self._connection.execute(
            "select pid from pg_stat_activity where datname = %s and backend_type = 'client backend' order by pid",
            (self._name,),
        )
        return [pid for (pid,) in rows]

    def until(self, count: int, seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while len(found := self.backends()) != count:
            assert time.monotonic() < end, f"{len(found)} backends, and it should be {count}"
            time.sleep(0.01)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def watcher(database_url: str) -> Iterator[Watcher]:
    watcher = Watcher(database_url)
    yield watcher
    watcher.close()


@dataclass
class Home:
    """The event loop that everything of a test belongs to."""

    kind: str
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread | None = None
    free: threading.Event = field(default_factory=threading.Event)
    kept: list[Any] = field(default_factory=list)

    def run(self, work: Awaitable[Any]) -> Any:
        if self.thread is None:
            return self.loop.run_until_complete(work)
        return asyncio.run_coroutine_threadsafe(_awaited(work), self.loop).result(20)

    def leave(self) -> None:
        """Bring the loop into the state that the test is about."""
        if self.kind == "closed":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # uvloop's, about what the loop is closed under
                self.loop.close()
        elif self.kind == "blocked":
            blocked = threading.Event()

            def block() -> None:
                blocked.set()
                self.free.wait(20)

            self.loop.call_soon_threadsafe(block)
            assert blocked.wait(20)

    def end(self) -> None:
        """Let the tasks end, in the thread in which they began: SQLAlchemy's greenlets cannot leave it."""
        self.free.set()
        self.kept.clear()
        if self.loop.is_closed():
            return
        self.run(_ended())
        if self.thread is not None:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(20)
        self.loop.close()


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work


async def _ended() -> None:
    """Wait for every task, except for those whose coroutine was closed from elsewhere: nothing wakes these."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    left = {task for task in others if getattr(task.get_coro(), "cr_frame", None) is not None}
    if left:
        _, late = await asyncio.wait(left, timeout=10)
        assert not late
    await asyncio.sleep(0)  # what they have closed is told so


@pytest.fixture
def make_home() -> Iterator[Callable[..., Home]]:
    homes: list[Home] = []

    def make(kind: str, loop: str = "asyncio") -> Home:
        home = Home(kind, LOOPS[loop]())
        if kind in ("running", "blocked"):
            home.thread = threading.Thread(target=home.loop.run_forever, daemon=True)
            home.thread.start()
        homes.append(home)
        return home

    yield make
    for home in homes:
        home.end()
    gc.collect()


def url_of(database_url: str, driver: str) -> str:
    return database_url.replace("postgresql://", f"postgresql+{driver}://")


def make_database(database_url: str, driver: str, **settings: Any) -> Database:
    url = url_of(database_url, driver)
    given = {"pool_size": 2, "max_overflow": 1, "recorder": False, **settings}
    return Database(DatabaseSettings(url=url, direct_url=database_url, **given))


async def ask(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return (await connection.execute(sa.text("select 1"))).scalar_one()


# -- what connections are doing ----------------------------------------------------------------------------------


async def idle(db: Database, _home: Home) -> int:
    async with db.engine.connect() as one, db.engine.connect() as two:
        await one.execute(sa.text("select 1"))
        await two.execute(sa.text("select 1"))
    return 0


async def in_use(db: Database, home: Home) -> int:
    """One in a transaction, and one idle."""
    await idle(db, home)
    session = db.session()
    held = await session.__aenter__()
    await held.execute(sa.text("select 1"))
    home.kept += [session, held]
    return 1


async def listened(db: Database, home: Home) -> int:
    channel = db.listen("news")
    home.kept += [channel, await channel.__aenter__()]
    return 1


async def multiplexed(db: Database, _home: Home) -> int:
    assert await asyncio.gather(*(db.fetchval("select 1") for _ in range(4))) == [1] * 4
    # One more may open for the next of so many at a time, and what is beyond `pool_size` is closed.
    while db.pool.connections()["opening"] or db.pool.connections()["closing"]:
        await asyncio.sleep(0.005)
    return 0


STATES: dict[str, Callable[[Database, Home], Awaitable[int]]] = {
    "idle": idle,
    "in use": in_use,
    "multiplexed": multiplexed,
    "listened": listened,
}
"""Each returns how many connections somebody has in use."""


# -- ways to let go ----------------------------------------------------------------------------------------------


def dispose(db: Database) -> None:
    asyncio.run(db.engine.dispose())


def dispose_under_uvloop(db: Database) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(db.engine.dispose())


def sync_dispose(db: Database) -> None:
    db.engine.sync_engine.dispose()


def close(db: Database) -> None:
    asyncio.run(db.close(grace=0.2))


def measured(let_go: Callable[[Database], None], db: Database) -> float:
    began = time.monotonic()
    let_go(db)
    return time.monotonic() - began


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if "from elsewhere" in record.getMessage()]


KINDS = ("closed", "stopped", "running", "blocked")
OTHER_WAYS = (dispose_under_uvloop, sync_dispose, close)


def rows(*ways: Callable[[Database], None]) -> Iterator[Any]:
    """Every combination for `dispose`; for the other ways as many as make every pair of values occur."""
    for i, kind in enumerate(KINDS):
        for j, state in enumerate(STATES):
            for driver in DRIVERS:
                yield kind, dispose, state, driver
            yield kind, ways[(i + j) % len(ways)], state, DRIVERS[(i + 2 * j) % len(DRIVERS)]


@pytest.mark.parametrize(("kind", "let_go", "state", "driver"), [*rows(*OTHER_WAYS)])
def test_letting_go_from_elsewhere(
    database_url: str,
    watcher: Watcher,
    make_home: Callable[..., Home],
    caplog: pytest.LogCaptureFixture,
    kind: str,
    let_go: Callable[[Database], None],
    state: str,
    driver: str,
) -> None:
    caplog.set_level(logging.INFO, logger="steadypool.pool")
    home = make_home(kind, "uvloop" if let_go is dispose_under_uvloop else "asyncio")
    db = make_database(database_url, driver)
    held = home.run(STATES[state](db, home))
    assert watcher.backends()
    home.leave()
    assert measured(let_go, db) < SOON
    # What somebody has in use stays theirs as long as its loop may run; `dispose` does not know of the listener.
    stays = held if let_go is not close and (kind != "closed" or state == "listened") else 0
    watcher.until(stays)
    said = lines(caplog)
    assert len(said) == (state != "listened" or let_go is close), said
    assert all(record.levelno == logging.WARNING for record in said) or kind != "blocked"
    home.free.set()
    if let_go is not close:
        assert asyncio.run(_used_and_disposed(db)) == 1, "the engine works on the next loop"
    if stays and kind != "closed":
        home.run(home.kept[0].__aexit__(None, None, None))
        if state == "in use":
            watcher.until(0)
    if state == "listened" and let_go is not close:
        asyncio.run(db.close(grace=0.2))
    watcher.until(0)


async def _used_and_disposed(db: Database) -> int:
    assert await db.fetchval("select 1") == 1
    result = await ask(db.engine)
    await db.engine.dispose()
    return result


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_server_that_is_slow_to_part_is_not_taken_for_a_loop_that_is_blocked(
    database_url: str,
    watcher: Watcher,
    make_home: Callable[..., Home],
    caplog: pytest.LogCaptureFixture,
    driver: str,
) -> None:
    """The pool keeps a place until the server has let go, for two seconds; nobody waits for that elsewhere."""
    caplog.set_level(logging.INFO, logger="steadypool.pool")
    home = make_home("running")
    db = make_database(database_url, driver)
    home.run(idle(db, home))
    backends = watcher.backends()
    for pid in backends:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert measured(dispose, db) < SOON
        (said,) = lines(caplog)
        assert (said.levelno, "does not answer" in said.getMessage()) == (logging.INFO, False)
    finally:
        for pid in backends:
            os.kill(pid, signal.SIGCONT)
    watcher.until(0)
    home.run(db.close(grace=0.2))


# -- a forked child ----------------------------------------------------------------------------------------------


def dispose_without_closing(db: Database) -> None:
    asyncio.run(db.engine.dispose(close=False))
    gc.collect()


def in_child(work: Callable[[], None]) -> None:
    """Do something in a forked child; what it raises fails the test."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        said = b"ok"
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - the child reports and ends, whatever happened
            said = repr(error).encode()
        finally:
            os.write(write, said)
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        assert answer.read() == b"ok"
    os.waitpid(child, 0)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("let_go", "state", "driver"),
    [
        *((dispose, state, driver) for state in STATES for driver in DRIVERS),
        *(
            (way, state, DRIVERS[(i + j) % len(DRIVERS)])
            for i, way in enumerate((*OTHER_WAYS, dispose_without_closing))
            for j, state in enumerate(STATES)
        ),
    ],
)
def test_letting_go_in_a_forked_child(
    database_url: str,
    watcher: Watcher,
    make_home: Callable[..., Home],
    let_go: Callable[[Database], None],
    state: str,
    driver: str,
) -> None:
    home = make_home("stopped", "uvloop" if let_go is dispose_under_uvloop else "asyncio")
    db = make_database(database_url, driver)
    home.run(STATES[state](db, home))
    before = watcher.backends()

    def child() -> None:
        if state != "listened":  # where the pool has never been used
            with pytest.raises(errors.WrongEventLoop, match="another process"):
                asyncio.run(ask(db.engine))
        assert measured(let_go, db) < SOON
        if let_go is not close:
            asyncio.run(_used_and_disposed(db))
        gc.collect()

    in_child(child)
    assert set(before) <= set(watcher.backends()), "the parent's connections go on"
    home.run(_goes_on(db, home, state))
    assert set(before) <= set(watcher.backends())
    if home.kept:
        home.run(home.kept[0].__aexit__(None, None, None))
    home.run(db.close(grace=0.2))
    watcher.until(0)


async def _goes_on(db: Database, home: Home, state: str) -> None:
    assert await ask(db.engine) == 1
    if state == "in use":
        assert (await home.kept[1].execute(sa.text("select 2"))).scalar_one() == 2
    if state == "multiplexed":
        assert await db.fetchval("select 1") == 1
    if state == "listened":
        await db.notify("news", "still heard")
        subscription = home.kept[1]
        async with asyncio.timeout(10):
            while getattr(await anext(subscription), "payload", None) != "still heard":
                pass


# -- what is being opened ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("let_go", "kind", "driver"),
    [
        *((dispose, kind, driver) for kind in KINDS for driver in DRIVERS),
        *(
            (way, kind, DRIVERS[(i + j) % len(DRIVERS)])
            for i, way in enumerate((sync_dispose, close))
            for j, kind in enumerate(KINDS)
        ),
    ],
)
def test_a_connection_that_is_being_opened_is_cut_off(
    make_home: Callable[..., Home], driver: str, kind: str, let_go: Callable[[Database], None]
) -> None:
    """The server says nothing: a loop that does not run can't give the connect up, so it is ended here."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        home = make_home(kind)
        db = make_database(f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/d?sslmode=disable", driver)
        asking = asyncio.run_coroutine_threadsafe(ask(db.engine), home.loop)
        with home.run(_until_it_opens(silent)) as peer:
            home.leave()
            assert measured(let_go, db) < SOON
            home.free.set()
            if home.thread is None:
                assert peer.recv(4096) == b"", "the client has hung up"
        asking.cancel()
        if let_go is not close:
            home.run(db.close(grace=0.0)) if kind != "closed" else asyncio.run(db.close(grace=0.0))


async def _until_it_opens(silent: socket.socket) -> socket.socket:
    peer, _ = await asyncio.to_thread(silent.accept)
    peer.settimeout(10)
    assert await asyncio.to_thread(peer.recv, 4096), "the start-up message"
    return peer


# -- other ways to let go ------------------------------------------------------------------------------------------

WAYS = ("collected", "not closed")


@pytest.mark.parametrize(
    ("way", "loop", "kind", "driver"),
    [
        *(
            (way, "asyncio", kind, driver)
            for way in WAYS
            for kind in ("closed", "stopped")
            for driver in DRIVERS
        ),
        *(("collected", "uvloop", kind, "asyncpg") for kind in ("closed", "stopped")),
        ("not closed", "uvloop", "stopped", "psycopg"),
        ("not closed", "uvloop", "closed", "steadypool"),
    ],
)
def test_what_is_not_closed_is_closed_by_the_collector(
    database_url: str,
    watcher: Watcher,
    make_home: Callable[..., Home],
    driver: str,
    kind: str,
    loop: str,
    way: str,
) -> None:
    """And without a ResourceWarning, which would fail the test."""
    home = make_home(kind, loop)
    engine = create_async_engine(url_of(database_url, driver))
    home.run(ask(engine))
    home.leave()
    if way == "not closed":
        asyncio.run(engine.dispose(close=False))
    else:
        del engine
    gc.collect()
    watcher.until(0)


AT_EXIT = """
import asyncio, gc, socket, sys
from steadypool.sqlalchemy import create_async_engine
silent = socket.create_server(("127.0.0.1", 0))
engine = create_async_engine(f"{sys.argv[1]}://u@127.0.0.1:{silent.getsockname()[1]}/d?sslmode=disable")
async def open_one():
    engine.pool.core.warm_up(1)
    while not engine.pool.core.count():
        await asyncio.sleep(0)
loop = asyncio.new_event_loop()
loop.run_until_complete(open_one())
class Garbage:
    def __init__(self):
        self.cycle = self
    def __del__(self):
        engine.pool.__del__()
gc.set_threshold(10**9)  # the next collection is the interpreter's last one, when greenlets have been finalized
Garbage()
"""


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_is_collected_when_the_interpreter_ends_says_nothing(driver: str) -> None:
    program = [sys.executable, "-c", AT_EXIT, f"postgresql+{driver}"]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("kind", ["closed", "stopped", "running"])
def test_a_connection_is_invalidated_from_elsewhere(
    database_url: str, watcher: Watcher, make_home: Callable[..., Home], driver: str, kind: str
) -> None:
    home = make_home(kind)
    engine = create_async_engine(url_of(database_url, driver))

    async def hold() -> Any:
        connection = await engine.connect()
        await connection.execute(sa.text("select 1"))
        return connection

    connection = home.run(hold())
    home.leave()
    asyncio.run(connection.invalidate())
    watcher.until(0)
    asyncio.run(engine.dispose())


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("kind", ["closed", "stopped", "running"])
def test_a_session_is_forgotten_and_its_loop_is_gone(
    database_url: str, watcher: Watcher, make_home: Callable[..., Home], driver: str, kind: str
) -> None:
    home = make_home(kind)
    engine = create_async_engine(url_of(database_url, driver))

    async def hold() -> Any:
        connection = await engine.connect()
        await connection.execute(sa.text("select 1"))
        return connection

    home.kept.append(home.run(hold()))
    home.leave()
    asyncio.run(engine.dispose())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sa.exc.SAWarning)  # SQLAlchemy's: it was not returned
        home.kept.clear()
        gc.collect()
    watcher.until(0)


def test_a_pool_is_evicted_on_its_own_loop_only(database_url: str, make_home: Callable[..., Home]) -> None:
    home = make_home("stopped")
    engine = create_async_engine(url_of(database_url, "psycopg"))
    home.run(ask(engine))
    pool: Any = engine.pool
    with pytest.raises(errors.WrongEventLoop, match=r"await engine\.dispose\(\)"):
        asyncio.run(pool.core.evict())
    home.run(engine.dispose())


# -- an engine per event loop --------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_engine_per_event_loop_disposed_in_turn(database_url: str, watcher: Watcher, driver: str) -> None:
    """A cache of engines by loop; before and after each test all of them are disposed of, from whichever loop runs."""
    engines: dict[int, AsyncEngine] = {}
    kept: list[asyncio.AbstractEventLoop] = []

    def engine() -> AsyncEngine:
        key = id(asyncio.get_running_loop())
        if key not in engines:
            engines[key] = create_async_engine(url_of(database_url, driver), pool_size=2)
        return engines[key]

    async def clean() -> None:
        for each in tuple(engines.values()):
            await each.dispose()

    async def test() -> None:
        await clean()
        assert await ask(engine()) == 1
        await clean()
        assert await ask(engine()) == 1

    client = asyncio.new_event_loop()
    thread = threading.Thread(target=client.run_forever, daemon=True)
    thread.start()
    for _ in range(2):
        loop = asyncio.new_event_loop()
        kept.append(loop)  # a number must not come twice
        began = time.monotonic()
        loop.run_until_complete(test())
        asyncio.run_coroutine_threadsafe(test(), client).result(20)
        loop.run_until_complete(test())
        assert time.monotonic() - began < 3 * SOON
        loop.run_until_complete(_ended())
        loop.close()
        assert asyncio.run(_after(clean, engine)) == 1
    asyncio.run(clean())
    watcher.until(0)
    client.call_soon_threadsafe(client.stop)
    thread.join(10)
    client.close()
    engines.clear()
    gc.collect()


async def _after(clean: Callable[[], Awaitable[None]], engine: Callable[[], AsyncEngine]) -> int:
    await clean()
    result = await ask(engine())
    await clean()
    return result
