"""A small service with the live page, and its troubles on demand: in a thread of its own, with its own event loop.

The browser's tests look at it, and `scripts/screenshots.py` takes the documentation's pictures of it.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import uvicorn
from fastapi import FastAPI
from sqlalchemy import text

from steadypool import Database, DatabaseSettings, deadline
from steadypool.errors import SteadypoolError
from steadypool.fastapi import install, lifespan
from steadypool.fastapi.dashboard import DashboardPage, dashboard
from steadypool_lab import FaultProxy
from steadypool_lab.network.proxy import Mode

T = TypeVar("T")

SLOW = "select pg_sleep(:seconds), 'report' as slow_report"
QUICK = (
    "select id, title from (values (1, 'First Light'), (2, 'Ten and Five')) tracks (id, title) where id = :id"
)


class Troubled:
    """The service: four connections and two more, of which reports and exports take what they can get."""

    def __init__(self, postgres_url: str, **settings: Any) -> None:
        self._postgres = urlsplit(postgres_url)
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._failed: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""
        self.database: Database
        self.proxy: FaultProxy

    def run(self) -> None:
        """The thread."""
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:  # noqa: BLE001 - whoever waits for it is told
            self._failed = error
        finally:
            self._ready.set()
            self._loop.close()

    async def _serve(self) -> None:
        async with AsyncExitStack() as stack:
            parts = self._postgres
            self.proxy = await stack.enter_async_context(FaultProxy(parts.hostname or "", parts.port or 0))
            netloc = f"{parts.netloc.rpartition(':')[0]}:{self.proxy.port}"
            values = {
                "pool_size": 4, "max_overflow": 2, "pool_timeout": 4, "connection_timeout": 4, "statement_timeout": 8,
                "leak_after": 2, "alert_after": 3, "dashboard": "loopback",
            }  # fmt: skip
            settings = DatabaseSettings(
                url=urlunsplit(parts._replace(netloc=netloc)), **(values | self._settings)
            )
            self.database = Database(settings)
            self.database.workload("exports", statement_timeout=30, max_connections=2)
            app = FastAPI(lifespan=lifespan(self.database))
            install(app, self.database)
            page = dashboard(app, self.database)
            await stack.enter_async_context(self._listening(app, page))
            self._ready.set()
            await self._stop.wait()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    @asynccontextmanager
    async def _listening(self, app: FastAPI, page: DashboardPage) -> AsyncIterator[None]:
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
        serving = asyncio.create_task(server.serve([listener]))
        while not server.started:
            assert not serving.done(), serving
            await asyncio.sleep(0.01)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield
        page.end_streams()
        server.should_exit = True
        await serving

    # -- for the other thread ----------------------------------------------------------------------------------------

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Have something done in the service's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def started(self) -> None:
        """Wait until requests are answered."""
        self._ready.wait(60)
        if self._failed is not None:
            raise self._failed

    def stop(self) -> None:
        """End it all."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)

    def now(self) -> float:
        """Seconds since 1970, as the recorder sees it."""
        return self.database.recorder.now

    def network(self, mode: Mode) -> None:
        """What the network before the database does from now on."""

        async def change() -> None:
            self.proxy.mode = mode

        self.do(change())

    def ask(
        self,
        name: str,
        statement: str = QUICK,
        *,
        workload: str | None = None,
        hold: float = 0.0,
        again: bool = False,
        **values: Any,
    ) -> asyncio.Event:
        """A request begins: one statement, and the connection kept for `hold` seconds after it. The event says that
        the statement was executed. With `again` a request that fails is made again, until `relieve`."""

        async def begin() -> asyncio.Event:
            return self._begin(name, statement, workload, hold, values, again=again)

        return self.do(begin())

    def _begin(
        self,
        name: str,
        statement: str,
        workload: str | None,
        hold: float,
        values: dict[str, Any],
        *,
        again: bool = False,
    ) -> asyncio.Event:
        executed = asyncio.Event()

        async def request() -> None:
            while not executed.is_set():
                try:
                    with deadline(10):
                        async with self.database.session(workload=workload) as session:
                            await session.execute(text(statement), values or {"id": 1})
                            executed.set()
                            await asyncio.sleep(hold)
                except SteadypoolError:
                    if not again:  # that is what the page shows
                        break

        task = asyncio.get_running_loop().create_task(request(), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return executed

    def relieve(self) -> None:
        """All requests end."""

        async def end() -> None:
            requests = [task for task in self._tasks if not task.done()]
            for task in requests:
                task.cancel()
            await asyncio.gather(*requests, return_exceptions=True)

        self.do(end())

    @contextmanager
    def crowded(self) -> Generator[None]:
        """A crowd that stays while the block runs: who is turned away comes again."""
        self.crowd(seconds=60, again=True)
        try:
            yield
        finally:
            self.relieve()

    def crowd(self, seconds: float = 4.0, waiting: int = 9, *, again: bool = False) -> None:
        """Reports and an export take all connections for so many seconds, and requests wait."""
        for number in range(5):
            self.ask(f"GET /reports/{number}", SLOW, again=again, seconds=seconds)
        export = "select 1 as export_begins"
        self.ask("POST /exports/7", export, workload="exports", hold=seconds, again=again)
        for number in range(waiting):
            self.ask(f"GET /tracks/{number}", again=again)

    def leak(self, seconds: float) -> None:
        """All connections are taken and kept for so long, without anything to do for them; one request waits."""
        for _ in range(6):
            self.ask("GET /leaky", "select 1 as leaked", hold=seconds)
        self.ask("GET /tracks/1")

    def lock(self, seconds: float) -> None:
        """A request changes a row and keeps its transaction open for so long; three others want to change it too."""
        self.do(self._make_plays())
        change = "update plays set count = count + 1 where id = :id"
        self.do(self.ask("PUT /titles/1", change, hold=seconds, id=1).wait())
        for number in range(3):
            self.ask(f"POST /plays/{number}", change, id=1)

    async def _make_plays(self) -> None:
        async with self.database.connection() as connection:
            await connection.execute("create table if not exists plays (id int primary key, count int)")
            await connection.execute("insert into plays values (1, 0) on conflict do nothing")

    def doze(self, seconds: float) -> None:
        """The database is asleep: whoever wants to connect gets no answer for so long."""

        async def fall_asleep() -> None:
            self.proxy.drop_all(reset=True)
            self.proxy.mode = Mode.SILENT

        self.do(fall_asleep())
        for number in range(3):
            self.ask(f"GET /tracks/{number}")
        time.sleep(seconds)
        self.network(Mode.PASS)

    def block_the_loop(self, seconds: float) -> None:
        """Something runs on the event loop that does not await."""

        async def block() -> None:
            time.sleep(seconds)  # noqa: ASYNC251 - that is the trouble

        self.do(block())

    def trickle(self, seconds: float) -> None:
        """Quick requests, twenty a second, for so long; returns when they were made."""
        self.do(self._trickle(seconds))

    def keep_trickling(self, seconds: float) -> None:
        """The same, in the background."""

        async def begin() -> None:
            task = asyncio.get_running_loop().create_task(self._trickle(seconds))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self.do(begin())

    async def _trickle(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            self._begin("GET /tracks/1", QUICK, None, 0.0, {})
            await asyncio.sleep(0.05)


@contextmanager
def troubled_service(postgres_url: str, **settings: Any) -> Generator[Troubled]:
    """The service while the block runs."""
    service = Troubled(postgres_url, **settings)
    thread = threading.Thread(target=service.run, name="troubled")
    thread.start()
    try:
        service.started()
        yield service
    finally:
        service.stop()
        thread.join(60)
