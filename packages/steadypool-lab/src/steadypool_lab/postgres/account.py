"""Which operating system account the server runs under, and what that account can reach.

Postgres refuses to run as root. Anybody else runs it as oneself; root runs it as `postgres` or `nobody`, in
directories of that account. No directory that somebody else made is ever given other permissions.
"""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from steadypool_lab.errors import LabError


class SpawnAccount(TypedDict, total=False):
    """The arguments of `subprocess` that switch to an account."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, slots=True)
class Account:
    """Who the server runs as; `switch` is true where that is not the caller."""

    name: str
    uid: int
    gid: int
    switch: bool

    @property
    def spawn(self) -> SpawnAccount:
        """What to hand to `subprocess`."""
        return SpawnAccount(user=self.uid, group=self.gid, extra_groups=[]) if self.switch else SpawnAccount()

    def can_enter(self, directory: Path) -> bool:
        """Whether the account may walk to the directory and into it."""
        named, real = directory.absolute(), directory.resolve()
        # Both ways: a link may lie in a closed directory and lead to an open one.
        steps = {named, *named.parents, real, *real.parents}
        return all(self._allowed(step, stat.S_IXOTH) for step in steps)

    def can_read(self, path: Path) -> bool:
        """Whether the account may walk to the file and read it; a program also has to be executable."""
        needed = stat.S_IROTH | (stat.S_IXOTH if path.parent.name == "bin" else 0)
        return self.can_enter(path.parent) and self._allowed(path, needed)

    def own(self, path: Path) -> None:
        """Make a path that we created the account's."""
        if self.switch:
            os.chown(path, self.uid, self.gid)

    def _allowed(self, path: Path, needed: int) -> bool:
        try:
            found = path.stat()
        except OSError:
            return False
        if not self.switch:
            return os.access(
                path, (os.R_OK if needed & stat.S_IROTH else 0) | os.X_OK * bool(needed & stat.S_IXOTH)
            )
        shift = 6 if found.st_uid == self.uid else 3 if found.st_gid == self.gid else 0
        return (found.st_mode >> shift) & needed == needed


def server_account(owner: int | None) -> Account:
    """The account for a data directory that belongs to `owner` (a user id), or to nobody yet.

    Raises:
        LabError: the data directory is somebody else's, or root finds no account to run the server under.
    """
    mine = os.geteuid()
    if mine != 0:
        if owner not in (None, mine):
            raise LabError(
                f"the data directory belongs to {_name(owner)}, and this process runs as {_name(mine)}"
            )
        return Account(_name(mine), mine, os.getegid(), switch=False)
    if owner:
        return _account(owner)
    for name in ("postgres", "nobody"):
        try:
            return _account(pwd.getpwnam(name).pw_uid)
        except KeyError:
            continue
    raise LabError(
        "Postgres does not run as root, and this system has neither an account `postgres` nor `nobody` for it. "
        "Create one (useradd --system postgres), or run this as an ordinary user."
    )


def _account(uid: int) -> Account:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Account(_name(uid), uid, uid, switch=True)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, switch=True)


def _name(uid: int | None) -> str:
    if uid is None:
        return "nobody"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user id {uid}"


def shared_root() -> Path:
    """A directory of root's that every account can enter: for what the server's account cannot reach elsewhere.

    Raises:
        LabError: there is no such place.
    """
    tried: list[str] = []
    for base in (Path("/var/lib"), Path("/var/tmp"), Path(tempfile.gettempdir())):
        path = base / "steadypool"
        try:
            path.mkdir(exist_ok=True)
            found = path.lstat()
            if found.st_uid == os.geteuid() and stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o022:
                path.chmod(0o755)  # ours: a strict umask would lock the server's account out
                return path
            tried.append(f"{path} is not root's alone")
        except OSError as error:
            tried.append(f"{path}: {error.strerror}")
    raise LabError("found no place for the files of the server's account: " + "; ".join(tried))
