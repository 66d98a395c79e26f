"""Running one kind of work for a while and saying how it went."""

from __future__ import annotations

import asyncio
import math
import random
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from .work import ROWS, Contestant, Kind, Request


@dataclass
class Round:
    """What one round of one contestant gave. Times in seconds."""

    elapsed: float
    cpu: float
    latencies: list[float] = field(default_factory=list)
    per_caller: list[int] = field(default_factory=list)
    errors: int = 0
    error: str | None = None


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest rank of values in order."""
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def jain(counts: Sequence[int]) -> float:
    """Jain's index of fairness: 1 if every caller got the same, 1/n if one got everything (Jain et al., 1984)."""
    total = sum(counts)
    return total**2 / (len(counts) * sum(count**2 for count in counts)) if total else math.nan


def cpu_seconds() -> float:
    """What this process has used so far, user and system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def run_round(contestant: Contestant, kind: Kind, callers: int, seconds: float, seed: int) -> Round:
    """Let `callers` make requests one after the other for `seconds`; each ends what it has begun."""
    request = contestant.requests()[kind]
    outcome = Round(elapsed=0.0, cpu=0.0)
    cpu, began = cpu_seconds(), time.perf_counter()
    until = began + seconds
    caller = _mixed_caller if kind is Kind.MIXED else _caller
    outcome.per_caller = list(
        await asyncio.gather(
            *(caller(contestant, request, number, until, seed, outcome) for number in range(callers))
        )
    )
    outcome.elapsed = time.perf_counter() - began
    outcome.cpu = cpu_seconds() - cpu
    return outcome


async def _caller(
    _contestant: Contestant, request: Request, number: int, until: float, _seed: int, outcome: Round
) -> int:
    row = 1 + (number * 7) % (ROWS - 100)
    done = 0
    while (began := time.perf_counter()) < until:
        try:
            await request(row)
        except Exception as error:  # noqa: BLE001 - a contestant that fails is a result, too
            outcome.errors += 1
            outcome.error = f"{type(error).__name__}: {error}"[:200]
            await asyncio.sleep(0.01)
            continue
        outcome.latencies.append(time.perf_counter() - began)
        done += 1
    return done


async def _mixed_caller(
    contestant: Contestant, request: Request, number: int, until: float, seed: int, outcome: Round
) -> int:
    """Of a hundred requests five take half a second and one returns five million bytes; the others are timed."""
    rng = random.Random(seed * 1_000_003 + number)
    row = 1 + (number * 7) % (ROWS - 100)
    done = 0
    while (began := time.perf_counter()) < until:
        kind = rng.random()
        try:
            if kind < 0.05:
                await contestant.slow(row)
            elif kind < 0.06:
                await contestant.large(row)
            else:
                await request(row)
                outcome.latencies.append(time.perf_counter() - began)
        except Exception as error:  # noqa: BLE001 - a contestant that fails is a result, too
            outcome.errors += 1
            outcome.error = f"{type(error).__name__}: {error}"[:200]
            await asyncio.sleep(0.01)
            continue
        done += 1
    return done
