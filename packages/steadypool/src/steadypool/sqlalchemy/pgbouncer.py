"""Engines behind a pooler (PgBouncer and its kind): what cannot be said at the start is said per transaction.

A pooler either refuses the settings of a start-up packet that it does not know, or it is told to ignore them and
swallows them silently. Both are noticed: the refusal by its SQLSTATE, the silence by one look at the server, once per
engine. From then on the limits travel with each transaction, as SET LOCAL right after its BEGIN: in transaction mode
nothing else stays with its client. A statement in autocommit has no transaction, so there only the client's own limit
is in force.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.util import await_only

from steadypool.connect.failure import ConnectFailure
from steadypool.connect.session_settings import milliseconds
from steadypool.settings.database import Pooler

_log = logging.getLogger("steadypool.connect")

_CHECK_INTERVAL = "client_connection_check_interval"
_EVERYWHERE = ("statement_timeout", "idle_in_transaction_session_timeout")
"""What every server can set for one transaction; the rest is about the socket, which a pooler has for itself."""

LOOK = (
    "SELECT pg_backend_pid(), (1000 * extract(epoch FROM current_setting('statement_timeout')::interval))::bigint,"
    f" current_setting('{_CHECK_INTERVAL}', true) IS NOT NULL"
)
"""Who really answers, and whether it has heard of the guards."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What `LOOK` told, beside the process that the log-in had named."""

    announced_pid: int
    pid: int
    statement_timeout: int
    knows_check_interval: bool


@dataclass
class PoolerDetector:
    """What one engine knows of what stands between it and the server.

    Args:
        mode: DATABASE_POOLER.
        settings: the guards, by name, as the server takes them.
        told: called once, with a sentence for people, when the guards cannot be set at the start.
    """

    mode: Pooler = Pooler.AUTO
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    told: Callable[[str], None] | None = None
    looked: bool = False
    behind_pooler: bool = False
    carries_two: bool = False
    """Whether it was seen to answer a statement that was sent before the one ahead of it was answered."""
    _in_transactions: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        self.behind_pooler = self.mode in (Pooler.SESSION, Pooler.TRANSACTION)

    @property
    def per_transaction(self) -> str | None:
        """SQL for the beginning of each transaction; None while the session has its guards from the start."""
        if self._in_transactions is None:
            return None
        literal = {name: value.replace("'", "''") for name, value in self._in_transactions.items()}
        return "; ".join(f"SET LOCAL {name} = '{value}'" for name, value in literal.items())

    @property
    def at_start(self) -> Mapping[str, str]:
        """The settings to log in with."""
        return self.settings if self.per_transaction is None else {}

    @property
    def settings_per_transaction(self) -> Mapping[str, str]:
        """The guards that are set in each transaction, by name; none while the session has them from the start."""
        return self._in_transactions or {}

    @property
    def keeps_statements(self) -> bool:
        """Whether what a transaction leaves in its session (a prepared statement, a setting) is there for the next."""
        return self.mode is Pooler.SESSION or not self.behind_pooler

    @property
    def one_at_a_time(self) -> bool:
        """Whether a second statement waits for the first one's answer: some poolers stop for ever where it does not."""
        return self.behind_pooler and not self.carries_two

    def beginning(self, statement_timeout: float | None = None, lock_timeout: float | None = None) -> str:
        """SQL that begins a transaction, in one flight with the limits that no session keeps.

        Args:
            statement_timeout: seconds, in place of the engine's own.
            lock_timeout: seconds that a statement may wait for a lock.
        """
        parts = ["BEGIN", self.per_transaction or ""]
        limits = {"statement_timeout": statement_timeout, "lock_timeout": lock_timeout}
        for name, seconds in limits.items():
            if seconds is not None:
                parts.append(f"SET LOCAL {name} = {milliseconds(seconds)}")
        return "; ".join(part for part in parts if part)

    async def look(self, driver: str, connection: Any, own: str) -> None:
        """Ask the first connection of the engine who answers it; the later ones are not asked.

        `own` is what the application itself sets at the start of a session: it wins over the guards.
        """
        if not self.looked and self.mode is not Pooler.NONE:
            self.saw(await _LOOKS[driver](connection), own)

    def begin(self, driver: str, adapter: Any) -> None:
        """Begin a transaction on SQLAlchemy's adapter of the driver, unless in autocommit, and set the guards in it."""
        if self.per_transaction:
            _BEGINS[driver](adapter, self.per_transaction)

    def refused(self, outcome: ConnectFailure) -> None:
        """The guards were refused at the start of a session."""
        # A server refuses what it does not know by another code; a pooler can only say "protocol violation".
        self.behind_pooler = self.behind_pooler or outcome.sqlstate == "08P01"
        self._give_up(f"refused at the start of a session ({outcome.summary})")

    def saw(self, seen: Seen, own: str = "") -> None:
        """What the look at the server showed."""
        self.looked = True
        self.behind_pooler = self.behind_pooler or seen.pid != seen.announced_pid
        wanted = self.settings.get("statement_timeout")
        if wanted is not None and "statement_timeout" not in own and str(seen.statement_timeout) != wanted:
            self._give_up("accepted at the start of a session, but not passed on")
        if self.per_transaction is not None and seen.knows_check_interval:
            self._in_transactions = self._chosen((*_EVERYWHERE, _CHECK_INTERVAL))

    def _give_up(self, why: str) -> None:
        if self.per_transaction is not None:
            return
        self._in_transactions = self._chosen(_EVERYWHERE)
        reason = (
            f"the guards of sessions ({', '.join(self.settings)}) were {why}: statement_timeout and "
            "idle_in_transaction_session_timeout are set at the beginning of each transaction instead. Statements in "
            "autocommit are limited by the client alone. A pooler that passes them on, or DATABASE_URL without the "
            "pooler, has them for all"
        )
        _log.warning("%s", reason)
        if self.told is not None:
            self.told(reason)

    def _chosen(self, names: tuple[str, ...]) -> Mapping[str, str]:
        return {name: self.settings[name] for name in names if name in self.settings}


async def _look_asyncpg(connection: Any) -> Seen:
    """Ask an asyncpg connection; in a transaction and unnamed, so that any pooler can carry it."""
    async with connection.transaction():
        statement = await connection.prepare(LOOK, name="")
        row = await statement.fetchrow()
    return Seen(connection.get_server_pid(), *row)


async def _look_psycopg(connection: Any) -> Seen:
    """Ask a psycopg connection; one flight, nothing is prepared."""
    before = connection.autocommit
    await connection.set_autocommit(True)
    cursor = connection.cursor(row_factory=_plain)
    await cursor.execute(LOOK, prepare=False)
    row = await cursor.fetchone()
    await connection.set_autocommit(before)
    return Seen(connection.pgconn.backend_pid, *row)


def _plain(_cursor: Any) -> Callable[[Any], tuple[Any, ...]]:
    return tuple


def _begin_asyncpg(adapter: Any, settings: str) -> None:
    if adapter.isolation_level == "autocommit":
        return

    async def begin() -> None:
        if adapter._transaction is None:
            await adapter._start_transaction()
        try:
            await adapter.driver_connection.execute(
                settings
            )  # by the simple protocol: one flight, nothing prepared
        except Exception as error:
            adapter._handle_exception(error)  # raises the adapter's name for it
            raise

    await_only(begin())


def _begin_psycopg(adapter: Any, settings: str) -> None:
    if not adapter.autocommit:
        cursor = adapter.cursor()
        cursor.execute(settings)
        cursor.close()


_LOOKS: Mapping[str, Callable[[Any], Awaitable[Seen]]] = {"asyncpg": _look_asyncpg, "psycopg": _look_psycopg}
_BEGINS: Mapping[str, Callable[[Any, str], None]] = {"asyncpg": _begin_asyncpg, "psycopg": _begin_psycopg}
