"""WebM, the one accepted kind that mutagen does not know: EBML elements, read no further than the first cluster."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

EBML = b"\x1aE\xdf\xa3"

_DOCTYPE = 0x4282
_SEGMENT = 0x18538067
_INFO = 0x1549A966
_TIMESTAMP_SCALE = 0x2AD7B1
_DURATION = 0x4489
_TRACKS = 0x1654AE6B
_TRACK_ENTRY = 0xAE
_TRACK_TYPE = 0x83
_CODEC_ID = 0x86
_CLUSTER = 0x1F43B675
_BLOCKS = (0xA3, 0xA0)

_AUDIO = 2
_CODECS = (b"A_OPUS", b"A_VORBIS")
_MAX_ELEMENTS = 10_000
_MAX_VALUE = 64


class _Element(NamedTuple):
    id: int
    start: int
    stop: int


def read_webm(file: BinaryIO, size: int) -> tuple[bool, float | None]:
    """Whether the file is WebM with an audio track and some of its audio, and the seconds it says that it lasts.

    Raises:
        ValueError: the elements are damaged, or too many come before the first audio.
    """
    reader = _Reader(file)
    elements = reader.children(0, size)
    head = next(elements, None)
    if head is None or _value(reader, head, _DOCTYPE) != b"webm":
        return False, None
    segment = next((element for element in elements if element.id == _SEGMENT), None)
    if segment is None:
        return False, None
    has_track, duration = False, None
    for element in reader.children(segment.start, segment.stop):
        if element.id == _INFO:
            duration = _duration(reader, element)
        elif element.id == _TRACKS:
            has_track = any(
                _is_audio(reader, entry) for entry in reader.children(element.start, element.stop)
            )
        elif element.id == _CLUSTER:
            inside = reader.children(element.start, element.stop)
            return has_track and any(
                block.id in _BLOCKS and block.stop > block.start for block in inside
            ), duration
    return False, None


class _Reader:
    """Reads elements one after the other, `_MAX_ELEMENTS` in all."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = _MAX_ELEMENTS

    def children(self, start: int, stop: int) -> Iterator[_Element]:
        """The elements between two places of the file; one of unknown size, as recorders write it, ends at `stop`."""
        while start < stop:
            self._left -= 1
            if self._left < 0:
                raise ValueError("too many elements")
            self._file.seek(start)
            head = self._file.read(12)
            name, name_length = _number(head, 0, 4, keep_marker=True)
            length, length_length = _number(head, name_length, 8, keep_marker=False)
            begin = start + name_length + length_length
            unknown = length == (1 << 7 * length_length) - 1
            start = stop if unknown else begin + length
            yield _Element(name, begin, min(start, stop))

    def value(self, element: _Element) -> bytes:
        """What a short element holds."""
        self._file.seek(element.start)
        return self._file.read(min(element.stop - element.start, _MAX_VALUE))


def _number(head: bytes, at: int, longest: int, *, keep_marker: bool) -> tuple[int, int]:
    """A number of variable length, whose first byte says how long, and that length."""
    first = head[at] if at < len(head) else 0
    length = 9 - first.bit_length()
    raw = head[at : at + length]
    if length > longest or len(raw) < length:
        raise ValueError("an element is damaged")
    number = int.from_bytes(raw, "big")
    return (number if keep_marker else number & ((1 << 7 * length) - 1)), length


def _value(reader: _Reader, parent: _Element, wanted: int) -> bytes | None:
    for element in reader.children(parent.start, parent.stop):
        if element.id == wanted:
            return reader.value(element).rstrip(b"\0")
    return None


def _is_audio(reader: _Reader, entry: _Element) -> bool:
    if entry.id != _TRACK_ENTRY:
        return False
    is_audio = _value(reader, entry, _TRACK_TYPE) == bytes((_AUDIO,))
    return is_audio and _value(reader, entry, _CODEC_ID) in _CODECS


def _duration(reader: _Reader, info: _Element) -> float | None:
    scale, ticks = 1_000_000, None
    for element in reader.children(info.start, info.stop):
        if element.id == _TIMESTAMP_SCALE:
            scale = int.from_bytes(reader.value(element), "big")
        elif element.id == _DURATION:
            raw = reader.value(element)
            if len(raw) not in (4, 8):
                raise ValueError("the duration is damaged")
            [ticks] = struct.unpack(">f" if len(raw) == 4 else ">d", raw)
    return None if ticks is None else ticks * scale / 1e9
