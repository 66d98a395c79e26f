"""What the operating system lets this process have, and how often the log repeats that it has not."""

from __future__ import annotations

import logging
import resource
import time

ACCEPT_AT_ONCE = 64
"""Connections that the event loop accepts before it looks at one of them."""
LINGERING = 64
"""Refused connections that are kept open for a moment, at once."""
RESERVED_DESCRIPTORS = 100 + LINGERING + 2 * ACCEPT_AT_ONCE
"""Kept for the database, files and logs, and for connections that were accepted and not looked at yet."""
DESCRIPTORS_EACH = 2
"""A connection, and the file that it sends or receives."""
MOST_CONNECTIONS = 4096
"""Default bound where descriptors would allow more: each may hold a head and a buffer of 64 KiB."""

LOG_INTERVAL = 1.0
"""Seconds between two equal lines about clients."""


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open files to the hard one: the soft one is a default for programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_allowed() -> int:
    """How many connections the process can hold open by its limit of open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(16, min(MOST_CONNECTIONS, (soft - RESERVED_DESCRIPTORS) // DESCRIPTORS_EACH))


class RepeatFilter(logging.Filter):
    """Passes one record a second of each message that clients can cause at will.

    Args:
        messages: how these messages begin; others are not touched.
    """

    def __init__(self, *messages: str) -> None:
        super().__init__()
        self._messages = messages
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        message = next((text for text in self._messages if str(record.msg).startswith(text)), None)
        if message is None:
            return True
        now = time.monotonic()
        if now - self._last.get(message, -LOG_INTERVAL) < LOG_INTERVAL:
            return False
        self._last[message] = now
        return True


_CAUSED_BY_CLIENTS = {
    "asyncio": RepeatFilter("socket.accept() out of system resource"),
    "uvicorn.error": RepeatFilter("Invalid HTTP request", "Unsupported upgrade", "No supported WebSocket"),
    "python_multipart.multipart": RepeatFilter(""),
}


def throttle_log() -> None:
    """Log what clients can cause at will once a second: accept() without descriptors, requests that are none."""
    for name, repeats in _CAUSED_BY_CLIENTS.items():
        logging.getLogger(name).addFilter(repeats)  # once, however often this is called
