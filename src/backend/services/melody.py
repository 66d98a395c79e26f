"""Short pieces of music, computed: the same bytes on every machine and every run.

Each note is a struck string or bell: a few sine partials that fade, the higher the sooner. All arithmetic that
decides a sample is on integers and table lookups, so no platform's `sin` can change a bit of the result.
"""

from __future__ import annotations

import io
import math
import wave
from array import array
from dataclasses import dataclass

SAMPLE_RATE = 22_050
_TABLE_SIZE = 4096
_SINE = [round(math.sin(2 * math.pi * i / _TABLE_SIZE) * 32_000) for i in range(_TABLE_SIZE)]
_PEAK = 24_000
_HEADER_BYTES = 44
_INAUDIBLE = 1 << 11

_SCALE = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}


@dataclass(frozen=True, slots=True)
class Piece:
    """A tune over a bass: notes such as `c4` or `f#5` with their length in beats, `-` for a rest."""

    title: str
    description: str
    mood: str
    beats_per_minute: int
    tune: str
    bass: str
    partials: tuple[tuple[int, int, int], ...]
    """Of each partial: multiple of the pitch, loudness in 1/1000, how fast it fades in 1/1000 a millisecond."""


_STRING = ((1, 1000, 2), (2, 420, 4), (3, 180, 6), (4, 90, 9))
_BELL = ((1, 1000, 1), (3, 350, 4), (5, 220, 8), (9, 60, 12))
_FLUTE = ((1, 1000, 1), (2, 120, 2), (3, 60, 3))

PIECES = (
    Piece(
        "First Light on the Pool",
        "A slow morning in C, for one string and an echo of it.",
        "calm",
        84,
        "e5:1 g5:1 c6:2 b5:1 g5:1 a5:2 f5:1 a5:1 e5:2 d5:1 e5:1 g5:2 e5:1 g5:1 c6:2 d6:1 b5:1 c6:3 -:1",
        "c3:2 g3:2 e3:2 f3:2 f3:2 c3:2 g3:2 g3:2 c3:2 e3:2 g3:2 c3:4",
        _STRING,
    ),
    Piece(
        "Ten and Five",
        "Ten bells that stay and five that come for the busy bars.",
        "bright",
        132,
        "g5:1 d5:1 g5:1 b5:1 a5:2 d5:2 e5:1 g5:1 c6:1 b5:1 a5:2 -:2 "
        "b5:.5 a5:.5 g5:1 d5:1 e5:1 g5:1 e5:1 d5:2 g5:1 a5:1 b5:1 d6:1 g5:3 -:1",
        "g3:4 d3:4 c3:4 d3:4 g3:4 c3:4 d3:4 g3:4",
        _BELL,
    ),
    Piece(
        "Waking the Sleeper",
        "In A minor: something sleeps, is called once, and answers.",
        "dusk",
        96,
        "a4:2 c5:1 e5:1 d5:2 a4:2 -:2 e5:1 f5:1 e5:2 c5:2 a4:1 b4:1 c5:1 e5:1 d5:1 c5:1 b4:2 a4:4",
        "a2:4 d3:4 a2:4 f3:4 a2:4 e3:4 a2:4",
        _FLUTE,
    ),
    Piece(
        "Everyone Goes Home",
        "The connections come back, last in, first out.",
        "calm",
        108,
        "c6:1 a5:1 f5:1 a5:1 g5:2 e5:2 f5:1 e5:1 d5:1 f5:1 c5:4 d5:1 f5:1 a5:1 c6:1 b5:1 g5:1 e5:2 f5:4",
        "f3:4 c3:4 d3:4 a2:4 d3:4 g3:4 f3:4",
        _STRING,
    ),
)


def render(piece: Piece) -> bytes:
    """The piece as a WAV file, 16 bits, mono."""
    samples_per_beat = SAMPLE_RATE * 60 // piece.beats_per_minute
    tune = _notes(piece.tune, samples_per_beat)
    bass = _notes(piece.bass, samples_per_beat)
    length = max(start + count for start, count, _ in (*tune, *bass)) + SAMPLE_RATE
    mix = [0] * length
    tones: dict[tuple[int, int], array[int]] = {}
    for notes, loudness in ((tune, 60), (bass, 40)):
        for start, count, pitch in notes:
            ring = count + SAMPLE_RATE // 2
            tone = tones.get((pitch, ring)) or tones.setdefault((pitch, ring), _tone(piece, pitch, ring))
            stop = min(start + ring, length)
            heard = zip(mix[start:stop], tone, strict=False)  # the last notes ring longer than the piece
            mix[start:stop] = [before + sample * loudness for before, sample in heard]
    return _wav(mix)


def duration(wav: bytes) -> float:
    """Seconds that a rendered piece lasts."""
    return (len(wav) - _HEADER_BYTES) / (2 * SAMPLE_RATE)


def _notes(score: str, samples_per_beat: int) -> list[tuple[int, int, int]]:
    """Start and length in samples, and pitch in millihertz, of each note."""
    notes: list[tuple[int, int, int]] = []
    start = 0
    for word in score.split():
        name, _, beats = word.partition(":")
        count = round(float(beats) * samples_per_beat)
        if name != "-":
            half_tones = _SCALE[name[0]] + ("#" in name) + 12 * int(name[-1]) - 57
            notes.append((start, count, round(440_000 * 2 ** (half_tones / 12))))
        start += count
    return notes


def _tone(piece: Piece, pitch: int, count: int) -> array[int]:
    """One note: each partial starts at full loudness and loses a constant share of itself each millisecond."""
    total = [0] * count
    block = SAMPLE_RATE // 1000
    for multiple, loudness, fade in piece.partials:
        step = pitch * multiple * _TABLE_SIZE // SAMPLE_RATE  # 1/1000 of a table entry
        level = loudness << 10
        for start in range(0, count, block):
            level -= level * fade // 1000
            if level < _INAUDIBLE:
                break
            stop = min(start + block, count)
            total[start:stop] = [
                before + (_SINE[position // 1000 % _TABLE_SIZE] * level >> 20)
                for before, position in zip(
                    total[start:stop], range(start * step, stop * step, step), strict=True
                )
            ]
    attack, release = SAMPLE_RATE // 200, SAMPLE_RATE // 20
    return array(
        "i",
        (s * min(attack, i) * min(release, count - i) // (attack * release) for i, s in enumerate(total)),
    )


def _wav(mix: list[int]) -> bytes:
    loudest = max(1, max(map(abs, mix)))
    samples = array("h", (s * _PEAK // loudest for s in mix))
    if array("h", [1]).tobytes()[0] == 0:  # WAV is little-endian whatever the machine is
        samples.byteswap()
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()
