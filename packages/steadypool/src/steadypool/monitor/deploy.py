"""The rules and figures for who collects them elsewhere: alerts for Prometheus, a dashboard for Grafana.

`make docs` writes both to `deploy/`. The names are those of `metrics`, the rules those of `rules`, so that what an
operator sees there and what the process says of itself cannot drift apart.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from steadypool.monitor.rules import RULES, Limits, Rule
from steadypool.telemetry import metrics
from steadypool.telemetry.metrics import Metric

POOL_LABEL = metrics.POOL.replace(".", "_")
SHORTEST_WINDOW = 120.0
"""Seconds: `increase` sees nothing in a window with fewer than two scrapes in it, which are up to a minute apart."""
HEADER = "# Made by `make docs` from steadypool.monitor.rules; changed there, not here."


def prometheus_rules(limits: Limits | None = None) -> str:
    """The alerts as a file of rules for Prometheus.

    Example:
        >>> "alert: SteadypoolUtilization" in prometheus_rules()
        True
    """
    limits = limits or Limits()
    lines = [HEADER, "groups:", "  - name: steadypool", "    rules:"]
    for rule in RULES:
        lines += _prometheus_rule(rule, limits)
    return "\n".join(lines) + "\n"


def _prometheus_rule(rule: Rule, limits: Limits) -> list[str]:
    seconds = limits.after if rule.lasting else rule.steady
    lines = [
        f"      - alert: Steadypool{''.join(word.title() for word in rule.name.split('_'))}",
        f"        expr: {json.dumps(expression(rule, limits))}",
    ]
    if seconds:
        lines.append(f"        for: {seconds:g}s")
    return [
        *lines,
        "        labels:",
        f"          severity: {rule.severity}",
        "        annotations:",
        f'          summary: "{rule.title} ({{{{ $labels.{POOL_LABEL} }}}})"',
        f"          description: {json.dumps(rule.next_step())}",
        f"          runbook: {json.dumps(f'docs/runbooks/{rule.runbook}.md')}",
    ]


def expression(rule: Rule, limits: Limits) -> str:
    """The rule in PromQL."""
    window = max(limits.after, SHORTEST_WINDOW)
    return rule.expression.format(
        pool=POOL_LABEL, utilization=f"{limits.utilization:g}", after=f"{window:g}s", rate=limits.rate
    )


# -- Grafana -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot: queries in PromQL with the legend of each; `unit` in Grafana's words; `line` is a limit to draw."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    line: float | None = None


def _rate(metric: Metric, *labels: str) -> str:
    by = ", ".join((POOL_LABEL, *labels))
    return f"sum by ({by}) (rate({metric.prometheus_name}{{{_CHOSEN}}}[$__rate_interval]))"


def _level(metric: Metric, *labels: str) -> str:
    by = ", ".join((POOL_LABEL, *labels))
    return f"sum by ({by}) ({metric.prometheus_name}{{{_CHOSEN}}})"


def _gauge(metric: Metric) -> str:
    return f"max by ({POOL_LABEL}) ({metric.prometheus_name}{{{_CHOSEN}}})"


def _percentiles(metric: Metric) -> tuple[tuple[str, str], ...]:
    inner = (
        f"sum by (le, {POOL_LABEL}) (rate({metric.prometheus_name}_bucket{{{_CHOSEN}}}[$__rate_interval]))"
    )
    return tuple(
        (f"histogram_quantile({share}, {inner})", f"p{share[2:]}") for share in ("0.50", "0.95", "0.99")
    )


_CHOSEN = f'{POOL_LABEL}=~"$pool"'
_STATE = metrics.STATE.replace(".", "_")
_CAUSE = metrics.CAUSE.replace(".", "_")
_ERROR = metrics.ERROR_TYPE.replace(".", "_")

PANELS: tuple[Panel, ...] = (
    Panel(
        "Utilization",
        ((_gauge(metrics.UTILIZATION), "in use / pool_size"),),
        "percentunit",
        Limits().utilization,
    ),
    Panel(
        "Connections by state",
        ((_level(metrics.COUNT, _STATE), f"{{{{{_STATE}}}}}"), (_level(metrics.MAX), "most there may be")),
    ),
    Panel("Callers waiting", ((_level(metrics.PENDING), "waiting"),)),
    Panel("Waiting for a connection", _percentiles(metrics.WAIT_TIME), "s"),
    Panel("Connecting", _percentiles(metrics.CREATE_TIME), "s"),
    Panel("Executing", _percentiles(metrics.DURATION), "s"),
    Panel(
        "Callers who went without", ((_rate(metrics.ACQUIRE_FAILURES, _ERROR), f"{{{{{_ERROR}}}}}"),), "ops"
    ),
    Panel(
        "Statement timeouts and lost connections",
        (
            (_rate(metrics.STATEMENT_TIMEOUTS), "statement timeouts"),
            (_rate(metrics.LOST, _CAUSE), f"lost: {{{{{_CAUSE}}}}}"),
        ),
        "ops",
    ),
    Panel(
        "Failed attempts to connect", ((_rate(metrics.CONNECT_FAILURES, _CAUSE), f"{{{{{_CAUSE}}}}}"),), "ops"
    ),
    Panel(
        "Breaker and listener",
        (
            (_gauge(metrics.BREAKER_OPEN), "breaker open"),
            (_gauge(metrics.LISTENER_UP), "listener connected"),
            (_gauge(metrics.LISTENER_DEAF), "listener deaf"),
        ),
    ),
    Panel("Leaks and gaps", ((_rate(metrics.LEAKS), "leaks"), (_rate(metrics.GAPS), "gaps")), "ops"),
    Panel("Event loop lag", ((_gauge(metrics.LOOP_LAG), "late by"),), "s"),
)


def grafana_dashboard() -> str:
    """A dashboard for Grafana, to be imported; it asks for the Prometheus that it shall read.

    Example:
        >>> json.loads(grafana_dashboard())["title"]
        'steadypool'
    """
    dashboard = {
        "__inputs": [
            {"name": "DS_PROMETHEUS", "label": "Prometheus", "type": "datasource", "pluginId": "prometheus"}
        ],
        "title": "steadypool",
        "uid": "steadypool",
        "description": "Made by `make docs` from steadypool.monitor.deploy.",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "tags": ["postgresql", "steadypool"],
        "templating": {"list": [_pool_variable()]},
        "panels": [_panel(panel, number) for number, panel in enumerate(PANELS)],
    }
    return json.dumps(dashboard, indent=2) + "\n"


def _pool_variable() -> dict[str, Any]:
    return {
        "name": "pool",
        "label": "Pool",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${DS_PROMETHEUS}"},
        "query": f"label_values({metrics.MAX.prometheus_name}, {POOL_LABEL})",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(panel: Panel, number: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "custom": {"fillOpacity": 10, "lineWidth": 2}}
    if panel.line is not None:
        steps = [{"color": "green", "value": None}, {"color": "red", "value": panel.line}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
        defaults["custom"]["thresholdsStyle"] = {"mode": "dashed"}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": {"type": "prometheus", "uid": "${DS_PROMETHEUS}"},
        "gridPos": {"h": 8, "w": 8, "x": number % 3 * 8, "y": number // 3 * 8},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend}
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }
