"""What somebody has to know even where nothing else is set up: one log line each, on the logger `steadypool`."""

from __future__ import annotations

import logging
from weakref import WeakSet

from steadypool._callsite import as_text
from steadypool._printable import printable
from steadypool.events import Event, Events, LeakSuspected

_log = logging.getLogger("steadypool")

_logged: WeakSet[Events] = WeakSet()


def with_leaks_logged(observed: Events | None) -> Events:
    """The same events, or new ones; each leak that they tell of is logged, once, however many pools they are of."""
    observed = Events() if observed is None else observed
    if observed not in _logged:
        _logged.add(observed)
        observed.subscribe(log_notable, LeakSuspected)
    return observed


def log_notable(event: Event) -> None:
    """An observer: writes a warning for what a person should look at, and nothing for everything else."""
    if isinstance(event, LeakSuspected):
        workload = f" on workload {event.workload!r}" if event.workload else ""
        question = (
            "nobody gave it back, and the garbage collector found it"
            if event.forgotten
            else "is it ever given back?"
        )
        _log.warning(
            "connection %d of pool %r has been held for %.1fs by %s%s: %s Acquired at\n%s",
            event.connection,
            event.pool,
            event.seconds,
            event.holder,
            workload,
            question,
            printable(as_text(event.places), keep="\n") or "  (not known)",
        )
