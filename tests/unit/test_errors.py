"""Errors: one family, a report in each, and never an empty message."""

from __future__ import annotations

import inspect
import pickle

import pytest

from steadypool import errors
from steadypool.errors import Elapsed, Holder, Phase, PoolSnapshot, Report, SteadypoolError

ALL = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, SteadypoolError) and kind.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_has_a_message_a_report_and_a_line_in_the_table(kind: type[SteadypoolError]) -> None:
    error = kind("what happened")
    assert str(error) == f"what happened [steadypool why {kind.__name__}]"
    assert error.message in repr(error)
    assert error.report == Report()
    assert (error.deadline, error.retry_after, error.maybe_executed, error.pool) == (None, None, False, None)
    assert kind.__doc__
    assert kind is SteadypoolError or f"`{kind.__name__}`" in (errors.__doc__ or "")


@pytest.mark.parametrize(
    ("kind", "parents"),
    [
        (errors.PoolTimeout, (TimeoutError,)),
        (errors.PoolQueueFull, (errors.PoolTimeout, TimeoutError)),
        (errors.ConnectTimeout, (errors.ConnectFailed, TimeoutError)),
        (errors.DatabaseUnavailable, (errors.ConnectFailed,)),
        (errors.DeadlineExceeded, (TimeoutError,)),
        (errors.WrongEventLoop, (RuntimeError,)),
        (errors.ConfigurationError, (ValueError,)),
    ],
)
def test_what_an_error_also_is(kind: type[SteadypoolError], parents: tuple[type[Exception], ...]) -> None:
    assert issubclass(kind, (SteadypoolError, *parents))
    assert all(issubclass(kind, parent) for parent in parents)


def test_what_may_succeed_later_says_so() -> None:
    retryable = {kind for kind in ALL if kind.retryable}
    assert {errors.PoolTimeout, errors.ConnectFailed, errors.DeadlineExceeded} <= retryable
    assert not retryable & {errors.PoolClosed, errors.ConfigurationError, errors.WrongEventLoop}


def test_the_report_can_be_read_from_the_error() -> None:
    pool = PoolSnapshot(size=10, max_overflow=5, leased=15)
    report = Report(Phase.CONNECTING, Elapsed(1.0, 2.0, 3.0), deadline=9.0, retry_after=1.0, pool=pool)
    error = errors.PoolTimeout("no", report)
    assert error.phase is Phase.CONNECTING
    assert error.elapsed.total == 6.0
    assert (error.deadline, error.retry_after, error.maybe_executed) == (9.0, 1.0, False)
    assert error.pool is pool


def test_a_report_can_be_completed_later() -> None:
    error = errors.ConnectionLost("gone")
    assert error.with_report(maybe_executed=True, phase=Phase.EXECUTING) is error
    assert (error.maybe_executed, error.phase) == (True, Phase.EXECUTING)
    assert error.message == "gone"


def test_a_connect_error_knows_whether_it_is_final() -> None:
    assert errors.ConnectFailed("password", final=True).final
    assert not errors.ConnectFailed("refused").final
    assert not errors.ConnectTimeout("silence").final


def test_an_error_survives_being_pickled() -> None:
    error = pickle.loads(pickle.dumps(errors.PoolTimeout("no", Report(retry_after=2.0))))
    assert type(error) is errors.PoolTimeout
    assert error.message == "no"
    assert error.retry_after == 2.0


def test_the_hint_names_a_class_that_people_can_look_up_and_is_not_quoted_inside_of_messages() -> None:
    class Own(errors.PoolTimeout):
        """Somebody's own kind."""

    assert str(Own("no")) == "no [steadypool why PoolTimeout]"
    assert errors.words_of(Own("no")) == "no"
    assert errors.words_of(OSError()) == "OSError"


def test_a_snapshot_fits_on_one_line_and_names_the_three_longest_holders() -> None:
    holders = tuple(Holder(f"GET /{number}", float(number)) for number in range(5))
    line = str(PoolSnapshot(10, 5, leased=5, idle=1, opening=2, closing=3, waiting=4, holders=holders))
    assert line == (
        "5 in use, 1 idle, 2 opening, 3 closing, 4 waiting, limit 10+5, utilization 50%; "
        "held longest: GET /4 4.0s, GET /3 3.0s, GET /2 2.0s"
    )
    assert str(PoolSnapshot(2, 1, leased=3, waiting=9, expected_wait=1.234)) == (
        "3 in use, 0 idle, 0 opening, 0 closing, 9 waiting, limit 2+1, utilization 150%, expected wait 1.23s"
    )
