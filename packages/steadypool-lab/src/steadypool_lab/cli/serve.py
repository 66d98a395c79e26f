"""`steadypool lab serve`: a Postgres that scales to zero, on the desk."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from steadypool.cli.output import Output
from steadypool_lab.cli.signals import stop_event


async def serve(
    *,
    sleep_after: float = 300.0,
    wake: float = 6.0,
    mode: Literal["hold", "refuse", "reject"] = "hold",
    suspend: Literal["close", "silence"] = "close",
    abort_wake_on_close: Annotated[bool, Parameter(negative="--no-abort-wake-on-close")] = False,
    port: int | None = None,
    tls: bool = False,
    data_dir: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Run a real Postgres that is stopped when idle, and started by the first connection; until Ctrl-C.

    Activity is a running statement or an open transaction: a connection that is only open does not keep it awake.

    **Examples.**

        # As Neon does it, asleep after five minutes, awake after six seconds:
        steadypool lab serve
        # A database that sleeps soon and refuses while it wakes, on a port of your choice:
        steadypool lab serve --sleep-after 20 --wake 10 --mode refuse --port 5433

    Parameters
    ----------
    sleep_after
        Seconds without activity after which it falls asleep; 0 for never.
    wake
        The least seconds that waking takes.
    mode
        What connections meet while it sleeps or wakes: held until it is awake; refused (the first is reset, then the
        port is closed); or rejected with SQLSTATE 57P03. Each of them wakes it.
    suspend
        What becomes of open connections when it falls asleep: closed by the server, or silent.
    abort_wake_on_close
        Whether closing the connection that wakes it, before it is awake, ends the wake-up.
    port
        Where to listen on 127.0.0.1; any free port by default.
    tls
        Offer TLS, with a certificate of its own.
    data_dir
        Keep the database there; otherwise it is gone afterwards.
    as_json
        Print one JSON object a line: what happened, and the counts.
    """
    from steadypool_lab import SuspendingPostgres

    output = Output(as_json=as_json)
    output.say("starting Postgres …")
    changes: asyncio.Queue[str] = asyncio.Queue()
    sleepy = SuspendingPostgres(
        sleep_after=sleep_after or None,
        wake=wake,
        mode=mode,
        suspend=suspend,
        abort_wake_on_close=abort_wake_on_close,
        port=port,
        tls=tls,
        data_dir=data_dir,
        on_change=changes.put_nowait,
    )
    # From the beginning: whoever sees the URL may send the signal.
    with stop_event() as stop:
        async with sleepy:
            _tell(output, sleepy, "awake")
            stopped = asyncio.create_task(stop.wait())
            while not stopped.done():
                change = asyncio.create_task(changes.get())
                await asyncio.wait({stopped, change}, return_when=asyncio.FIRST_COMPLETED)
                if change.done():
                    _tell(output, sleepy, change.result())
                else:
                    change.cancel()
            output.say("stopping …")
    return 0


def _tell(output: Output, sleepy: Any, what: str) -> None:
    root = None if sleepy.certificate is None else str(sleepy.certificate.path)
    counts = asdict(sleepy.knocks)
    event = {"event": what, "url": sleepy.url, "certificate": root, **counts}
    if counts["connections"] or what != "awake" or counts["suspends"]:
        said = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items() if count)
        output.line(event, f"{what}{f' ({said})' if said else ''}")
        return
    verify = f"\n  psql '{sleepy.url}?sslmode=verify-full&sslrootcert={root}'" if root else ""
    output.line(event, f"awake; {sleepy.mode} while it sleeps. Try:\n  psql {sleepy.url}{verify}")
