"""A megabyte of whatever a caller or a peer may send costs time in proportion to its length, and never more.

What is measured is growth, not speed: twice the text takes less than three times as long, by the processor's time.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from backend.api import multipart, ranges
from backend.services.tracks import slugify
from steadypool._rows import size_of
from steadypool._sql import fingerprint, session_state
from steadypool._sql.lexer import TextCache, first_word, statements
from steadypool.cli.advise import sources
from steadypool.cli.why.topics import told
from steadypool.connect.dsn import parse_url
from steadypool.monitor import locks
from steadypool.monitor.diagnosis import _IDENTITY
from steadypool.multiplex import eligibility
from steadypool.settings.validators import redact_url, shown

HALF = 500_000
"""Characters of the shortest text; the next has a million."""
_NO_TIME = 0.02
"""Seconds of work that say nothing about growth."""

SQL_UNITS = {
    "dashes": "-",
    "dashed lines": "-" * 60 + "\n",
    "comments": "/* a */ ",
    "comments never closed": "/*",
    "comments closed twice": "/**/*/ ",
    "quotes": "'",
    "escape strings": "E'a'\n--x\n",
    "escaped quotes": "E'\\",
    "names in quotes": '"',
    "unicode names": 'u&"a',
    "dollars": "$",
    "dollar tags": "$a$",
    "dollar tags never closed": "$aaaa ",
    "parameters": "$1 ",
    "casts": "$1::a",
    "percent": "%(",
    "open parentheses": "(",
    "parentheses": "(?),",
    "spaces": " ",
    "backslashes": "\\",
    "words": "set_config(",
    "calls": "set_config(1,2,true)",
    "settings": "set a.",
    "tables": 'from "',
    "create": "create index ",
    "statements": "select 1;",
    "letters": "é",
}
SQL_FUNCTIONS: dict[str, Callable[[str], Any]] = {
    "multiplexing": eligibility._refusal,
    "session state": session_state._touches,
    "fingerprint": lambda text: fingerprint._name(text[: fingerprint.LONGEST_READ]),
    "first word": first_word,
    "lock": locks.lock_of.__wrapped__,
}

OTHER_UNITS = {
    **{
        name: SQL_UNITS[name]
        for name in ("dashes", "quotes", "spaces", "percent", "backslashes", "parentheses")
    },
    "colons": ":",
    "ports": ":1",
    "hosts": "a:1,",
    "host options": "host=a&",
    "at": "@",
    "slashes": "/",
    "paths": "/0123456789abcdef",
    "password": "&password=",
    "tags": 'W/"a',
    "quoted SQL": "[SQL: ] ",
    "background": "(Background on this error at: ",
    "frames": "  File\n",
    "durations": "duration: 1 ms  execute ",
    "digits": "1",
    "semicolons": '; a="',
}


def _collected(text: str) -> None:
    collector, data = multipart._Collector("file"), text.encode()
    collector.on_part_begin()
    collector.on_header_begin()
    collector.on_header_field(b"Content-Disposition", 0, 19)
    collector.on_header_value(b"form-data" + data, 0, 9 + len(data))
    collector.on_header_end()


OTHER_FUNCTIONS: dict[str, Callable[[str], Any]] = {
    "redact a URL": lambda text: redact_url(f"postgresql://{text}"),
    "parse a URL": lambda text: parse_url(f"postgresql://{text}"),
    "parse a URL's options": lambda text: parse_url(f"postgresql://h/d?{text}"),
    "show a value": shown,
    "why": told,
    "advise": lambda text: list(sources._statements([text])),
    "endpoint": lambda text: _IDENTITY.sub("/…", text),
    "range": lambda text: ranges.parse_range(f"bytes={text}-{text}", 10),
    "entity tag": lambda text: ranges.matches(text, '"b"'),
    "slug": slugify,
    "form": _collected,
}


def seconds(call: Callable[[str], Any], text: str) -> float:
    started = time.process_time()
    with contextlib.suppress(
        ValueError, RuntimeError
    ):  # refused is an answer; steadypool's errors are RuntimeErrors
        call(text)
    return time.process_time() - started


def check_growth(call: Callable[[str], Any], unit: str) -> None:
    """Fail unless twice the text takes less than three times as long, at one doubling of two.

    One doubling may cross the size of a processor's cache, or meet a neighbour's work, and look like three times; work
    that grows faster than the text looks so at both.
    """
    text = unit * (HALF // len(unit))
    texts = (text, text * 2, text * 4)
    best = [math.inf] * len(texts)
    for _ in range(8):  # the best of several: a machine that is busy makes any of them slow
        for index, each in enumerate(texts):
            best[index] = min(best[index], seconds(call, each))
            if index and best[index] <= max(3 * best[index - 1], _NO_TIME):
                return
    told = ", ".join(f"{took:.3f} s for {len(each):,}" for took, each in zip(best, texts, strict=True))
    pytest.fail(f"{told} characters")


@pytest.mark.parametrize("unit", SQL_UNITS)
@pytest.mark.parametrize("function", SQL_FUNCTIONS)
def test_sql_is_read_in_time_proportional_to_its_length(function: str, unit: str) -> None:
    check_growth(SQL_FUNCTIONS[function], SQL_UNITS[unit])


@pytest.mark.parametrize("unit", OTHER_UNITS)
@pytest.mark.parametrize("function", OTHER_FUNCTIONS)
def test_other_text_is_read_in_time_proportional_to_its_length(function: str, unit: str) -> None:
    check_growth(OTHER_FUNCTIONS[function], OTHER_UNITS[unit])


def test_a_dashed_line_above_a_statement() -> None:
    """Sixty dashes would have taken days."""
    assert statements("-" * 60 + "\nselect 1") == [["select", "0"]]
    assert first_word(("-" * 60 + "\n") * 1000 + "/* a */ " * 1000 + "fetch all from c") == "fetch"


def test_long_texts_are_not_kept_without_bound() -> None:
    calls: list[str] = []
    known = TextCache(lambda text: calls.append(text) or len(text), entries=3, characters=100)
    for text in ("a", "a", "b", "x" * 26, "x" * 26, "c", "d", "a"):
        assert known(text) == len(text)
    assert [text[:2] for text in calls] == ["a", "b", "xx", "xx", "c", "d", "a"]
    for number in range(100):
        known(f"{number:025}")
    assert len(known) == 3
    known = TextCache(len, entries=50, characters=100)
    for number in range(100):
        known(f"{number:025}")
    assert len(known) == 4


@pytest.mark.parametrize("huge", [range(10**30), {1}, (each for each in "abc")])
def test_the_size_of_a_result_looks_into_known_types_only(huge: object) -> None:
    assert size_of([(huge, [huge, "abc"])]) == 19


def test_the_size_of_a_deep_result() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert size_of([(deep, "abc")]) == 3
