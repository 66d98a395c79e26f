"""What must not travel over a connection that strangers share: whatever outlives its statement there.

Shared SQL is trusted SQL: this looks at the text, so that nobody does by accident what others would feel. What a
function does inside, the text does not tell; of that the server's tags and parameters show a part.
"""

from __future__ import annotations

import itertools
import re
from functools import lru_cache

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
    **dict.fromkeys(_SETTINGS, "what it changes in the session would reach strangers"),
    **dict.fromkeys(_LASTING, "it works on the session, which is shared with strangers"),
}
_FUNCTIONS = re.compile(
    r"set_config|setseed|currval|lastval|pg_(try_)?advisory_\w+|pg_listening_channels|dblink_connect\w*"
)

_TOKEN = re.compile(
    r"""
      (?P<space>   \s+ | --[^\n\r]* )
    | (?P<comment> /\* )
    | (?P<escaped> [eE]'(?:[^'\\]|''|\\.)*(?:'|\Z) )
    | (?P<string>  '(?:[^']|'')*(?:'|\Z) | (?P<tag>\$(?:[^\W\d]\w*)?\$).*?(?:(?P=tag)|\Z) )
    | (?P<quoted>  "(?:[^"]|"")*(?:"|\Z) )
    | (?P<name>    [^\W\d][\w$]* )
    | (?P<other>   . )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")

REFUSED_TAGS = frozenset(
    tag.encode()
    for tag in (
        "BEGIN", "START TRANSACTION", "SET", "RESET", "DISCARD ALL", "DISCARD PLANS", "DISCARD SEQUENCES",
        "DISCARD TEMP", "LISTEN", "UNLISTEN", "LOCK TABLE", "DECLARE CURSOR", "FETCH", "MOVE", "CLOSE CURSOR",
        "CLOSE CURSOR ALL", "PREPARE", "DEALLOCATE", "DEALLOCATE ALL", "PREPARE TRANSACTION", "LOAD", "DO",
    )
)  # fmt: skip
"""Command tags of what should not have got through: the connection that it was done on is given up."""


def check_timeout(seconds: float | None) -> None:
    """Raise ValueError unless it is a time that a statement may take, or none was given."""
    if seconds is not None and not seconds > 0:
        raise ValueError(f"timeout={seconds!r}: allowed: seconds above 0")


@lru_cache(maxsize=2048)
def refusal(sql: str) -> str | None:
    """Why a statement does not belong on a shared connection; None where it does.

    Example:
        >>> refusal("/* hello */ BEGIN")
        'BEGIN: it belongs to a transaction, and here every statement is one of its own'
        >>> refusal("select 'begin'") is None
        True
    """
    words = _words(sql)
    first = next((word for word in words if word != "("), "")
    if first in _COMMANDS:
        return f"{first.upper()}: {_COMMANDS[first]}"
    for word, after in itertools.pairwise([*words, ""]):
        if after == "(" and _FUNCTIONS.fullmatch(word):
            return (
                f"{word}(): what it does outlives the statement, in a session that is shared with strangers"
            )
    if _makes_temporary_table(words):
        return "a temporary table would stay in a session that is shared with strangers"
    return None


def _makes_temporary_table(words: list[str]) -> bool:
    if words[:1] == ["create"] and {"temp", "temporary"} & set(words[1:4]):
        return True
    return any(
        word == "into" and {"temp", "temporary"} & set(words[at + 1 : at + 3])
        for at, word in enumerate(words)
    )


def _words(sql: str) -> list[str]:
    """Names and parentheses, in lower case; without comments, which may be nested, and without literals."""
    words: list[str] = []
    at = 0
    while (match := _TOKEN.match(sql, at)) is not None:
        at = match.end()
        kind = match.lastgroup
        if kind == "comment":
            at = _end_of_comment(sql, at)
        elif kind == "name":
            words.append(match[0].lower())
        elif kind == "quoted":
            words.append(match[0][1:-1].replace('""', '"'))
        elif match[0] == "(":
            words.append("(")
    return words


def _end_of_comment(sql: str, at: int) -> int:
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(sql, at)
        if edge is None:
            return len(sql)
        depth += 1 if edge[0] == "/*" else -1
        at = edge.end()
    return at
