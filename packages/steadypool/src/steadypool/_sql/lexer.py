"""The one reader of SQL text: PostgreSQL's lexer (scan.l) as far as it says where names, values and comments are.

Every expression is possessive, and what is never closed ends with the text, so reading takes time in proportion to
the length of the text, whatever is in it. Nothing here knows what a statement means.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Value = TypeVar("Value")

SPACE = "space"
COMMENT = "comment"
STRING = "string"
"""A value in quotes of any kind: `'…'`, `E'…'`, `B'…'`, `U&'…'`, `$tag$…$tag$`."""
PLAIN = "plain"
"""A value in quotes that ends elsewhere where `standard_conforming_strings` is off, if there is a backslash in it."""
NAME = "name"
QUOTED = "quoted"
ESCAPED_NAME = "escaped_name"
"""`U&"…"`: what it names depends on its escapes, and on the UESCAPE that may follow."""
NUMBER = "number"
PARAMETER = "parameter"
OTHER = "other"
"""Operators and punctuation: parentheses of one kind in a row come together, commas and semicolons one by one."""

_LETTER = r"A-Za-z_\x80-\U0010ffff"
"""To the server every byte from 0x80 on is a letter, whatever Unicode says of the character."""
_SPACES = r"\ \t\n\r\f\v"
_CONTINUED = rf"'(?:[\ \t\f\v]|--[^\n\r]*+)*+[\n\r](?:[{_SPACES}]|--[^\n\r]*+[\n\r])*+'"
"""The end of a string and the beginning of its next part, on another line: the same rules hold in both."""
_WITH_BACKSLASHES = rf"'(?:[^'\\]|\\(?:.|\Z)|''|{_CONTINUED})*+(?:'|\Z)"
_WITHOUT_BACKSLASHES = r"'(?:[^']|'')*+(?:'|\Z)"
_DIGITS = r"[0-9](?:_?[0-9])*+"


def _lexer(plain: str) -> re.Pattern[str]:
    return re.compile(
        rf"""
          (?P<space>        [{_SPACES}]++ )
        | (?P<comment>      --[^\n\r]*+ )
        | (?P<block>        /\* )
        | (?P<string>       [eE]{_WITH_BACKSLASHES} | [bBxX]'[^']*+(?:'|\Z) | [uU]&{_WITHOUT_BACKSLASHES} )
        | (?P<plain>        [nN]?{plain} )
        | (?P<dollar>       \$(?:[{_LETTER}][{_LETTER}0-9]*+)?\$ )
        | (?P<escaped_name> [uU]&"(?:[^"]|"")*+(?:"|\Z) )
        | (?P<quoted>       "(?:[^"]|"")*+(?:"|\Z) )
        | (?P<name>         [{_LETTER}][{_LETTER}0-9$]*+ )
        | (?P<number>       0[xX](?:_?[0-9A-Fa-f])++ | 0[oO](?:_?[0-7])++ | 0[bB](?:_?[01])++
                          | (?:{_DIGITS}(?:\.(?!\.)(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][+-]?{_DIGITS})? )
        | (?P<parameter>    \$[0-9]++ )
        | (?P<other>        [+*<>=~!@\#%^&|`?:\[\]{{}}\\]++ | \(++ | \)++ | . )
        """,
        re.VERBOSE | re.DOTALL,
    )


_STANDARD, _BACKSLASHES = _lexer(_WITHOUT_BACKSLASHES), _lexer(_WITH_BACKSLASHES)
_COMMENT_EDGE = re.compile(r"/\*|\*/")


def tokens(sql: str, *, backslashes: bool = False) -> Iterator[tuple[str, int, int]]:
    """The tokens of a text: kind, start and end, without gaps.

    Args:
        sql: any text.
        backslashes: whether a backslash escapes in plain strings, as with `standard_conforming_strings` off.

    Example:
        >>> [(kind, "a$$/*"[start:end]) for kind, start, end in tokens("a$$/*")]
        [('name', 'a$$'), ('comment', '/*')]
    """
    match = (_BACKSLASHES if backslashes else _STANDARD).match
    at = 0
    while (found := match(sql, at)) is not None:
        kind, start, at = found.lastgroup or OTHER, at, found.end()
        if kind == "block":
            kind, at = COMMENT, _end_of_comment(sql, at)
        elif kind == "dollar":
            tag = found[0]
            closed = sql.find(tag, at)
            kind, at = STRING, len(sql) if closed < 0 else closed + len(tag)
        yield kind, start, at


def _end_of_comment(sql: str, at: int) -> int:
    """Comments in /* */ may contain others; one that is never closed goes to the end of the text."""
    depth = 1
    for edge in _COMMENT_EDGE.finditer(sql, at):
        depth += 1 if edge[0] == "/*" else -1
        if not depth:
            return edge.end()
    return len(sql)


def first_word(sql: str) -> str:
    """The first word of a text in lower case, behind comments, parentheses and semicolons; empty if there is none.

    Example:
        >>> first_word("/* a */ -- b\\n (Select 1)")
        'select'
    """
    for kind, start, end in tokens(sql):
        if kind == NAME:
            return _folded(sql[start:end])
        if kind not in (SPACE, COMMENT) and sql[start:end].strip("(;"):
            break
    return ""


def split(sql: str) -> list[str]:
    """The statements of a text, as they are written in it.

    Example:
        >>> split("begin; set local app.note = 'a; b'")
        ['begin', "set local app.note = 'a; b'"]
    """
    parts: list[str] = []
    began = 0
    for kind, start, end in tokens(sql):
        if kind == OTHER and sql[start:end] == ";":
            parts.append(sql[began:start].strip())
            began = end
    return [part for part in (*parts, sql[began:].strip()) if part]


def statements(sql: str, *, backslashes: bool = False, bodies: bool = True) -> list[list[str]]:
    """The words of each statement of a text, without comments and values.

    Names are in lower case, unless they were quoted: then they keep their case and a `"` before them, and what was
    written with `U&` is `U&"` alone. Strings are `'`, numbers and parameters `0`, the rest is itself. The body of a
    function in standard SQL (BEGIN ATOMIC … END) does not end its statement, unless `bodies` is false.

    Example:
        >>> statements('select "A b", 1 ; Commit')
        [['select', '"A b', ',', '0'], ['commit']]
    """
    found: list[list[str]] = []
    words: list[str] = []
    depth = 0
    for kind, start, end in tokens(sql, backslashes=backslashes):
        if kind == NAME:
            word = _folded(sql[start:end])
            if depth or (bodies and word == "atomic" and words[-1:] == ["begin"] and words[0] == "create"):
                depth += {"atomic": 1, "case": 1, "end": -1}.get(word, 0)
            words.append(word)
        elif kind == OTHER:
            word = sql[start:end]
            if word == ";" and not depth:
                found.append(words)
                words = []
            elif word[0] in "()":
                words += word
            else:
                words.append(word)
        elif kind == QUOTED:
            words.append('"' + sql[start + 1 : end].removesuffix('"').replace('""', '"'))
        elif kind not in (SPACE, COMMENT):
            words.append(_STAND_INS[kind])
    return [words for words in (*found, words) if words]


_STAND_INS = {STRING: "'", PLAIN: "'", ESCAPED_NAME: 'U&"', NUMBER: "0", PARAMETER: "0"}


def is_name(word: str) -> bool:
    """Whether a word of `statements` is a name or a keyword."""
    return word[0] in '"U_' or word[0].isalpha() or word[0] >= "\x80"


def _folded(name: str) -> str:
    """A name as the server compares it: only ASCII letters have a lower case for certain."""
    return name.lower() if name.isascii() else name


class TextCache(Generic[Value]):
    """What a function says of texts, remembered for the last ones; bounded by their number and their length together.

    Args:
        find: the function; what it raises is not remembered.
        entries: texts at most.
        characters: of all these texts at most; one that has more than a quarter of it is not kept.

    Example:
        >>> length = TextCache(len, entries=100)
        >>> length("select 1")
        8
    """

    def __init__(
        self, find: Callable[[str], Value], *, entries: int = 2048, characters: int = 4_000_000
    ) -> None:
        self._find = find
        self._entries = entries
        self._characters = characters
        self._known: dict[str, Value] = {}
        self._kept = 0
        self._lock = threading.Lock()

    def __call__(self, text: str) -> Value:
        """What is known of a text; found out where it is not."""
        try:
            return self._known[text]
        except KeyError:
            value = self._find(text)
        size = len(text)
        if size * 4 <= self._characters:
            with self._lock:
                self._keep(text, size, value)
        return value

    def __len__(self) -> int:
        return len(self._known)

    def _keep(self, text: str, size: int, value: Value) -> None:
        known = self._known
        if text not in known:
            self._kept += size
        known[text] = value
        while len(known) > self._entries or self._kept > self._characters:
            oldest = next(iter(known))
            del known[oldest]
            self._kept -= len(oldest)
