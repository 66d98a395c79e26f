"""Text of clients, servers and files where people read it: it begins no line and steers no terminal."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.log import LineFormatter
from steadypool._printable import printable
from steadypool._sql.fingerprint import fingerprint
from steadypool.cli import main
from steadypool.cli.output import Output
from steadypool.connect.failure import classify_connect_error
from steadypool.errors import words_of
from steadypool.fastapi.requests import holder_of

NASTY = "\x1b]0;pwned\x07\x1b[31m \x9b31m \u202e \r\x08\x7f"
FORGED = "2026-12-01 00:00:00,000 CRITICAL root: FORGED"


@given(st.text())
def test_nothing_unprintable_is_left_and_the_rest_is_as_it_was(text: str) -> None:
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text
    assert printable(text, keep="\n").replace("\n", "").isprintable()


@given(st.text(), st.text())
def test_only_a_record_begins_a_line_of_the_log(message: str, failure: str) -> None:
    try:
        raise ValueError(failure)
    except ValueError as error:
        record = logging.LogRecord(
            "x", 30, "file", 1, "%s", (message,), (ValueError, error, error.__traceback__)
        )
    first, *more = LineFormatter("%(levelname)s: %(message)s").format(record).split("\n")
    assert first.startswith("WARNING: ")
    assert all(line.startswith("    ") for line in more)
    assert all(line.isprintable() for line in (first, *more))


def test_the_holder_is_the_route_or_the_beginning_of_the_escaped_path() -> None:
    scope = {"type": "http", "method": "GET", "path": f"/x\n{FORGED}{NASTY}" + "y" * 10_000}
    name = holder_of(scope)
    assert name.startswith("GET /x\\n2026")
    assert name.isprintable()
    assert len(name) < 300

    class Route:
        path_format = "/reset/{token}"

    assert holder_of(scope | {"route": Route()}) == "GET /reset/{token}"


@pytest.mark.parametrize(
    "shown",
    [
        words_of(ValueError(NASTY)),
        classify_connect_error(OSError(f"a\n{FORGED}{NASTY}")).summary,
        fingerprint(f"select {NASTY} from x"),
    ],
)
def test_what_servers_and_statements_say_is_escaped_where_it_is_quoted(shown: str) -> None:
    assert shown.isprintable()


@pytest.mark.parametrize("as_json", [False, True])
def test_commands_write_nothing_raw(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    out = Output(as_json=as_json)
    out.say(NASTY)
    out.fail(NASTY)
    out.document(f"# title\n{NASTY}")
    out.result({NASTY: [NASTY]})
    out.line({NASTY: NASTY}, NASTY)
    with out.progress(1, NASTY) as step:
        step.done(NASTY)
    assert main(["why", NASTY, f"PoolTimeout\n{FORGED}", *(["--json"] if as_json else [])]) in (0, 1)
    said = capsys.readouterr()
    lines = (said.out + said.err).split("\n")
    assert all(line.isprintable() for line in lines), [line for line in lines if not line.isprintable()]
