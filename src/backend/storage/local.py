"""Audio on the local disk: `ab/abcdef…`, written to `tmp/` first and moved into place by one rename."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import os
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from backend.storage.base import FILE_ID, Incoming, StorageFull, TooLarge

# Each write is a trip to a thread; a network chunk is 64 KiB at most, so gather a few.
WRITE_AT = 512 * 1024
READ_SIZE = 256 * 1024
LEFTOVER_AFTER = 86_400.0


@contextmanager
def _full_disk_has_a_name() -> Generator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("the disk is full; free some space, then try again") from error
        raise


class _File:
    """A file that is used in threads and closed from the event loop.

    A cancelled caller cannot stop its thread. Closing waits for it (one system call on one chunk): a descriptor that
    is closed under a running call may by then be somebody else's socket.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._lock = threading.Lock()

    def write(self, data: bytes | bytearray) -> None:
        rest = memoryview(data)
        with self._lock, _full_disk_has_a_name():
            while rest:  # a raw write may take less than it is given
                rest = rest[self._file.write(rest) :]

    def sync(self) -> None:
        with self._lock, _full_disk_has_a_name():
            os.fsync(self._file.fileno())

    def read(self, offset: int, length: int) -> bytes:
        with self._lock:
            return os.pread(self._file.fileno(), length, offset)

    def close(self) -> None:
        with self._lock:
            self._file.close()


class _LocalIncoming:
    """A temporary file; every method that moves bytes runs in a thread."""

    def __init__(self, file: _File, path: Path, limit: int) -> None:
        self._file = file
        self._path = path
        self._limit = limit
        self._size = 0
        self._hash = hashlib.sha256()
        self._buffer = bytearray()

    @property
    def path(self) -> Path:
        return self._path

    @property
    def size(self) -> int:
        return self._size

    async def write(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > self._limit:
            raise TooLarge(self._limit)
        self._buffer += chunk
        if len(self._buffer) >= WRITE_AT:
            await asyncio.to_thread(self._flush)

    async def finish(self) -> str:
        await asyncio.to_thread(self._flush)
        await asyncio.to_thread(self._file.sync)
        return self._hash.hexdigest()

    def _flush(self) -> None:
        data, self._buffer = self._buffer, bytearray()
        self._file.write(data)
        self._hash.update(data)

    def discard(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


class LocalStorage:
    """Keeps files in a folder of the local disk.

    Args:
        root: the folder; made when needed.
        max_bytes: the largest file that is accepted.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root.absolute()
        self._tmp = self._root / "tmp"
        self._max_bytes = max_bytes

    @asynccontextmanager
    async def receive(self) -> AsyncGenerator[Incoming]:
        # Three quick system calls, not in a thread: cancelled there, nobody would own the file that it makes.
        incoming = self._begin()
        try:
            yield incoming
        finally:
            # Not awaited: whoever was cancelled must leave nothing behind, and cannot wait any more.
            incoming.discard()

    def _begin(self) -> _LocalIncoming:
        with _full_disk_has_a_name():
            self._tmp.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self._tmp)
        return _LocalIncoming(_File(io.FileIO(descriptor, "wb")), Path(name), self._max_bytes)

    def remove_leftovers(self, older_than: float = LEFTOVER_AFTER) -> int:
        """Delete what uploads left behind whose process was killed; returns how many. Blocking.

        Args:
            older_than: seconds without a byte written, so that no upload of another process is hit.
        """
        removed = 0
        for path in self._tmp.glob("*"):
            with suppress(FileNotFoundError):  # another process does the same
                if time.time() - path.stat().st_mtime > older_than:
                    path.unlink()
                    removed += 1
        return removed

    async def keep(self, incoming: Incoming, file_id: str) -> None:
        await asyncio.to_thread(self._keep, incoming.path, self._path(file_id))

    def _keep(self, source: Path, target: Path) -> None:
        if target.exists():
            return
        with _full_disk_has_a_name():
            target.parent.mkdir(exist_ok=True)
            source.chmod(0o640)
            source.rename(target)
            # A rename is durable when both folders on the way are.
            for folder in (target.parent, self._root):
                descriptor = os.open(folder, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    async def size(self, file_id: str) -> int | None:
        return await asyncio.to_thread(self._size, self._path(file_id))

    @staticmethod
    def _size(path: Path) -> int | None:
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return None

    async def read(self, file_id: str, start: int, stop: int) -> AsyncGenerator[bytes]:
        file = _File(io.FileIO(self._path(file_id)))  # not in a thread, as in receive()
        try:
            while start < stop:
                chunk = await asyncio.to_thread(file.read, start, min(READ_SIZE, stop - start))
                if not chunk:
                    raise OSError(f"the file {file_id} ends at byte {start}, before {stop}")
                start += len(chunk)
                yield chunk
        finally:
            file.close()

    def _path(self, file_id: str) -> Path:
        if not FILE_ID.fullmatch(file_id):
            raise ValueError("a file id is 64 hexadecimal digits")
        return self._root / file_id[:2] / file_id

    async def delete(self, file_id: str) -> None:
        path = self._path(file_id)
        await asyncio.to_thread(path.unlink, missing_ok=True)
