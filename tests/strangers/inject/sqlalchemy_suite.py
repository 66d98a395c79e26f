"""A pytest plugin for SQLAlchemy's own suite, which makes most of its engines by `create_engine`.

The suite then runs them in greenlets, with an asynchronous driver behind.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import URL, make_url
from sqlalchemy.dialects.postgresql.base import PGDialect
from steadypool_engine import DRIVER, IS_OURS, made, meant

stock = sqlalchemy.create_engine


@functools.wraps(stock)
def create_engine(url: str | URL, **arguments: Any) -> Any:
    """SQLAlchemy's; ours where the run's database is meant and no mock of a driver.

    The suite's `ReconnectFixture` is the driver's module, whose connections it can close.
    """
    from sqlalchemy.testing.engines import ReconnectFixture

    target = meant(make_url(url))
    mocks = "module" in arguments and not isinstance(arguments["module"], ReconnectFixture)
    if target is None or mocks or arguments.get("strategy") or not target.host:
        return stock(url, **arguments)
    return made(target, arguments).sync_engine


@pytest.hookimpl(tryfirst=True)
def pytest_collection() -> None:
    """Tests that ask for a QueuePool ask for its behaviour, which ours has without being one."""
    from sqlalchemy.testing import config, exclusions

    if IS_OURS:
        type(config.requirements).queue_pool = property(lambda _self: exclusions.open())


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart() -> None:
    """The suite's own plugin has been set up, and makes its first engine next."""
    if not IS_OURS:
        return
    from sqlalchemy.testing import exclusions

    from steadypool.sqlalchemy.dialects.base import BoundedDialect

    # The suite looks for the ways to set up a database next to the dialect; for Postgres SQLAlchemy has them.
    BoundedDialect.load_provisioning = classmethod(lambda cls: PGDialect.load_provisioning())  # type: ignore[attr-defined]
    if DRIVER != "steadypool":
        return
    asked = exclusions.SpecPredicate.__call__

    def with_types_of_psycopg(predicate: Any, config: Any) -> bool:
        """What the suite knows of psycopg holds for a driver that has its types."""
        if predicate.db.endswith("+psycopg") and config is not None and config.db.driver == DRIVER:
            predicate = exclusions.SpecPredicate(
                predicate.db.replace("+psycopg", f"+{DRIVER}"), predicate.op, predicate.spec
            )
        return asked(predicate, config)

    exclusions.SpecPredicate.__call__ = with_types_of_psycopg  # type: ignore[method-assign]


if IS_OURS:
    sqlalchemy.create_engine = create_engine
