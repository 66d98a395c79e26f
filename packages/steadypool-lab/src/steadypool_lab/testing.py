"""A pytest plugin: a real Postgres for the session, a fresh database for each test, faults as fixtures.

Switch it on in the top `conftest.py` with `pytest_plugins = ["steadypool_lab.testing"]`. Async fixtures and tests are
run by anyio's plugin. It needs `steadypool-lab[pytest]`.

| fixture | what it is |
| --- | --- |
| `server` | the session's `EmbeddedPostgres`; shared, so a test never stops or restarts it |
| `database_url` | `postgresql://…` of a database of the test's own, dropped afterwards |
| `private_server` | an `EmbeddedPostgres` of the test's own, to kill and restart |
| `proxy` | a `FaultProxy` before `server` |
| `proxied_url` | `database_url` through `proxy` |
| `pg` | an `Observer` of the test's database: what the server knows, over a connection that bypasses the proxy |
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from steadypool_lab import EmbeddedPostgres, FaultProxy

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Backend:
    """One row of pg_stat_activity: a connection as the server sees it."""

    pid: int
    state: str | None
    query: str
    application_name: str


class Observer:
    """Looks at one database from outside, over a connection of its own that the database does not count.

    Made by the fixture `pg`, or by `Observer.connect(url)` for a database elsewhere.

    Example:
        async def test_closes_its_connections(pg, database_url):
            ...
            await pg.wait_until(pg.is_quiet)
    """

    def __init__(self, connection: psycopg.AsyncConnection[tuple[Any, ...]], database: str) -> None:
        self._connection = connection
        self.database = database

    @classmethod
    async def connect(cls, url: str) -> Observer:
        """Observe the database of that URL; close it with `close()`."""
        connection = await psycopg.AsyncConnection.connect(
            _with_database(url, "postgres"), autocommit=True, application_name="steadypool-observer"
        )
        return cls(connection, urlsplit(url).path.lstrip("/"))

    async def close(self) -> None:
        """End the connection."""
        await self._connection.close()

    async def fetch(self, statement: LiteralString, *arguments: object) -> list[tuple[Any, ...]]:
        """Run a statement on the server (in the database `postgres`), placeholders `%s`, and return its rows."""
        cursor = await self._connection.execute(statement, arguments)
        return await cursor.fetchall() if cursor.description else []

    async def backends(self) -> list[Backend]:
        """Who is connected to the database, in the order of connecting."""
        rows = await self.fetch(
            "select pid, state, query, application_name from pg_stat_activity"
            " where datname = %s and backend_type = 'client backend' and pid <> pg_backend_pid()"
            " order by backend_start, pid",
            self.database,
        )
        return [Backend(*row) for row in rows]

    async def is_quiet(self) -> bool:
        """Whether nobody is connected to the database."""
        return not await self.backends()

    async def terminate(self, *pids: int) -> None:
        """End these backends, or all of the database when none is named; they say 57P01 to their clients."""
        chosen: Sequence[int] = pids or [backend.pid for backend in await self.backends()]
        await self.fetch("select pg_terminate_backend(pid) from unnest(%s::int[]) pid", list(chosen))

    async def wait_until(self, condition: Callable[[], Awaitable[object]], *, seconds: float = 10.0) -> None:
        """Ask again and again until the condition holds; fail with what the server shows when it never does."""
        end = asyncio.get_running_loop().time() + seconds
        while not await condition():
            if asyncio.get_running_loop().time() > end:
                seen = "\n  ".join(map(str, await self.backends())) or "nobody"
                name = getattr(condition, "__qualname__", repr(condition))
                pytest.fail(
                    f"{name} did not hold within {seconds} s; connected to {self.database}:\n  {seen}"
                )
            await asyncio.sleep(0.01)


def _with_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def _through(url: str, port: int) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{port}"))


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedPostgres]:
    """The Postgres server of this test run; shared, so never stopped or restarted by a test."""
    server = EmbeddedPostgres.temporary()
    server.blocking.start()
    yield server
    server.blocking.close()


class Databases:
    """Empty databases. One in which no more than tables was left is handed out again: making one takes longer than most
    tests."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server
        self._spare: list[str] = []

    def take(self) -> str:
        """The name of one that nobody else has."""
        if self._spare:
            return self._spare.pop()
        name = f"test_{os.getpid()}_{next(_numbers)}"
        self._server.blocking.create_database(name)
        return name

    def give_back(self, name: str) -> None:
        """Whoever is still connected is cut off, and tables are dropped; what then is not as it was made is dropped."""
        if self._is_as_made(name):
            self._spare.append(name)
        else:
            self._server.blocking.drop_database(name)

    def _is_as_made(self, name: str) -> bool:
        try:
            with psycopg.connect(_with_database(self._server.url, name), autocommit=True) as connection:
                if not _cut_off(connection):
                    return False
                connection.execute("set lock_timeout = '1s'")  # nobody is there but prepared transactions
                connection.execute(_DROP_TABLES)
                empty = connection.execute(_IS_EMPTY.encode()).fetchone()
                connection.execute("select pg_stat_reset()")  # what was counted there was another test's
                _leave(connection)
        except psycopg.Error:
            return False  # the test let nobody in any more
        return empty == (True,)


def _cut_off(connection: psycopg.Connection[tuple[Any, ...]], patience: float = 5.0) -> bool:
    """End all others in the database; whether they are gone. The server itself would wait in steps of 0.1 s."""
    end = time.monotonic() + patience
    while connection.execute(_TERMINATE).fetchall():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def _leave(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    """Be gone before the next test looks who is connected: the server's end of the line is open as long as the backend,
    which outlives the client's end by a moment."""
    with socket.socket(fileno=os.dup(connection.fileno())) as line:
        connection.close()
        line.settimeout(5.0)
        with contextlib.suppress(ConnectionResetError):
            while line.recv(1024):
                pass


_TERMINATE = """
    select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid()
"""
_DROP_TABLES = """
    do $$ declare name text; begin
        for name in select oid::regclass from pg_class
            where relnamespace = 'public'::regnamespace and relkind in ('p', 'r')
        loop
            execute 'drop table if exists ' || name || ' cascade';
        end loop;
    end $$
"""
_IS_EMPTY = f"""
    select {
    " and ".join(
        f"not exists (select from {catalog} where oid >= 16384 and {where})"
        for catalog, where in {
            "pg_class": "relpersistence <> 't'",
            "pg_namespace": "nspname !~ '^pg_(toast_)?temp_'",
            "pg_type": "typrelid = 0 and typelem = 0",
            "pg_proc": "true",
            "pg_operator": "true",
            "pg_collation": "true",
            "pg_default_acl": "true",
            "pg_extension": "true",
            "pg_foreign_server": "true",
            "pg_publication": "true",
            "pg_event_trigger": "true",
            "pg_largeobject_metadata": "true",
        }.items()
    )
}
        and not exists (select from pg_prepared_xacts where database = current_database())
        and not exists (select from pg_replication_slots where database = current_database())
        and exists (
            select from pg_database d where datname = current_database() and datacl is null and datconnlimit = -1
            and not exists (select from pg_db_role_setting where setdatabase = d.oid)
            and (select count(*) from pg_namespace where nspname = 'public') = 1
        )
"""
"""Objects made after initdb have numbers from 16384 on (FirstNormalObjectId in PostgreSQL's transam.h)."""


@pytest.fixture(scope="session")
def databases(server: EmbeddedPostgres) -> Databases:
    """The databases of this test run."""
    return Databases(server)


@pytest.fixture
def database_url(server: EmbeddedPostgres, databases: Databases) -> Iterator[str]:
    """The URL, without a driver, of an empty database that only this test uses."""
    name = databases.take()
    yield _with_database(server.url, name)
    databases.give_back(name)


@pytest.fixture
async def private_server(anyio_backend: object) -> AsyncIterator[EmbeddedPostgres]:
    """A Postgres server that only this test uses, to stop, kill and restart at will."""
    async with EmbeddedPostgres.temporary() as server:
        yield server


@pytest.fixture
async def proxy(server: EmbeddedPostgres, anyio_backend: object) -> AsyncIterator[FaultProxy]:
    """A network that can fail, before the shared server."""
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        yield proxy


@pytest.fixture
def proxied_url(database_url: str, proxy: FaultProxy) -> str:
    """`database_url` by way of `proxy`."""
    return _through(database_url, proxy.port)


@pytest.fixture
async def pg(database_url: str, anyio_backend: object) -> AsyncIterator[Observer]:
    """An observer of the test's database."""
    observer = await Observer.connect(database_url)
    yield observer
    await observer.close()
