"""From what the system or Postgres says to what a person can do about it."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from steadypool_lab.errors import LabError

_OTHER_ACCOUNT = " Run this as the account that the directory belongs to, or choose another directory."
_NOT_A_DIRECTORY = " Something on the way is a file and not a directory."
_HINTS = {
    errno.EACCES: _OTHER_ACCOUNT,
    errno.EPERM: _OTHER_ACCOUNT,
    errno.EROFS: " Choose a directory on a file system that can be written.",
    errno.EEXIST: _NOT_A_DIRECTORY,
    errno.ENOTDIR: _NOT_A_DIRECTORY,
}
_FULL = re.compile("No space left on device|Disk quota exceeded|Check free disk space")
_DAMAGED = re.compile(
    "PANIC|could not (open|read|access|locate)|incompatible|pg_control|invalid .*checkpoint"
)


@contextmanager
def explained(doing: str, path: Path) -> Generator[None]:
    """Turn what the file system refuses into a `LabError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(doing, path) from error
        hint = _HINTS.get(error.errno or 0, "")
        raise LabError(f"{doing} failed: {error.filename or path}: {error.strerror}.{hint}") from error


def disk_full(doing: str, path: Path) -> LabError:
    """The error for a full disk, with the numbers."""
    place = next((step for step in (path, *path.parents) if step.exists()), path)
    free = shutil.disk_usage(place).free // (1024 * 1024)
    return LabError(
        f"{doing} failed: the disk is full ({free} MB free at {place}). An empty database takes about 40 MB, a running "
        "one at least another 32 MB for its log. Free some space, or choose another directory, and start again."
    )


def telling_lines(output: str) -> list[str]:
    """Of what Postgres said, the last lines that tell a person what is wrong."""
    wanted = ("FATAL:", "PANIC:", "ERROR:", "HINT:", "DETAIL:", "error:")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    chosen = [line for line in lines if any(word in line for word in wanted)] or lines
    return chosen[-5:]


def postgres_failed(doing: str, path: Path, output: str, start_over: str) -> LabError:
    """The error for what a program of Postgres said before it gave up; `start_over` is the advice for damaged data."""
    # On a full disk it may have had no room to say so.
    if _FULL.search(output) or shutil.disk_usage(path).free < 1024 * 1024:
        return disk_full(doing, path)
    lines = telling_lines(output)
    if not lines:
        return LabError(f"{doing} in {path} failed, and Postgres did not say why.")
    said = "\n  ".join(lines)
    advice = f"\n{start_over}" if _DAMAGED.search(said) else ""
    return LabError(f"{doing} in {path} failed. Postgres says:\n  {said}{advice}")
