"""What callers without a connection are told: the right name, the right words, never an empty message."""

from __future__ import annotations

import pytest

from steadypool import errors
from steadypool.deadline import Deadline
from steadypool.errors import Holder, Phase, PoolSnapshot
from steadypool.pool import rejections

FULL = PoolSnapshot(10, 5, leased=15, waiting=3, holders=(Holder("POST /tracks", 12.3),))
EMPTY = PoolSnapshot(10, 5, waiting=1)
SLOW = PoolSnapshot(10, 5, leased=1, opening=1, waiting=1)
REFUSED = errors.ConnectFailed("127.0.0.1:5432: connection refused")


def out_of_time(
    pool: PoolSnapshot,
    *,
    now: float = 110.0,
    deadline: Deadline | None = None,
    cause: BaseException | None = None,
    ceiling: str | None = None,
) -> errors.SteadypoolError:
    return rejections.out_of_time(
        now=now, since=100.0, limit=10.0, deadline=deadline, pool=pool, cause=cause, ceiling=ceiling
    )


def test_an_exhausted_pool_says_what_sqlalchemy_says_word_for_word() -> None:
    error = out_of_time(FULL)
    assert type(error) is errors.PoolTimeout
    assert str(error).startswith(
        "QueuePool limit of size 10 overflow 5 reached, connection timed out, timeout 10.00"
    )
    assert "POST /tracks 12.3s" in str(error)
    assert "DATABASE_POOL_SIZE" in str(error)
    assert error.phase is Phase.WAITING
    assert error.elapsed.waiting == 10.0
    assert error.retry_after
    assert error.pool is FULL


def test_nobody_holds_a_connection_so_it_is_the_database_that_does_not_answer() -> None:
    error = out_of_time(EMPTY)
    assert type(error) is errors.ConnectTimeout
    assert error.phase is Phase.CONNECTING
    assert error.elapsed.connecting == 10.0
    assert "did not answer within 10.00s" in str(error)


def test_one_connection_in_use_does_not_make_a_pool_exhausted() -> None:
    assert type(out_of_time(SLOW)) is errors.ConnectTimeout


def test_silent_idle_connections_do_not_make_a_pool_exhausted() -> None:
    assert type(out_of_time(PoolSnapshot(10, 5, leased=1, idle=4, waiting=1))) is errors.ConnectTimeout


def test_a_full_pool_that_replaces_one_is_exhausted_all_the_same() -> None:
    assert type(out_of_time(PoolSnapshot(10, 5, leased=14, opening=1, waiting=9))) is errors.PoolTimeout


def test_what_the_last_attempt_said_is_named_and_the_cause() -> None:
    for pool in (EMPTY, SLOW, FULL):
        error = out_of_time(pool, cause=REFUSED)
        assert type(error) is errors.ConnectFailed
        assert "127.0.0.1:5432: connection refused" in str(error)
        assert error.__cause__ is REFUSED


def test_silence_stays_a_timeout() -> None:
    error = out_of_time(EMPTY, cause=errors.ConnectTimeout("connecting took longer than 10.00s"))
    assert type(error) is errors.ConnectTimeout
    assert "took longer than 10.00s" in str(error)


@pytest.mark.parametrize(
    ("pool", "doing", "phase"),
    [
        (FULL, "waiting for a connection", Phase.WAITING),
        (EMPTY, "connecting to the database", Phase.CONNECTING),
    ],
)
def test_the_callers_own_deadline_has_its_own_name(pool: PoolSnapshot, doing: str, phase: Phase) -> None:
    error = out_of_time(pool, now=102.0, deadline=Deadline(102.0, 2.0))
    assert type(error) is errors.DeadlineExceeded
    assert f"deadline of 2.00s passed after 2.00s of {doing}" in str(error)
    assert (error.phase, error.deadline) == (phase, 2.0)


def test_a_deadline_that_has_not_come_is_not_blamed() -> None:
    error = out_of_time(FULL, deadline=Deadline(160.0, 60.0))
    assert type(error) is errors.PoolTimeout
    assert error.deadline == 60.0


def test_a_workload_at_its_ceiling_is_told_so() -> None:
    error = out_of_time(PoolSnapshot(10, 5, leased=3, waiting=1), cause=REFUSED, ceiling="uploads")
    assert type(error) is errors.PoolTimeout
    assert "'uploads' holds as many connections as it may" in str(error)


def test_a_full_queue() -> None:
    error = rejections.queue_full(1000, Deadline(5.0, 2.0), PoolSnapshot(10, 5, waiting=1000))
    assert isinstance(error, errors.PoolTimeout)
    assert "1000 callers wait" in str(error)
    assert (error.elapsed.total, error.deadline) == (0.0, 2.0)


@pytest.mark.parametrize(
    ("failure", "final"),
    [
        (REFUSED, False),
        (errors.ConnectTimeout("silence"), False),
        (errors.ConnectFailed("password", final=True), True),
        (OSError("a bug of a driver"), True),
    ],
)
def test_what_is_final(failure: BaseException, final: bool) -> None:
    assert rejections.is_final(failure) is final
    error = rejections.connect_failed(failure, 0.5, None, EMPTY)
    assert isinstance(error, errors.ConnectFailed)
    assert error.final is final
    assert error.message == errors.words_of(failure)
    assert error.__cause__ is failure


def test_a_bug_keeps_its_name_and_its_cause() -> None:
    failure = errors.HookFailed("on_connect: …")
    failure.__cause__ = TypeError()
    error = rejections.connect_failed(failure, 0.5, None, EMPTY)
    assert type(error) is errors.HookFailed
    assert error is not failure  # each caller gets one of its own
    assert error.__cause__ is failure.__cause__
    assert error.elapsed.connecting == 0.5


def test_a_failure_without_words_gets_a_name() -> None:
    assert rejections.connect_failed(OSError(), 0.5, None, EMPTY).message == "OSError"
    assert "said: OSError" in str(out_of_time(EMPTY, cause=OSError()))


def test_a_closed_pool() -> None:
    error = rejections.closed("main")
    assert "'main' is closed" in str(error)
    assert error.phase is Phase.CLOSING


def test_a_busy_event_loop_is_named_where_it_made_the_wait_longer() -> None:
    assert "event loop was busy" not in str(out_of_time(FULL, now=110.2))
    assert "said 0.70s late" in str(out_of_time(FULL, now=110.7))
    assert "said 0.70s late" in str(out_of_time(EMPTY, now=110.7))
    late = out_of_time(FULL, now=110.7, deadline=Deadline(110.0, 10.0))
    assert type(late) is errors.DeadlineExceeded
    assert "said 0.70s late" in str(late)
