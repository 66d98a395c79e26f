"""The data directory: what lies in it, how it is made, and whether it is one.

The directory that the caller names is the home of everything that belongs to one server:

- `cluster/`: what Postgres keeps, with `data/` and the unix socket in it. Where root runs the server and its account
  cannot enter the home, this is a symbolic link to a directory of that account;
- `password`, `port`, `settings`: what a second start, or a second holder, has to know of the first;
- `server.log`, and `server.log.old` of the run before;
- the lock files of `steadypool_lab.postgres.supervisor`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from steadypool_lab.errors import LabError
from steadypool_lab.postgres.account import Account, server_account, shared_root
from steadypool_lab.postgres.binaries import Binaries, binaries_for
from steadypool_lab.postgres.startup_errors import explained, postgres_failed

SUPERUSER = "postgres"
INITDB_SECONDS = 300.0
_OURS = {"cluster", "cluster.new", "password", "port", "settings", "server.log", "server.log.old"}
_SUN_PATH = 100  # of 103 (macOS) or 107 (Linux) bytes, less what Postgres adds for the lock file


class Cluster:
    """One data directory, its account, and the programs that go with it."""

    def __init__(self, home: Path) -> None:
        self.home = Path(os.path.abspath(home))
        self.account: Account
        self.binaries: Binaries

    @property
    def inner(self) -> Path:
        """The directory that belongs to the server's account."""
        return self.home / "cluster"

    @property
    def data(self) -> Path:
        """What Postgres calls PGDATA, with every link resolved."""
        return self.inner.resolve() / "data"

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.home / "server.log"

    @property
    def password(self) -> str:
        """The superuser's password.

        Raises:
            LabError: it is not there.
        """
        try:
            return (self.home / "password").read_text().strip()
        except FileNotFoundError as error:
            raise LabError(
                f"{self.home} is damaged: its file `password` is gone, so nobody can log in. {self._start_over}"
            ) from error

    @property
    def port(self) -> int | None:
        """The port of the last run, if it is known."""
        try:
            return int((self.home / "port").read_text())
        except (FileNotFoundError, ValueError):
            return None

    @port.setter
    def port(self, value: int) -> None:
        self._write("port", str(value), 0o644)

    @property
    def settings(self) -> Mapping[str, str]:
        """What the running server was started with."""
        return json.loads((self.home / "settings").read_text())

    @settings.setter
    def settings(self, value: Mapping[str, str]) -> None:
        self._write("settings", json.dumps(value), 0o644)

    def open(self) -> None:
        """Make sure of the home, and find out who runs the server and with which programs.

        Raises:
            LabError: the directory is something else, or not for us.
        """
        with explained("preparing the data directory", self.home):
            self._make_home()
            self.account = server_account(
                self.inner.stat().st_uid if self.inner.exists() else self._home_owner()
            )
        self.binaries = binaries_for(self.account)

    def _home_owner(self) -> int | None:
        # Root leaves an ordinary user's directory to that user.
        return (self.home.stat().st_uid or None) if os.geteuid() == 0 else None

    def _make_home(self) -> None:
        # With no right for others, except that root lets the server's account walk through.
        self.home.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.home.mkdir(0o700)
            if os.geteuid() == 0:
                self.home.chmod(0o711)
        except FileExistsError:
            self._check_home()

    def _check_home(self) -> None:
        if not self.home.is_dir():
            raise LabError(f"{self.home} is a file; the data directory has to be a directory")
        names = {entry.name for entry in self.home.iterdir()}
        if "PG_VERSION" in names:
            raise LabError(
                f"{self.home} is the data directory of another Postgres and is left alone. Name an empty or a new one."
            )
        strangers = sorted(n for n in names - _OURS if not n.startswith(".") and not n.endswith(".lock"))
        if strangers:
            raise LabError(
                f"{self.home} is not a data directory of ours: it holds {', '.join(strangers[:3])}"
                f"{' …' if len(strangers) > 3 else ''}. Name an empty or a new directory."
            )

    @property
    def exists(self) -> bool:
        """Whether a database has been made here."""
        return os.path.lexists(self.inner)

    def check(self) -> None:
        """See whether the database that is here can be one for these programs.

        Raises:
            LabError: it cannot, and why.
        """
        if not self.inner.exists():
            target = os.readlink(self.inner)
            raise LabError(
                f"{self.home} is damaged: its data was kept in {target}, which is gone. {self._start_over}"
            )
        with explained("reading the data directory", self.home):
            try:
                made_by = (self.data / "PG_VERSION").read_text().strip()
            except FileNotFoundError as error:
                raise LabError(
                    f"{self.home} is damaged: PG_VERSION is missing in {self.data}. {self._start_over}"
                ) from error
        if made_by != self.binaries.major:
            raise LabError(
                f"{self.home} was made by PostgreSQL {made_by[:20] or '(empty PG_VERSION)'}, and this is "
                f"{self.binaries.release}, which cannot read it. Dump it with the old version, or: {self._start_over}"
            )

    @property
    def _start_over(self) -> str:
        return f"To start with an empty database, move it away: mv {self.home} {self.home}.broken"

    def initialise(self, *, control: int, durable: bool) -> None:
        """Make an empty database: aside, then renamed, so that a half-made one is never taken for a whole one.

        Args:
            control: descriptor of the control lock; the children inherit it, so that the next holder waits for
                those which outlive us.
            durable: whether to wait until everything is on the disk.

        Raises:
            LabError: it did not work, and why.
        """
        with explained("creating the database", self.home):
            self._remove_half()
            if not (self.home / "password").exists():
                self._write("password", secrets.token_hex(24), 0o600)
            half = self._make_half()
            try:
                self._initdb(half.resolve(), control, durable)
                half.rename(self.inner)
            except BaseException:
                self._remove_half()
                raise

    def _make_half(self) -> Path:
        half = self.home / "cluster.new"
        if self.account.can_enter(self.home):
            half.mkdir(0o700)
        else:
            base = shared_root() / "data"
            base.mkdir(exist_ok=True)
            base.chmod(0o755)
            # The name tells a person whose data it is; the random part keeps it apart from that of a directory which
            # was at the same place before, and may have moved.
            origin = "-".join(self.home.parts[1:])[-100:]
            half.symlink_to(tempfile.mkdtemp(prefix=f"{origin}-", dir=base))
        return half

    def _remove_half(self) -> None:
        half = self.home / "cluster.new"
        if half.is_symlink():
            shutil.rmtree(half.resolve(), ignore_errors=True)
            half.unlink()
        elif half.exists():
            shutil.rmtree(half)

    def _initdb(self, half: Path, control: int, durable: bool) -> None:
        command, environment = self._recipe(half, durable)
        # Last: nobody else's until everything that we write is in it.
        self.account.own(half)
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            cwd="/",
            pass_fds=(control,),
            timeout=INITDB_SECONDS,
            **self.account.spawn,
        )
        (half / "password").unlink(missing_ok=True)
        if done.returncode != 0:
            raise self.explain("creating the database", done.stdout)

    def _recipe(self, half: Path, durable: bool) -> tuple[list[str], dict[str, str]]:
        """The command that makes `data` in this directory, and its environment; may put files beside it."""
        secret = half / "password"
        secret.touch(0o600)
        secret.write_text(self.password)
        self.account.own(secret)
        command = [
            str(self.binaries.program("initdb")),
            f"--pgdata={half / 'data'}",
            f"--username={SUPERUSER}",
            f"--pwfile={secret}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            # Postgres's own UTF-8 order: the same on every system, whatever locales it has.
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            *([] if durable else ["--no-sync"]),
        ]
        return command, clean_environment()

    def explain(self, doing: str, output: str) -> LabError:
        """The error for what a program of Postgres said before it gave up."""
        return postgres_failed(
            doing, self.inner.resolve() if self.inner.exists() else self.home, output, self._start_over
        )

    def _write(self, name: str, text: str, mode: int) -> None:
        fresh = self.home / f".{name}.new"
        fresh.unlink(missing_ok=True)
        fresh.touch(mode)
        fresh.write_text(text + "\n")
        fresh.rename(self.home / name)

    def socket_dir(self) -> tuple[Path, bool]:
        """Where the unix socket goes, and whether that was made for this run only."""
        inner = self.inner.resolve()
        if len(os.fsencode(inner)) + len("/.s.PGSQL.65535.lock") <= _SUN_PATH:
            return inner, False
        short = Path(tempfile.mkdtemp(prefix="steadypool-", dir="/tmp"))
        self.account.own(short)
        return short, True

    def remove(self) -> None:
        """Delete everything, wherever it is."""
        for path in self.places():
            shutil.rmtree(path, ignore_errors=True)

    def places(self) -> list[Path]:
        """The directories that hold all of it."""
        linked = [self.inner.resolve()] if self.inner.is_symlink() else []
        return [*linked, self.home]


def clean_environment() -> dict[str, str]:
    """What the programs of Postgres get to see: nothing that would change what they do."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
