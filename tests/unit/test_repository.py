"""Rules of the repository that no linter knows."""

from __future__ import annotations

import ast
import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import generate_docs
import pytest
import reference

import steadypool
from steadypool import DatabaseSettings
from steadypool.settings import settings_table

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "packages/steadypool/src/steadypool"
LAB = ROOT / "packages/steadypool-lab/src/steadypool_lab"
SERVICE = ROOT / "src/backend"
FOLDERS = (".ci", "bench", "deploy", "docs", "packages", "scripts", "src", "tests")
TEXT = {".py", ".md", ".toml", ".sh", ".env", ".txt", ".html", ".css", ".js", ".ini", ".mako", ""}

MAX_MODULE_LINES = 600
MAX_FUNCTION_LINES = 60


def texts() -> Iterator[Path]:
    """The files that people wrote."""
    for path in (*ROOT.glob("*"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))):
        hidden = {".venv", "__pycache__", "node_modules"} & set(path.parts)
        if path.is_file() and path.suffix in TEXT and not hidden and path != Path(__file__):
            yield path


def python_files(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(folder.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


# -- what must not be written ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forbidden",
    [
        r"(?<![\w.~-])/(?:work|root|home/\w+|Users/\w+)/",  # the machine of whoever wrote it
        r"pypi\.org|pythonhosted\.org|registry\.npmjs",  # where packages come from is the user's choice
        r"\b(?:TODO|FIXME|XXX)\b",
    ],
)
def test_nothing_personal_or_unfinished_is_written_anywhere(forbidden: str) -> None:
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in texts()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(forbidden, line)
    ]
    assert not found, "\n".join(found)


def test_no_test_is_skipped() -> None:
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in python_files(ROOT / "tests")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in {"skip", "skipif", "importorskip", "xfail"})
    ]
    assert not found, f"skipped tests: {found}"


# -- how large things are ----------------------------------------------------------------------------------------


def test_modules_and_functions_fit_into_a_head() -> None:
    too_long: list[str] = []
    for path in python_files(LIBRARY, LAB, SERVICE):
        text = path.read_text()
        if len(text.splitlines()) > MAX_MODULE_LINES:
            too_long.append(f"{name_of(path)}: {len(text.splitlines())} lines")
        too_long += [
            f"{name_of(path)}: {node.name}, {lines} lines"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and (lines := code_lines(node)) > MAX_FUNCTION_LINES
        ]
    assert not too_long, "\n".join(too_long)


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Without the docstring: a public function explains itself at length."""
    last = function.end_lineno or function.lineno
    docstring = function.body[0] if ast.get_docstring(function) is not None else None
    explained = 0 if docstring is None else (docstring.end_lineno or 0) - docstring.lineno + 1
    return last - function.lineno + 1 - explained


# -- rooms that import-linter cannot tell apart ------------------------------------------------------------------


def test_the_routes_of_the_service_contain_no_sql() -> None:
    """They may name a session's type and SQLAlchemy's exceptions; statements are written in services."""
    allowed = {"sqlalchemy.ext.asyncio.AsyncSession"}
    found = [
        f"{name_of(path)}: {name}"
        for path in python_files(SERVICE / "api")
        for name in imported_names(path)
        if name.startswith("sqlalchemy") and name not in allowed and not name.startswith("sqlalchemy.exc.")
    ]
    assert not found, found


def imported_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_the_table_of_layers_is_the_one_that_is_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(each["layers"] for each in contracts if each.get("containers") == ["steadypool"])
    checked = [re.findall(r"\w+", layer) for layer in layers]
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Layers")[2].partition("\n\nRows")[0]
    rows = [re.findall(r"`(\w+)`", row) for row in section.splitlines() if re.match(r"\| \d", row)]
    assert sorted(itertools.chain(*rows)) == sorted(itertools.chain(*checked))
    written = {name: place for place, name in enumerate(itertools.chain(*rows))}
    for above, below in itertools.pairwise(checked):
        assert max(written[name] for name in above) < min(written[name] for name in below), (above, below)


def test_what_is_not_repeated_on_the_other_series_does_not_meet_sqlalchemy() -> None:
    listed = re.search(r"^below_sqlalchemy :=((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.M)
    assert listed is not None
    files = [
        ROOT / f"{prefix}{name}.py"
        for prefix, names in re.findall(r"addprefix ([\w/]+),([^)]+)", listed[1])
        for name in names.replace("\\\n", " ").split()
    ]
    assert len(files) > 30
    meets = re.compile(
        r"\bsqlalchemy\b|\bDatabase\b|\bmake_db\b|\bcreate_async_engine\b|\b(?:from|import) backend\b|\bplyr:"
    )
    found = [f"{name_of(path)}: {match[0]}" for path in files if (match := meets.search(path.read_text()))]
    assert not found, found


# -- packaging ---------------------------------------------------------------------------------------------------


def test_the_extra_all_has_every_other_extra() -> None:
    extras = tomllib.loads((ROOT / "packages/steadypool/pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (everything,) = extras.pop("all")
    match = re.fullmatch(r"steadypool\[(.*)\]", everything)
    assert match is not None
    assert sorted(match[1].split(",")) == sorted(extras)


def test_the_library_says_that_it_is_typed_and_carries_its_licence() -> None:
    for package in (LIBRARY, LAB):
        assert (package / "py.typed").exists()
        assert (ROOT / "LICENSE").read_text() == (package.parents[1] / "LICENSE").read_text()


# -- documents that must stay true -------------------------------------------------------------------------------


def test_what_is_made_from_code_is_current() -> None:
    for document in generate_docs.DOCUMENTS:
        text = document.read_text()
        assert text == generate_docs.filled(text), f"{name_of(document)} is not current: make docs"
    made = generate_docs.made()
    for path, text in made.items():
        assert path.read_text() == text, f"{name_of(path)} is not current: make docs"
    assert set((ROOT / "docs/runbooks").iterdir()) <= set(made)


def test_code_reads_every_setting() -> None:
    assert generate_docs.unread_settings() == set()


def test_every_variable_and_every_error_is_in_the_tables() -> None:
    settings, failures = reference.settings_markdown(), reference.failures_markdown()
    assert [row.variable for row in settings_table() if f"`{row.variable}`" not in settings] == []
    kinds = {
        name
        for name in steadypool.__all__
        if name[0].isupper() and name not in ("Database", "DatabaseSettings")
    }
    assert kinds - {"SteadypoolError"} == set(re.findall(r"^\| `(\w+)`", failures, re.MULTILINE))


def test_every_make_target_in_the_documents_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md"):
        named = set(re.findall(r"`make ([\w-]+)", (ROOT / name).read_text()))
        assert named, f"{name} names no target"
        assert named <= targets, f"{name} names {named - targets}"


def test_every_link_between_documents_leads_somewhere() -> None:
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "packages/steadypool/README.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{name_of(path)}: {target}"


def test_pages_fit_on_a_page() -> None:
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        assert len((ROOT / name).read_text().splitlines()) <= 75, name


def test_the_settings_for_neon_are_the_seed_documents() -> None:
    settings = DatabaseSettings(_env_file=ROOT / "deploy/neon.env")
    assert (settings.pool_size, settings.max_overflow) == (10, 5)
    assert (settings.statement_timeout, settings.connection_timeout, settings.pool_timeout) == (
        10.0,
        10.0,
        10.0,
    )
    assert settings.pool_recycle == 7200
    assert "sslmode=require&channel_binding=require" in settings.require_url()


# -- the seed's statements ---------------------------------------------------------------------------------------

SEED_MAP = ROOT / "docs/seed-map.md"


def seed_rows() -> list[tuple[str, str, str]]:
    """Lines of the seed, statement, and where it is true."""
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in SEED_MAP.read_text().splitlines()
        if re.match(r"\| *\d", line)
    ]
    assert rows, "the map has no rows"
    assert all(len(row) == 4 for row in rows), [row for row in rows if len(row) != 4]
    return [(row[0], row[1], row[2]) for row in rows]


def test_every_row_of_the_seed_map_has_its_tests() -> None:
    empty = [row for row in seed_rows() if not re.search(r"`tests/|prose", row[2])]
    assert not empty, empty


def test_every_test_in_the_seed_map_exists() -> None:
    missing = []
    for lines, _, where in seed_rows():
        for path, _, test in re.findall(r"`(tests/[\w/]+\.py)(::(\w+))?`", where):
            file = ROOT / path
            if not file.exists() or (test and not defines(file, test)):
                missing.append(f"{lines}: {path}::{test}")
    assert not missing, "\n".join(missing)


def defines(file: Path, test: str) -> bool:
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == test
        for node in ast.walk(ast.parse(file.read_text()))
    )


def test_the_seed_map_covers_the_document_without_a_gap() -> None:
    covered: set[int] = set()
    for lines, _, _ in seed_rows():
        for part in lines.split(","):
            first, _, last = part.strip().partition("-")
            covered |= set(range(int(first), int(last or first) + 1))
    assert covered == set(range(1, 325)), sorted(set(range(1, 325)) ^ covered)
