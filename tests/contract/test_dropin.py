"""The promise of the README: a FastAPI application changes one import, and its own tests still pass."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

APPLICATION = Path(__file__).parent / "dropin"
STOCK = "from sqlalchemy.ext.asyncio import create_async_engine\n"
OURS = "from steadypool.sqlalchemy import create_async_engine\n"


def variant(pool: str, folder: Path) -> Path:
    """A copy of the application on one of the two pools."""
    copy = folder / pool
    shutil.copytree(APPLICATION, copy, ignore=shutil.ignore_patterns("__pycache__"))
    module = copy / "notes" / "engine.py"
    if pool == "ours":
        module.write_text(module.read_text().replace(STOCK, OURS))
    return copy


def lines(folder: Path) -> dict[str, list[str]]:
    return {str(path.relative_to(folder)): path.read_text().splitlines(True) for path in folder.rglob("*.py")}


def test_the_two_differ_in_one_import(tmp_path: Path) -> None:
    stock, ours = lines(variant("stock", tmp_path)), lines(variant("ours", tmp_path))
    assert stock.keys() == ours.keys()
    changed = [
        (before, after)
        for name in stock
        for before, after in zip(stock[name], ours[name], strict=True)
        if before != after
    ]
    assert changed == [(STOCK, OURS)]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("pool", ["stock", "ours"])
def test_its_own_tests_pass(tmp_path: Path, database_url: str, pool: str, driver: str) -> None:
    folder = variant(pool, tmp_path)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\npythonpath = .\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        cwd=folder,
        env={
            **os.environ,
            "NOTES_DATABASE_URL": database_url.replace("postgresql:", f"postgresql+{driver}:"),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout
