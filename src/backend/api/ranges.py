"""HTTP's byte ranges (RFC 9110, section 14) and conditions (section 13): pure, no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SPEC = re.compile(r"(\d*)-(\d*)", re.ASCII)
_ENTITY_TAG = re.compile(r'(W/)?"[\x21\x23-\x7e\x80-\xff]*"')


@dataclass(frozen=True, slots=True)
class Slice:
    """Bytes `start` up to, not including, `stop`."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """How many bytes."""
        return self.stop - self.start


class Unsatisfiable(ValueError):
    """The range asks for nothing that is there: 416."""


def parse_range(header: str | None, size: int) -> Slice | None:
    """The part that a Range header asks for, or None where the whole is to be sent.

    The whole is sent without a header, for units other than bytes, for what is malformed, and for several
    ranges at once: all of these a server may ignore, and no player needs the last.

    Args:
        header: the header's value.
        size: bytes there are in all.

    Raises:
        Unsatisfiable: well formed, but nothing of it is there.

    Example:
        >>> parse_range("bytes=-100", 1000)
        Slice(start=900, stop=1000)
    """
    if header is None:
        return None
    unit, _, spec = header.partition("=")
    match = _SPEC.fullmatch(spec.strip(" \t"))
    if unit.strip(" \t").lower() != "bytes" or match is None:
        return None
    first, last = (_clip(digits, size) for digits in match.groups())
    if first is None:
        return None if last is None else _suffix(last, size)
    if last is not None and _is_less(match[2], match[1]):
        return None
    if first >= size:
        raise Unsatisfiable
    return Slice(first, size if last is None else min(last + 1, size))


def _suffix(length: int, size: int) -> Slice:
    if length == 0 or size == 0:
        raise Unsatisfiable
    return Slice(max(0, size - length), size)


def _clip(digits: str, size: int) -> int | None:
    """The number, or `size` where it has so many digits that it can only be larger."""
    if not digits:
        return None
    significant = digits.lstrip("0") or "0"
    return size if len(significant) > 20 else int(significant)


def _is_less(left: str, right: str) -> bool:
    left, right = left.lstrip("0"), right.lstrip("0")
    return (len(left), left) < (len(right), right)


def matches(header: str | None, etag: str) -> bool:
    """Whether an If-None-Match header names this entity tag (weak comparison).

    Example:
        >>> matches('"a", W/"b"', '"b"')
        True
    """
    if header is None:
        return False
    if header.strip() == "*":
        return True
    opaque = etag.removeprefix("W/")
    return any(match[0].removeprefix("W/") == opaque for match in _ENTITY_TAG.finditer(header))


def range_applies(if_range: str | None, etag: str) -> bool:
    """Whether a Range header counts, given If-Range: only if it holds exactly this (strong) entity tag."""
    return if_range is None or (if_range.strip() == etag and not etag.startswith("W/"))
