"""What a statement leaves behind in its session, as far as its text says so, and how a session is made clean.

A function that changes the session inside does not show in the text that calls it; docs/explanation/session-state.md
says what to do about that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from steadypool._sql.lexer import TextCache, statements

RESET = (
    "RESET SESSION AUTHORIZATION",
    "RESET ROLE",
    "RESET ALL",
    "CLOSE ALL",
    "UNLISTEN *",
    "SELECT pg_advisory_unlock_all()",
    "SELECT setseed(('x' || left(md5(clock_timestamp()::text || pg_backend_pid()), 8))::bit(32)::int / 2147483648.0)",
    "DISCARD SEQUENCES",
    "DISCARD TEMP",
)
"""Makes a session as it was after its start, start-up options included, except for what PREPARE made. No command takes
back a seed that was set: random() gets another one."""

DEALLOCATE = (
    "DO $$ DECLARE name text; BEGIN FOR name IN SELECT p.name FROM pg_catalog.pg_prepared_statements p WHERE from_sql"
    " LOOP EXECUTE pg_catalog.format('DEALLOCATE %I', name); END LOOP; END $$"
)
"""Deallocates what PREPARE made, by name, so that what the drivers have prepared by the protocol stays. It needs the
right to use plpgsql, which a server may have revoked."""

REPORTED = (
    "search_path", "TimeZone", "DateStyle", "IntervalStyle", "client_encoding", "session_authorization",
    "is_superuser", "default_transaction_read_only", "standard_conforming_strings", "application_name",
)  # fmt: skip
"""Settings whose changes the server reports unasked (search_path since PostgreSQL 18)."""

_HINT = re.compile(
    r"set|discard|load|listen|prepare|deallocate|hold|temp|advisory|dblink|u&\"|\bdo\b|ts_stat|ts_rewrite|_to_xml"
    r"|crosstab|connectby|xpath_table|backup|replication",
    re.IGNORECASE,
)
"""A text without any of these changes no session; most texts need no other look."""

_BODY = re.compile("atomic", re.IGNORECASE)

_COMMANDS = frozenset({"reset", "discard", "load", "listen", "unlisten", "deallocate", "do"})
_NOT_OF_THE_SESSION = frozenset({"local", "transaction", "constraints"})
"""What follows SET where it ends with the transaction."""

RUNS_TEXT = (
    r"ts_stat|ts_rewrite|query_to_xml\w*|cursor_to_xml\w*|crosstab\w*|connectby|xpath_table"
    r"|dblink_connect\w*|set_limit|pg_(start_backup|backup_start)|pg_replication_origin_session_setup"
    r"|pg_create_(logical|physical)_replication_slot"
)
"""Functions that run SQL given as text, or leave something in the session, as an expression."""

_FUNCTIONS = re.compile(rf"pg_(try_)?advisory_lock(_shared)?|setseed|{RUNS_TEXT}")
_TEMPORARY = frozenset({"temp", "temporary"})
_TEMPORARY_SCHEMA = re.compile(r'"?pg_(toast_)?temp(_[0-9]+)?')
_BEFORE_TEMPORARY = frozenset({"or", "replace", "global", "local"})


def readings(sql: str) -> Iterator[list[str]]:
    """The statements of a text (`_sql_text.statements`), in all readings where a doubt makes a difference.

    The first is whether a backslash escapes. The second is where the body of a function ends: `case` and `end` may be
    names of columns, and `begin atomic` a parameter with its type, so each part of a text is a statement as well.
    """
    for backslashes in (False, True) if "\\" in sql else (False,):
        yield from statements(sql, backslashes=backslashes)
        if _BODY.search(sql) is not None:
            parts = statements(sql, backslashes=backslashes, bodies=False)
            yield from (words for words in parts if words != ["end"])


def calls(words: Sequence[str], functions: re.Pattern[str]) -> str | None:
    """The first of these functions that a statement calls, if it does."""
    for at in range(1, len(words)):
        if words[at] == "(" and functions.fullmatch(name := words[at - 1].removeprefix('"')):
            return name
    return None


def makes_temporary(words: Sequence[str]) -> bool:
    """Whether a statement makes or names an object that lives as long as its session."""
    return (
        any(_TEMPORARY_SCHEMA.fullmatch(word) for word in words)
        or any(word == "create" and _is_temporary(words, at + 1) for at, word in enumerate(words))
        or any(
            word == "into"
            and words[at - 1 : at] not in (["insert"], ["merge"])
            and _is_temporary(words, at + 1)
            for at, word in enumerate(words)
        )
    )


def _is_temporary(words: Sequence[str], at: int) -> bool:
    """Whether TEMP or TEMPORARY comes there, behind OR REPLACE, GLOBAL or LOCAL."""
    while at < len(words) and words[at] in _BEFORE_TEMPORARY:
        at += 1
    return at < len(words) and words[at] in _TEMPORARY


def writes_settings(words: Sequence[str]) -> bool:
    """Whether a statement updates the view whose rules call set_config()."""
    return "update" in words and ("pg_settings" in words or '"pg_settings' in words)


def has_hidden_name(words: Sequence[str]) -> bool:
    """Whether a name is written with Unicode escapes, which may spell any other."""
    return 'U&"' in words


LONGEST = 65_536
"""Characters of a text that are read; a longer one is in doubt where it has a hint."""


def _touches(sql: str) -> bool:
    if len(sql) > LONGEST:
        return _HINT.search(sql) is not None
    return _HINT.search(sql) is not None and any(map(_changes_session, readings(sql)))


touches = TextCache(_touches)
"""Whether running a text may change the session beyond its transaction; where that is in doubt, it does.

Example:
    >>> touches("set role mallory"), touches("set local role mallory")
    (True, False)
"""


_WANTS_ANSWER = re.compile("prepare|listen", re.IGNORECASE)


class Changes:
    """What the uses of a session since the last reset may have left in it."""

    __slots__ = ("any", "thorough")

    def __init__(self) -> None:
        self.any = self.thorough = False

    def add(self, sql: str | None) -> None:
        """Note a change.

        Args:
            sql: the text that made it; None where what was run was not seen.

        After PREPARE the reset also deallocates, and after LISTEN notifications may be on their way: such a reset is
        waited for.
        """
        self.any = True
        self.thorough = self.thorough or sql is None or _WANTS_ANSWER.search(sql) is not None

    def forget(self) -> None:
        """The session is clean."""
        self.any = self.thorough = False


def _changes_session(words: Sequence[str]) -> bool:
    first = words[0]
    if first in _COMMANDS:
        return True
    if first == "set":
        return words[1:2] != [] and words[1] not in _NOT_OF_THE_SESSION
    if first == "prepare":
        return words[1:2] != ["transaction"]
    if first == "declare" and _has_pair(words, "with", "hold"):
        return True
    return (
        has_hidden_name(words)
        or calls(words, _FUNCTIONS) is not None
        or _sets_for_session(words)
        or makes_temporary(words)
        or writes_settings(words)
    )


def _has_pair(words: Sequence[str], one: str, other: str) -> bool:
    return any(word == one and words[at + 1 : at + 2] == [other] for at, word in enumerate(words))


def _sets_for_session(words: Sequence[str]) -> bool:
    """Whether set_config() is called with anything but a literal `true` for `is_local`."""
    open_calls: list[bool] = []
    for at, word in enumerate(words):
        if word == "(":
            open_calls.append(at > 0 and words[at - 1].removeprefix('"') == "set_config")
        elif word == ")" and open_calls and open_calls.pop() and not _ends_in_true(words[at - 2 : at]):
            return True
    return any(open_calls)


def _ends_in_true(last: Sequence[str]) -> bool:
    return last[0] in (",", "=>") and last[1] == "true"
