"""Is it audio, of which kind, how long? Decided by the content (mutagen), never by the file's name."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path


class NotAudio(ValueError):
    """The content is none of the kinds of audio that are accepted."""


@dataclass(frozen=True, slots=True)
class Audio:
    """What the content says about itself."""

    file_type: str
    duration: float | None


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

_EBML = b"\x1aE\xdf\xa3"
_WEBM_CODECS = (b"A_OPUS", b"A_VORBIS")


def inspect(path: Path) -> Audio:
    """Read the headers of a file. Blocking: call it in a thread.

    Raises:
        NotAudio: it is none of the accepted kinds.
    """
    # 60 ms that a start without an upload need not spend.
    from mutagen import File, MutagenError
    from mutagen.aiff import AIFF
    from mutagen.flac import FLAC
    from mutagen.mp3 import MP3
    from mutagen.mp4 import MP4
    from mutagen.ogg import OggFileType
    from mutagen.oggtheora import OggTheora
    from mutagen.wave import WAVE

    kinds = {MP3: "mp3", WAVE: "wav", MP4: "m4a", AIFF: "aiff", FLAC: "flac", OggFileType: "ogg"}
    try:
        found = File(path)
    except MutagenError as error:
        raise NotAudio(_message()) from error
    except (
        ValueError,
        IndexError,
        KeyError,
        OverflowError,
        ArithmeticError,
        EOFError,
        struct.error,
    ) as error:
        # Parsers of foreign bytes trip over damaged files in their own ways; all of them mean the same here.
        raise NotAudio(_message()) from error
    is_silent_film = isinstance(found, OggTheora) or (isinstance(found, MP4) and not found.info.channels)
    for kind, file_type in kinds.items():
        if isinstance(found, kind) and not is_silent_film:
            length = getattr(found.info, "length", None)
            return Audio(file_type, float(length) if length else None)
    if _is_webm(path):
        return Audio("webm", None)
    raise NotAudio(_message())


def _is_webm(path: Path) -> bool:
    """WebM is the one accepted kind that mutagen does not know: an EBML header, its document type, an audio track."""
    with path.open("rb") as file:
        head = file.read(64 * 1024)
    return head.startswith(_EBML) and b"webm" in head[:256] and any(codec in head for codec in _WEBM_CODECS)


def _message() -> str:
    return f"this is not audio that plyr can play; accepted: {', '.join(sorted(set(MEDIA_TYPES)))}"
