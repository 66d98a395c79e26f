"""The queue's history at full size: 100,000 updates from 20 writers over 2 instances.

Meanwhile listeners are killed and silenced, and the server is restarted, at random.

    python bench/queue_history.py [updates] [--seed N] [--every SECONDS] [--seconds SECONDS]

Before that it measures, on two instances in processes of their own and over HTTP, how soon a write through one is
visible through the other; with 0 updates it does only that. Ends with 1 if an update was lost or a read was stale. It
is the same campaign that the tests run at 2,000 updates.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from faults import history as checker
from faults.queue_campaign import SURVIVES_A_CRASH, campaign
from processes import running_plyr
from steadypool_lab import EmbeddedPostgres

PROPAGATION = 1.0
"""Seconds within which a change has to be known to an instance that hears."""

WRITES = 400
"""Writes by which the way from one instance to the other is measured."""


def measure_visibility(server: EmbeddedPostgres) -> list[float]:
    """Seconds from the answer to a write on one instance to its being read on the other, which had a copy."""
    taken: list[float] = []
    url = server.blocking.create_database("visible")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with (
            running_plyr(home, "a", DATABASE_URL=url) as a,
            running_plyr(home, "b", DATABASE_URL=url) as b,
            httpx.Client(base_url=a.url, headers={"Authorization": f"Bearer {a.token}"}) as one,
            httpx.Client(base_url=b.url, headers={"Authorization": f"Bearer {b.token}"}) as other,
        ):
            writer, reader = one, other
            for revision in range(WRITES):
                assert _revision(reader) == revision
                headers = {"If-Match": f'"{revision}"'}
                answer = writer.put("/queue/", json={"state": {"n": revision}}, headers=headers)
                assert answer.status_code == 200, answer.text
                began = time.monotonic()
                while _revision(reader) != revision + 1:
                    pass
                taken.append(time.monotonic() - began)
                writer, reader = reader, writer
    return taken


def _revision(client: httpx.Client) -> int:
    return client.get("/queue/").raise_for_status().json()["revision"]


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
        taken = sorted(await asyncio.to_thread(measure_visibility, server))
        print(
            f"a write through one instance is visible through the other after {statistics.median(taken) * 1000:.1f} ms "
            f"(median of {len(taken)}; p99 {taken[int(0.99 * len(taken))] * 1000:.1f} ms), one GET included",
            flush=True,
        )
        if not chosen.updates:
            return 0
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
