"""What the service asks of a place that keeps audio. Files are named by the SHA-256 of their content."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

FILE_ID = re.compile(r"[0-9a-f]{64}")


class StorageError(Exception):
    """The base of what storage raises; never raised itself."""


class TooLarge(StorageError):
    """More bytes arrived than are accepted."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the file is larger than the {limit:,} bytes that are accepted")
        self.limit = limit


class StorageFull(StorageError):
    """The disk has no room left."""


class Incoming(Protocol):
    """A file that is arriving, under no name yet. It is gone when its context ends, unless it was kept."""

    @property
    def path(self) -> Path:
        """Where it lies for now."""
        ...

    @property
    def size(self) -> int:
        """Bytes so far."""
        ...

    async def write(self, chunk: bytes) -> None:
        """Add bytes; raises TooLarge or StorageFull."""
        ...

    async def finish(self) -> str:
        """Make the bytes durable; returns their file id. Nothing can be written after this."""
        ...


class Storage(Protocol):
    """Keeps files under their file ids."""

    def receive(self) -> AbstractAsyncContextManager[Incoming]:
        """Begin a new file."""
        ...

    async def keep(self, incoming: Incoming, file_id: str) -> None:
        """Give a finished file its name, atomically. A file that is there already is the same, and stays."""
        ...

    async def size(self, file_id: str) -> int | None:
        """Bytes of a file, or None where there is none."""
        ...

    def read(self, file_id: str, start: int, stop: int) -> AsyncGenerator[bytes]:
        """The bytes from `start` up to, not including, `stop`; to be closed by whoever stops early."""
        ...

    async def delete(self, file_id: str) -> None:
        """Remove a file; none of that name is fine. Whoever reads it now reads on."""
        ...
