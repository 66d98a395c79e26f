"""What the pages say beside their code: tables that repeat the code, and what a reader of the site needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diagrams
import pytest
import reference

import steadypool
import steadypool.fastapi
import steadypool.listener
import steadypool.sqlalchemy
from simulation.coverage import MOVES, RARE
from steadypool import Database, DatabaseSettings
from steadypool.settings import settings_table

from .blocks import ROOT
from .commands import check_ours, commands_in

DOCS = ROOT / "docs"


def test_the_picture_of_a_connection_is_what_the_simulation_has_seen() -> None:
    assert diagrams.CONNECTION.moves() == MOVES | RARE


@pytest.mark.parametrize("diagram", [diagrams.CONNECTION, diagrams.BREAKER, diagrams.LISTENER])
def test_each_picture_has_every_state(diagram: diagrams.Diagram) -> None:
    assert set(diagram.places) == set(type(next(iter(diagram.places))))


def test_every_default_has_its_reason() -> None:
    rows = re.findall(
        r"^\| `(DATABASE_\w+)` \| (.*?) \| .+ \|$", (DOCS / "explanation/defaults.md").read_text(), re.M
    )
    wanted = re.findall(r"^\| `(DATABASE_\w+)` \| (.*?) \| .+ \|$", reference.settings_markdown(), re.M)
    assert sorted(rows) == sorted(wanted)
    assert len(wanted) == len(list(settings_table()))


def test_the_examples_of_the_command_line_would_be_understood() -> None:
    text = (DOCS / "reference/command-line.md").read_text()
    examples = [
        words for line in re.findall(r"^    (steadypool .*)$", text, re.M) for words in commands_in(line)
    ]
    assert len(examples) > 10
    for words in examples:
        check_ours(words[1:])


def test_whatever_can_be_imported_is_in_the_reference() -> None:
    text = (DOCS / "reference/python.md").read_text() + (DOCS / "reference/errors.md").read_text()
    modules = (steadypool, steadypool.sqlalchemy, steadypool.fastapi)
    named = {f"{module.__name__}.{name}": name for module in modules for name in module.__all__}
    del named["steadypool.fastapi.FROM_SETTINGS"]  # what `install` does by default, and nobody writes
    missing = [path for path, name in named.items() if not re.search(rf"\b{name}\b", text)]
    assert missing == []


@pytest.mark.anyio
async def test_what_the_pages_name_in_passing_is_there() -> None:
    """`db.pool.core.evict()` in a table is no code block, and is typed in all the same."""
    db = Database(DatabaseSettings(url="postgresql+asyncpg://nobody@127.0.0.1/nothing"))
    named = {
        (str(page.relative_to(ROOT)), chain)
        for page in (*DOCS.rglob("*.md"), ROOT / "README.md")
        for chain in re.findall(
            r"`[^`\n]*?\bdb\.(?!client\b|system\b|operation\b|query\b|response\b)([a-z_.]+)", page.read_text()
        )
    }
    assert len(named) > 20
    missing = []
    for page, chain in sorted(named):
        found: Any = db
        for name in chain.rstrip(".").split("."):
            if not hasattr(found, name):
                missing.append(f"{page}: db.{chain}")
                break
            found = getattr(found, name)
    await db.close()
    assert missing == []


def navigated(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        else:
            for below in entry.values():
                yield from navigated(below) if isinstance(below, list) else [below]


def test_every_page_can_be_found() -> None:
    site = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert set(navigated(site["nav"])) == pages


def test_the_page_on_security_names_tests_that_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (DOCS / "security.md").read_text())
    assert len(named) > 20
    missing = [
        (file, name) for file, name in named if not re.search(rf"def {name}\b", (ROOT / file).read_text())
    ]
    assert missing == []


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs")
    for name in ("packages", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    built = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loaded = re.findall(
            r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=\"(https?:[^\"]*)\"", page.read_text()
        )
        assert loaded == [], page.name
