"""Drivers that are too old are refused when an engine is made, with the line that installs the right one."""

from __future__ import annotations

import asyncpg
import psycopg
import pytest
import sqlalchemy
from psycopg import pq

from steadypool import ConfigurationError, Database, DatabaseSettings
from steadypool.connect.versions import check_versions
from steadypool.sqlalchemy import create_async_engine


@pytest.mark.parametrize(
    ("module", "version", "scheme", "install"),
    [
        (asyncpg, "0.31.0", "postgresql+asyncpg", "pip install 'asyncpg>=0.32'"),
        (psycopg, "3.2.13", "postgresql+psycopg", "pip install 'psycopg[binary]>=3.3'"),
        (psycopg, "3.2.0.dev1", "postgresql+psycopg_async", "pip install 'psycopg[binary]>=3.3'"),
        (psycopg, "3.2.13", "postgresql+steadypool", "pip install 'psycopg[binary]>=3.3'"),
        (psycopg, "3.2.13", "postgresql", "pip install 'psycopg[binary]>=3.3'"),
        (sqlalchemy, "2.0.39", "postgresql+asyncpg", "pip install 'sqlalchemy>=2.0.40'"),
    ],
)
def test_an_old_driver(
    monkeypatch: pytest.MonkeyPatch, module: object, version: str, scheme: str, install: str
) -> None:
    monkeypatch.setattr(module, "__version__", version)
    with pytest.raises(ConfigurationError) as caught:
        create_async_engine(f"{scheme}://app:hunter2@h/d")
    assert version in str(caught.value)
    assert install in str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        Database(DatabaseSettings(url=f"{scheme}://app:hunter2@h/d"))
    assert install in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_an_old_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pq, "version", lambda: 160004)
    with pytest.raises(
        ConfigurationError, match=r"libpq 16\.4 .*17 or newer: pip install 'psycopg\[binary\]>=3.3'"
    ):
        create_async_engine("postgresql://app@h/d")
    create_async_engine("postgresql+psycopg://app@h/d")
    create_async_engine("postgresql+asyncpg://app@h/d")


@pytest.mark.parametrize("version", ["0.32.0", "0.32.0.dev0", "0.100", "1.0", "2", ""])
def test_what_is_new_enough(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(asyncpg, "__version__", version)
    check_versions("asyncpg")
