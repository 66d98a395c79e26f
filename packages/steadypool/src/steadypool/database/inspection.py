"""A look at a pool with all that belongs to it: what the recorder and the page see. It asks the database nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from steadypool.listener import Listener
from steadypool.monitor import PoolView, WorkloadInfo
from steadypool.sqlalchemy.pool import SteadyPool


@dataclass(frozen=True, slots=True)
class Workload:
    """A class of work: how long its statements may run (seconds), and how many connections it may hold."""

    name: str
    statement_timeout: float | None = None
    max_connections: int | None = None


def view_of(
    pool: SteadyPool,
    workloads: Iterable[Workload],
    listener: Listener | None,
    shared: Mapping[str, Any] | None = None,
) -> PoolView:
    """The pool at this moment: who holds and who waits, its breaker, workloads, listener, and the shared way."""
    core, dialect = pool.core, pool.dialect
    census = core.connections()
    held = Counter(each.workload for each in census.connections if each.holder is not None)
    return PoolView(
        pool=core.snapshot(),
        census=census,
        breaker=core.breaker.state.value,
        listener=None if listener is None else asdict(listener.stats()),
        workloads=tuple(
            WorkloadInfo(each.name, each.statement_timeout, each.max_connections, held[each.name])
            for each in workloads
        ),
        in_transaction=frozenset(
            number
            for number, record in core.leased()
            if (connection := record.driver_connection) is not None and dialect.in_transaction(connection)
        ),
        closed=core.closed,
        shared=shared,
    )
