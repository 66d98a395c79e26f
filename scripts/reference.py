"""The pages of the reference that are made from code as a whole: settings, errors, events, metrics, commands."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator
from enum import Enum
from typing import Any

from steadypool import errors, events
from steadypool.cli.app import app
from steadypool.cli.why.topics import topics
from steadypool.settings import settings_table
from steadypool.telemetry import metrics

MADE = "<!-- Made from the code by `make docs`; what is changed here is lost. -->\n"


def settings_markdown() -> str:
    """The table of settings."""
    lines = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for row in settings_table():
        unit = f" {row.unit}" if row.unit and row.default[:1].isdigit() else ""
        lines.append(f"| `{row.variable}` | {row.default.replace('= ', 'as ')}{unit} | {row.meaning} |")
    return "\n".join(lines)


def failures_markdown() -> str:
    """The table of errors, which is the docstring of errors.py."""
    return "\n".join(line for line in (errors.__doc__ or "").splitlines() if line.startswith("|"))


def pages() -> dict[str, str]:
    """Each page's text by its path below docs/."""
    return {
        "reference/settings.md": _settings(),
        "reference/errors.md": _errors(),
        "reference/events.md": _events(),
        "reference/metrics.md": _metrics(),
        "reference/command-line.md": _command_line(),
    }


def _page(title: str, *parts: str) -> str:
    return "\n\n".join([MADE + f"# {title}", *parts]) + "\n"


def _settings() -> str:
    return _page(
        "Settings",
        "`DatabaseSettings()` reads these variables; an argument, named like the variable without its prefix and in "
        "lower case, wins over the environment. What cannot work is refused with the variable, its value and what is "
        "allowed; nothing is corrected silently. No `.env` file is read unless `_env_file=` names one.\n\n"
        "`password` has no variable: it is an argument only, text or a function that is asked before every connect "
        "([tokens that expire](../how-to/rds.md)). `create_async_engine` reads no variable at all. "
        "Why each default is what it is: [defaults](../explanation/defaults.md).",
        settings_markdown(),
    )


def _errors() -> str:
    runbooks = {name: topic for topic in topics() for name in topic.answers}
    lines = ["| error | what it says | more |", "| --- | --- | --- |"]
    for kind in _classes(errors, errors.SteadypoolError):
        topic = runbooks.get(kind.__name__)
        more = "" if topic is None else f"[{topic.title}](../runbooks/{topic.key}.md)"
        retry = " Trying again may help." if kind.retryable else ""
        lines.append(f"| `{kind.__name__}` | {_first_paragraph(kind)}{retry} | {more} |")
    return _page(
        "Errors",
        "All descend from `steadypool.SteadypoolError`. Over SQLAlchemy they are SQLAlchemy's exceptions as well "
        "(`steadypool.sqlalchemy` has those classes), so that code which catches either keeps working. The last words "
        "of each message are the command that explains it, such as `steadypool why PoolTimeout`.",
        failures_markdown(),
        "## What they mean",
        "\n".join(lines),
        "## What each of them carries",
        _fields(errors.Report),
        "`error.pool` is a `PoolSnapshot` of the moment:",
        _fields(errors.PoolSnapshot),
    )


def _events() -> str:
    parts = [
        "`db.events.subscribe(observer, *kinds)` calls `observer(event)` on the event loop's thread; it must return at "
        "once. All have `pool`, the pool's name, and `at`, seconds on the pool's clock. Nobody may change them, and "
        "they carry no value, literal or password.",
    ]
    for kind in _classes(events, events.Event):
        if kind is not events.Event:
            parts += [
                f"## {kind.__name__}",
                inspect.getdoc(kind) or "",
                _fields(kind, without=("pool", "at")),
            ]
    return _page("Events", *(part for part in parts if part))


def _metrics() -> str:
    lines = [
        "| OpenTelemetry | Prometheus | kind | unit | meaning | attributes |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for metric in metrics.ALL:
        attributes = ", ".join(f"`{name}`" for name in metric.attributes)
        lines.append(
            f"| `{metric.name}` | `{metric.prometheus_name}` | {metric.kind.value} | `{metric.unit}` "
            f"| {metric.description} | {attributes} |"
        )
    return _page(
        "Metrics",
        f"Every series also has `{metrics.POOL}`. Histograms have the buckets "
        f"{', '.join(f'{bound:g}' for bound in metrics.BUCKETS)} s. How to switch them on, and what they cost: "
        "[telemetry](../telemetry.md).",
        "\n".join(lines),
    )


def _command_line() -> str:
    # In a program that was started with `python -m`, cyclopts writes that into the usage of each command.
    said = re.sub(r" -m \S+(?= \[OPTIONS\])", "", app.generate_docs())
    body = said.split("\n", 1)[1]
    body = re.sub(r"^## Table of Contents\n.*?(?=^\*\*Commands)", "", body, flags=re.DOTALL | re.MULTILINE)
    body = body.replace("```console", "```text")
    return _page(
        "Command line",
        'It comes with `pip install "steadypool[cli]"`; `lab` with the distribution `steadypool-lab`, '
        "`doctor` needs the extras that its page names. Exit codes: 0 done, 1 the answer is no or it failed, 2 used "
        "wrongly. `--json` is there wherever "
        "something is told. In a pipe nothing is coloured.",
        body.strip(),
    )


def _classes(module: Any, base: type) -> Iterator[Any]:
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__:
            yield value


def _first_paragraph(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def _fields(kind: Any, without: tuple[str, ...] = ()) -> str:
    lines = ["| field | type |", "| --- | --- |"]
    for field in dataclasses.fields(kind):
        if field.name not in without:
            lines.append(f"| `{field.name}` | `{str(field.type).replace('|', '&#124;')}` |")
    return "\n".join(lines) if len(lines) > 2 else ""


def states_markdown(states: type[Enum]) -> str:
    """A table of an enum's members, each with the words that stand below it in the code."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(states))).body
    assert isinstance(tree, ast.ClassDef)
    lines = ["| state | meaning |", "| --- | --- |"]
    for member, words in itertools.pairwise(tree.body):
        if isinstance(member, ast.Assign) and isinstance(words, ast.Expr):
            (target,) = member.targets
            state = states[ast.unparse(target)]
            said = inspect.cleandoc(ast.literal_eval(words.value))
            lines.append(f"| *{state.value}* | {' '.join(said.split())} |")
    return "\n".join(lines)
