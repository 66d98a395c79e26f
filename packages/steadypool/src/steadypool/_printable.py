"""Text from elsewhere for a log line or a terminal: what would begin a line, or steer the terminal, is escaped."""

from __future__ import annotations


def printable(text: str, *, keep: str = "") -> str:
    r"""The text with every character escaped that is not printable: line breaks, ESC, changes of direction.

    Args:
        text: of a client, a server or a file.
        keep: characters that stay as they are, such as the line breaks of a page.

    Example:
        >>> printable("/x\nCRITICAL \x1b[31m")
        '/x\\nCRITICAL \\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else repr(each)[1:-1] for each in text)
