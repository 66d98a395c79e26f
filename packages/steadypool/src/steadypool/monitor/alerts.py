"""Alerts: when one is raised, when it is cleared, and what its message says.

The rules are in `rules`. Each has hysteresis: what is raised is cleared only after it was well for as long as it had to
be wrong, so that something which comes and goes is one alert and not many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from steadypool import events
from steadypool.monitor.recording import RecordedSecond
from steadypool.monitor.rules import RULES, Limits, Rule
from steadypool.monitor.view import PoolView

CLEAR_UTILIZATION = 0.9
"""An alert about utilization is cleared below this share of its limit."""
NEARLY_ALWAYS = 0.95
"""Share of the seconds in which it has to hold: one quiet second does not end what is sustained."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One that is raised: its rule, since when on the pool's clock, and what it says."""

    rule: Rule
    since: float
    message: str


@dataclass
class _Watched:
    rule: Rule
    history: deque[tuple[float, float]] = field(default_factory=deque[tuple[float, float]])
    last_bad: float = 0.0
    alert: Alert | None = None


class Alerts:
    """Judges each second of a recorder, and says what began and what ended.

    Args:
        pool: its name.
        limits: when an alert is raised.
        emit: where `AlertRaised` and `AlertCleared` go.

    Example:
        >>> seen = []
        >>> alerts = Alerts("main", Limits(after=2.0), seen.append)
        >>> for second in range(3):
        ...     alerts.check(float(second), RecordedSecond(second, {"statement_timeouts": 1}), None)
        >>> [(event.name, event.runbook) for event in seen]
        [('statement_timeouts', 'statement-timeouts')]
    """

    def __init__(self, pool: str, limits: Limits, emit: Callable[[events.Event], None]) -> None:
        self.limits = limits
        self._pool = pool
        self._emit = emit
        self._watched = tuple(_Watched(rule) for rule in RULES)

    @property
    def raised(self) -> tuple[Alert, ...]:
        """Those that are raised now."""
        return tuple(watched.alert for watched in self._watched if watched.alert is not None)

    def check(self, now: float, row: RecordedSecond, view: PoolView | None) -> None:
        """Judge one more second.

        Args:
            now: the moment, on the pool's clock, at which the second ended.
            row: what was recorded of it.
            view: the pool at its end.
        """
        for watched in self._watched:
            measured = self._measure(watched.rule, row, view)
            watched.history.append((now, measured))
            while watched.history[0][0] <= now - max(self.limits.after, watched.rule.steady):
                watched.history.popleft()
            bad, message = self._judge(watched, now)
            if bad:
                watched.last_bad = now
            if bad and watched.alert is None:
                self._raise(watched, now, message)
            elif watched.alert is not None and now - watched.last_bad >= self.limits.after:
                self._clear(watched, now)

    def _measure(self, rule: Rule, row: RecordedSecond, view: PoolView | None) -> float:
        if rule.counted:
            return sum(row[column] for column in rule.counted)
        if rule.name == "utilization":
            return row["leased"] / max(1.0, row["size"])
        if rule.name == "breaker_open":
            return row["breaker"]
        deaf = view is not None and view.listener is not None and view.listener["state"] == "deaf"
        return float(deaf)

    def _judge(self, watched: _Watched, now: float) -> tuple[bool, str]:
        """Whether it is wrong now, and in which words. While an alert stands, less is enough to keep it up."""
        rule, limits, history = watched.rule, self.limits, watched.history
        latest = history[-1][1]
        if rule.name == "utilization":
            limit = limits.utilization
            if watched.alert is not None:
                return latest > limit * CLEAR_UTILIZATION, ""
            above = sum(value > limit for _, value in history)
            whole = len(history) > 1 and now - history[0][0] >= limits.after - 1.5
            return (
                whole and latest > limit and above >= NEARLY_ALWAYS * len(history),
                f"more than {limit:.0%} of pool_size in use for {limits.after:g} s, {latest:.0%} now",
            )
        if not rule.counted:
            if watched.alert is not None:
                return latest > 0, ""
            recent = [value for at, value in history if at > now - max(rule.steady, 0.5)]
            whole = now - history[0][0] >= rule.steady - 1.5
            return whole and min(recent) > 0, f"for {max(1.0, rule.steady):g} s by now"
        total = sum(value for _, value in history)
        if watched.alert is not None:
            return latest > 0, ""
        needed = limits.rate if rule.least is None else rule.least
        words = " or ".join(column.replace("_", " ") for column in rule.counted)
        return total >= needed, f"{words}: {total:.0f} within {limits.after:g} s"

    def _raise(self, watched: _Watched, now: float, what: str) -> None:
        rule = watched.rule
        message = f"{rule.title}: {what}. {rule.next_step()}"
        watched.alert = Alert(rule, now, message)
        self._emit(events.AlertRaised(self._pool, now, rule.name, message, rule.runbook))

    def _clear(self, watched: _Watched, now: float) -> None:
        assert watched.alert is not None
        seconds = now - watched.alert.since
        watched.alert = None
        self._emit(events.AlertCleared(self._pool, now, watched.rule.name, seconds))
