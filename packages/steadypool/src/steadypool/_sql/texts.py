"""Texts as a server takes them: the text of a statement, in the encoding of its connection."""

from __future__ import annotations

from steadypool._sql.lexer import statements
from steadypool.errors import InvalidText, Phase, Report

_SQL_ASCII = "ascii"
"""Python's name for "no encoding": the server takes and gives bytes as they are. They are UTF-8 here."""


LONGEST = 65_536
"""Characters of a text that are read, on the event loop, to tell its statements apart."""


def has_several_statements(sql: str) -> bool:
    """Whether something follows the first statement of a text; of one that is longer than `LONGEST` it is assumed.

    Example:
        >>> has_several_statements("select ';'; -- end"), has_several_statements("select 1; select 2")
        (False, True)
    """
    return len(sql) > LONGEST or len(statements(sql)) > 1


def encoded(text: str, encoding: str = "utf-8", *, what: str = "statement") -> bytes:
    """Encode a text for a connection.

    Args:
        text: what is sent.
        encoding: the connection's, by Python's name.
        what: what the text is, for the message.

    Raises:
        InvalidText: it has a NUL, at which the protocol would cut it off, or a character that `encoding` lacks.

    Example:
        >>> encoded("select 'é'", "iso8859-1")
        b"select '\\xe9'"
    """
    check_nul(text, what=what)
    try:
        return text.encode("utf-8" if encoding == _SQL_ASCII else encoding)
    except UnicodeEncodeError as error:
        raise not_encodable(error, what=what) from None


def decoded(data: bytes, encoding: str) -> str:
    """Decode what a server calls something, such as a column."""
    if encoding == _SQL_ASCII:
        return data.decode("utf-8", "replace")
    return data.decode(encoding)


def check_nul(text: str, *, what: str = "statement") -> None:
    """Raise InvalidText if a text has a NUL.

    Example:
        >>> check_nul("select 1")
    """
    if "\0" in text:
        at = text.index("\0") + 1
        raise InvalidText(
            f"the text of a {what} has a NUL at character {at}, where the protocol would cut it off: it was not sent. "
            "Take it out, or pass it as bytes in a parameter",
            Report(Phase.EXECUTING),
        )


def not_encodable(error: UnicodeEncodeError, *, what: str = "statement") -> InvalidText:
    """The error for a text that the connection's encoding cannot hold; without the text."""
    advice = "Take it out" if error.encoding == "utf-8" else "Connect with client_encoding=utf8"
    return InvalidText(
        f"a {what} has a character (U+{ord(error.object[error.start]):04X}) that the connection's encoding, "
        f"{error.encoding}, cannot hold: it was not sent. {advice}",
        Report(Phase.EXECUTING),
    )
