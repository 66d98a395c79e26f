"""PgBouncer's admin console: which mode its pools have, and when it ends what.

The console is a database of the name `pgbouncer` at the pooler's own address. Only `admin_users` and `stats_users`
are let in, and it knows the simple query protocol alone (PgBouncer's manual, "Admin console").
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg.rows import dict_row

from steadypool.connect.dsn import ConnectTarget, Host
from steadypool.connect.psycopg import open_psycopg
from steadypool.connect.psycopg_connection import SteadyAsyncConnection
from steadypool.errors import SteadypoolError, words_of
from steadypool.settings.database import Password

CONSOLE = "pgbouncer"
LONGEST = 2.0
"""Seconds for all of it: the log-in and three small answers."""
NOT_FOR_THE_CONSOLE = ("options", "target_session_attrs")
"""What would set or ask something of a server, and there is none behind the console."""


@dataclass(frozen=True, slots=True)
class PoolerConfig:
    """What PgBouncer says of itself. Times are seconds; 0 means that there is no such limit.

    `pool_mode` is the one for our database and user, where they have their own.
    """

    pool_mode: str
    server_lifetime: float
    server_idle_timeout: float
    client_idle_timeout: float
    query_wait_timeout: float


@dataclass(frozen=True, slots=True)
class ConsoleClosed:
    """The console told us nothing: `why` not, and which `user` would have to be let in."""

    why: str
    user: str

    def __str__(self) -> str:
        return (
            f"its console tells us nothing ({self.why}); PgBouncer's would by "
            f"stats_users = {self.user} in pgbouncer.ini"
        )


async def read_console(
    by_way_of: psycopg.AsyncConnection[Any],
    target: ConnectTarget,
    *,
    within: float,
    password: Password | None = None,
) -> PoolerConfig | ConsoleClosed:
    """Ask the pooler that a connection goes through. Never fails: whoever is refused is told why.

    Args:
        by_way_of: the connection; the console is where it went.
        target: how it was opened.
        within: seconds; never more than `LONGEST`.
        password: as for `open_psycopg`.
    """
    info = by_way_of.info
    console = replace(
        target,
        hosts=(Host(info.host, info.port, info.hostaddr or None),),
        database=CONSOLE,
        options={name: value for name, value in target.options.items() if name not in NOT_FOR_THE_CONSOLE},
    )
    limit = min(LONGEST, within)
    try:
        async with asyncio.timeout(limit):
            connection = await open_psycopg(
                console,
                timeout=limit,
                password=password,
                autocommit=True,
                prepare_threshold=None,
                row_factory=dict_row,
                fallback_application_name="steadypool doctor",
            )
            try:
                return await _config(connection, info.dbname, info.user)
            finally:
                await connection.close()
    except (SteadypoolError, psycopg.Error, TimeoutError, LookupError, ValueError) as error:
        why = f"no answer within {limit:g} s" if type(error) is TimeoutError else words_of(error)
        return ConsoleClosed(" ".join(why.split()), info.user)


async def _config(connection: SteadyAsyncConnection[Any], database: str, user: str) -> PoolerConfig:
    said = {row["key"]: row["value"] for row in await _shown(connection, b"SHOW CONFIG")}
    modes = [
        row["pool_mode"]
        for statement, name in ((b"SHOW USERS", user), (b"SHOW DATABASES", database))
        for row in await _shown(connection, statement)
        if row["name"] == name and row["pool_mode"]
    ]
    return PoolerConfig(
        pool_mode=[*modes, said["pool_mode"]][0],
        server_lifetime=float(said["server_lifetime"]),
        server_idle_timeout=float(said["server_idle_timeout"]),
        client_idle_timeout=float(said["client_idle_timeout"]),
        query_wait_timeout=float(said["query_wait_timeout"]),
    )


async def _shown(connection: SteadyAsyncConnection[Any], statement: bytes) -> list[dict[str, Any]]:
    """Without arguments, psycopg sends a statement by the simple protocol."""
    return await (await connection.execute(statement, prepare=False)).fetchall()
