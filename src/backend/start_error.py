"""Why the service cannot start, for the person who started it."""

from __future__ import annotations


class StartError(RuntimeError):
    """The service cannot start; the message is for the person who started it."""


def one_line(error: object) -> str:
    """What an error says, in one line, for the middle of a sentence."""
    return " ".join(str(error).split()).rstrip(".")
