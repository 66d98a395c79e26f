"""A statement's name without its values: what may stand in errors, logs and statistics.

Comments, string and number literals and parameter markers are taken out, lists of them are folded into one, and
white space is normalised, so that two calls that differ only in their values have the same fingerprint.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

LONGEST = 120
"""Characters of a statement that are shown; the hash tells longer ones apart."""

_TOKEN = re.compile(
    r"""
      (?P<comment> --[^\n]* | /\*.*?(?:\*/|\Z) )
    | (?P<string>  (?:\b[eEbBxXnN]|\b[uU]&)?'(?:[^'\\]|''|\\.)*(?:'|\Z)
                 | (?P<tag>\$(?:[A-Za-z_]\w*)?\$).*?(?:(?P=tag)|\Z) )
    | (?P<name>    "(?:[^"]|"")*(?:"|\Z) | [^\W\d]\w* )
    | (?P<marker>  \$\d+(?:::[\w ]+?(?:\[\])?(?=[\s,)]|\Z))? | %\([^)]*\)s | %s | \b\d+(?:\.\d+)?(?:[eE][+-]?\d+)?\b )
    | (?P<space>   \s+ )
    """,
    re.VERBOSE | re.DOTALL,
)
_FOLDED = re.compile(r"\?(?:\s*,\s*\?)+")


def _replacement(match: re.Match[str]) -> str:
    if match["comment"] is not None or match["space"] is not None:
        return " "
    if match["name"] is not None:
        return match["name"]
    return "?"


@lru_cache(maxsize=1024)
def fingerprint(statement: str) -> str:
    """The statement without values and comments, cut to `LONGEST` characters, with a short hash before it.

    Example:
        >>> fingerprint("select *  from t where id in (1, 2) and name = 'x' -- why")
        '[96f69e8b] select * from t where id in (?) and name = ?'
    """
    text = _FOLDED.sub("?", _TOKEN.sub(_replacement, statement))
    text = re.sub(r"\s+", " ", text).strip()
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    shown = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return f"[{digest}] {shown}"
