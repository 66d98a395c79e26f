"""Whatever several users do on an engine of ours, they see what they would see on SQLAlchemy's own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy.ext.asyncio as stock
from hypothesis import given, note
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

import steadypool.sqlalchemy as ours

from .amount import amount
from .conftest import Place
from .stage import LOST, ROLLED_BACK, Seen, Stage, cut_off, leave_no_backend
from .steps import USERS, Step, lists_of_steps

# What stock leaves open says so when it is collected; of ours `leave_no_backend` looks whether anything is.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

WANTED = {
    "Failed rollback": "rollback() or close() of a connection that has died is quiet; stock raises",
    "Swallowed errors": "COMMIT of a transaction in which a statement failed raises TransactionRolledBack",
    "Stream in autocommit": "stream() works there with postgresql+steadypool; stock's psycopg dialect has 25P01",
}
"""Where ours may differ here: sections of docs/reference/differences.md. `_wanted` knows each.

What is not seen here by design: pings (`ping_after_idle=0`), and which connection is whose after one was replaced
("Counts and records", "Lost connections"): users leave sessions as they were then.
"""


def _wanted(stock_saw: Seen, ours_saw: Seen, driver: str) -> str | None:
    """The section that explains why a step does not go alike."""
    if stock_saw._replace(outcome=()) != ours_saw._replace(outcome=()):
        return None
    if ours_saw.outcome == ROLLED_BACK and stock_saw.outcome == ROLLED_BACK[:1]:
        return "Swallowed errors"
    if stock_saw.outcome == LOST and ours_saw.outcome in (("closed",), ("rolled back",)):
        return "Failed rollback"
    if (
        driver == "steadypool"
        and " stream" in stock_saw.step
        and stock_saw.outcome == ("InternalError", "25P01")
    ):
        return "Stream in autocommit"
    return None


def _engines(
    places: tuple[Place, Place], driver: str, sizes: dict[str, Any]
) -> tuple[AsyncEngine, AsyncEngine]:
    """SQLAlchemy's and ours. Beside the pipelined driver psycopg prepares nothing, so that nothing is stale there."""
    of_stock = {"connect_args": {"prepare_threshold": None}} if driver == "steadypool" else {}
    its = "psycopg" if driver == "steadypool" else driver
    first, second = (place.url.removeprefix("postgresql") for place in places)
    return (
        stock.create_async_engine(f"postgresql+{its}{first}", **sizes, **of_stock),
        ours.create_async_engine(f"postgresql+{driver}{second}", **sizes, ping_after_idle=0),
    )


async def compare(
    places: tuple[Place, Place], driver: str, steps: Sequence[Step], *, calm: bool, size: int
) -> None:
    """Take the same steps on both, and compare what was seen.

    Args:
        places: where stock's engine plays, and where ours does.
        driver: of ours.
        steps: what users do.
        calm: whether no connection is lost or replaced by these steps.
        size: of the pool, in calm steps; the overflow makes a connection for each user.
    """
    sizes = {"pool_size": size, "max_overflow": len(USERS) - size}
    if not calm:
        sizes = {"pool_size": len(USERS), "max_overflow": 0, "pool_pre_ping": True}
    stages = [
        Stage(engine, place.watcher, calm, guards_stale=driver == "steadypool")
        for engine, place in zip(_engines(places, driver, sizes), places, strict=True)
    ]
    expected, seen = stages
    await expected.play(steps)
    await cut_off(places[0].watcher)
    await seen.play(steps)
    for number, (stock_saw, ours_saw) in enumerate(zip(expected.seen, seen.seen, strict=False)):
        if stock_saw != ours_saw and _wanted(stock_saw, ours_saw, driver) is None:
            for before in expected.seen[:number]:
                note(f"same: {before}")
            note(f"stock: {stock_saw}\nours:  {ours_saw}")
            note(f"errors of stock: {expected.errors!r}\nerrors of ours: {seen.errors!r}")
            pytest.fail("ours is not as stock")
    assert len(expected.seen) == len(seen.seen)
    assert not expected.stale
    assert seen.stale <= sum(step.action == "change" for step in steps) * len(USERS)
    await leave_no_backend(places[1].watcher)


@pytest.mark.parametrize("calm", [True, False], ids=["calm", "rough"])
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "steadypool"])
def test_an_engine_is_as_sqlalchemys(
    driver: str, calm: bool, places: tuple[Place, Place], runner: asyncio.Runner
) -> None:
    @amount(6)
    @given(steps=lists_of_steps(calm=calm), size=st.integers(1, len(USERS)))
    def holds(steps: list[Step], size: int) -> None:
        note(" | ".join(map(str, steps)))
        runner.run(compare(places, driver, steps, calm=calm, size=size))

    holds()


def test_what_differs_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/differences.md").read_text()
    assert all(f"### {section}\n" in page for section in WANTED)
