"""A pytest plugin that makes a suite's engines ours, without a change to the suite.

It replaces SQLAlchemy's `create_async_engine` before the suite imports it. The environment says what to do:

- `SUITE_ENGINE`: `stock` leaves SQLAlchemy's engines, `ours` replaces them;
- `SUITE_DRIVER`: `asyncpg`, `psycopg` or `steadypool`: the driver of this run;
- `SUITE_SWITCHES_DRIVER`: `1` gives every asynchronous Postgres engine this driver; otherwise the engines that name
  another driver than the run's stay as they are.
"""

from __future__ import annotations

import functools
import os
import types
from collections.abc import Callable
from typing import Any

import sqlalchemy.ext.asyncio as asynchronous
import sqlalchemy.ext.asyncio.engine as module
from sqlalchemy import URL, make_url

IS_OURS = os.environ["SUITE_ENGINE"] == "ours"
DRIVER = os.environ["SUITE_DRIVER"]
SWITCHES = os.environ.get("SUITE_SWITCHES_DRIVER") == "1"
BASELINE = "psycopg" if DRIVER == "steadypool" else DRIVER
"""The driver that stock SQLAlchemy is compared on: `postgresql+steadypool` has psycopg's types."""

stock = module.create_async_engine


def meant(url: URL) -> URL | None:
    """The URL of an engine that is ours in this run; None for one that is left to SQLAlchemy."""
    driver = url.drivername.partition("+")[2].removesuffix("_async")
    if url.get_backend_name() != "postgresql" or not (SWITCHES or driver == BASELINE):
        return None
    return url.set(drivername=f"postgresql+{DRIVER}")


@functools.wraps(stock)
def create_async_engine(url: str | URL, **arguments: Any) -> Any:
    """SQLAlchemy's or ours."""
    target = meant(make_url(url))
    if target is None:
        return stock(url, **arguments)
    return made(target, arguments)


def made(url: URL, arguments: dict[str, Any]) -> Any:
    """An asynchronous engine of the kind that this run is about."""
    if not IS_OURS:
        return stock(url, **arguments)
    from steadypool.sqlalchemy import create_async_engine as ours

    return ours(url, **arguments)


def _keep_originals() -> None:
    """Ours calls SQLAlchemy's function by its module, in which it is about to be replaced."""
    from steadypool.sqlalchemy import engine

    if getattr(engine, "stock", None) is asynchronous:
        originals: dict[str, Callable[..., Any]] = {"create_async_engine": stock}
        engine.stock = types.SimpleNamespace(**(vars(asynchronous) | originals))  # type: ignore[assignment]


if IS_OURS:
    _keep_originals()
asynchronous.create_async_engine = create_async_engine
module.create_async_engine = create_async_engine
