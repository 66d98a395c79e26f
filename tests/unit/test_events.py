"""Events: observers are told in order, may leave at any time, and cannot disturb."""

from __future__ import annotations

import dataclasses
import inspect
import logging

import pytest

from steadypool import events
from steadypool.events import Acquired, Closed, Event, Events

EVENT = Closed(pool="main", at=1.0, connection=7, reason="overflow")


def test_observers_are_told_in_the_order_in_which_they_came() -> None:
    seen: list[tuple[str, Event]] = []
    source = Events()
    source.subscribe(lambda event: seen.append(("first", event)))
    source.subscribe(lambda event: seen.append(("second", event)))
    source.emit(EVENT)
    assert seen == [("first", EVENT), ("second", EVENT)]


def test_whoever_unsubscribes_is_told_no_more_and_may_do_it_twice() -> None:
    seen: list[Event] = []
    source = Events()
    unsubscribe = source.subscribe(seen.append)
    unsubscribe()
    unsubscribe()
    source.emit(EVENT)
    assert seen == []


def test_an_observer_may_unsubscribe_while_it_is_told() -> None:
    seen: list[str] = []
    source = Events()

    def once(event: Event) -> None:
        seen.append("once")
        leave()

    leave = source.subscribe(once)
    source.subscribe(lambda event: seen.append("always"))
    source.emit(EVENT)
    source.emit(EVENT)
    assert seen == ["once", "always", "always"]


def test_an_observer_that_raises_is_logged_and_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Event] = []
    source = Events()

    def broken(event: Event) -> None:
        raise ZeroDivisionError

    source.subscribe(broken)
    source.subscribe(seen.append)
    with caplog.at_level(logging.ERROR, logger="steadypool.events"):
        source.emit(EVENT)
    assert seen == [EVENT]
    assert "observer" in caplog.text
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    "kind",
    [kind for _, kind in inspect.getmembers(events, inspect.isclass) if issubclass(kind, Event)],
    ids=lambda kind: kind.__name__,
)
def test_every_event_is_a_fact_with_pool_and_time(kind: type[Event]) -> None:
    names = [field.name for field in dataclasses.fields(kind)]
    assert names[:2] == ["pool", "at"]
    event = kind(**dict.fromkeys(names, 1))
    assert hash(event) == hash(kind(**dict.fromkeys(names, 1)))
    with pytest.raises(AttributeError):
        event.more = 2.0  # type: ignore[attr-defined]
    assert kind.__doc__


def test_events_can_be_compared() -> None:
    assert Acquired("main", 1.0, 1, 0.5, None) == Acquired("main", 1.0, 1, 0.5, None)
    assert Acquired("main", 1.0, 1, 0.5, None) != Acquired("main", 1.0, 2, 0.5, None)


def test_quick_statements_are_told_together_unless_somebody_wants_each() -> None:
    source = Events()
    assert source.quick == float("inf")
    source.subscribe(print, events.StatementFinished, slower_than=float("inf"))
    log = source.subscribe(print, events.StatementFinished, slower_than=0.5)
    source.subscribe(print, events.Closed)
    assert source.quick == 0.5
    each = source.subscribe(print, events.StatementFinished)
    assert source.quick == 0
    each()
    log()
    assert source.quick == float("inf")
    source.subscribe(print)
    assert source.quick == 0


def test_whoever_draws_waits_wants_each_statement() -> None:
    source = Events()
    source.subscribe(print, events.WaitEnded)
    assert source.quick == 0
