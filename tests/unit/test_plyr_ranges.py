"""Byte ranges and conditions, held to their definition over everything hypothesis can think of."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backend.api.ranges import Slice, Unsatisfiable, matches, parse_range, range_applies

sizes = st.integers(min_value=0, max_value=2**40)
positions = st.integers(min_value=0, max_value=2**41)


def outcome(header: str | None, size: int) -> Slice | str | None:
    try:
        return parse_range(header, size)
    except Unsatisfiable:
        return "unsatisfiable"


@given(positions, positions, sizes)
@example(0, 0, 0)
@example(5, 5, 6)
@example(6, 6, 6)
def test_first_and_last(first: int, last: int, size: int) -> None:
    got = outcome(f"bytes={first}-{last}", size)
    if last < first:
        assert got is None
    elif first >= size:
        assert got == "unsatisfiable"
    else:
        assert got == Slice(first, min(last, size - 1) + 1)


@given(positions, sizes)
def test_first_only(first: int, size: int) -> None:
    assert outcome(f"bytes={first}-", size) == (Slice(first, size) if first < size else "unsatisfiable")


@given(positions, sizes)
@example(0, 5)
@example(7, 5)
def test_the_last_so_many(length: int, size: int) -> None:
    expected = "unsatisfiable" if length == 0 or size == 0 else Slice(max(0, size - length), size)
    assert outcome(f"bytes=-{length}", size) == expected


@given(st.text(), sizes)
@example("bytes=--1", 10)
@example("bytes=-", 10)
@example("bytes=1-2-3", 10)
@example("bytes=+1-2", 10)
@example("bytes=٣-٤", 10)
@example("bytes= 1 - 2", 10)
@example("bytes=1-2,3-4", 10)
@example("bytes=" + "9" * 10_000 + "-", 10)
@example("bytes=0-" + "9" * 10_000, 10)
@example("bytes=-" + "9" * 10_000, 10)
@example("bytes=" + "9" * 100 + "-" + "8" * 100, 10)
@example("bytes=" + "0" * 10_000 + "-1", 10)
def test_whatever_is_sent_gives_a_part_that_is_there_or_the_whole_or_416(header: str, size: int) -> None:
    got = outcome(header, size)
    if isinstance(got, Slice):
        assert 0 <= got.start < got.stop <= size


def test_numbers_of_any_length_keep_their_meaning() -> None:
    assert outcome("bytes=0-" + "9" * 10_000, 10) == Slice(0, 10)
    assert outcome("bytes=-" + "9" * 10_000, 10) == Slice(0, 10)
    assert outcome("bytes=" + "9" * 10_000 + "-", 10) == "unsatisfiable"
    assert outcome("bytes=" + "9" * 100 + "-" + "8" * 100, 10) is None
    assert outcome("bytes=" + "0" * 10_000 + "1-2", 10) == Slice(1, 3)


def test_without_a_header_it_is_the_whole() -> None:
    assert parse_range(None, 10) is None


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, False),
        ("", False),
        ("*", True),
        ('"a"', True),
        ('W/"a"', True),
        ('"b", "a"', True),
        ('"b","a"', True),
        ('"b"', False),
        ("a", False),
        ('"a', False),
    ],
)
def test_if_none_match(header: str | None, expected: bool) -> None:
    assert matches(header, '"a"') is expected


@given(st.text())
def test_if_none_match_reads_anything(header: str) -> None:
    assert matches(header, '"a"') in (True, False)


@pytest.mark.parametrize(
    ("header", "etag", "expected"),
    [
        (None, '"a"', True),
        ('"a"', '"a"', True),
        ('"b"', '"a"', False),
        ('W/"a"', 'W/"a"', False),
        ("Sat, 29 Oct 1994 19:43:31 GMT", '"a"', False),
    ],
)
def test_if_range(header: str | None, etag: str, expected: bool) -> None:
    assert range_applies(header, etag) is expected
