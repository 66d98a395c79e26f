"""Files from outside are examined in processes of their own, and none of them can do more than fail there."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

import foreign_audio as foreign
from backend.storage.audio import Audio, NotAudio
from backend.storage.probe import MIB, AudioProbe, ProbeBusy, ProbeLimits
from conditions import until

pytestmark = pytest.mark.anyio

LIMITS = ProbeLimits(cpu=1, seconds=60.0, wait=60.0)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        path.write_bytes(content)
        return path

    return write


def children() -> set[int]:
    """The processes that this one has started and not taken leave of."""
    found: list[str] = []
    for task in os.listdir("/proc/self/task"):
        with suppress(FileNotFoundError):  # a thread that has ended meanwhile
            found.append(Path(f"/proc/self/task/{task}/children").read_text())
    return {int(pid) for line in found for pid in line.split()}


async def test_each_accepted_kind_is_told_by_its_content(write: Callable[[bytes], Path]) -> None:
    probe = AudioProbe(LIMITS)
    for kind, content in foreign.GOOD.items():
        found = await probe.inspect(write(content), "alice")
        assert found.file_type == kind
        assert found.duration is not None
        assert 0 < found.duration <= 2


HARMFUL: dict[str, tuple[Callable[[], bytes], str]] = {
    "a Musepack packet without a size": (lambda: b"MPCKAA\0", "accepted"),
    "Musepack of the older kind": (lambda: b"MP+\x07" + bytes(50), "accepted"),
    "Monkey's Audio": (lambda: b"MAC " + b"\xff" * 80, "accepted"),
    "nothing but a compressed title": (lambda: foreign.id3(foreign.compressed_frame(64)), "accepted"),
    "MP4 nested too deeply": (lambda: foreign.nested_boxes(5_000), "nested"),
    "AIFF of empty chunks": (lambda: foreign.aiff(empty_chunks=1_000_000), "of computing"),
    "WAV of empty chunks": (lambda: foreign.riff_of_empty_chunks(1_000_000), "of computing"),
    "MP4 of empty atoms": (lambda: foreign.FTYP + foreign.box(b"free") * 1_000_000, "of computing"),
    "Ogg of empty pages": (lambda: foreign.opus()[:47] + foreign.ogg_page(b"") * 100_000, "not audio"),
    "WebM of empty elements": (
        lambda: foreign.webm(blocks=foreign.element(b"\xec", b"") * 20_000),
        "accepted",
    ),
    "MP3 of signs of frames": (lambda: b"\xff\xfb" * 1_000_000, "accepted"),
}


@pytest.mark.parametrize("name", HARMFUL)
async def test_a_file_that_does_harm_is_no_audio(write: Callable[[bytes], Path], name: str) -> None:
    make, reason = HARMFUL[name]
    before = children()
    with pytest.raises(NotAudio, match=reason):
        await AudioProbe(LIMITS).inspect(write(make()), "mallory")
    assert children() == before


async def test_tags_and_pictures_are_not_read(write: Callable[[bytes], Path]) -> None:
    """What they hold costs nothing, however it is packed: the length is somewhere else."""
    probe = AudioProbe(LIMITS)
    for tags in (foreign.compressed_frame(64) * 20, foreign.user_text_frames(200_000)):
        found = await probe.inspect(write(foreign.id3(tags) + foreign.MP3_FRAMES), "alice")
        assert found == Audio("mp3", pytest.approx(0.52, abs=0.01))
    assert (await probe.inspect(write(foreign.flac(empty_blocks=1_000_000)), "alice")).file_type == "flac"


async def test_what_takes_too_much_memory_is_no_audio(write: Callable[[bytes], Path]) -> None:
    tight = ProbeLimits(memory=64 * MIB, cpu=30, seconds=60.0)
    with pytest.raises(NotAudio, match="too much memory"):
        await AudioProbe(tight).inspect(write(foreign.aiff(empty_chunks=1_000_000)), "mallory")


async def test_what_takes_too_long_is_no_audio(tmp_path: Path) -> None:
    endless = tmp_path / "endless"
    os.mkfifo(endless)
    with pytest.raises(NotAudio, match=r"takes longer than 0\.5 s"):
        await AudioProbe(ProbeLimits(seconds=0.5)).inspect(endless, "mallory")


async def test_a_process_that_ends_without_a_word_is_no_audio(tmp_path: Path) -> None:
    with pytest.raises(NotAudio, match="the program that examines it failed"):
        await AudioProbe(LIMITS).inspect(tmp_path / "not there", "mallory")


CLAIMS = {
    "WAV of 144 bytes": foreign.wav(8, 2**32 - 1, bytes(100)),
    "WAV of 144 bytes at a rate that there is": foreign.wav(8000, 2**32 - 1, bytes(100)),
    "WAV of an hour": foreign.wav(8000, 3600 * 8000, bytes(8000)),
    "AIFF of a day": foreign.aiff(common=b"\0\1\x29\x32\xe0\0" + foreign.AIFF_COMMON[6:]),
    "M4A of 2^64 seconds": foreign.m4a(1, 2**64 - 1),
    "M4A of a day": foreign.m4a(1, 86_400),
    "Opus of a year": foreign.opus(samples=48_000 * 31_536_000),
    "WebM of a year": foreign.webm(seconds=31_536_000.0),
    "WebM that is endless": foreign.webm(seconds=float("inf")),
    "WebM that is no number": foreign.webm(seconds=float("nan")),
    "WebM before its beginning": foreign.webm(seconds=-1.0),
}


@pytest.mark.parametrize("name", CLAIMS)
async def test_what_its_bytes_cannot_last_is_no_audio(write: Callable[[bytes], Path], name: str) -> None:
    with pytest.raises(NotAudio, match="it claims to last"):
        await AudioProbe(LIMITS).inspect(write(CLAIMS[name]), "mallory")


async def test_a_wav_that_came_out_of_a_pipe_lasts_as_long_as_its_bytes(
    write: Callable[[bytes], Path],
) -> None:
    for claims in (2**32 - 1, 2**31 - 1):
        found = await AudioProbe(LIMITS).inspect(write(foreign.wav(8000, claims, bytes(80_000))), "alice")
        assert found == Audio("wav", pytest.approx(10, abs=0.1))


ONLY_THE_WORDS = {
    "a page": foreign.POLYGLOT,
    "Matroska": foreign.webm(doctype=b"matroska"),
    "a film without sound": foreign.webm(track_type=1, codec=b"V_VP8"),
    "an unknown codec": foreign.webm(codec=b"A_AAC"),
    "no audio in it": foreign.webm(blocks=b""),
    "only its head": foreign.webm()[:40],
    "m4a without a channel": foreign.m4a(1000, 2000, channels=0),
    "Theora": foreign.ogg_page(b"\x80theora" + bytes(40), kind=2),
}


@pytest.mark.parametrize("name", ONLY_THE_WORDS)
async def test_the_right_words_alone_are_no_audio(write: Callable[[bytes], Path], name: str) -> None:
    with pytest.raises(NotAudio, match="accepted: aif, aiff, flac"):
        await AudioProbe(LIMITS).inspect(write(ONLY_THE_WORDS[name]), "mallory")


async def test_what_a_recorder_writes_is_audio_of_unknown_length(write: Callable[[bytes], Path]) -> None:
    found = await AudioProbe(LIMITS).inspect(write(foreign.webm(seconds=None, streamed=True)), "alice")
    assert found == Audio("webm", None)


# -- and the others ------------------------------------------------------------------------------------------


@asynccontextmanager
async def stuck(probe: AudioProbe, tmp_path: Path, owner: str) -> AsyncIterator[int]:
    """A file of `owner` at which a process, this one, waits until the block ends."""
    path = tmp_path / f"stuck {owner}"
    os.mkfifo(path)
    before = children()
    looking = asyncio.create_task(probe.inspect(path, owner))
    await until(lambda: children() > before)
    [pid] = children() - before
    try:
        yield pid
    finally:
        looking.cancel()
        await asyncio.wait({looking})
        assert children() == before


async def test_one_who_sends_what_takes_long_keeps_nobody_else_waiting(
    write: Callable[[bytes], Path], tmp_path: Path
) -> None:
    probe = AudioProbe(ProbeLimits(at_once=2))
    good = write(foreign.GOOD["wav"])
    async with stuck(probe, tmp_path, "mallory"):
        more = [asyncio.create_task(probe.inspect(good, "mallory")) for _ in range(20)]
        for owner in ("alice", "bob", "alice"):
            assert (await probe.inspect(good, owner)).file_type == "wav"
        assert not any(task.done() for task in more)
        for task in more:
            task.cancel()
        await asyncio.wait(more)


async def test_threads_are_left_for_those_who_listen(tmp_path: Path) -> None:
    probe = AudioProbe(LIMITS)
    before = threading.active_count()
    async with stuck(probe, tmp_path, "mallory"):
        # The event loop of this version of Python waits for each process in a thread; none is of its executor.
        names = {thread.name for thread in threading.enumerate()[before:]}
        assert not [name for name in names if name.startswith("asyncio_")]


async def test_whose_turn_does_not_come_is_told(write: Callable[[bytes], Path], tmp_path: Path) -> None:
    probe = AudioProbe(ProbeLimits(at_once=1, wait=0.2))
    good = write(foreign.GOOD["wav"])
    async with stuck(probe, tmp_path, "mallory"):
        for owner in ("alice", "mallory"):
            with pytest.raises(ProbeBusy, match="try again later"):
                await probe.inspect(good, owner)
    assert (await probe.inspect(good, "alice")).file_type == "wav"


async def test_a_machine_without_processes_is_busy(
    write: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/not/there")
    with pytest.raises(ProbeBusy, match="no process could be started"):
        await AudioProbe(LIMITS).inspect(write(foreign.GOOD["wav"]), "alice")


async def test_the_process_knows_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://app:secret@db.example/plyr")
    async with stuck(AudioProbe(LIMITS), tmp_path, "mallory") as pid:
        assert b"secret" not in await asyncio.to_thread(Path(f"/proc/{pid}/environ").read_bytes)
