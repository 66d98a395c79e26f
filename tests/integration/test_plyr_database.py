"""`backend.utilities.database`: the seed's snippets, as they are written there."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
from sqlalchemy import text

from backend.config import get_settings, load_settings
from backend.main import create_app
from backend.utilities.database import (
    db_session,
    get_database,
    get_db,
    get_engine,
    get_session_maker,
    use_database,
)
from steadypool import Database, DatabaseSettings

pytestmark = pytest.mark.anyio


async def test_the_snippets_of_the_seed(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    database = Database(DatabaseSettings(url=database_url), name="plyr")
    with use_database(database):
        async with database, db_session() as session:
            assert (await session.execute(text("SELECT 1"))).scalar_one() == 1
            # check pool status
            engine = get_engine()
            print(f"checked out: {engine.pool.checkedout()}")  # pyright: ignore[reportAttributeAccessIssue]
            print(f"pool size: {engine.pool.size()}")  # pyright: ignore[reportAttributeAccessIssue]
    assert capsys.readouterr().out == "checked out: 1\npool size: 10\n"


async def test_every_way_to_a_session_is_on_the_one_engine(database_url: str) -> None:
    database = Database(DatabaseSettings(url=database_url, pool_size=1, max_overflow=0), name="plyr")
    with use_database(database):
        async with database:
            assert get_database() is database
            assert get_engine() is database.engine
            async with get_session_maker()() as session:
                assert (await session.execute(text("SELECT 1"))).scalar_one() == 1
                assert database.stats().pool.leased == 1
            sessions = get_db()
            session = await anext(sessions)
            assert (await session.execute(text("SELECT 2"))).scalar_one() == 2
            with pytest.raises(StopAsyncIteration):
                await anext(sessions)
            assert database.stats().pool.leased == 0


async def test_without_an_application_it_is_the_environments_database(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("DATABASE_POOL_SIZE", "3")
    monkeypatch.setattr("backend.utilities.database._current", None)
    get_settings.cache_clear()
    try:
        async with get_database() as database, db_session() as session:
            assert (await session.execute(text("SELECT 1"))).scalar_one() == 1
            assert get_database() is database
            assert database.settings.pool_size == 3
    finally:
        get_settings.cache_clear()


def test_importing_reads_no_environment_and_opens_nothing() -> None:
    code = "import backend.main, backend.utilities.database as d; assert d._current is None"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"DATABASE_POOL_SIZE": "nonsense", "PORT": "nonsense"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_description_of_the_interface_is_complete_and_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = create_app(load_settings()).openapi()["paths"]
    assert set(paths) == {
        "/auth/exchange",
        "/auth/me",
        "/tracks/",
        "/tracks/me",
        "/tracks/liked",
        "/tracks/by-uri",
        "/tracks/{track_id}",
        "/tracks/{track_id}/like",
        "/tracks/uploads/{upload_id}/progress",
        "/audio/{file_id}",
        "/audio/{file_id}/download",
        "/queue/",
        "/queue/events",
    }
