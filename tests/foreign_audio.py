"""Audio files as they come from outside: good ones, damaged ones, and those that are made to do harm."""

from __future__ import annotations

import struct
import zlib

MP3_FRAMES = (b"\xff\xfb\x90\x64" + bytes(413)) * 20


def wav(rate: int, claims: int, data: bytes) -> bytes:
    """One channel of 8 bits; `claims` is the size of the data that the header says."""
    form = struct.pack("<HHIIHH", 1, 1, rate, rate, 1, 8)
    head = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", claims)
    return b"RIFF" + struct.pack("<I", min(claims + 36, 2**32 - 1)) + head + data


def riff_of_empty_chunks(count: int) -> bytes:
    content = b"WAVE" + b"junk\0\0\0\0" * count
    return b"RIFF" + struct.pack("<I", len(content)) + content


# -- AIFF ----------------------------------------------------------------------------------------------------

AIFF_COMMON = struct.pack(">hIh", 1, 800, 16) + b"\x40\x0b\xfa\0\0\0\0\0\0\0"  # 8,000 Hz as an 80-bit float


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack(">I", len(content)) + content


def aiff(*, empty_chunks: int = 0, common: bytes = AIFF_COMMON) -> bytes:
    audio = chunk(b"COMM", common) + chunk(b"SSND", bytes(1608))
    return chunk(b"FORM", b"AIFF" + b"JUNK\0\0\0\0" * empty_chunks + audio)


# -- FLAC ----------------------------------------------------------------------------------------------------

FLAC_HEAD = b"fLaC\0\0\0\x22" + struct.pack(">HH6xQ16x", 4096, 4096, 8000 << 44 | 15 << 36 | 800)


def flac(*, empty_blocks: int = 0) -> bytes:
    return FLAC_HEAD + b"\x01\0\0\0" * empty_blocks + b"\x81\0\0\0"


# -- ID3 -----------------------------------------------------------------------------------------------------


def _safe(number: int) -> bytes:
    return bytes(number >> shift & 127 for shift in (21, 14, 7, 0))


def id3(frames: bytes) -> bytes:
    return b"ID3\x04\0\0" + _safe(len(frames)) + frames


def compressed_frame(mib: int) -> bytes:
    """A title that is `mib` MiB long once it is unpacked."""
    raw = b"\0" + b"x" * (mib * 2**20)
    body = _safe(min(len(raw), 2**28 - 1)) + zlib.compress(raw, 9)
    return b"TIT2" + _safe(len(body)) + b"\0\x09" + body


def user_text_frames(count: int) -> bytes:
    """Frames that all have other names."""
    bodies = (b"\0%d\0v" % number for number in range(count))
    return b"".join(b"TXXX" + _safe(len(body)) + b"\0\0" + body for body in bodies)


# -- MP4 -----------------------------------------------------------------------------------------------------


def box(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content) + 8) + name + content


FTYP = box(b"ftyp", b"M4A \0\0\0\0M4A ")


def m4a(timescale: int, length: int, *, channels: int = 2) -> bytes:
    """AAC, of which the header says that it lasts `length` / `timescale` seconds."""
    mdhd = b"\x01\0\0\0" + bytes(16) + struct.pack(">IQ", timescale, length) + bytes(4)
    hdlr = bytes(8) + b"soun" + bytes(13)
    entry = bytes(7) + b"\1" + bytes(8) + struct.pack(">HHII", channels, 16, 0, 44100 << 16) + box(b"free")
    stsd = bytes(4) + struct.pack(">I", 1) + box(b"mp4a", entry)
    minf = box(b"minf", box(b"stbl", box(b"stsd", stsd)))
    trak = box(b"trak", box(b"mdia", box(b"mdhd", mdhd) + box(b"hdlr", hdlr) + minf))
    return FTYP + box(b"moov", trak) + box(b"mdat", bytes(2000))


def nested_boxes(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = box(b"moov", inner)
    return FTYP + inner


# -- Ogg -----------------------------------------------------------------------------------------------------


def ogg_page(packet: bytes, *, kind: int = 0, position: int = 0, sequence: int = 0) -> bytes:
    head = struct.pack("<4sBBqIIIB", b"OggS", 0, kind, position, 1, sequence, 0, 1)
    return head + bytes((len(packet),)) + packet


def opus(*, samples: int = 96_000, pages: int = 1) -> bytes:
    head = b"OpusHead" + struct.pack("<BBHIHB", 1, 2, 0, 48_000, 0, 0)
    tags = b"OpusTags" + struct.pack("<II", 0, 0)
    audio = b"".join(
        ogg_page(bytes(200), kind=4 if last else 0, position=samples, sequence=2 + number)
        for number in range(pages)
        for last in (number == pages - 1,)
    )
    return ogg_page(head, kind=2) + ogg_page(tags, sequence=1) + audio


# -- WebM ----------------------------------------------------------------------------------------------------


def element(name: bytes, content: bytes, *, unknown_size: bool = False) -> bytes:
    size = b"\x01" + b"\xff" * 7 if unknown_size else struct.pack(">Q", len(content) | 1 << 56)
    return name + size + content


EBML = b"\x1aE\xdf\xa3"
SEGMENT, CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"


def webm(
    *,
    doctype: bytes = b"webm",
    seconds: float | None = 2.0,
    track_type: int = 2,
    codec: bytes = b"A_OPUS",
    blocks: bytes | None = None,
    streamed: bool = False,
) -> bytes:
    """A segment with one track and one cluster; `streamed`: their sizes unknown, as a recorder writes them."""
    info = element(b"\x2a\xd7\xb1", (1_000_000).to_bytes(3, "big"))
    if seconds is not None:
        info += element(b"\x44\x89", struct.pack(">d", seconds * 1000))
    track = element(b"\x83", bytes((track_type,))) + element(b"\x86", codec)
    cluster = element(b"\xa3", bytes(4000)) if blocks is None else blocks
    content = (
        element(b"\x15\x49\xa9\x66", info)
        + element(b"\x16\x54\xae\x6b", element(b"\xae", track))
        + element(CLUSTER, cluster, unknown_size=streamed)
    )
    head = element(EBML, element(b"\x42\x82", doctype))
    return head + element(SEGMENT, content, unknown_size=streamed)


POLYGLOT = b"\x1aE\xdf\xa3\x9fB\x82\x84webm<script>alert(1)</script>A_OPUS"
"""WebM to one who looks for its words, a page to a browser."""

GOOD = {
    "mp3": MP3_FRAMES,
    "wav": wav(8000, 8000, bytes(8000)),
    "aiff": aiff(),
    "flac": flac(),
    "m4a": m4a(1000, 2000),
    "ogg": opus(),
    "webm": webm(),
}
