"""Audio on the local disk, and whether it is audio."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import foreign_audio
from backend.storage.audio import NotAudio, inspect
from backend.storage.base import StorageFull, TooLarge
from backend.storage.local import READ_SIZE, WRITE_AT, LocalStorage

pytestmark = pytest.mark.anyio


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "audio", 3 * WRITE_AT)


async def keep(storage: LocalStorage, content: bytes) -> str:
    async with storage.receive() as incoming:
        await incoming.write(content)
        file_id = await incoming.finish()
        await storage.keep(incoming, file_id)
    return file_id


async def read(storage: LocalStorage, file_id: str, start: int, stop: int) -> bytes:
    return b"".join([chunk async for chunk in storage.read(file_id, start, stop)])


def files(storage_root: Path) -> list[Path]:
    return [path for path in storage_root.rglob("*") if path.is_file()]


async def test_a_file_is_found_under_its_hash(storage: LocalStorage, tmp_path: Path) -> None:
    content = os.urandom(WRITE_AT * 2 + 17)
    async with storage.receive() as incoming:
        for start in range(0, len(content), 60_000):
            await incoming.write(content[start : start + 60_000])
        file_id = await incoming.finish()
        assert await storage.size(file_id) is None, "nothing is there before it is kept"
        await storage.keep(incoming, file_id)
    assert file_id == hashlib.sha256(content).hexdigest()
    assert await storage.size(file_id) == len(content)
    assert await read(storage, file_id, 0, len(content)) == content
    assert await read(storage, file_id, 5, WRITE_AT + 9) == content[5 : WRITE_AT + 9]
    assert [path.name for path in files(tmp_path)] == [file_id]


async def test_the_same_content_is_kept_once(storage: LocalStorage, tmp_path: Path) -> None:
    assert len({*await asyncio.gather(*(keep(storage, b"same") for _ in range(5)))}) == 1
    assert len(files(tmp_path)) == 1


async def test_what_is_not_kept_is_gone(storage: LocalStorage, tmp_path: Path) -> None:
    async with storage.receive() as incoming:
        await incoming.write(b"x" * WRITE_AT)
        await incoming.finish()
    with pytest.raises(TooLarge, match="1,572,864 bytes"):
        await keep(storage, bytes(3 * WRITE_AT + 1))
    for turns in range(4):  # cancelled at each point where it waits
        receiving = asyncio.create_task(_receive_for_ever(storage))
        for _ in range(turns):
            await asyncio.sleep(0)
        receiving.cancel()
        await asyncio.wait({receiving})
    assert files(tmp_path) == []


async def _receive_for_ever(storage: LocalStorage) -> None:
    async with storage.receive() as incoming:
        await incoming.write(b"x" * WRITE_AT)
        await asyncio.Event().wait()


async def test_deleting_leaves_readers_alone(storage: LocalStorage) -> None:
    content = os.urandom(READ_SIZE + 1)
    file_id = await keep(storage, content)
    async with aclosing(storage.read(file_id, 0, len(content))) as reader:
        first = await anext(reader)
        await storage.delete(file_id)
        await storage.delete(file_id)
        assert first + b"".join([chunk async for chunk in reader]) == content
    assert await storage.size(file_id) is None


async def test_a_file_that_is_cut_short_is_an_error_and_not_an_endless_wait(storage: LocalStorage) -> None:
    file_id = await keep(storage, b"content")
    with pytest.raises(OSError, match="ends at byte 7"):
        await read(storage, file_id, 0, 8)


async def test_leftovers_of_killed_uploads_are_removed_and_running_ones_are_not(
    storage: LocalStorage, tmp_path: Path
) -> None:
    assert storage.remove_leftovers() == 0
    file_id = await keep(storage, b"content")
    async with storage.receive() as running, storage.receive() as killed:
        os.utime(killed.path, (1, 1))
        assert storage.remove_leftovers() == 1
        assert {path.name for path in files(tmp_path)} == {running.path.name, file_id}


async def test_a_full_disk_has_a_name(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull, match="free some space"):
        await keep(storage, b"content")
    assert files(tmp_path) == []


@pytest.mark.parametrize("file_id", ["", "x", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
async def test_only_a_hash_is_a_file_id(storage: LocalStorage, file_id: str) -> None:
    for call in (storage.size, storage.delete):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            await call(file_id)


HEADS = [
    b"",
    b"RIFF\x24\0\0\0WAVEfmt ",
    b"fLaC",
    b"OggS\0\2",
    b"ID3\x04\0\0",
    b"\xff\xfb\x90\x64",
    b"FORM\0\0\0\0AIFF",
]
HEADS += [
    b"\0\0\0\x20ftypM4A ",
    b"\x1aE\xdf\xa3",
    *(content[:200] for content in foreign_audio.GOOD.values()),
]


@given(st.sampled_from(HEADS), st.binary(max_size=300))
def test_damaged_files_are_audio_or_not_but_never_an_accident(
    tmp_path_factory: pytest.TempPathFactory, head: bytes, rest: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(head + rest)
    try:
        found = inspect(path)
    except NotAudio:
        return
    assert found.duration is None or found.duration >= 0


@pytest.mark.parametrize("file_type", foreign_audio.GOOD)
def test_the_kind_is_told_by_the_content(tmp_path: Path, file_type: str) -> None:
    path = tmp_path / "wrong.txt"
    path.write_bytes(foreign_audio.GOOD[file_type])
    assert inspect(path).file_type == file_type
