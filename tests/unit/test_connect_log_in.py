"""What a server says during a log-in, looked at before a driver hears it."""

from __future__ import annotations

import base64
import struct

import pytest

from steadypool.connect.channel_binding import ScramPlus
from steadypool.connect.failure import ClientRefused
from steadypool.connect.log_in import MOST_ROUNDS, NotPostgres, Seen, examine

OFFER = b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0"
LET_IN = b"R\0\0\0\x08\0\0\0\0"


def challenge(rounds: str, nonce: str = "ab") -> bytes:
    body = struct.pack("!i", 11) + f"r={nonce},s=c2FsdA==,i={rounds}".encode()
    return b"R" + struct.pack("!i", len(body) + 4) + body


@pytest.mark.parametrize("rounds", ["1", "4096", "0004096", str(MOST_ROUNDS)])
def test_what_may_be_asked_for(rounds: str) -> None:
    assert examine(OFFER + challenge(rounds)) == Seen(over=False, rest=b"", wanted=0)


@pytest.mark.parametrize("rounds", [str(MOST_ROUNDS + 1), "2147483647", "2147483648", "0" * 9 + "9" * 30])
def test_too_many_rounds(rounds: str) -> None:
    with pytest.raises(ClientRefused, match=r"rounds of SCRAM's hash; more than 1,000,000 are refused"):
        examine(OFFER + challenge(rounds))
    exchange = ScramPlus("secret", b"binding", nonce="n")
    salt = base64.b64encode(b"salt").decode()
    with pytest.raises(ClientRefused, match=r"rounds of SCRAM's hash; more than 1,000,000 are refused"):
        exchange.final(f"r=nserver,s={salt},i={rounds}".encode())


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        (b"", Seen(False, b"", 0)),
        (b"R", Seen(False, b"R", 4)),
        (OFFER[:7], Seen(False, OFFER[:7], 17)),
        (OFFER + OFFER[:-1], Seen(False, OFFER[:-1], 1)),
        (LET_IN + b"\xff" * 10, Seen(True, b"", 0)),
        (OFFER + b"E\0\0\0\x05\0", Seen(False, b"", 0)),  # asyncpg might hear what comes after a refusal
    ],
)
def test_how_much_is_missing(said: bytes, seen: Seen) -> None:
    assert examine(said) == seen


@pytest.mark.parametrize(
    "said", [b"R\0\0\0\x03", b"R\xff\xff\xff\xfb", b"R\0\0\x75\x31", b"D\0\0\0\x08", b"HTTP/"]
)
def test_what_is_no_log_in(said: bytes) -> None:
    with pytest.raises(NotPostgres):
        examine(said)
