"""The recorder's file: appended to by a thread of its own, so that a slow disk is never the event loop's trouble.

What is written is whole lines, each time with one write; a crash tears at most the last one, and readers leave that
out. When the file has grown to its limit it is written anew beside itself and put in its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from steadypool.errors import ConfigurationError
from steadypool.monitor.recording import Recording

_log = logging.getLogger("steadypool.recorder")

LARGEST = 16 * 2**20
"""Bytes after which the file is written anew."""
SIBLINGS = 64
"""Processes that may record to files of one name."""
LEAVE = 2.0
"""Seconds that closing waits for the disk."""


class RecorderFile:
    """A file that one process at a time writes to.

    Where the file is in use by another process of the service, this one takes the name with `.2` behind it, and so on.

    Args:
        path: where it is; its folder must be there.
        largest: bytes after which it is written anew.

    Raises:
        OSError: it cannot be written to.
    """

    def __init__(self, path: Path, *, largest: int = LARGEST) -> None:
        self._limit = self._largest = largest
        self._complained = self._torn = False
        self._ended: Callable[[], None] = lambda: None
        for number in range(1, SIBLINGS + 1):
            self.path = path if number == 1 else path.with_name(f"{path.name}.{number}")
            descriptor = _open(self.path)
            if _lock(descriptor):
                break
            os.close(descriptor)
        else:
            raise OSError(f"{path} and {SIBLINGS - 1} others like it are in use by other processes")
        self._descriptor = descriptor  # from here on the thread's alone
        self._size = os.fstat(descriptor).st_size
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._pending = threading.Semaphore(4)  # what a disk that hangs may leave behind
        self._thread = threading.Thread(target=self._run, name="steadypool-recorder", daemon=True)
        self._thread.start()

    def read(self) -> Recording | None:
        """What is in it; None for nothing that can be read. Before anything is appended."""
        try:
            return Recording.load(self.path)
        except ConfigurationError:
            return None

    @property
    def is_full(self) -> bool:
        """Whether it is time for `rewrite`."""
        return self._size > self._limit

    def append(self, lines: Iterable[dict[str, Any]]) -> bool:
        """Append lines soon; False where the disk is so far behind that they are left out."""
        lines = tuple(lines)
        return self._soon(lambda: self._append(lines))

    def rewrite(self, recording: Callable[[], Recording]) -> bool:
        """Write it anew, with this in it and nothing else; it is asked for in the file's own thread."""
        return self._soon(lambda: self._rewrite(recording()))

    async def close(self) -> None:
        """Write what is pending, for at most `LEAVE` seconds."""
        loop, written = asyncio.get_running_loop(), asyncio.Event()

        def ended() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waited so long
                loop.call_soon_threadsafe(written.set)

        self._ended = ended
        self._work.put(None)
        try:
            async with asyncio.timeout(LEAVE):
                await written.wait()
        except TimeoutError:
            _log.warning(
                "the recorder's file %s is not written to its end: the disk does not answer", self.path
            )

    def _soon(self, work: Callable[[], None]) -> bool:
        if not self._pending.acquire(blocking=False):
            return False

        def do() -> None:
            try:
                work()
                self._complained = False
            except OSError as error:
                if not self._complained:
                    self._complained = True
                    _log.warning("the recorder cannot write to %s: %s", self.path, error)
            finally:
                self._pending.release()

        self._work.put(do)
        return True

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
        os.close(self._descriptor)  # and with it the lock: whoever is told may open it again
        self._ended()

    def _append(self, lines: Iterable[dict[str, Any]]) -> None:
        # A full disk takes half a line; the next one must not continue it.
        torn, self._torn = self._torn, True
        _write_all(self._descriptor, (b"\n" if torn else b"") + _encoded(lines))
        self._torn = False
        self._size = os.fstat(self._descriptor).st_size

    def _rewrite(self, recording: Recording) -> None:
        beside = self.path.with_name(f"{self.path.name}.new")
        descriptor = os.open(
            beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        try:
            _lock(descriptor)
            _write_all(descriptor, _encoded(recording.lines()))
            os.fsync(descriptor)
            beside.replace(self.path)
        except BaseException:
            os.close(descriptor)
            raise
        # What is in memory may be nearly that much; it must not be written anew every second.
        self._size = os.fstat(descriptor).st_size
        self._limit = max(self._largest, 2 * self._size)
        os.close(self._descriptor)
        self._descriptor, self._torn = descriptor, False


def _open(path: Path) -> int:
    """For appending, and behind what a crash may have torn off: the next line begins a line."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        os.write(descriptor, b"\n")
    return descriptor


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _encoded(lines: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
