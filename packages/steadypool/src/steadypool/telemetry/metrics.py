"""The table of all metrics: one source for every exporter, for the alerts' rules and for the documentation.

Names, units and attributes are OpenTelemetry's semantic conventions for database clients where they have one;
`steadypool.*` is the rest. `prometheus_name` is what OpenTelemetry's own exporters make of a name, so that a dashboard
works whichever way the numbers came.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

POOL = "db.client.connection.pool.name"
STATE = "db.client.connection.state"
SYSTEM = "db.system.name"
OPERATION = "db.operation.name"
SUMMARY = "db.query.summary"
TEXT = "db.query.text"
ROWS = "db.response.returned_rows"
STATUS_CODE = "db.response.status_code"
ERROR_TYPE = "error.type"
CAUSE = "steadypool.cause"
WORKLOAD = "steadypool.workload"
WAY = "steadypool.way"

BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Seconds; what the semantic conventions advise for durations of database clients."""


class Kind(Enum):
    """How a metric behaves."""

    COUNTER = "counter"
    """Only grows."""
    LEVEL = "level"
    """Goes up and down; levels of several pools can be added."""
    GAUGE = "gauge"
    """A value that cannot be added to another pool's."""
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: `unit` as in UCUM, `attributes` beside the pool's name."""

    name: str
    kind: Kind
    unit: str
    description: str
    attributes: tuple[str, ...] = ()

    @property
    def prometheus_name(self) -> str:
        """Its name in Prometheus's format.

        Example:
            >>> WAIT_TIME.prometheus_name, TIMEOUTS.prometheus_name
            ('db_client_connection_wait_time_seconds', 'db_client_connection_timeouts_total')
        """
        suffix = {"s": "_seconds", "1": "_ratio"}.get(self.unit, "")
        return self.name.replace(".", "_") + suffix + ("_total" if self.kind is Kind.COUNTER else "")


COUNT = Metric(
    "db.client.connection.count",
    Kind.LEVEL,
    "{connection}",
    "Connections by state: used, idle, opening, closing.",
    (STATE,),
)
IDLE_MAX = Metric(
    "db.client.connection.idle.max", Kind.LEVEL, "{connection}", "The most idle connections that are kept."
)
IDLE_MIN = Metric(
    "db.client.connection.idle.min",
    Kind.LEVEL,
    "{connection}",
    "Idle connections that are always kept: none.",
)
MAX = Metric("db.client.connection.max", Kind.LEVEL, "{connection}", "The most connections there may be.")
PENDING = Metric(
    "db.client.connection.pending_requests", Kind.LEVEL, "{request}", "Callers who wait for a connection."
)
TIMEOUTS = Metric(
    "db.client.connection.timeouts",
    Kind.COUNTER,
    "{timeout}",
    "Callers whose time was up before they had a connection.",
    (ERROR_TYPE,),
)
CREATE_TIME = Metric(
    "db.client.connection.create_time", Kind.HISTOGRAM, "s", "How long it took to open a connection."
)
WAIT_TIME = Metric(
    "db.client.connection.wait_time",
    Kind.HISTOGRAM,
    "s",
    "How long a caller waited until it had a connection.",
)
USE_TIME = Metric(
    "db.client.connection.use_time", Kind.HISTOGRAM, "s", "How long a caller held a connection."
)
DURATION = Metric(
    "db.client.operation.duration",
    Kind.HISTOGRAM,
    "s",
    "How long a statement executed; waiting and connecting are not in it.",
    (SYSTEM, OPERATION, SUMMARY, STATUS_CODE, ERROR_TYPE, WAY, WORKLOAD),
)

ACQUIRE_FAILURES = Metric(
    "steadypool.acquire.failures",
    Kind.COUNTER,
    "{request}",
    "Callers who went without a connection, by the error that they got.",
    (ERROR_TYPE, WORKLOAD),
)
CONNECT_FAILURES = Metric(
    "steadypool.connect.failures",
    Kind.COUNTER,
    "{attempt}",
    "Attempts to connect that failed, by cause.",
    (CAUSE,),
)
STATEMENT_TIMEOUTS = Metric(
    "steadypool.statement.timeouts",
    Kind.COUNTER,
    "{statement}",
    "Statements that reached their limit.",
    (WORKLOAD,),
)
LOST = Metric(
    "steadypool.connection.lost",
    Kind.COUNTER,
    "{connection}",
    "Connections that died: in somebody's hands by what the server said, or idle.",
    (CAUSE,),
)
CLOSED = Metric(
    "steadypool.connection.closed",
    Kind.COUNTER,
    "{connection}",
    "Places in the pool that became free again, by reason.",
    (CAUSE,),
)
LEAKS = Metric(
    "steadypool.leaks",
    Kind.COUNTER,
    "{connection}",
    "Connections held longer than DATABASE_LEAK_AFTER.",
)
COLLATERAL = Metric(
    "steadypool.multiplex.collateral",
    Kind.COUNTER,
    "{statement}",
    "Statements that failed on a shared connection because of another caller's.",
)
GAPS = Metric(
    "steadypool.listener.gaps", Kind.COUNTER, "{gap}", "Times that notifications may have been missed."
)
BREAKER_CHANGES = Metric(
    "steadypool.breaker.changes",
    Kind.COUNTER,
    "{change}",
    "Changes of the breaker, by what it became.",
    (CAUSE,),
)
BREAKER_OPEN = Metric(
    "steadypool.breaker.open",
    Kind.GAUGE,
    "{state}",
    "1 while the last attempt to connect has failed, else 0.",
)
UTILIZATION = Metric(
    "steadypool.pool.utilization",
    Kind.GAUGE,
    "1",
    "Connections in use over pool_size; above 1 overflow is in use.",
)
LISTENER_UP = Metric(
    "steadypool.listener.connected", Kind.GAUGE, "{state}", "1 while the listener hears, else 0."
)
LISTENER_DEAF = Metric(
    "steadypool.listener.deaf",
    Kind.GAUGE,
    "{state}",
    "1 while the listener is connected to something that passes no notifications on, else 0.",
)
LOOP_LAG = Metric(
    "steadypool.event_loop.lag",
    Kind.GAUGE,
    "s",
    "By how much the event loop is late; a busy loop is no slow pool.",
)

ALL: tuple[Metric, ...] = tuple(value for value in tuple(globals().values()) if isinstance(value, Metric))
"""Every metric, in the order of this file."""
