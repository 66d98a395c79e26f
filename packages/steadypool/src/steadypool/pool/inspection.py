"""Each connection of a pool and each caller who waits, at one moment, as frozen facts. Pure.

`errors.PoolSnapshot` counts and goes into errors; this is what a status page shows, made only when it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

SHARED = "shared statements"
"""The holder of a connection over which statements of many callers travel."""


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """One connection. Times are seconds up to the moment of the census.

    `number` counts connects of this pool from 1. `state` is one of `EntryState`'s values (opening, stuck, idle,
    proving, silent, leased, resetting, closing), `seconds` how long it is in it. `age` and `proven`, since it was
    opened and since the server last answered on it, are None while it is being opened. `suspect` means that it has
    to prove itself before somebody gets it. `leases` is how often somebody has had it. `holder` is the endpoint or
    task that has it, with its `workload`; None where nobody has. `statement` is the fingerprint of what executes on
    it, `executing` for how long by now; None where nothing does.
    """

    number: int
    state: str
    seconds: float
    age: float | None
    proven: float | None
    suspect: bool
    leases: int
    holder: str | None
    workload: str | None
    statement: str | None = None
    executing: float | None = None


@dataclass(frozen=True, slots=True)
class WaiterInfo:
    """One caller who waits: who, for how many seconds by now, and how many are left of its time (may be `inf`)."""

    holder: str
    workload: str | None
    seconds: float
    left: float


@dataclass(frozen=True, slots=True)
class PoolInspection:
    """All connections in the order in which they were opened, and all who wait in the order in which they came."""

    pool: str
    connections: tuple[ConnectionInfo, ...]
    waiters: tuple[WaiterInfo, ...]
