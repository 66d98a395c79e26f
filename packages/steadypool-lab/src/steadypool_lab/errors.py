"""The one error of the lab: what happened, what was tried, what to do."""

from __future__ import annotations


class LabError(Exception):
    """Something on this machine stands in the way of the embedded Postgres; the message says what to do.

    Example:
        >>> str(LabError("port 5432 on 127.0.0.1 is taken"))
        'port 5432 on 127.0.0.1 is taken'
    """
