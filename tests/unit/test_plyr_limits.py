"""Rates and numbers that one client or artist may not exceed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import HTTPConnection

from backend.api.limits import address_of
from backend.config import LimitSettings
from backend.services.limits import ConcurrencyLimit, LimitExceeded, Limits, RateLimit, RecentPlays


class HandClock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def taken(limit: RateLimit, key: str = "a", tries: int = 100) -> int:
    number = 0
    for _ in range(tries):
        try:
            limit.take(key)
        except LimitExceeded:
            break
        number += 1
    return number


def test_so_many_at_once_and_then_as_time_passes() -> None:
    clock = HandClock()
    limit = RateLimit("requests", 6, 60.0, clock=clock)
    assert taken(limit) == 6
    with pytest.raises(LimitExceeded, match="the limit is 6 requests") as caught:
        limit.take("a")
    assert caught.value.retry_after == pytest.approx(10)
    assert taken(limit, "b") == 6, "each key has its own"
    clock.now += caught.value.retry_after
    assert taken(limit) == 1
    clock.now += 1_000
    assert taken(limit) == 6, "no more comes together than a period has"


def test_what_is_known_afterwards_is_charged_all_the_same() -> None:
    clock = HandClock()
    limit = RateLimit("bytes", 1_000, 100.0, clock=clock)
    limit.take("a", 0)
    limit.charge("a", 1_500)
    with pytest.raises(LimitExceeded) as caught:
        limit.take("a", 0)
    assert caught.value.retry_after == pytest.approx(50)
    clock.now += 51
    limit.take("a", 0)


@given(st.lists(st.tuples(st.floats(0, 5), st.sampled_from("ab")), max_size=200))
def test_no_period_has_more_than_twice_the_count(asked: list[tuple[float, str]]) -> None:
    clock = HandClock()
    limit = RateLimit("requests", 5, 10.0, clock=clock)
    granted: list[float] = []
    for pause, key in asked:
        clock.now += pause
        if key == "a" and taken(limit, key, tries=1):
            granted.append(clock.now)
    for start in granted:
        assert sum(start <= moment < start + 10 for moment in granted) <= 2 * 5


def test_those_who_asked_least_lately_are_forgotten() -> None:
    clock = HandClock()
    limit = RateLimit("requests", 1, 60.0, clock=clock, max_keys=100)
    plays = RecentPlays(30.0, clock=clock, max_keys=100)
    for number in range(1_000):
        limit.take(str(number))
        assert plays.counts(str(number), 1)
    assert (len(limit), len(plays)) == (100, 100)


def test_what_is_held_is_counted_and_given_back() -> None:
    limit = ConcurrencyLimit("streams", 2)
    with limit.hold("a"), limit.hold("a"), limit.hold("b"):
        with pytest.raises(LimitExceeded, match="the limit is 2 streams at the same time"), limit.hold("a"):
            pass
    with pytest.raises(ZeroDivisionError), limit.hold("a"):
        raise ZeroDivisionError
    assert len(limit) == 0


def test_a_listener_counts_once_in_an_interval() -> None:
    clock = HandClock()
    plays = RecentPlays(30.0, clock=clock)
    assert [plays.counts("a", 1) for _ in range(3)] == [True, False, False]
    assert plays.counts("a", 2)
    assert plays.counts("b", 1)
    clock.now += 30
    assert plays.counts("a", 1)
    assert len(plays) == 1, "what is over is forgotten"


def test_everything_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LimitSettings.model_fields:
        monkeypatch.setenv(f"LIMIT_{name}".upper(), "off")
    limits = Limits(LimitSettings())
    for limit in (limits.by_address, limits.by_artist, limits.uploads, limits.upload_bytes):
        assert taken(limit, tries=1_000) == 1_000
        assert len(limit) == 0
    assert limits.plays.counts("a", 1) is limits.plays.counts("a", 1) is True
    assert limits.copies is None


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_an_address_is_that_of_its_network(host: str, key: str) -> None:
    assert address_of(HTTPConnection({"type": "http", "client": (host, 1)})) == key
    assert address_of(HTTPConnection({"type": "http", "client": None})) == ""
