"""Writes what is made from code as a whole: the tables of settings and of failures in the READMEs, the reference, the
diagrams of states, the runbooks (which are the pages of `steadypool why`), and the files for Prometheus and Grafana:
`make docs`.

A test checks that all of it is current, and that code reads every setting.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import diagrams
import reference

from steadypool.cli.why.topics import topics
from steadypool.listener import ListenerState
from steadypool.monitor.deploy import grafana_dashboard, prometheus_rules
from steadypool.pool.circuit_breaker import BreakerState
from steadypool.pool.lease import EntryState
from steadypool.settings import DatabaseSettings

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "packages/steadypool/README.md",
    ROOT / "docs/explanation/states.md",
)
TABLES: dict[str, Callable[[], str]] = {
    "settings": reference.settings_markdown,
    "failures": reference.failures_markdown,
    "connection states": lambda: reference.states_markdown(EntryState),
    "breaker states": lambda: reference.states_markdown(BreakerState),
    "listener states": lambda: reference.states_markdown(ListenerState),
}
SOURCES = (ROOT / "packages/steadypool/src/steadypool", ROOT / "src/backend")


def unread_settings() -> set[str]:
    """The fields of DatabaseSettings that no code reads, neither by themselves nor through one of its properties."""
    reads: dict[str, set[str]] = {}
    asked: set[str] = set()
    for source in SOURCES:
        for path in source.rglob("*.py"):
            tree = ast.parse(path.read_text())
            if path.parent.name == "settings":
                reads = {function.name: _attributes(function, {"self"}) for function in _functions(tree)}
            else:
                asked |= _attributes(tree, {"s", "settings", "_settings", "database"})
    through = set().union(*(reads.get(name, set()) for name in _with_their_own(asked, reads)))
    return set(DatabaseSettings.model_fields) - asked - through


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def _attributes(tree: ast.AST, owners: set[str]) -> set[str]:
    """The attributes that are read of anything called so."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and (node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")) in owners
    }


def _with_their_own(names: set[str], reads: dict[str, set[str]]) -> set[str]:
    """These properties, and those that they use themselves."""
    return names | {used for name in names for used in reads.get(name, set())}


def filled(text: str) -> str:
    """A document with its tables as they should be: each between two comments with its name."""
    for name, table in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = pattern.sub(lambda match, table=table: f"{match[1]}{table()}\n{match[2]}", text)
    return text


def made() -> dict[Path, str]:
    """Every file that is made as a whole, and what stands in it."""
    docs = ROOT / "docs"
    runbooks = {f"runbooks/{topic.key}.md": f"# {topic.title}\n\n{topic.body}\n" for topic in topics()}
    pictures = {f"images/{name}.svg": drawn for name, drawn in diagrams.all_of_them().items()}
    return {
        ROOT / "deploy/alerts.yml": prometheus_rules(),
        ROOT / "deploy/grafana-dashboard.json": grafana_dashboard(),
    } | {docs / name: text for name, text in (runbooks | reference.pages() | pictures).items()}


def main() -> int:
    """Write."""
    for path, text in made().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    for document in DOCUMENTS:
        document.write_text(filled(document.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
