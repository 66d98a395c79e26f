"""`steadypool advise`: sizes and timeouts from recorded load, with their reason and what they will do."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from steadypool.cli.output import Output, plain
from steadypool.errors import ConfigurationError, words_of

if TYPE_CHECKING:
    from steadypool.cli.advise.counsel import Recommendation
    from steadypool.cli.advise.replay import Outcome

__all__ = ["advise"]

_REPLAYS = 10
"""About so many, for the bar."""


def advise(
    source: str,
    /,
    *,
    wait: float = 0.01,
    most: int = 100,
    env: Annotated[bool, Parameter(negative="")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Say which pool sizes and timeouts fit a recorded load, why, and what they will do.

    The recorded requests are replayed through the real pool on a virtual clock, with each size that is considered. A
    request is taken to hold its connection for as long as it did.

    **Examples.**

        # From the file of the recorder (DATABASE_RECORDER_FILE):
        steadypool advise recorder.jsonl
        # From a running service, or from what its page exported:
        steadypool advise http://127.0.0.1:8000/pool
        steadypool advise pool-export.json --wait 0.05
        # From the log of Postgres (log_min_duration_statement=0 for a while), only the lines to paste:
        steadypool advise postgresql.log --env

    Parameters
    ----------
    source
        A recorder's file, an export, the address of a page, or a log of Postgres (stderr or jsonlog).
    wait
        Seconds that 99 % of the requests should not wait longer for a connection.
    most
        The most connections to consider: what the server has room for.
    env
        Print the lines to paste and nothing else.
    as_json
        Print the advice as JSON.
    """
    from steadypool.cli.advise import counsel
    from steadypool.cli.advise.sources import load

    out = Output(as_json=as_json)
    if not wait > 0 or not 1 <= most <= 1000:
        out.fail("--wait is above 0 seconds, --most from 1 to 1000 connections")
        return 2
    try:
        recorded = load(source)
        with out.quiet_progress(_REPLAYS, "replaying …") as step:
            given = counsel.advise(recorded, wait=wait, most=most, tell=step.done)
    except ConfigurationError as error:
        out.fail(words_of(error))
        return 1
    out.result(_as_dict(given))
    if not env:
        _show(out, given)
    out.text(plain("\n".join(env_block(given))))
    return 0


def env_block(given: Recommendation) -> list[str]:
    """The lines to paste: settings for the environment, and the code for workloads as comments."""
    outcome = given.chosen.outcome
    lines = [
        f"# steadypool advise, {given.load.source}: {given.chosen.name}, p99 wait {_ms(outcome.wait(99))}",
        f"DATABASE_POOL_SIZE={outcome.size}",
        f"DATABASE_MAX_OVERFLOW={outcome.max_overflow}",
        f"DATABASE_CONNECTION_TIMEOUT={given.connection_timeout:g}",
    ]
    for each in given.timeouts:
        if each.workload is None:
            lines.append(f"DATABASE_STATEMENT_TIMEOUT={each.seconds:g}")
        else:
            ceiling = "" if each.max_connections is None else f", max_connections={each.max_connections}"
            lines.append(f'# db.workload("{each.workload}", statement_timeout={each.seconds:g}{ceiling})')
    return lines


def _show(out: Output, given: Recommendation) -> None:
    seconds = given.load.seconds
    took = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} s"
    out.text(plain(f"{given.load.source}: {len(given.load.arrivals):,} requests in {took}"))
    table = Table("", "size", "wait p50", "p99", "worst", "refused", "peak", "connects/min", "price")
    table.add_row("as it is", *_cells(given.now), "")
    for option in given.options:
        table.add_row(option.name, *_cells(option.outcome), plain(option.price))
    out.show(table)
    out.text(plain(f"Sizes: {given.chosen.name}: {given.reason}."))
    for each in given.timeouts:
        out.text(plain(f"Statement timeout{f' of {each.workload}' if each.workload else ''}: {each.reason}."))
    out.text(plain(f"Connection timeout: {given.connection_reason}."))
    for remark in given.remarks:
        out.text(plain(f"Note: {remark}."))
    out.text("")


def _cells(outcome: Outcome) -> tuple[str, ...]:
    return (
        f"{outcome.size} + {outcome.max_overflow}",
        _ms(outcome.wait(50)),
        _ms(outcome.wait(99)),
        _ms(outcome.wait(100)),
        str(outcome.refused),
        str(outcome.peak),
        f"{outcome.connects_per_minute:.1f}",
    )


def _as_dict(given: Recommendation) -> dict[str, Any]:
    return {
        "source": given.load.source,
        "requests": len(given.load.arrivals),
        "replayed": given.replayed,
        "now": _outcome(given.now),
        "options": [
            {"name": option.name, "price": option.price} | _outcome(option.outcome)
            for option in given.options
        ],
        "chosen": given.chosen.name,
        "reason": given.reason,
        "timeouts": [asdict(each) for each in given.timeouts],
        "connection_timeout": given.connection_timeout,
        "connection_reason": given.connection_reason,
        "remarks": list(given.remarks),
        "env": env_block(given),
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "pool_size": outcome.size,
        "max_overflow": outcome.max_overflow,
        "wait_p50": outcome.wait(50),
        "wait_p99": outcome.wait(99),
        "refused": outcome.refused,
        "peak": outcome.peak,
        "connects_per_minute": outcome.connects_per_minute,
    }


def _ms(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
