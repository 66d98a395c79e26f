"""`steadypool why`: everything that can go wrong has an answer, and a line of a log finds it."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from pathlib import Path

import pytest

from steadypool import _sqlstate, errors
from steadypool.cli import main
from steadypool.cli.app import app
from steadypool.cli.doctor.run import chosen_checks
from steadypool.cli.why.topics import about, code_meaning, find, topics
from steadypool.errors import PoolSnapshot, SteadypoolError
from steadypool.pool.rejections import exhausted
from steadypool.settings import DatabaseSettings, variable_of
from steadypool.sqlalchemy import errors as sqlalchemy_errors

ERRORS = [
    name
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, SteadypoolError) and kind.__module__ == errors.__name__
]
KINDS = [
    kind
    for module in (errors, sqlalchemy_errors)
    for name, kind in inspect.getmembers(module, inspect.isclass)
    if issubclass(kind, SteadypoolError) and kind.__module__ == module.__name__ and not name.startswith("_")
]
CODES = sorted(
    set(re.findall(r"\b(?:[0-9]{5}|[0-9]{2}[A-Z][0-9]{2}|[0-9][A-Z][0-9]{3})\b", _sqlstate.__doc__ or ""))
)


@pytest.mark.parametrize("name", [*ERRORS, *CODES])
def test_every_error_and_every_sqlstate_of_the_table_has_an_answer(name: str) -> None:
    found = find(name)
    assert found is not None
    assert found.name == name
    assert about(name)


def test_the_codes_are_those_that_the_table_treats_in_a_way_of_their_own() -> None:
    assert set(_sqlstate._FATES) | _sqlstate._FINAL_AT_CONNECT | {_sqlstate.QUERY_CANCELED} <= set(CODES)


def test_no_name_has_two_answers() -> None:
    names = [name for topic in topics() for name in topic.answers]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("topic", topics(), ids=lambda topic: topic.key)
def test_every_page_says_what_it_means_how_to_find_the_cause_and_what_to_do(topic) -> None:
    assert topic.section("Meaning")
    assert "```" in topic.section("Diagnosis")
    assert len(topic.remedies) >= 3
    for target in re.findall(r"\]\(([\w-]+)\.md\)", topic.body):
        assert target in {other.key for other in topics()}


@pytest.mark.parametrize(
    ("said", "symptom"),
    [
        (exhausted(10.0, PoolSnapshot(10, 5, leased=15)), "exhaustion"),
        ("sqlalchemy.exc.TimeoutError: QueuePool limit of size 5 overflow 0 reached", "exhaustion"),
        (
            "asyncpg.exceptions.QueryCanceledError: canceling statement due to statement timeout",
            "statement-timeouts",
        ),
        ("ERROR:  canceling statement due to statement timeout", "statement-timeouts"),
        ("asyncpg.exceptions.ConnectionTimeoutError", "connect-timeouts"),
        ("steadypool.ConnectTimeout", "connect-timeouts"),
        ("FATAL:  57P03: the database system is starting up", "connect-timeouts"),
        (
            'cannot connect to app@db:5432/plyr: 10.0.0.7:5432: password authentication failed for user "app" '
            "(SQLSTATE 28P01) [steadypool why ConnectFailed]",
            "log-in-refused",
        ),
        ('FATAL:  database "plyr" does not exist', "log-in-refused"),
        ("GET '/it' -> 503 DeadlineExceeded: deadline of 2.00s passed after 2.00s of waiting", "deadlines"),
        ("FATAL: terminating connection due to idle-in-transaction timeout", "leaks"),
        ("FATAL: sorry, too many clients already", "too-many-connections"),
        ('prepared statement "__asyncpg_stmt_1__" already exists', "poolers"),
        ("ERROR:  deadlock detected", "transactions"),
        ("cannot execute INSERT in a read-only transaction", "standby"),
        ("something happened [steadypool why NotificationsBlocked]", "deaf-listener"),
        ("PoolTimout", "exhaustion"),
    ],
)
def test_a_message_finds_its_symptom(said: str, symptom: str) -> None:
    found = find(said)
    assert found is not None
    assert found.topic.key == symptom


def pasted() -> dict[str, list[str]]:
    """What people paste, by the page it belongs to; a line each, in which \\n and \\t are escaped."""
    found: dict[str, list[str]] = {}
    for line in (Path(__file__).parent / "pasted.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            found[line.strip("[]")] = []
        elif line and not line.startswith("#"):
            found[list(found)[-1]].append(line.replace("\\n", "\n").replace("\\t", "\t"))
    return found


PASTED = pasted()


@pytest.mark.parametrize("symptom", PASTED)
def test_what_people_paste_finds_its_page(symptom: str) -> None:
    for said in PASTED[symptom]:
        found = find(said)
        assert found is not None, said
        assert found.topic.key == symptom, said


TRACEBACK = """Traceback (most recent call last):
  File "/app/listen/notify.py", line 7, in LISTEN
    await session.execute(text("LISTEN changes"))  # deadlock detected
asyncpg.exceptions.QueryCanceledError: canceling statement due to statement timeout

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/app/pool_timeout.py", line 9, in leak
sqlalchemy.exc.DBAPIError: <class 'asyncpg.exceptions.QueryCanceledError'>: canceling statement due to statement timeout
[SQL: SELECT 'too many connections, deadlock detected, QueuePool limit of size']
[parameters: ('password authentication failed',)]
(Background on this error at: https://sqlalche.me/e/20/dbapi)
"""


def test_of_a_traceback_only_what_was_raised_counts() -> None:
    found = find(TRACEBACK)
    assert found is not None
    assert (found.topic.key, found.also) == ("statement-timeouts", ())


def test_a_code_that_nobody_knows_is_not_taken_for_another() -> None:
    assert find("08009") is None
    assert find("40P09") is None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_the_message_of_every_error_ends_with_the_command_that_explains_it(
    kind: type[SteadypoolError],
) -> None:
    said = str(kind("what happened"))
    assert said.startswith("what happened")
    command = said.rpartition("[")[2].removesuffix("]")
    assert command.startswith("steadypool why ")
    assert find(command.rpartition(" ")[2]) is not None


@pytest.mark.parametrize("topic", topics(), ids=lambda topic: topic.key)
def test_the_commands_and_settings_of_a_page_exist(topic) -> None:
    commands = re.findall(r"(?<=`)steadypool [^`]+(?=`)|^steadypool .+$", topic.body, re.MULTILINE)
    assert commands or topic.key in ("shared-way", "transactions")
    for command in commands:
        words = shlex.split(command)[1:]
        app.parse_args(words, exit_on_error=False, print_error=False)
        if "--only" in words:
            chosen_checks(words[words.index("--only") + 1].split(","))
    known = {variable_of(name) for name in DatabaseSettings.model_fields}
    assert set(re.findall(r"\bDATABASE_[A-Z_]+\b", topic.body)) <= known


def test_a_code_comes_with_what_becomes_of_the_connection() -> None:
    assert code_meaning("57P01").startswith("admin_shutdown: evict, prove the siblings")
    assert code_meaning("99999") == ""


def test_the_answer_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "57014"]) == 0
    said = capsys.readouterr().out
    assert "## Remedies" in said
    assert "query_canceled" in said
    assert main(["why", "57014", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["symptom"] == "statement-timeouts"
    assert len(answer["remedies"]) >= 3
    assert main(["why", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(topics())


def test_what_nobody_knows_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "xyzzy"]) == 1
    assert "xyzzy" in capsys.readouterr().err
