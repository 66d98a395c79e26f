"""steadypool: a Postgres connection layer for async Python where nothing hangs, nothing is lost, and every
failure has a name.

The parts that need SQLAlchemy are imported when they are first used, so that errors, settings and deadlines work
without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steadypool.deadline import deadline
from steadypool.errors import (
    CommitUnknown,
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    ConnectTimeout,
    DatabaseUnavailable,
    DeadlineExceeded,
    PoolClosed,
    PoolQueueFull,
    PoolTimeout,
    StatementTimeout,
    SteadypoolError,
    TransactionRolledBack,
    WrongEventLoop,
)
from steadypool.settings import DatabaseSettings

if TYPE_CHECKING:
    from steadypool.database import Database

__all__ = [
    "CommitUnknown",
    "ConfigurationError",
    "ConnectFailed",
    "ConnectTimeout",
    "ConnectionLost",
    "Database",
    "DatabaseSettings",
    "DatabaseUnavailable",
    "DeadlineExceeded",
    "PoolClosed",
    "PoolQueueFull",
    "PoolTimeout",
    "StatementTimeout",
    "SteadypoolError",
    "TransactionRolledBack",
    "WrongEventLoop",
    "deadline",
]


def __getattr__(name: str) -> Any:
    if name == "Database":
        from steadypool.database import Database

        return Database
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
