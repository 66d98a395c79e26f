"""What is seen of a pool at one moment by whoever looks from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from steadypool.errors import PoolSnapshot
from steadypool.pool.inspection import PoolInspection


@dataclass(frozen=True, slots=True)
class WorkloadInfo:
    """A class of work: its limits (None for none of its own), and how many connections it holds."""

    name: str
    statement_timeout: float | None
    max_connections: int | None
    held: int


@dataclass(frozen=True, slots=True)
class PoolView:
    """A pool, its breaker, its listener and its workloads.

    `listener` is None where nobody listens; its `state` is one of `ListenerState`'s values. `in_transaction` are the
    numbers of connections whose transaction is open. `shared` is what there is to know of the shared way, None where
    there is none.
    """

    pool: PoolSnapshot
    census: PoolInspection
    breaker: str
    listener: Mapping[str, Any] | None = None
    workloads: tuple[WorkloadInfo, ...] = ()
    in_transaction: frozenset[int] = field(default_factory=frozenset[int])
    closed: bool = False
    shared: Mapping[str, Any] | None = None

    @property
    def waiting(self) -> int:
        """Callers who wait: for a connection, or for their turn on a shared one."""
        return self.pool.waiting + (0 if self.shared is None else self.shared["waiting"])


Look = Callable[[], PoolView]
"""Asks for a view; costs something only here."""
