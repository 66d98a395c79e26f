"""The files for Prometheus and Grafana: readable, and about metrics that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from steadypool import Database, DatabaseSettings
from steadypool.monitor.deploy import POOL_LABEL, expression, grafana_dashboard, prometheus_rules
from steadypool.monitor.rules import RULES, Limits
from steadypool.telemetry import metrics
from steadypool.telemetry.metrics import Kind
from steadypool.telemetry.prometheus import PoolCollector

FUNCTIONS = {"sum", "max", "min", "by", "rate", "increase", "histogram_quantile", "le", "label_values"}


def known_names() -> set[str]:
    """The series that a scrape has."""
    names: set[str] = set()
    for metric in metrics.ALL:
        names |= (
            {f"{metric.prometheus_name}_{part}" for part in ("bucket", "sum", "count")}
            if metric.kind is Kind.HISTOGRAM
            else {metric.prometheus_name}
        )
    return names


def known_labels() -> set[str]:
    return {name.replace(".", "_") for metric in metrics.ALL for name in (metrics.POOL, *metric.attributes)}


def expressions() -> Iterator[str]:
    for rule in RULES:
        yield expression(rule, Limits())
    for panel in json.loads(grafana_dashboard())["panels"]:
        yield from (target["expr"] for target in panel["targets"])


@pytest.mark.parametrize("query", list(expressions()))
def test_a_query_names_series_and_labels_that_there_are(query: str) -> None:
    assert query.count("(") == query.count(")")
    plain = re.sub(r'"[^"]*"|\[[^\]]*\]', "", query)
    words = set(re.findall(r"[a-z_]\w*", plain)) - FUNCTIONS
    series = {
        word
        for word in words
        if re.search(rf"\b{word}\b(?!\s*=)", re.sub(r"by \([^)]*\)|\{[^}]*\}", "", plain))
    }
    assert series, query
    assert series <= known_names(), query
    assert words - series <= known_labels(), query
    assert POOL_LABEL in words


def test_a_scrape_has_what_the_rules_are_about() -> None:
    """Not only the table says so: the text that Prometheus gets."""
    collector = PoolCollector()
    database = Database(DatabaseSettings(url="postgresql://app@127.0.0.1:1/nowhere"))
    stop = collector.add(database.source)
    scraped = collector.render().decode()
    stop()
    families = {family.name for family in text_string_to_metric_families(scraped)}
    for name in known_names():
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        assert {name, base, name.removesuffix("_total")} & families, name
    assert f'steadypool_pool_utilization_ratio{{{POOL_LABEL}="main"}} 0.0' in scraped


def test_the_rules_are_a_file_that_prometheus_reads() -> None:
    (group,) = yaml.safe_load(prometheus_rules())["groups"]
    assert [rule["alert"] for rule in group["rules"]] == [
        "SteadypoolUtilization",
        "SteadypoolPoolTimeouts",
        "SteadypoolStatementTimeouts",
        "SteadypoolConnectionErrors",
        "SteadypoolConnectionsLost",
        "SteadypoolColdStart",
        "SteadypoolBreakerOpen",
        "SteadypoolListenerDeaf",
        "SteadypoolLeak",
    ]
    utilization = group["rules"][0]
    assert utilization["expr"].endswith("> 0.8")
    assert utilization["for"] == "60s"
    for rule, source in zip(group["rules"], RULES, strict=True):
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert source.advice in rule["annotations"]["description"]
        assert rule["annotations"]["runbook"] == f"docs/runbooks/{source.runbook}.md"
        assert f"$labels.{POOL_LABEL}" in rule["annotations"]["summary"]


def test_limits_reach_the_rules() -> None:
    text = prometheus_rules(Limits(utilization=0.7, after=300, rate=9))
    assert "> 0.7" in text
    assert "for: 300s" in text
    assert "[300s])) >= 9" in text


def test_the_dashboard_has_a_place_for_each_panel() -> None:
    dashboard = json.loads(grafana_dashboard())
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places) >= 10
    assert {panel["id"] for panel in dashboard["panels"]} == set(range(1, len(places) + 1))
    assert all(x + 8 <= 24 for x, _ in places)
