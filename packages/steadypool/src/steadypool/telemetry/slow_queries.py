"""The log of slow queries: one line for each statement that executed longer than DATABASE_SLOW_QUERY_AFTER.

The line is made of `key=value` pairs after the words `slow query`, so that `grep` and programs can read it; the same
values are attributes of the log record, under `steadypool`. No value, literal or comment of the statement is in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from steadypool.events import Events, StatementFinished

_log = logging.getLogger("steadypool.slow")


def log_slow_queries(events: Events, after: float | None) -> Callable[[], None]:
    """Log the slow ones from now on, to `steadypool.slow`, until the function that this returns is called.

    Args:
        events: the pool's.
        after: seconds of execution above which a statement is slow; None for no log.

    Example:
        `slow query [96f69e8b] select * from t where id = ? | ms=612.0 rows=3 waiting_ms=0.0 connecting_ms=41.2
        executing_ms=570.8 …`
    """
    if after is None:
        return lambda: None

    def observe(event: StatementFinished) -> None:
        if event.seconds > after:
            _write(event)

    # It is told no others.
    return events.subscribe(observe, StatementFinished, slower_than=after)  # pyright: ignore[reportArgumentType]


def _write(event: StatementFinished) -> None:
    total = event.waiting + event.connecting + event.seconds
    values: dict[str, object] = {
        "ms": round(1000 * total, 1),
        "waiting_ms": round(1000 * event.waiting, 1),
        "connecting_ms": round(1000 * event.connecting, 1),
        "executing_ms": round(1000 * event.seconds, 1),
        "rows": "?" if event.rows is None else event.rows,
        "way": event.way,
        "workload": event.workload or "-",
        "request": event.request or "-",
        "connection": "?" if event.connection is None else event.connection,
        "sqlstate": event.sqlstate or "-",
        "error": event.error_type or "-",
        "pool": event.pool,
    }
    pairs = " ".join(f"{key}={_word(value)}" for key, value in values.items())
    extra = {"steadypool": {"fingerprint": event.fingerprint, **values}}
    _log.warning("slow query %s | %s", event.fingerprint, pairs, extra=extra)


def _word(value: object) -> str:
    """Something with a space in it stands in quotes, and a line stays one line."""
    text = str(value)
    if text.isprintable() and not set(text) & set(' "'):
        return text
    one_line = text.encode("unicode_escape").decode().replace('"', "'")
    return f'"{one_line}"'
