"""Is it audio, of which kind, how long? Decided by the content, never by the file's name.

The service runs this module in a process of its own (`probe.py`), so it imports little: mutagen's parser for the kind
that the first bytes say, and of that parser no more than what finds the length. Tags and pictures are not read.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
    "m4a": "audio/mp4",
    "aiff": "audio/aiff",
    "aif": "audio/aiff",
    "flac": "audio/flac",
    "webm": "audio/webm",
    "ogg": "audio/ogg",
}
"""Accepted kinds, by file type."""

MAX_DURATION = 7 * 86_400.0
"""Seconds that a recording may last."""

_LEAST_RATE = {"mp3": 500.0, "wav": 500.0, "aiff": 500.0, "m4a": 8.0, "flac": 2.0, "ogg": 2.0, "webm": 2.0}
"""Bytes that a second of each kind needs at least: below what the lowest rate, or recorded silence, really takes."""

_UNKNOWN_SIZE = 0x7FFF0000
"""A program that writes WAV into a pipe cannot go back to fill in the size, and claims 2 or 4 GiB."""


class NotAudio(ValueError):
    """The content is none of the kinds of audio that are accepted; the message is for whoever sent it."""

    def __init__(self, reason: str | None = None) -> None:
        why = f": {reason}" if reason else f"; accepted: {', '.join(sorted(MEDIA_TYPES))}"
        super().__init__(f"this is not audio that plyr can play{why}")
        self.reason = reason


class Audio(NamedTuple):
    """What the content says about itself: one of `MEDIA_TYPES`, and seconds where it says so."""

    file_type: str
    duration: float | None


class _Length(NamedTuple):
    """Seconds as a file claims them, None where it does not, and the bytes a second of it needs at least."""

    seconds: float | None
    rate: float = 0.0


def inspect(path: Path | str) -> Audio:
    """Read the headers of a file.

    What this costs is up to the file; for one from outside see `probe.AudioProbe`.

    Raises:
        NotAudio: it is none of the accepted kinds, or claims to last longer than its bytes can.
    """
    from mutagen import MutagenError  # not needed by those who only want to know the kinds

    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(64)
            file.seek(0)
            kind = _kind(head)
            if kind is None:
                raise NotAudio()
            length = _LENGTHS[kind](file, size, head)
            return Audio(kind, _plausible(kind, length, size))
    except NotAudio:
        raise
    except RecursionError as error:
        raise NotAudio("its headers are nested too deeply") from error
    except MemoryError as error:
        raise NotAudio("its headers take too much memory") from error
    except (
        MutagenError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        AssertionError,
        ArithmeticError,
        EOFError,
        struct.error,
    ) as error:
        # Parsers of foreign bytes trip over damaged files in their own ways; all of them mean the same here.
        raise NotAudio() from error


def _kind(head: bytes) -> str | None:
    """The file type that the first bytes announce."""
    starts = {b"fLaC": "flac", b"OggS": "ogg", b"\x1aE\xdf\xa3": "webm"}
    if (kind := starts.get(head[:4])) is not None:
        return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[4:8] == b"ftyp":
        return "m4a"
    is_layer_3 = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2
    return "mp3" if is_layer_3 or head[:3] == b"ID3" else None


def _plausible(kind: str, length: _Length, size: int) -> float | None:
    """The seconds, if this many bytes can last so long."""
    if length.seconds is None:
        return None
    rate = max(length.rate, _LEAST_RATE[kind])
    if not (math.isfinite(length.seconds) and 0 < length.seconds <= MAX_DURATION):
        raise NotAudio(f"it claims to last {length.seconds:,.0f} s")
    if length.seconds * rate > size:
        raise NotAudio(f"it claims to last {length.seconds:,.0f} s, and has {size:,} bytes")
    return length.seconds


def _mp3(file: BinaryIO, size: int, head: bytes) -> _Length:
    from mutagen.mp3 import MPEGInfo

    return _Length(float(MPEGInfo(file).length))


def _wav(file: BinaryIO, size: int, head: bytes) -> _Length:
    from mutagen.wave import WaveStreamInfo

    info = WaveStreamInfo(file)
    rate = info.bitrate / 8
    seconds = float(info.length)
    if size < seconds * rate >= _UNKNOWN_SIZE and size > rate >= 1000:
        seconds = size / rate
    return _Length(seconds, rate / 2)


def _aiff(file: BinaryIO, size: int, head: bytes) -> _Length:
    from mutagen.aiff import AIFFInfo

    info = AIFFInfo(file)
    compressed = head[8:12] == b"AIFC"
    return _Length(float(info.length), 0.0 if compressed else info.bitrate / 16)


def _m4a(file: BinaryIO, size: int, head: bytes) -> _Length:
    from mutagen.mp4 import Atoms, MP4Info  # pyright: ignore[reportPrivateImportUsage]

    info = MP4Info(Atoms(file), file)
    if not info.channels:
        raise NotAudio()  # a film without sound
    return _Length(float(info.length) or None)


def _flac(file: BinaryIO, size: int, head: bytes) -> _Length:
    from mutagen.flac import StreamInfo

    # The format says that this block comes first, and how long it is.
    if head[4] & 0x7F != StreamInfo.code or int.from_bytes(head[5:8], "big") != 34:
        raise NotAudio()
    return _Length(float(StreamInfo(head[8:42]).length) or None)


def _ogg(file: BinaryIO, size: int, head: bytes) -> _Length:
    # What a page of an Ogg file begins with, after the 28 bytes of its own header.
    first = head[28:]
    if first.startswith(b"\x01vorbis"):
        from mutagen.oggvorbis import OggVorbis as Ogg
    elif first.startswith(b"OpusHead"):
        from mutagen.oggopus import OggOpus as Ogg
    elif first.startswith(b"\x7fFLAC"):
        from mutagen.oggflac import OggFLAC as Ogg
    elif first.startswith(b"Speex   "):
        from mutagen.oggspeex import OggSpeex as Ogg
    else:
        raise NotAudio()
    info: Any = Ogg(file).info
    return _Length(float(info.length) or None)


def _webm(file: BinaryIO, size: int, head: bytes) -> _Length:
    from backend.storage.webm import read_webm

    is_audio, seconds = read_webm(file, size)
    if not is_audio:
        raise NotAudio()
    return _Length(seconds or None)


_LENGTHS = {
    "mp3": _mp3,
    "wav": _wav,
    "aiff": _aiff,
    "m4a": _m4a,
    "flac": _flac,
    "ogg": _ogg,
    "webm": _webm,
}


# -- in a process of its own ---------------------------------------------------------------------------------


def _limit(memory: int, cpu: int, seconds: float) -> None:
    """Let the kernel end this process before it takes more than this; none of it can be undone."""
    import resource
    import signal

    os.nice(5)  # requests come first
    for what, soft, hard in (
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_NPROC, 0, 0),
    ):
        with suppress(
            ValueError
        ):  # macOS has no limit on memory, and an administrator may have set a lower one
            resource.setrlimit(what, (soft, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)


def main(path: str, memory: str, cpu: str, seconds: str) -> int:
    """Say in one line of JSON what a file is; the limits are bytes, seconds of the processor, and seconds."""
    _limit(int(memory), int(cpu), float(seconds))
    try:
        found = inspect(path)
    except NotAudio as error:
        print(json.dumps({"reason": error.reason}), flush=True)
    else:
        print(json.dumps(found._asdict()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
