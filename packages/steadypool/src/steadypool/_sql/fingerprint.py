"""A statement's name without its values: what may stand in errors, logs and statistics.

Comments, string and number literals and parameter markers are taken out, lists of them are folded into one, and
white space is normalised, so that two calls that differ only in their values have the same fingerprint.

The rules are those of PostgreSQL's lexer (manual, "Lexical Structure"). Where the text alone does not say what is a
value, all of the rest is taken for one: a backslash before a quote means something else with
`standard_conforming_strings` off, and what is never closed may have anything in it.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

from steadypool._printable import printable
from steadypool._sql import lexer
from steadypool._sql.lexer import TextCache

LONGEST = 120
"""Characters of a statement that are shown; the hash tells longer ones apart."""

LONGEST_READ = 16_384
"""Characters of a statement that are looked at; what follows is not part of its name."""

_CERTAIN = re.compile(r"[nN]?'(?:[^'\\]|''|\\\\|\\[^'\\])*+'")
"""A plain string whose end is the same with and without `standard_conforming_strings`."""
_PLAIN_NAME = re.compile(r'(?:[uU]&)?"[\w $]+"')
_PARAMETER = "\0"
_MARKER = re.compile(r"%(?:\([^()%]*\))?[sbt](?!\w)")
_CAST = re.compile(rf"{_PARAMETER}(?:::[\w ]+?(?:\[\])?(?=[\s,)]|\Z))?")
_FOLDED = re.compile(r"\?(?:\s*,\s*\?)+")
_FOLDED_ROWS = re.compile(r"\(\?\)(?:\s*,\s*\(\?\))+")
_CUT_ROW = re.compile(r"(\(\?\)),? ?\(?[^()]*$")
OTHER = "other"
"""The summary of what is no statement."""

_OPERATIONS = frozenset(
    """
    alter analyze begin call close comment commit copy create deallocate declare delete discard do drop execute
    explain fetch grant insert listen lock merge move notify prepare refresh reindex release reset revoke rollback
    savepoint select set show start table truncate unlisten update vacuum values with
    """.upper().split()
)
_TARGET = re.compile(
    r"""\b(?: from | into | update | truncate(?:\ table)?
          | (?:create|drop|alter)\ (?:\w+\ )?table(?:\ if(?:\ not)?\ exists)? )\ (?:only\ )?
        ((?:"[^"]+"|[\w$]+)(?:\.(?:"[^"]+"|[\w$]+))?)""",
    re.IGNORECASE | re.VERBOSE,
)
_NESTED = re.compile(r"\([^()]*\)")
_DEEPEST = 8
"""Levels of parentheses that are taken out."""

_SETTING = re.compile(r"((?:^|; ?)set (?:local |session )?[\w.]+ ?(?:=|\bto\b))[^;]*", re.IGNORECASE)


def _without_values(statement: str) -> str:
    parts: list[str] = []
    before = lexer.SPACE
    for kind, start, end in lexer.tokens(statement):
        text = statement[start:end]
        if kind in (lexer.SPACE, lexer.COMMENT):
            parts.append(" ")
        elif kind == lexer.NAME:
            if before not in (lexer.NUMBER, lexer.PARAMETER):  # what touches a number belongs to it
                parts.append(text)
        elif kind == lexer.OTHER:
            parts.append(text)
        elif kind in (lexer.QUOTED, lexer.ESCAPED_NAME):
            # What is quoted is a name; one that looks unlike one is a value in the wrong quotes.
            parts.append(text if _PLAIN_NAME.fullmatch(text) else '"?"')
        elif kind == lexer.PARAMETER:
            parts.append(_PARAMETER)
        else:
            parts.append("?")
            if kind == lexer.PLAIN and not _CERTAIN.fullmatch(text):
                break
        before = kind
    return _CAST.sub("?", _MARKER.sub(_PARAMETER, "".join(parts)))


class Name(NamedTuple):
    """What a statement is called: in full, and in two or three words of few kinds (`SELECT tracks`)."""

    fingerprint: str
    summary: str


def _name(statement: str) -> Name:
    text = printable(re.sub(r"\s+", " ", _without_values(statement)).strip())
    text = _FOLDED_ROWS.sub("(?)", _FOLDED.sub("?", text))
    if len(statement) == LONGEST_READ:
        text = _CUT_ROW.sub(r"\1", text)  # where it was cut depends on how long the values were
    text = _SETTING.sub(r"\1 ?", text)
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]
    shown = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return Name(f"[{digest}] {shown}", _summary(text))


def _summary(text: str) -> str:
    first = re.match(r"[\s(]*(\w+)", text)
    operation = first[1].upper() if first is not None else OTHER
    if operation not in _OPERATIONS:
        return OTHER
    outside = text
    for _ in range(_DEEPEST):  # what stands in parentheses is not what the statement is about
        outside = _NESTED.sub(" ", outside)
    target = _TARGET.search(outside) or _TARGET.search(text)
    return operation if target is None else f"{operation} {target[1]}"[:LONGEST]


_known = TextCache(lambda statement: _name(statement[:LONGEST_READ]), entries=1024, characters=1_000_000)


def name_of(statement: str) -> Name:
    """The fingerprint of a statement, and its summary: the operation and its first table.

    Example:
        >>> name_of("select * from tracks where id = 7").summary
        'SELECT tracks'
    """
    return _known(statement)


def fingerprint(statement: str) -> str:
    """The statement without values and comments, cut to `LONGEST` characters, with a short hash before it.

    Example:
        >>> fingerprint("select *  from t where id in (1, 2) and name = 'x' -- why")
        '[96f69e8b] select * from t where id in (?) and name = ?'
    """
    return name_of(statement).fingerprint
