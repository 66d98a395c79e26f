"""The log on stderr: text of clients and servers in it begins no line and steers no terminal."""

from __future__ import annotations

import logging

from steadypool._printable import printable


class LineFormatter(logging.Formatter):
    """Formats records so that only a record begins at the left edge; control characters are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """The record; further lines of its message, and a traceback, are indented."""
        first, *more = super().format(record).split("\n")
        return "\n    ".join([printable(first), *(printable(line) for line in more)])


def start_log() -> None:
    """Log warnings and errors to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
