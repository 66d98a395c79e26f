"""What a destination may ask, beside the events that it is sent: the numbers of one pool at this moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from steadypool.events import Events


@dataclass(frozen=True, slots=True)
class ListenerInfo:
    """The listener at one moment.

    `connected` is whether it hears, `gaps` how many its subscribers were told of so far, `deaf` whether it is connected
    to something that does not pass notifications on.
    """

    connected: bool
    gaps: int
    deaf: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """One pool, as `Database.source` or `steadypool.sqlalchemy.source_of(engine)` describes it.

    All functions may be called from any thread: exporters have their own.
    """

    name: str
    driver: str
    events: Events
    connections: Callable[[], Mapping[str, int]]
    """How many connections are `used`, `idle`, `opening` and `closing`."""
    waiting: Callable[[], int]
    """Callers who wait."""
    size: Callable[[], int]
    """Connections that are kept open."""
    limit: Callable[[], int | None]
    """The most connections there may be; None for no limit."""
    breaker_open: Callable[[], bool]
    loop_lag: Callable[[], float] | None = None
    """By how many seconds the event loop is late."""
    listener: Callable[[], ListenerInfo | None] | None = None
    collateral: Callable[[], int] | None = None
    """Statements that failed on a shared connection because of another caller's, so far."""
