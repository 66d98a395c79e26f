"""How a listener behaves, and how it is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

from steadypool.errors import ConfigurationError


class ListenerState(StrEnum):
    """How the listener is."""

    IDLE = "idle"
    """Nobody has subscribed yet."""
    STARTING = "starting"
    """It connects for the first time."""
    CONNECTED = "connected"
    """It hears, and every subscriber was there when it began has been asked to catch up."""
    RECONNECTING = "reconnecting"
    """It heard, and connects again."""
    DEAF = "deaf"
    """It is connected to something that does not pass notifications on: a transaction pooler."""
    DORMANT = "dormant"
    """It let go of its connection so that the database may sleep; the next request wakes it."""
    CLOSED = "closed"
    """It was closed."""


@dataclass(frozen=True, slots=True)
class ListenerOptions:
    """How the listener behaves. Seconds.

    Silence is noticed within `heartbeat_interval` + `heartbeat_timeout`. `dormant_after` of None keeps the heartbeat
    going for ever. With a number it only goes along with the application's own use of the database: nothing is sent
    to a server that is idle, and after that many seconds without use or notifications the connection is given up
    until there is use again.

    Raises:
        ConfigurationError: one of them is not above zero.
    """

    connect_timeout: float = 15.0
    heartbeat_interval: float = 5.0
    heartbeat_timeout: float = 2.0
    catch_up_timeout: float = 15.0
    dormant_after: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise ConfigurationError(f"ListenerOptions {field.name}={value!r}: allowed: seconds above 0")


@dataclass(frozen=True, slots=True)
class ListenerStats:
    """The listener at one moment; times in seconds, None where there was none yet.

    `lag` is how long the last heartbeat took, or how long the one on its way has taken if that is more. `silent_for`
    is how long ago anything was heard. `behind` counts subscribers that do not hear yet, or have not caught up;
    `waiting` and `dropped` count notifications, `connects` and `gaps` are totals.
    """

    state: ListenerState
    channels: tuple[str, ...]
    subscribers: int
    behind: int
    lag: float | None
    silent_for: float | None
    connects: int
    gaps: int
    waiting: int
    dropped: int
    last_error: str | None
