"""What every `Database` has without being asked: counters, the log of what is slow, the loop's lag."""

from __future__ import annotations

from steadypool._clock import SYSTEM_CLOCK
from steadypool.events import ConnectStarted, Event, Events
from steadypool.telemetry.counters import COUNTED, Counters, Totals
from steadypool.telemetry.loop_lag import LoopLag
from steadypool.telemetry.slow_queries import log_slow_queries


class DefaultInstrumentation:
    """Subscribes to a pool's events.

    Args:
        events: the pool's.
        slow_query_after: seconds of execution above which a statement is logged; None for no log.
    """

    def __init__(self, events: Events, slow_query_after: float | None) -> None:
        self.counters = Counters()
        self.lag = LoopLag(SYSTEM_CLOCK)
        events.subscribe(self.counters, *COUNTED)
        log_slow_queries(events, slow_query_after)
        # Where nobody calls `open`, the first connect is when the pool's event loop is known.
        self._unsubscribe = events.subscribe(self._connects, ConnectStarted)

    def _connects(self, _event: Event) -> None:
        self.start()

    def start(self) -> None:
        """The running event loop is the pool's."""
        self._unsubscribe()
        self.lag.start()

    def stop(self) -> None:
        """The pool is closed."""
        self._unsubscribe()
        self.lag.stop()

    def totals(self) -> Totals:
        """The counts so far."""
        return self.counters.totals()
