"""What must not travel over a connection that callers share: whatever outlives its statement there.

Multiplexed SQL is trusted SQL: this reads the text, so that a caller does not do by accident what others would feel.
What a function does inside, the text does not show; of that the server's tags and parameters show a part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from steadypool._sql import lexer, session_state
from steadypool._sql.lexer import TextCache

ATTEMPTS = 3
"""How often a single statement is sent at most, where nothing of it can have taken effect, or that does no harm."""

_TRANSACTIONS = ("begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release", "prepare")
_SETTINGS = ("set", "reset", "discard", "load", "do")
_LASTING = (
    "listen",
    "unlisten",
    "lock",
    "declare",
    "fetch",
    "move",
    "close",
    "deallocate",
    "execute",
    "copy",
)
_COMMANDS = {
    **dict.fromkeys(_TRANSACTIONS, "it belongs to a transaction, and here every statement is one of its own"),
    **dict.fromkeys(_SETTINGS, "what it changes in the session would reach other callers"),
    **dict.fromkeys(_LASTING, "it works on the session, which other callers share"),
}
_FUNCTIONS = re.compile(
    r"set_config|setseed|currval|lastval|pg_(try_)?advisory_\w+|pg_listening_channels"
    rf"|{session_state.RUNS_TEXT}"
)
_EXPLAIN_WORDS = frozenset({"analyze", "analyse", "verbose"})

REFUSED_TAGS = frozenset(
    tag.encode()
    for tag in (
        "BEGIN", "START TRANSACTION", "SET", "RESET", "DISCARD ALL", "DISCARD PLANS", "DISCARD SEQUENCES",
        "DISCARD TEMP", "LISTEN", "UNLISTEN", "LOCK TABLE", "DECLARE CURSOR", "FETCH", "MOVE", "CLOSE CURSOR",
        "CLOSE CURSOR ALL", "PREPARE", "DEALLOCATE", "DEALLOCATE ALL", "PREPARE TRANSACTION", "LOAD", "DO",
    )
)  # fmt: skip
"""Command tags of what should not have got through: the connection that it was done on is given up."""


_IN_NO_BLOCK = ("call", "cluster", "reindex", "vacuum")
_OF_NO_BLOCK = frozenset({"database", "subscription", "system", "tablespace"})


def runs_in_no_block(sql: str) -> bool:
    """Whether a statement may refuse to run in a transaction block, in which a segment of two statements is.

    A procedure may COMMIT; the others do so by themselves; the manual says of each command whether it does.

    Example:
        >>> runs_in_no_block("call tidy_up()"), runs_in_no_block("create index concurrently on t (a)")
        (True, True)
        >>> runs_in_no_block("create table t (a int)")
        False
    """
    first = lexer.first_word(sql)
    if first not in ("alter", "create", "drop"):
        return first in _IN_NO_BLOCK
    words = next(iter(lexer.statements(sql)), [""])
    return "concurrently" in words or not _OF_NO_BLOCK.isdisjoint(words[1:4])


def check_timeout(seconds: float | None) -> None:
    """Raise ValueError unless it is a time that a statement may take, or none was given."""
    if seconds is not None and not seconds > 0:
        raise ValueError(f"timeout={seconds!r}: allowed: seconds above 0")


def _refusal(sql: str) -> str | None:
    reason = next(filter(None, map(_reason, session_state.readings(sql))), None)
    if reason is None and ";" in sql and len(lexer.statements(sql)) > 1:
        return "it holds several statements, and here every statement is one of its own"
    return reason


refusal = TextCache(_refusal)
"""Why a statement does not belong on a shared connection; None where it does.

Example:
    >>> refusal("/* hello */ BEGIN")
    'BEGIN: it belongs to a transaction, and here every statement is one of its own'
    >>> refusal("select 'begin'") is None
    True
"""


def _reason(words: Sequence[str]) -> str | None:
    first = _command(words)
    if first in _COMMANDS:
        return f"{first.upper()}: {_COMMANDS[first]}"
    if session_state.has_hidden_name(words):
        return 'a name is written with Unicode escapes (U&"…"), and may be one that is refused here: write it out'
    function = session_state.calls(words, _FUNCTIONS)
    if function is not None:
        return f"{function}(): what it does outlives the statement, in a session that other callers share"
    if session_state.makes_temporary(words):
        return "a temporary object would stay in a session that other callers share"
    if session_state.writes_settings(words):
        return "an update of pg_settings changes the session, which other callers share"
    return None


def _command(words: Sequence[str]) -> str:
    """The word that says what a statement is; under EXPLAIN, what is explained, which ANALYZE runs."""
    at = _behind_parentheses(words, 0)
    if words[at : at + 1] != ["explain"]:
        return "".join(words[at : at + 1])
    at += 1
    if words[at : at + 1] == ["("] and ")" in words[at:]:
        at = words.index(")", at) + 1
    while words[at : at + 1] and words[at] in _EXPLAIN_WORDS:
        at += 1
    at = _behind_parentheses(words, at)
    return "".join(words[at : at + 1])


def _behind_parentheses(words: Sequence[str], at: int) -> int:
    while at < len(words) and words[at] == "(":
        at += 1
    return at
