"""Queues on two instances while the listeners' world breaks: nothing is lost, and nothing stale is shown."""

from __future__ import annotations

import pytest

from backend.services.queue_cache import Queue
from steadypool_lab import EmbeddedPostgres

from . import history as checker
from .queue_campaign import SURVIVES_A_CRASH, Run, campaign

pytestmark = pytest.mark.anyio

UPDATES = 2000
PROPAGATION = 1.0
"""Seconds within which a change has to be known to an instance that hears; most of it is for a busy machine."""


async def test_no_update_is_lost_and_no_read_is_stale() -> None:
    async with EmbeddedPostgres.temporary(settings=SURVIVES_A_CRASH) as server:
        run = await campaign(server, updates=UPDATES, seed=5)
    print(
        f"\n{run.updates} updates in {run.seconds:.1f} s, {len(run.history.reads)} reads, {run.from_copies} of them "
        f"from copies, {run.conflicts} conflicts, {run.failures} failures, {len(run.history.deafness)} gaps, "
        f"faults: {dict(run.faults)}"
    )
    assert [str(violation) for violation in checker.check(run.history, propagation=PROPAGATION)][:5] == []
    assert run.lost() == []
    # Otherwise nothing was tested.
    assert run.updates >= UPDATES
    assert run.from_copies > 100
    assert run.history.deafness
    assert run.conflicts
    assert run.faults


def test_a_lost_update_is_noticed() -> None:
    run = Run()
    run.confirmed["k", "w"] = {1, 2}
    run.unknown["k", "w"] = {3}
    for kept, fine in ((1, False), (2, True), (3, True), (4, False)):
        run.final["k"] = Queue({"last": {"w": kept}}, 9)
        assert (run.lost() == []) is fine
