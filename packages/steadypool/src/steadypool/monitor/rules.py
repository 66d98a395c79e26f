"""What has to be watched, as data: alerts in the process, rules for Prometheus and panels for Grafana come from here.

The first four are those of plyr.fm's manual: utilization above 80 % for a minute, and the rates of pool timeouts,
statement timeouts and failed connection attempts.
"""

from __future__ import annotations

from dataclasses import dataclass

RUNBOOKS = "docs/runbooks"


@dataclass(frozen=True, slots=True)
class Limits:
    """When an alert is raised: `utilization` over `pool_size`, for `after` seconds; `rate` failures within them."""

    utilization: float = 0.8
    after: float = 60.0
    rate: int = 3


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing to watch.

    `title` says what is wrong, `advice` what to do next, `runbook` where more stands: `steadypool why <runbook>` and
    `docs/runbooks/<runbook>.md`. `counted` are the columns of a recorder's row whose sum within `Limits.after` is
    compared with `least`, or else `Limits.rate`; without any the rule has a condition of its own (`alerts`).
    `expression` is the same for Prometheus, with `{pool}`, `{utilization}`, `{after}` and `{rate}` to be filled in;
    `lasting` says that it has to hold for `Limits.after`, `steady` that it has to hold for so many seconds;
    `severity` is Prometheus's label.
    """

    name: str
    title: str
    advice: str
    runbook: str
    expression: str
    counted: tuple[str, ...] = ()
    least: int | None = None
    lasting: bool = False
    steady: float = 0.0
    severity: str = "warning"

    def next_step(self) -> str:
        """What to do, and where more stands."""
        return f"{self.advice} More: `steadypool why {self.runbook}` or {RUNBOOKS}/{self.runbook}.md."


RULES: tuple[Rule, ...] = (
    Rule(
        "utilization",
        "The pool is nearly full",
        "Look who holds the connections (/pool, or db.stats()); if they all work, raise DATABASE_POOL_SIZE.",
        "exhaustion",
        "max by ({pool}) (steadypool_pool_utilization_ratio) > {utilization}",
        lasting=True,
    ),
    Rule(
        "pool_timeouts",
        "Callers get no connection in time",
        "Find out what holds the connections (/pool) before raising DATABASE_POOL_SIZE or DATABASE_MAX_OVERFLOW.",
        "exhaustion",
        "sum by ({pool}) (increase(steadypool_acquire_failures_total"
        '{{error_type=~"PoolTimeout|PoolQueueFull"}}[{after}])) >= {rate}',
        counted=("pool_timeouts", "queue_full"),
        severity="critical",
    ),
    Rule(
        "statement_timeouts",
        "Statements run into their limit",
        "Look which statements (/pool, the slow-query log), EXPLAIN them; give long work a workload of its own.",
        "statement-timeouts",
        "sum by ({pool}) (increase(steadypool_statement_timeouts_total[{after}])) >= {rate}",
        counted=("statement_timeouts",),
    ),
    Rule(
        "connection_errors",
        "Connections to the database cannot be opened",
        "Run `steadypool doctor`: it tries each address and says which step fails.",
        "connect-timeouts",
        "sum by ({pool}) (increase(steadypool_connect_failures_total[{after}])) >= {rate}",
        counted=("connect_failures",),
        severity="critical",
    ),
    Rule(
        "connections_lost",
        "Connections break while they are used",
        "Run `steadypool doctor`; a restart or an operator says 57P01, a network or a crash says nothing.",
        "connection-lost",
        'sum by ({pool}) (increase(steadypool_connection_lost_total{{steadypool_cause!="idle"}}[{after}])) >= {rate}',
        counted=("connections_lost",),
    ),
    Rule(
        "cold_start",
        "The database slept, or is slow to let connections in",
        "Nothing, if it may sleep. Else keep it awake (DATABASE_IDLE_POLICY), or run `steadypool doctor`.",
        "cold-start",
        "sum by ({pool}) (increase(db_client_connection_create_time_seconds_count[{after}]))"
        ' - sum by ({pool}) (increase(db_client_connection_create_time_seconds_bucket{{le="1.0"}}[{after}])) > 0',
        counted=("wake_ups",),
        least=1,
        severity="info",
    ),
    Rule(
        "breaker_open",
        "The database cannot be reached",
        "Run `steadypool doctor`; until it answers, one attempt at a time goes out and callers are told at once.",
        "connect-timeouts",
        "max by ({pool}) (steadypool_breaker_open) > 0",
        steady=5.0,
        severity="critical",
    ),
    Rule(
        "listener_deaf",
        "Notifications do not arrive",
        "A transaction pooler stands before the database: set DATABASE_DIRECT_URL to the address past it.",
        "deaf-listener",
        "max by ({pool}) (steadypool_listener_deaf) > 0",
        severity="critical",
    ),
    Rule(
        "leak",
        "A connection is held for too long",
        "See who acquired it, with the stack, on /pool or in the log; give connections back before slow work.",
        "leaks",
        "sum by ({pool}) (increase(steadypool_leaks_total[{after}])) > 0",
        counted=("leaks",),
        least=1,
    ),
)
