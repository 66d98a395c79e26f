"""What the checks share: the settings, one connection that can only read, and how much time is left."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg.rows import namedtuple_row

from steadypool._clock import SYSTEM_CLOCK, Clock
from steadypool.cli.doctor.console import ConsoleClosed, PoolerConfig, read_console
from steadypool.connect.dsn import ConnectTarget, parse_url
from steadypool.connect.failure import ConnectFailure
from steadypool.connect.psycopg import open_psycopg
from steadypool.connect.psycopg_connection import SteadyAsyncConnection
from steadypool.connect.session_settings import session_guards, socket_guards
from steadypool.errors import ConnectFailed, SteadypoolError, words_of
from steadypool.settings.database import DatabaseSettings

STATEMENT_LIMIT = "SET LOCAL statement_timeout = '5s'; SET LOCAL lock_timeout = '500ms'"
MARK = "/* steadypool doctor */"
"""Ends each query, so that the doctor does not take its own for the service's; what precedes one is not recorded."""
CLIENTS: LiteralString = "(backend_type = 'client backend' OR (backend_type IS NULL AND usename IS NOT NULL))"
"""Sessions of clients; of other roles' a role without rights is not told what they are."""
PINGS = 5


class NoConnection(Exception):
    """There is no connection to ask over."""


@dataclass
class CheckContext:
    """One look at one database.

    Args:
        settings: where it is, and how the service would use it.
        processes: how many processes of the service use these settings at the same time.
        migrations: Alembic's script location, if the service has migrations.
        clock: what measures times.
        today: for what expires.
    """

    settings: DatabaseSettings
    processes: int = 1
    migrations: Path | None = None
    clock: Clock = SYSTEM_CLOCK
    today: datetime = field(default_factory=lambda: datetime.now(UTC))

    deadline: float = 30.0
    """Seconds for all of it."""
    handshakes: dict[str, float | str] = field(default_factory=dict[str, "float | str"])
    """What each address said to a TCP handshake: seconds, or why not."""
    logged_in_after: float = 0.0
    """Seconds that the log-in took, TCP and TLS included."""
    guards_refused: ConnectFailure | None = None
    failure: SteadypoolError | None = None

    _connection: SteadyAsyncConnection[Any] | None = None
    _lost: str = ""
    _started: float | None = None
    _round_trip: float | None = None
    _signs_of_pooler: tuple[str, ...] | None = None
    _pooler_config: PoolerConfig | ConsoleClosed | None = None

    def start(self) -> None:
        """The time runs from now on."""
        self._started = self.clock.monotonic()

    @property
    def left(self) -> float:
        """Seconds left."""
        started = self.clock.monotonic() if self._started is None else self._started
        return max(0.0, started + self.deadline - self.clock.monotonic())

    @property
    def target(self) -> ConnectTarget:
        """Where the service connects to. Raises ConfigurationError where that is nowhere."""
        return parse_url(self.settings.require_url())

    async def connection(self) -> SteadyAsyncConnection[Any]:
        """The one connection, opened when it is first needed.

        Raises:
            NoConnection: it could not be opened, or was lost; `failure` says why it could not.
        """
        if self._connection is not None:
            return self._connection
        if self.failure is not None or self._lost:
            raise NoConnection(self._lost or "no connection")
        began = self.clock.monotonic()
        try:
            self._connection = await open_psycopg(
                self.target,
                timeout=min(self.settings.connection_timeout, max(self.left, 0.1)),
                guards=session_guards(self.settings),
                socket_options=socket_guards(self.settings),
                password=self.settings.password,
                on_guards_refused=self._refused,
                autocommit=True,
                prepare_threshold=None,
                row_factory=namedtuple_row,
                fallback_application_name="steadypool doctor",
            )
        except SteadypoolError as error:
            self.failure = error
            raise NoConnection(words_of(error)) from error
        self.logged_in_after = self.clock.monotonic() - began
        return self._connection

    def _refused(self, outcome: ConnectFailure) -> None:
        self.guards_refused = outcome

    def lose(self, why: str) -> None:
        """It did not answer: nobody asks it again."""
        self._lost = why
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    async def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def rows(self, sql: LiteralString | bytes, *arguments: object) -> list[Any]:
        """The rows of one query, in a transaction of its own that can only read and holds nothing up.

        Raises:
            NoConnection: there is none.
            psycopg.Error: the server refused.
        """
        connection = await self.connection()
        try:
            await connection.execute(f"BEGIN READ ONLY; {STATEMENT_LIMIT}")
            try:
                text = (sql if isinstance(sql, bytes) else sql.encode()) + f"\n{MARK}".encode()
                cursor = await connection.execute(text, arguments or None, prepare=False)
                return await cursor.fetchall() if cursor.description else []
            finally:
                if not connection.closed:
                    await connection.execute("ROLLBACK")
        except psycopg.OperationalError as error:
            if not connection.closed:
                raise
            self.lose(f"the connection was lost: {str(error).partition(chr(10))[0]}")
            raise NoConnection(self._lost) from error

    async def row(self, sql: LiteralString | bytes, *arguments: object) -> Any:
        """The one row of a query that has one."""
        return (await self.rows(sql, *arguments))[0]

    async def round_trip(self) -> float:
        """Seconds from a statement that does nothing to its answer: the median of a few."""
        if self._round_trip is None:
            connection, times = await self.connection(), list[float]()
            for _ in range(PINGS):
                began = self.clock.monotonic()
                await connection.execute("SELECT 1", prepare=False)
                times.append(self.clock.monotonic() - began)
            self._round_trip = statistics.median(times)
        return self._round_trip

    async def signs_of_pooler(self) -> tuple[str, ...]:
        """What says that a pooler stands before the server; nothing where none does."""
        if self._signs_of_pooler is None:
            connection = await self.connection()
            announced = connection.pgconn.backend_pid
            answering = {(await self.row("SELECT pg_backend_pid() AS pid")).pid for _ in range(3)}
            signs: list[str] = []
            if answering != {announced}:
                pids = ", ".join(map(str, sorted(answering)))
                signs.append(f"the log-in named process {announced}, {pids} answered")
            if self.guards_refused is not None and self.guards_refused.sqlstate == "08P01":
                signs.append(f"settings at the start were refused: {self.guards_refused.summary}")
            self._signs_of_pooler = tuple(signs)
        return self._signs_of_pooler

    async def pooler_config(self) -> PoolerConfig | ConsoleClosed | None:
        """What the pooler says of itself, or why it does not; None where none stands before the server."""
        if self._pooler_config is None and await self.signs_of_pooler():
            connection = await self.connection()
            self._pooler_config = await read_console(
                connection, self.target, within=self.left, password=self.settings.password
            )
        return self._pooler_config

    @property
    def final_failure(self) -> bool:
        """Whether connecting again cannot help."""
        return isinstance(self.failure, ConnectFailed) and self.failure.final


def milliseconds_text(seconds: float) -> str:
    """For people: `0.4 ms`, `12 ms`, `3.2 s`.

    Example:
        >>> milliseconds_text(0.0123), milliseconds_text(3.21)
        ('12 ms', '3.2 s')
    """
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


def bytes_text(count: float) -> str:
    """For people: `340 kB`, `12 MB`, `3.1 GB`."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GB"
