"""The matrix's rows of letting go from elsewhere, and of locks that are handed over."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from sqlalchemy import text

from steadypool_lab.clients import DRIVERS, SteadypoolAsyncpg
from steadypool_lab.matrix import rows, run_matrix, scenarios

pytestmark = [pytest.mark.anyio, pytest.mark.hedges, pytest.mark.quiet]

LEAVING = ("leave-closed", "leave-stopped", "leave-thread", "leave-forked")
LOCKS = ("locks", "loop-blocked")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MARGIN", 3.0)  # the machine may be busy; never is another thing
    monkeypatch.setattr(scenarios, "ROUNDS", 12)


async def test_steadypool_keeps_its_promises_with_every_driver() -> None:
    matrix = await run_matrix([peer.name for peer in DRIVERS.values()], [*LEAVING, *LOCKS], unit=2.0)
    assert not matrix.broken(), [(cell.scenario, cell.peer, cell.broken) for cell in matrix.broken()]
    assert [scenario.key for scenario in matrix.scenarios] == [*LEAVING, *LOCKS]


async def test_a_broken_promise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    stayed: list[SteadypoolAsyncpg] = []
    ending: set[asyncio.Task[None]] = set()

    async def never(peer: SteadypoolAsyncpg) -> None:
        stayed.append(peer)
        await asyncio.Event().wait()

    async def later(peer: SteadypoolAsyncpg, statements: Sequence[str], *, by_block: bool) -> None:
        """The ROLLBACK is on its way 20 ms after this has returned."""
        entered = asyncio.Event()

        async def hold() -> None:
            async with peer.db.session() as session:
                for statement in statements:
                    await session.execute(text(statement))
                entered.set()
                await asyncio.sleep(0.02)

        task = asyncio.create_task(hold())
        ending.add(task)
        task.add_done_callback(ending.discard)
        await entered.wait()

    monkeypatch.setattr(SteadypoolAsyncpg, "leave", never)
    monkeypatch.setattr(SteadypoolAsyncpg, "undo", later)
    matrix = await run_matrix([SteadypoolAsyncpg.name], [*LEAVING, *LOCKS], unit=0.3)
    for peer in stayed:
        await peer.db.close(grace=0.0)
    *leaving, locks, blocked = matrix.cells
    for cell in leaving:
        assert "1 hang" in cell.broken, cell
    assert [cell.figures.facts.get("backends_left") for cell in leaving] == [5, 5, 5, None]
    assert locks.broken == ["0 of 12 served, promised 12"]
    assert blocked.figures.served == 0
    assert "LockNotAvailable" in next(iter(blocked.figures.errors))
