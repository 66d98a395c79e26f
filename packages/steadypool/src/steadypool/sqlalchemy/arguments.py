"""The arguments of an engine that are ours: limits in seconds, words, and what a configuration file says in text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy.util import asbool

from steadypool.errors import ConfigurationError
from steadypool.pool.lease import PoolOptions

DEFAULT_CONNECTION_TIMEOUT = 30.0
"""Seconds that connecting may take where nothing says otherwise: as long as SQLAlchemy's pool waits."""

NO_LIMIT = 86_400.0
"""Seconds that stand for "no limit" where there has to be one."""

LEAST_CONNECT_WAIT = 1.0
"""Seconds that a caller waits for a connect, however short its `pool_timeout` is."""

Word = TypeVar("Word", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of an engine, in seconds; None for none.

    `connect_wait` is how long a caller waits for a connect; None for the longer of `pool_timeout` and `connect`.
    """

    connect: float
    connect_wait: float | None
    statement: float | None
    leave: float
    leak_after: float | None
    idle: float | None
    ping_after_idle: float
    close_grace: float

    def pool_options(self, max_waiting: int, max_connecting: int, *, retry_connects: bool) -> PoolOptions:
        """The options of a pool with these limits."""
        return PoolOptions(
            connect_timeout=self.connect,
            connect_wait=self.connect_wait,
            retry_connects=retry_connects,
            ping_after_idle=self.ping_after_idle,
            leave_timeout=self.leave,
            max_waiting=max_waiting,
            max_connecting=max_connecting,
            close_grace=self.close_grace,
            leak_after=self.leak_after,
            idle_timeout=self.idle,
        )


def limits_of(connect_args: Mapping[str, Any], **given: Any) -> Limits:
    """The limits that an engine was given by its arguments, and by the drivers' own names for a connect's.

    Args:
        connect_args: the driver's, where `timeout` is asyncpg's and `connect_timeout` libpq's name.
        **given: the engine's, by name; 0 means no limit.

    Raises:
        ConfigurationError: one is negative, or no number.
    """
    drivers = {name: connect_args[name] for name in ("timeout", "connect_timeout") if name in connect_args}
    limits = {name: _checked(name, value) for name, value in {**given, **drivers}.items()}
    own = next((limits[name] for name in ("connection_timeout", *drivers) if limits[name] is not None), None)
    wait = limits["pool_timeout"]
    return Limits(
        connect=DEFAULT_CONNECTION_TIMEOUT if own is None else own or NO_LIMIT,
        connect_wait=None if own is not None or wait is None else max(wait, LEAST_CONNECT_WAIT),
        statement=limits["statement_timeout"] or None,
        leave=limits["leave_timeout"] or NO_LIMIT,
        leak_after=limits["leak_after"] or None,
        idle=limits["idle_timeout"] or None,
        ping_after_idle=limits["ping_after_idle"] or 0.0,
        close_grace=limits["close_grace"] or 0.0,
    )


def _checked(name: str, value: Any) -> float | None:
    try:
        seconds = None if value is None else float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if seconds is not None and not seconds >= 0:
        raise ConfigurationError(f"{name}={value!r}: allowed: seconds, 0 or more")
    return seconds


def chosen(kind: type[Word], name: str, value: str) -> Word:
    """The member of `kind` that an argument names.

    Raises:
        ConfigurationError: there is none.
    """
    try:
        return kind(value)
    except ValueError:
        raise ConfigurationError(f"{name}={value!r}: allowed: {', '.join(kind)}") from None


_SECONDS = frozenset(
    {"connection_timeout", "statement_timeout", "ping_after_idle", "close_grace", "leak_after", "idle_timeout",
     "leave_timeout"}
)  # fmt: skip
_COUNTS = frozenset({"max_waiting", "max_connecting"})


def coerced(name: str, value: str) -> Any:
    """Text of a configuration as the argument of ours that it is for; SQLAlchemy's own it coerces itself."""
    kinds: dict[str, Callable[[str], Any]] = {
        **dict.fromkeys(_SECONDS, float),
        **dict.fromkeys(_COUNTS, int),
        "breaker": asbool,
        "pool_pre_ping": lambda text: text if text == "select1" else asbool(text),
    }
    convert = kinds.get(name)
    try:
        return value if convert is None else convert(value)
    except ValueError as error:
        raise ConfigurationError(f"{name}={value!r}: {error}") from None
