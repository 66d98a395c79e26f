"""The queue's history at full size: 100,000 updates from 20 writers over 2 instances.

Meanwhile listeners are killed and silenced, and the server is restarted, at random.

    python bench/queue_history.py [updates] [--seed N] [--every SECONDS] [--seconds SECONDS]

Ends with 1 if an update was lost or a read was stale. It is the same campaign that the tests run at 2,000 updates.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from faults import history as checker
from faults.queue_campaign import SURVIVES_A_CRASH, campaign
from steadypool.lab import EmbeddedPostgres

PROPAGATION = 1.0
"""Seconds within which a change has to be known to an instance that hears."""


async def main() -> int:
    parser = argparse.ArgumentParser(description="look for lost updates and stale reads of queues")
    parser.add_argument("updates", nargs="?", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--every", type=float, default=5.0, help="seconds from one fault to the next, at most"
    )
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after this time at the latest")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    async with EmbeddedPostgres.temporary(settings=SURVIVES_A_CRASH) as server:
        run = await campaign(
            server,
            updates=chosen.updates,
            every=chosen.every,
            seed=chosen.seed,
            seconds=chosen.seconds,
        )
    reads = len(run.history.reads)
    print(f"{run.updates:,} updates confirmed in {run.seconds:.0f} s, {run.conflicts:,} conflicts")
    print(f"{reads:,} reads, {run.from_copies:,} of them from copies; {run.failures:,} requests failed")
    print(f"{len(run.history.deafness)} gaps from {dict(run.faults)}")
    wrong = [str(violation) for violation in checker.check(run.history, propagation=PROPAGATION)] + run.lost()
    print(f"{len(wrong)} violations")
    for told in wrong[:20]:
        print(f"  {told}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
