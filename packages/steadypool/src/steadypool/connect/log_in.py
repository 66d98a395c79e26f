"""The server's side of a log-in, looked at before a driver reads it.

A driver computes as many rounds of SCRAM's hash as the server asks for, and neither libpq nor asyncpg knows a most;
2^31 rounds take half an hour in which the event loop stands still. So what the server says is looked at first.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from steadypool._printable import printable
from steadypool.connect.failure import ClientRefused

MOST_ROUNDS = 1_000_000
"""Rounds of SCRAM's hash that a server may ask for: half a second's work. PostgreSQL's default is 4,096."""

_LARGEST = 30_000
"""Bytes of a message; libpq's own limit (fe-connect.c: 2,000 for what asks for authentication, 30,000 for errors)."""
_KINDS = b"RENSv"
"""What a server says until it lets one in: an authentication request, an error, a notice, a parameter, its version."""
_OK, _SASL_CONTINUE = 0, 11
_CHALLENGE = re.compile(rb"r=[^,\0]+,s=[^,\0]+,i=(\d+)")
"""RFC 5802, server-first-message, as far as libpq and asyncpg understand it. They also read other forms of a number."""


class NotPostgres(ConnectionError):
    """What answers does not speak Postgres's protocol."""


class Seen(NamedTuple):
    """What the server has said so far."""

    over: bool
    """Whether it let us in, so that nothing is left to look at."""
    rest: bytes
    """The beginning of a message that is not complete."""
    wanted: int
    """How many more bytes complete that message, or its head; 0 where there is none."""


def examine(said: bytes) -> Seen:
    """Look at what the server says until it lets us in.

    Args:
        said: its messages; the first one from its beginning.

    Raises:
        failure.ClientRefused: it asks for more than MOST_ROUNDS rounds of SCRAM's hash.
        NotPostgres: this is no log-in.

    Example:
        >>> examine(b"R\\0\\0\\0\\x08\\0\\0\\0\\0")
        Seen(over=True, rest=b'', wanted=0)
    """
    at, end = 0, len(said)
    while end - at >= 5:
        kind, length = struct.unpack_from("!ci", said, at)
        if kind not in _KINDS or not 4 <= length <= _LARGEST:
            raise NotPostgres(f"the server does not speak Postgres's protocol: {_shown(said[at:])}")
        after = at + 1 + length
        if after > end:
            return Seen(False, said[at:], after - end)
        if kind == b"R" and _lets_in(said[at + 5 : after]):
            return Seen(True, b"", 0)
        at = after
    return Seen(False, said[at:], 5 - (end - at) if at < end else 0)


def _lets_in(request: bytes) -> bool:
    """Whether an authentication request asks for nothing more. Raises where it asks for too much."""
    code = int.from_bytes(request[:4], "big")
    if code == _SASL_CONTINUE:
        challenge = _CHALLENGE.fullmatch(request, 4)
        if challenge is None:
            raise NotPostgres(f"the server's challenge is malformed: {_shown(request[4:])}")
        check_rounds(challenge[1].decode())
    return code == _OK


def check_rounds(asked: str) -> int:
    """The rounds that a server asks for, in digits. Raises ClientRefused where they are too many."""
    digits = asked.lstrip("0") or "0"
    if len(digits) > len(str(MOST_ROUNDS)) or int(digits) > MOST_ROUNDS:
        shown = digits if len(digits) <= 10 else f"{digits[:10]}…"
        raise ClientRefused(
            f"the server's challenge asks for {shown} rounds of SCRAM's hash; more than {MOST_ROUNDS:,} are refused"
        )
    return int(digits)


def _shown(said: bytes) -> str:
    return printable(repr(said[:40].decode("ascii", "replace")))
