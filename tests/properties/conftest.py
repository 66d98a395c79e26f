"""Two databases of one server, in which the same is done with two engines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from steadypool_lab import EmbeddedPostgres
from steadypool_lab.testing import Databases

from .stage import Watcher


class Place(NamedTuple):
    """A database, who looks into it, and who locks what users wait for."""

    url: str
    watcher: Watcher
    locker: Watcher


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """The event loop of all examples of a test."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def places(server: EmbeddedPostgres, runner: asyncio.Runner) -> Iterator[tuple[Place, Place]]:
    """For stock's engine, and for ours."""
    databases = Databases(server)
    names = [databases.take() for _ in range(2)]
    urls = [f"{server.url.rpartition('/')[0]}/{name}" for name in names]
    first, second = (
        Place(url, runner.run(Watcher.connect(url)), runner.run(Watcher.connect(url))) for url in urls
    )
    yield first, second
    for place, name in zip((first, second), names, strict=True):
        runner.run(place.watcher.close())
        runner.run(place.locker.close())
        server.blocking.drop_database(name)
