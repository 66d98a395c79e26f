"""Writes the tables of settings and of failures into the READMEs, and what is made from code as a whole: the files for
Prometheus and Grafana, and the runbooks, which are the pages of `steadypool why`: `make docs`.

A test checks that the tables are current, and that a setting is marked as not in effect exactly as long as no code
reads it.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from steadypool import errors
from steadypool.cli.why.topics import topics
from steadypool.settings import DatabaseSettings, settings_table
from steadypool.telemetry.deploy import grafana_dashboard, prometheus_rules

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "packages/steadypool/README.md")
SOURCES = (ROOT / "packages/steadypool/src/steadypool", ROOT / "src/backend")


def unread_settings() -> set[str]:
    """The fields of DatabaseSettings that no code outside of settings.py reads: what they belong to is not built."""
    read: set[str] = {"url", "direct_url"} & _names_called()
    derived = _derived_settings()
    for source in SOURCES:
        for path in source.rglob("*.py"):
            if path.name == "settings.py":
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and _is_settings(node.value):
                    read |= {node.attr, *derived.get(node.attr, ())}
    return set(DatabaseSettings.model_fields) - read


def _derived_settings() -> dict[str, set[str]]:
    """What the properties of DatabaseSettings are made from: whoever reads one of them reads these."""
    source = Path(sys.modules[DatabaseSettings.__module__].__file__ or "").read_text()
    return {
        function.name: {
            node.attr
            for node in ast.walk(function)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        }
        for function in ast.walk(ast.parse(source))
        if isinstance(function, ast.FunctionDef)
        and any(isinstance(each, ast.Name) and each.id == "property" for each in function.decorator_list)
    }


def _is_settings(node: ast.expr) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name.lstrip("_") in {"s", "settings", "database"}


def _names_called() -> set[str]:
    """`require_url()` and `require_direct_url()` are how the two URLs are read."""
    text = "".join(
        path.read_text() for source in SOURCES for path in source.rglob("*.py") if path.name != "settings.py"
    )
    return {name for name in ("url", "direct_url") if f".require_{name}()" in text}


def settings_markdown() -> str:
    """The table of settings."""
    unread = {f"DATABASE_{name.upper()}" for name in unread_settings()}
    lines = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for row in settings_table():
        unit = f" {row.unit}" if row.unit and row.default[:1].isdigit() else ""
        note = " *Not in effect yet.*" if row.variable in unread else ""
        lines.append(f"| `{row.variable}` | {row.default.replace('= ', 'as ')}{unit} | {row.meaning}{note} |")
    return "\n".join(lines)


def failures_markdown() -> str:
    """The table of errors, which is the docstring of errors.py."""
    return "\n".join(line for line in (errors.__doc__ or "").splitlines() if line.startswith("|"))


def filled(text: str) -> str:
    """A document with its tables as they should be."""
    for name, table in (("settings", settings_markdown()), ("failures", failures_markdown())):
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"expected the markers of {name} once")
        text = pattern.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
    return text


def deployed() -> dict[Path, str]:
    """The files for other people's programs, and what stands in them."""
    return {
        ROOT / "deploy/alerts.yml": prometheus_rules(),
        ROOT / "deploy/grafana-dashboard.json": grafana_dashboard(),
    } | {ROOT / f"docs/runbooks/{topic.key}.md": f"# {topic.title}\n\n{topic.body}\n" for topic in topics()}


def main() -> int:
    """Write."""
    for path, text in deployed().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    for document in DOCUMENTS:
        document.write_text(filled(document.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
