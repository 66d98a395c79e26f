"""The rows of the matrix: each scenario with what is promised about it, and how that is judged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from steadypool_lab.clients import Client
from steadypool_lab.load import Tally
from steadypool_lab.matrix import elsewhere
from steadypool_lab.matrix import scenarios as play
from steadypool_lab.matrix.environment import MARGIN, MatrixEnvironment, shown


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row.

    Attributes:
        key: its name on the command line and in the raw figures.
        title: what happens.
        promise: what steadypool promises.
        play: makes it happen to one peer.
        judge: what is wrong with the figures, in words; nothing if the promise is kept. Takes T.
        tell: the figures in a few words.
    """

    key: str
    title: str
    promise: str
    play: Callable[[MatrixEnvironment, type[Client]], Awaitable[Tally]]
    judge: Callable[[Tally, float], list[str]]
    tell: Callable[[Tally], str] = field(default=lambda figures: served_and_slowest(figures))


def served_and_slowest(figures: Tally) -> str:
    """The figures of a row in a few words."""
    parts = [f"{figures.served}/{figures.requests}"]
    if figures.hung:
        parts.append(f"{figures.hung} hang")
    parts.append(shown(figures.slowest))
    if figures.unnamed:
        parts.append(f"{figures.unnamed} empty")
    if figures.facts.get("at_once") is not None:
        parts.append(f"{figures.facts['at_once']} at once")
    return ", ".join(parts)


def _wrong(*checks: tuple[bool, str]) -> list[str]:
    return [complaint for kept, complaint in checks if not kept]


def _ends(figures: Tally, limit: float) -> list[str]:
    return _wrong(
        (figures.hung == 0, f"{figures.hung} hang"),
        (
            figures.slowest <= limit + MARGIN,
            f"slowest {figures.slowest:.2f} s, promised {limit + MARGIN:.2f}",
        ),
        (
            figures.unnamed + figures.foreign == 0,
            f"{figures.unnamed} empty, {figures.foreign} not of the library",
        ),
    )


def _at_most(figures: Tally, fact: str, most: float) -> list[str]:
    value = figures.facts.get(fact)
    if value is None:
        return [f"{fact}: never"]
    return _wrong((float(value) <= most, f"{fact}: {float(value):.3g}, promised {most:g} at most"))


def _all_served(figures: Tally, count: int) -> list[str]:
    return _wrong(
        (figures.served == count, f"{figures.served} of {figures.requests} served, promised {count}")
    )


def _lets_go(figures: Tally, _unit: float) -> list[str]:
    return _all_served(figures, 1) + _ends(figures, 1.0) + _at_most(figures, "backends_left", 0)


def _told_left(figures: Tally) -> str:
    said = "ended" if figures.served else "failed"
    return f"{'hangs' if figures.hung else f'{said}, {shown(figures.slowest)}'}, {figures.facts['backends_left']} left"


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "silent",
        "server accepts, then silence; 30 requests",
        "all end ≤ T + 0.25 s, named; ≤ 2 attempts at a time",
        play.accepts_then_silence,
        lambda f, t: _ends(f, t) + _at_most(f, "at_once", 2),
    ),
    Scenario(
        "warm-silent",
        "warm connections go silent; 30 requests",
        "≤ T + 0.25 s, named",
        play.warm_then_silence,
        lambda f, t: _ends(f, t),
    ),
    Scenario(
        "mid-query",
        "silence in mid-query",
        "≤ T + 0.25 s, named; slots back ≤ 1 s after healing; nothing running 2 s later",
        play.silence_in_mid_query,
        lambda f, t: (
            _ends(f, t)
            + _at_most(f, "slots_back", 1.0)
            + _at_most(f, "running_2s_later", 0)
            + _wrong((f.facts["served_after"] == 15, f"{f.facts['served_after']} of 15 served afterwards"))
        ),
        lambda f: f"{served_and_slowest(f)}, {f.facts['running_2s_later']} run on",
    ),
    Scenario(
        "idle-reset",
        "idle connections reset, then 20 requests",
        "0 fail",
        play.idle_connections_reset,
        lambda f, _t: _all_served(f, 20),
    ),
    Scenario(
        "idle-silent",
        "idle connections go silent, new ones work; 20 requests",
        "all served ≤ 1 s + 0.25 s",
        play.idle_connections_silent,
        lambda f, _t: _all_served(f, 20) + _ends(f, 1.0),
    ),
    Scenario(
        "restart",
        "server restarted under 50 tasks, deadline 5 T",
        "only statements in flight fail; first success ≤ 0.6 s after a prober's",
        play.restarted_under_load,
        lambda f, _t: (
            _wrong(
                (f.hung == 0, f"{f.hung} hang"),
                (f.facts["not_in_flight"] == 0, f"{f.facts['not_in_flight']} fail that were not in flight"),
                (f.failed <= 15, f"{f.failed} fail, and only 15 can have been in flight"),
            )
            + _at_most(f, "first_after_prober", 0.6)
        ),
        lambda f: f"{f.failed} fail, first success after {shown(f.facts['first_after_prober'])}",
    ),
    Scenario(
        "asleep-held",
        "asleep 3 T (held), 200 arrive, deadline 5 T",
        "200, ≤ 2 attempts at a time until one succeeds",
        play.asleep_held,
        lambda f, _t: _all_served(f, 200) + _at_most(f, "at_once", 2),
    ),
    Scenario(
        "asleep-refused",
        "asleep 3 T (refused), 200 arrive, deadline 5 T",
        "200",
        play.asleep_refused,
        lambda f, _t: _all_served(f, 200),
    ),
    Scenario(
        "asleep-rejected",
        "asleep 3 T (57P03), 200 arrive, deadline 5 T",
        "200, ≤ 2 attempts at a time until one succeeds",
        play.asleep_rejected,
        lambda f, _t: _all_served(f, 200) + _at_most(f, "at_once", 2),
    ),
    Scenario(
        "documented-held",
        "documented timeouts (5 T): asleep 6 T held, deadline 15 T",
        "200",
        play.documented_held,
        lambda f, _t: _all_served(f, 200),
    ),
    Scenario(
        "documented-refused",
        "documented timeouts (5 T): asleep 3 T refused, deadline 15 T",
        "200",
        play.documented_refused,
        lambda f, _t: _all_served(f, 200),
    ),
    Scenario(
        "addresses",
        "first 2 of 3 addresses silent",
        "≤ 0.5 s; next time at once",
        play.silent_addresses,
        lambda f, _t: _all_served(f, 1) + _at_most(f, "first", 0.5) + _at_most(f, "next_time", 0.2),
        lambda f: (
            f"{f.served}/{f.requests}, first {shown(f.facts['first'])}, next {shown(f.facts['next_time'])}"
        ),
    ),
    Scenario(
        "cancelled",
        "500 tasks cancelled anywhere",
        "nothing leaked, nothing left in a transaction; cancel returns ≤ 0.1 s",
        play.cancelled_anywhere,
        lambda f, _t: (
            _at_most(f, "held_1s_later", 0)
            + _at_most(f, "not_idle_1s_later", 0)
            + _wrong(
                (f.slowest <= 0.1, f"a cancel took {f.slowest:.2f} s"),
                (f.facts["served_after"] == 15, f"{f.facts['served_after']} of 15 served afterwards"),
            )
        ),
        lambda f: f"{f.served} done, {f.facts['connects']} connects, a cancel {shown(f.slowest)}",
    ),
    Scenario(
        "close-idle",
        "close on a silent network: 10 idle",
        "≤ grace + 0.25 s, quietly",
        play.close_idle,
        lambda f, t: _ends(f, t) + _all_served(f, 1) + _at_most(f, "errors_logged", 0),
    ),
    Scenario(
        "close-busy",
        "close on a silent network: 5 busy",
        "≤ grace + 0.25 s, quietly",
        play.close_busy,
        lambda f, t: (
            _ends(f, t)
            + _all_served(f, 1)
            + _at_most(f, "errors_logged", 0)
            + _wrong(
                (f.facts["statements_that_hang"] == 0, f"{f.facts['statements_that_hang']} statements hang")
            )
        ),
        lambda f: f"{served_and_slowest(f)}, {f.facts['statements_that_hang']} statements hang",
    ),
    Scenario(
        "leave-closed",
        "let go of from elsewhere: its event loop is closed; 5 idle",
        "≤ 1 s + 0.25 s, no backend stays",
        elsewhere.loop_closed,
        _lets_go,
        _told_left,
    ),
    Scenario(
        "leave-stopped",
        "let go of from elsewhere: its event loop has stopped; 5 idle",
        "≤ 1 s + 0.25 s, no backend stays",
        elsewhere.loop_stopped,
        _lets_go,
        _told_left,
    ),
    Scenario(
        "leave-thread",
        "let go of from elsewhere: its event loop runs in another thread; 5 idle",
        "≤ 1 s + 0.25 s, no backend stays",
        elsewhere.another_thread,
        _lets_go,
        _told_left,
    ),
    Scenario(
        "leave-forked",
        "let go of in a forked child; then 5 requests of the parent",
        "≤ 1 s + 0.25 s, 5 served, none of the parent's connections lost",
        elsewhere.forked_child,
        lambda f, _t: (
            _all_served(f, 1)
            + _ends(f, 1.0)
            + _at_most(f, "parents_lost", 0)
            + _wrong((f.facts["served_after"] == 5, f"{f.facts['served_after']} of 5 served afterwards"))
        ),
        lambda f: (
            f"{'hangs' if f.hung else 'ended' if f.served else 'failed'}, {f.facts['served_after']}/5 afterwards, "
            f"{f.facts['parents_lost']} lost"
        ),
    ),
    Scenario(
        "locks",
        "a transaction with a lock is rolled back; the next caller asks at once, 300 times",
        "300 get it",
        play.locks_handed_over,
        lambda f, _t: _all_served(f, play.ROUNDS),
        lambda f: f"{f.served}/{f.requests} get it",
    ),
    Scenario(
        "loop-blocked",
        "the event loop is blocked right after a rollback, by code that alters the table, 20 times",
        "20 done ≤ 1 s",
        play.loop_blocked,
        lambda f, _t: (
            _all_served(f, 20)
            + _wrong((f.slowest <= 1.0 + MARGIN, f"slowest {f.slowest:.2f} s, promised 1 s"))
        ),
        lambda f: f"{f.served}/20 done, {shown(f.slowest)}",
    ),
)
"""All rows, in order."""
