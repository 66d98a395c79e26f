"""Names of records as the AT Protocol has them: record keys (TID), AT-URIs, content identifiers (CID).

Formats: https://atproto.com/specs/tid, https://atproto.com/specs/at-uri-scheme, and DAG-CBOR for what is hashed.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping

TRACK_COLLECTION = "fm.plyr.track"

_TID_ALPHABET = "234567abcdefghijklmnopqrstuvwxyz"

Value = None | bool | int | str | bytes | list["Value"] | tuple["Value", ...] | Mapping[str, "Value"]


def tid(microseconds: int, clock_id: int) -> str:
    """A record key that sorts by time.

    Args:
        microseconds: since 1970.
        clock_id: a number below 1024 that keeps writers of the same microsecond apart.

    Example:
        >>> tid(1_700_000_000_000_000, 0)
        '3ke5oxq5e222w'
    """
    number = (microseconds & (2**53 - 1)) << 10 | (clock_id & 1023)
    return "".join(_TID_ALPHABET[number >> shift & 31] for shift in range(60, -1, -5))


def track_uri(did: str, record_key: str) -> str:
    """The AT-URI of a track's record."""
    return f"at://{did}/{TRACK_COLLECTION}/{record_key}"


def cid(record: Mapping[str, Value]) -> str:
    """The content identifier of a record: CID version 1, DAG-CBOR, SHA-256, in base32.

    Example:
        >>> cid({})
        'bafyreigbtj4x7ip5legnfznufuopl4sg4knzc2cof6duas4b3q2fy6swua'
    """
    digest = hashlib.sha256(encode_dag_cbor(record)).digest()
    # version 1, codec dag-cbor (0x71), hash sha2-256 (0x12) of 32 (0x20) bytes
    raw = bytes((0x01, 0x71, 0x12, 0x20)) + digest
    return "b" + base64.b32encode(raw).decode().lower().rstrip("=")


def encode_dag_cbor(value: Value) -> bytes:
    """The one DAG-CBOR encoding of a value: shortest heads, keys by length and then by bytes, no floats.

    Raises:
        TypeError: the value holds something that a record of the AT Protocol cannot hold.
    """
    if value is None or isinstance(value, bool):
        return {None: b"\xf6", False: b"\xf4", True: b"\xf5"}[value]
    if isinstance(value, int):
        return _head(0, value) if value >= 0 else _head(1, -1 - value)
    if isinstance(value, bytes):
        return _head(2, len(value)) + value
    if isinstance(value, str):
        encoded = value.encode()
        return _head(3, len(encoded)) + encoded
    if isinstance(value, Mapping):
        items = sorted(((key.encode(), item) for key, item in value.items()), key=lambda i: (len(i[0]), i[0]))
        parts = (_head(3, len(key)) + key + encode_dag_cbor(item) for key, item in items)
        return _head(5, len(items)) + b"".join(parts)
    if isinstance(value, list | tuple):  # pyright: ignore[reportUnnecessaryIsInstance] -- types are not checked at run time
        return _head(4, len(value)) + b"".join(encode_dag_cbor(item) for item in value)
    raise TypeError(f"a record cannot hold a {type(value).__name__}")


def _head(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes((major << 5 | argument,))
    for code, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << (8 * size):
            return bytes((major << 5 | code,)) + argument.to_bytes(size, "big")
    raise TypeError("a record cannot hold an integer beyond 64 bits")
