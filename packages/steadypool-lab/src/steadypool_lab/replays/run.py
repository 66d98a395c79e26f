"""Every incident in every way, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from steadypool_lab.clients import DRIVERS
from steadypool_lab.load import Outcome, Tally, describe, tally
from steadypool_lab.postgres.embedded import EmbeddedPostgres
from steadypool_lab.postgres.sql import run_sql
from steadypool_lab.replays.environment import REQUEST_DEADLINE, ReplayEnvironment
from steadypool_lab.replays.incidents import INCIDENTS, WAYS


@dataclass(frozen=True, slots=True)
class Request:
    """One request, in the incident's seconds."""

    began: float
    seconds: float
    ended: str
    """served, failed or hung"""
    error: str = ""


@dataclass
class Replay:
    """One incident in one way. Times are the incident's seconds.

    Attributes:
        driver: steadypool's; None in the other ways.
        attempts: how often somebody tried to connect.
        recovered: seconds from the end of the fault until no request failed any more; None if it never came to that.
        early: requests that failed although more than a tenth of their time was left, or hung; of steadypool's only.
        notes: what happened when.
    """

    incident: str
    way: str
    speed: float
    figures: Tally
    attempts: int
    recovered: float | None
    early: int
    requests: list[Request]
    notes: list[tuple[float, str]]
    driver: str | None = None

    @property
    def name(self) -> str:
        """The way, with the driver where there are several."""
        return named(self.way, self.driver)

    @property
    def summary(self) -> str:
        """What came out, in a few words."""
        return (
            f"{self.figures.served} of {self.figures.requests} served, slowest {self.figures.slowest:.1f} s"
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def named(way: str, driver: str | None) -> str:
    """A way as tables call it.

    Example:
        >>> named("before", None), named("steadypool", "psycopg")
        ('before', 'steadypool/psycopg')
    """
    return way if driver is None else f"{way}/{driver}"


async def run_replays(
    incidents: Sequence[str] = tuple(INCIDENTS),
    ways: Sequence[str] = WAYS,
    drivers: Sequence[str] = tuple(DRIVERS),
    *,
    speed: float = 10.0,
    on_begin: Callable[[str, str], None] | None = None,
    on_note: Callable[[float, str], None] | None = None,
    on_end: Callable[[Replay], None] | None = None,
) -> list[Replay]:
    """Play them, one after the other.

    Args:
        incidents: their dates.
        ways: before, documented, steadypool.
        drivers: with which steadypool plays: asyncpg, psycopg, steadypool.
        speed: how much faster than it was; all times and timeouts are divided by it.
        on_begin: is told the incident and the way.
        on_note: is told what happens, and when in the incident's seconds.
        on_end: is told what came out.

    Raises:
        LabError: the embedded Postgres does not start, or this system lacks what an incident needs.
    """
    replays: list[Replay] = []
    async with EmbeddedPostgres.temporary() as server:
        await run_sql(server.url, "create table lab (a int)")
        for date in incidents:
            for way, driver in contestants(ways, drivers):
                if on_begin is not None:
                    on_begin(date, named(way, driver))
                theatre = ReplayEnvironment(server, way, speed, on_note or _keep_quiet, driver)
                await INCIDENTS[date].play(theatre)
                await theatre.requests.let_go()
                replays.append(_result(date, theatre))
                if on_end is not None:
                    on_end(replays[-1])
    return replays


def contestants(ways: Sequence[str], drivers: Sequence[str]) -> list[tuple[str, str | None]]:
    """Each way and its driver: steadypool's comes once with each, the others have their own.

    Example:
        >>> contestants(["before", "steadypool"], ["asyncpg", "psycopg"])
        [('before', None), ('steadypool', 'asyncpg'), ('steadypool', 'psycopg')]
    """
    return [(way, driver) for way in ways for driver in (drivers if way == "steadypool" else [None])]


def _result(date: str, theatre: ReplayEnvironment) -> Replay:
    requests = sorted(
        (_request(theatre, one) for one in theatre.requests.outcomes), key=lambda one: one.began
    )
    figures = tally(theatre.requests.outcomes)
    figures.slowest *= theatre.speed
    figures.slowest_served *= theatre.speed
    _, healed = INCIDENTS[date].fault
    bad = [one for one in requests if one.ended != "served"]
    last = max((one.began for one in bad), default=0.0)
    served_since = any(one.ended == "served" and one.began > last for one in requests)
    early = [one for one in bad if one.ended == "hung" or one.seconds < 0.9 * REQUEST_DEADLINE]
    return Replay(
        incident=date,
        way=theatre.way,
        speed=theatre.speed,
        figures=figures,
        attempts=theatre.attempts,
        recovered=max(0.0, last - healed) if served_since else None,
        early=len(early) if theatre.way == "steadypool" else 0,
        requests=requests,
        notes=theatre.notes,
        driver=theatre.driver,
    )


def _request(theatre: ReplayEnvironment, outcome: Outcome) -> Request:
    ended = "served" if outcome.served else "hung" if outcome.hung else "failed"
    began = (outcome.began - theatre.began) * theatre.speed
    error = describe(outcome.error) if outcome.error is not None else ""
    return Request(round(began, 2), round(outcome.seconds * theatre.speed, 3), ended, error)


def _keep_quiet(_moment: float, _text: str) -> None:
    return
