"""What all tests share: the real Postgres of `steadypool_lab.testing`, and a look at what a test leaves behind."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

pytest_plugins = ["steadypool_lab.testing"]

# The tests start some two hundred Python processes, which inherit this. Compiling all modules anew, where the machine
# forbids to keep the result, takes each of them seconds; so does Logfire, which is installed for its own tests and
# which pydantic would bring along (tests/telemetry/test_destinations.py starts it without these variables).
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ["PYDANTIC_DISABLE_PLUGINS"] = "logfire-plugin"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The simulation comes first: a file belongs to one worker, and its files take longest.

    Every async test is looked at last: the fixture is set up first, so it is torn down after all others.
    """
    items.sort(key=lambda item: "simulation" not in item.path.parts)
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
            item.fixturenames.insert(0, "no_leaked_tasks")


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end. The collector would look through all of it each time, during
    which the event loop stands still and the clocks of the tests go on."""
    gc.collect()
    gc.freeze()


REAL_SERVERS = frozenset(("contract", "faults", "integration", "properties", "telemetry"))


@pytest.fixture(autouse=True)
def no_hedge_by_chance(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first connect has no second one beside it only because the machine is busy: tests count connections.

    A test of that second one is marked `hedges`.
    """
    if not REAL_SERVERS.isdisjoint(request.path.parts) and "hedges" not in request.keywords:
        monkeypatch.setattr("steadypool.pool.circuit_breaker.HEDGE_AFTER", 10.0)


@pytest.fixture
async def no_leaked_tasks(anyio_backend: str) -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    # Each fixture and test is called from a task of anyio's own runner.
    left = {
        task for task in asyncio.all_tasks() - before if "TestRunner." not in task.get_coro().__qualname__
    }
    if left:
        # What was told to end may need a few more turns of the loop.
        _, left = await asyncio.wait(left, timeout=1.0)
    assert not left, "the test left tasks behind: " + "; ".join(repr(task) for task in left)


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture(autouse=True)
def quiet_event_loop() -> Iterator[None]:
    """asyncio reports what nobody awaited or retrieved to its log and nowhere else."""
    errors = _Errors()
    logger = logging.getLogger("asyncio")
    logger.addHandler(errors)
    yield
    logger.removeHandler(errors)
    assert not errors.messages, "asyncio complained: " + "; ".join(errors.messages)
