"""Notifications that wait on a psycopg connection until they are read: how many may."""

from __future__ import annotations

from typing import Any

import psycopg

MOST_NOTIFICATIONS = 2_000
"""Notifications that may wait until they are read; a payload has up to 8,000 bytes."""


class Flooded(psycopg.OperationalError):
    """The server sent so much that nothing had asked for that the connection was ended because of it."""

    @property
    def words(self) -> str:
        """What ended the connection, in place of a word of the server."""
        return str(self)


def check_unread(connection: Any) -> None:
    """Raise Flooded where too many notifications wait for `connection.notifies()`.

    Those that a handler gets, or a running `notifies()`, do not wait.

    Args:
        connection: psycopg's. What waits is in `_notifies_backlog`, which has no public name.
    """
    waiting = getattr(connection, "_notifies_backlog", None)
    if waiting is not None and len(waiting) > MOST_NOTIFICATIONS:
        raise Flooded(
            f"more than {MOST_NOTIFICATIONS:,} notifications came over a connection that is not read for them"
        )
