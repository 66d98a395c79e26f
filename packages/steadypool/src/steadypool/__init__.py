"""steadypool: a Postgres connection layer for async Python where nothing hangs, nothing is lost, and every
failure has a name.

The parts that need SQLAlchemy or pydantic are imported when they are first used: errors and deadlines work without
them, and importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from steadypool.deadline import deadline
from steadypool.errors import (
    CommitUnknown,
    ConcurrentTransaction,
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    ConnectTimeout,
    DatabaseUnavailable,
    DeadlineExceeded,
    HeartbeatMissed,
    HookFailed,
    InvalidText,
    NotificationsBlocked,
    NotMultiplexable,
    PoolClosed,
    PoolQueueFull,
    PoolTimeout,
    ResultTooLarge,
    StatementTimeout,
    SteadypoolError,
    TransactionRolledBack,
    WrongEventLoop,
)

if TYPE_CHECKING:
    from steadypool.database.database import Database
    from steadypool.settings.database import DatabaseSettings

__all__ = [
    "CommitUnknown",
    "ConcurrentTransaction",
    "ConfigurationError",
    "ConnectFailed",
    "ConnectTimeout",
    "ConnectionLost",
    "Database",
    "DatabaseSettings",
    "DatabaseUnavailable",
    "DeadlineExceeded",
    "HeartbeatMissed",
    "HookFailed",
    "InvalidText",
    "NotMultiplexable",
    "NotificationsBlocked",
    "PoolClosed",
    "PoolQueueFull",
    "PoolTimeout",
    "ResultTooLarge",
    "StatementTimeout",
    "SteadypoolError",
    "TransactionRolledBack",
    "WrongEventLoop",
    "deadline",
]


_LATER = {"Database": "steadypool.database", "DatabaseSettings": "steadypool.settings"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
