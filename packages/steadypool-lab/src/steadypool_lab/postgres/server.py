"""Start, share and stop one Postgres server on one data directory, from any number of processes.

The blocking half of `steadypool_lab.postgres.embedded`.
How the processes agree is in `steadypool_lab.postgres.supervisor`.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from steadypool_lab.errors import LabError
from steadypool_lab.postgres import supervisor
from steadypool_lab.postgres.cluster import SUPERUSER, Cluster, clean_environment
from steadypool_lab.postgres.ports import HOST, free_port, is_free
from steadypool_lab.postgres.startup_errors import explained
from steadypool_lab.postgres.supervisor import FileLock, kill_server, stop_server, wait_for

StopMode = Literal["fast", "immediate"]

CONTROL_SECONDS = 90.0
READY_SECONDS = 60.0
DEFAULT_SETTINGS: Mapping[str, str] = {
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
}

_OWN_SETTINGS = {
    "data_directory",
    "listen_addresses",
    "logging_collector",
    "port",
    "unix_socket_directories",
    "unix_socket_permissions",
}


@dataclass(frozen=True, slots=True)
class Postmaster:
    """What a running server says of itself in its postmaster.pid."""

    pid: int
    started: str
    port: int
    status: str

    @classmethod
    def read(cls, data: Path) -> Postmaster | None:
        """Read it, if it is there and complete."""
        try:
            lines = (data / "postmaster.pid").read_text().splitlines()
            return cls(abs(int(lines[0])), lines[2], int(lines[3]), lines[7].strip())
        except (FileNotFoundError, IndexError, ValueError):
            return None


class PostgresServer:
    """One holder of a data directory. Every method blocks; `EmbeddedPostgres` is the same for async code.

    Args:
        data_dir: where everything is kept; made if it does not exist.
        port: the TCP port to listen on; without it the one of the last run, or any free one.
        settings: settings of postgresql.conf that win over the lab's defaults.
        on_progress: is told what takes time, in words for a person.
        temporary: nothing in it needs to survive a crash of the machine, and `close` deletes it.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        on_progress: Callable[[str], None] | None = None,
        temporary: bool = False,
    ) -> None:
        reserved = sorted(_OWN_SETTINGS & (settings or {}).keys())
        if reserved:
            raise LabError(f"these settings are the lab's own and cannot be chosen: {', '.join(reserved)}")
        self._cluster = Cluster(data_dir)
        self._wanted_port = port
        self._settings = {**DEFAULT_SETTINGS, **(settings or {})}
        self._progress = on_progress or _keep_quiet
        self._temporary = temporary
        self._holding: FileLock | None = None
        self._port: int | None = None
        self._password = ""

    @classmethod
    def in_temporary_directory(
        cls,
        *,
        settings: Mapping[str, str] | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> Self:
        """One that `close` deletes again."""
        # The directory itself is made by the first start, which gives it the permissions that it needs.
        home = Path(tempfile.gettempdir()) / f"steadypool-{secrets.token_hex(8)}"
        return cls(home, settings=settings, on_progress=on_progress, temporary=True)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._cluster.home} port {self._port}>"

    @property
    def is_holding(self) -> bool:
        """Whether this object holds the data directory: it has been started and not been stopped."""
        return self._holding is not None

    @property
    def port(self) -> int:
        """The TCP port.

        Raises:
            LabError: the server has never been started.
        """
        if self._port is None:
            raise LabError("the server has not been started yet, so it has no port")
        return self._port

    @property
    def url(self) -> str:
        """`postgresql://user:password@127.0.0.1:port/postgres`; contains the password."""
        return self.database_url("postgres")

    def database_url(self, name: str) -> str:
        """The same for another database."""
        return f"postgresql://{SUPERUSER}:{self._password}@{HOST}:{self.port}/{name}"

    @property
    def pid(self) -> int | None:
        """The process id of the postmaster, or None when it is not running."""
        if not self.is_running:
            return None
        try:
            return int(self._lock_path("server").read_text())
        except ValueError:
            return None

    @property
    def is_running(self) -> bool:
        """Whether any process of the server is alive, whoever started it."""
        return FileLock.is_held(self._lock_path("server"))

    @property
    def log_path(self) -> Path:
        """The file that the server writes its messages to."""
        return self._cluster.log

    @property
    def data_path(self) -> Path:
        """What Postgres calls PGDATA."""
        return self._cluster.data

    def start(self) -> None:
        """Hold the data directory, and start its server unless it runs already.

        Raises:
            LabError: it could not be started; the message says why and what to do.
        """
        self._hold_and_start(None)

    def stop(self, mode: StopMode = "fast") -> None:
        """Let go of the data directory; the last holder stops the server. Bounded: fast, immediate, then SIGKILL."""
        if self._holding is not None and not self._cluster.home.exists():
            # Deleted under a running server: the keeper still sees us go, and ends it.
            self._holding.close()
            self._holding = None
        if self._holding is None:
            return
        with explained("stopping Postgres", self._cluster.home), self._control():
            self._leave(mode)

    def close(self) -> None:
        """Stop; a temporary server's files are deleted."""
        self.stop("immediate" if self._temporary else "fast")
        if self._temporary:
            self._cluster.remove()

    def kill(self) -> None:
        """SIGKILL the postmaster and all of its children, as the kernel does when memory runs out."""
        with explained("killing Postgres", self._cluster.home):
            pid = self.pid
            if pid is not None:
                kill_server(pid)
            if not wait_for(lambda: not self.is_running, supervisor.KILL_SECONDS):
                raise LabError("a process of the server has outlived its SIGKILL")

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop the server, whoever else holds it, and start it again on the same port."""
        self._hold_and_start(mode)

    def create_database(self, name: str, *, template: str = "template1") -> str:
        """Create a database and return its URL."""
        self._psql(f"CREATE DATABASE {_quoted(name)} TEMPLATE {_quoted(template)}")
        return self.database_url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, with everybody who is connected to it."""
        self._psql(f"DROP DATABASE IF EXISTS {_quoted(name)} WITH (FORCE)")

    # Holding

    def _hold_and_start(self, stop_first: StopMode | None) -> None:
        with explained("starting Postgres", self._cluster.home):
            self._cluster.open()
            with self._control() as control:
                joined = self._holding is None
                held = self._join()
                try:
                    if stop_first is not None:
                        self._end_server(stop_first)
                    self._start_or_adopt(control, held)
                except BaseException:
                    if joined:
                        self._leave("fast")
                    raise

    def _lock_path(self, name: str) -> Path:
        return self._cluster.home / f"{name}.lock"

    @contextmanager
    def _control(self) -> Generator[int]:
        """One at a time starts or stops."""
        lock = FileLock(self._lock_path("control"))
        try:
            if not lock.acquire(shared=False, seconds=CONTROL_SECONDS):
                raise LabError(
                    f"process {lock.read()} has been starting or stopping the server in {self._cluster.home} for more "
                    f"than {CONTROL_SECONDS:.0f} s. See what is wrong with it, end it, and start again."
                )
            lock.write(str(os.getpid()))
            yield lock.fd
        finally:
            lock.close()

    def _join(self) -> FileLock:
        if self._holding is not None:
            return self._holding
        lock = FileLock(self._lock_path("holders"))
        # The keeper holds it exclusively for an instant when it looks whether anybody is left.
        if not lock.acquire(shared=True, seconds=supervisor.KILL_SECONDS):
            lock.close()
            raise LabError(f"{self._lock_path('holders')} is locked by something that is no holder")
        self._holding = lock
        return lock

    def _leave(self, mode: StopMode) -> None:
        if self._holding is None:
            return
        try:
            if self._alone(self._holding):
                self._end_server(mode)
        finally:
            self._holding.close()
            self._holding = None

    def _alone(self, holding: FileLock) -> bool:
        """Whether nobody else holds the directory; we hold it shared before and after."""
        # A shared lock is given up before the exclusive one is tried, and the keeper may get in between, for an
        # instant. Only once, though: next it waits for control, which we have.
        for _ in range(2):
            alone = holding.acquire(shared=False, seconds=0)
            holding.acquire(shared=True, seconds=supervisor.KILL_SECONDS)
            if alone:
                return True
        return False

    def _end_server(self, mode: StopMode) -> None:
        # A server that is just being started says who it is in a moment.
        wait_for(lambda: self.pid is not None or not self.is_running, supervisor.KILL_SECONDS)
        pid = self.pid
        if pid is not None and not stop_server(pid, self._lock_path("server"), immediate=mode == "immediate"):
            raise LabError(f"the server in {self._cluster.home} does not end, not even by SIGKILL")
        # Its last act is to clean up; a stop that returns leaves nothing running.
        wait_for(lambda: not FileLock.is_held(self._lock_path("keeper")), supervisor.KILL_SECONDS)

    # Starting

    def _start_or_adopt(self, control: int, held: FileLock) -> None:
        if self.is_running and not FileLock.is_held(self._lock_path("keeper")) and self._alone(held):
            self._progress("ending the server that a killed run has left behind")
            self._end_server("fast")
        if self.is_running and self._adopt():
            return
        if not self._cluster.exists:
            self._progress(f"creating a database in {self._cluster.home} (only the first time)")
            self._cluster.initialise(control=control, durable=not self._temporary)
        self._cluster.check()
        self._password = self._cluster.password
        self._remove_stale_pid_file()
        self._launch()

    def _adopt(self) -> bool:
        """Use the server that runs; False if it ended instead."""
        ready = self._await_ready(lambda: self.is_running, None)
        if ready is None:
            return False
        wanted = self._wanted_port
        if wanted is not None and wanted != ready.port:
            raise LabError(
                f"the server in {self._cluster.home} is already running on port {ready.port}, so it cannot "
                f"have port {wanted}. Stop the other process that uses it first, or leave the port out."
            )
        other = sorted(set(self._settings.items()) ^ set(self._cluster.settings.items()))
        if other:
            raise LabError(
                f"the server in {self._cluster.home} is already running with other settings "
                f"({', '.join(sorted({name for name, _ in other}))}). Stop the other process that uses it first."
            )
        self._port, self._password = ready.port, self._cluster.password
        self._progress(f"using the server that is already running on port {ready.port}")
        return True

    def _launch(self) -> None:
        """Start on the port that was asked for or used before; on a free one if nobody relies on it yet."""
        pinned = self._wanted_port or self._port
        remembered = self._cluster.port
        port = pinned or (remembered if remembered and is_free(remembered) else free_port())
        for _ in range(5):
            if pinned and not is_free(pinned):
                raise _port_taken(pinned)
            self._progress(f"starting PostgreSQL {self._cluster.binaries.release} on port {port}")
            if self._run_keeper(port):
                self._port = port
                self._cluster.port, self._cluster.settings = port, self._settings
                return
            if pinned:
                raise _port_taken(pinned)
            port = free_port()
        raise LabError(
            "five free ports in a row were taken by somebody else before Postgres could listen on them"
        )

    def _run_keeper(self, port: int) -> bool:
        """Start the server; False if the port was taken.

        Raises:
            LabError: it did not start, for any other reason.
        """
        before = Postmaster.read(self._cluster.data)
        if self._cluster.log.exists():
            self._cluster.log.rename(self._cluster.log.with_name("server.log.old"))
        self._cluster.log.touch(0o600)
        socket_dir, made = self._cluster.socket_dir()
        switch = self._cluster.account.spawn
        order = {
            "home": str(self._cluster.home),
            "command": self._command(port, socket_dir),
            "environment": clean_environment(),
            "log": str(self._cluster.log),
            "uid": switch.get("user"),
            "gid": switch.get("group"),
            "groups": switch.get("extra_groups"),
            "scratch": [str(socket_dir)] if made else [],
            "temporary": [str(path) for path in self._cluster.places()] if self._temporary else [],
        }
        subprocess.run(
            [sys.executable, "-I", "-S", supervisor.__file__, str(self._cluster.home)],
            input=json.dumps(order).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            check=False,
        )
        if self._await_ready(lambda: FileLock.is_held(self._lock_path("keeper")), before):
            return True
        said = self._cluster.log.read_text(errors="replace")
        if "could not bind" in said and "Address already in use" in said:
            return False
        raise self._cluster.explain("starting Postgres", said)

    def _command(self, port: int, socket_dir: Path) -> list[str]:
        settings = dict(self._settings)
        if self._temporary:
            settings = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", **settings}
        settings |= {
            "listen_addresses": HOST,
            "port": str(port),
            "unix_socket_directories": _quoted(str(socket_dir)),
            "unix_socket_permissions": "0700",
            "logging_collector": "off",
        }
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self._cluster.binaries.program("postgres")), "-D", str(self._cluster.data), *flags]

    def _await_ready(self, going: Callable[[], bool], before: Postmaster | None) -> Postmaster | None:
        """Wait until the server takes connections; None if `going` came to an end first."""
        ready: Postmaster | None = None

        def settled() -> bool:
            nonlocal ready
            alive = going()
            found = Postmaster.read(self._cluster.data)
            if found is not None and found != before and found.status == "ready":
                ready = found
            return ready is not None or not alive

        if not wait_for(settled, READY_SECONDS):
            said = self._cluster.log.read_text(errors="replace")
            raise LabError(
                f"Postgres in {self._cluster.home} was not ready after {READY_SECONDS:.0f} s; it said last:\n  "
                + "\n  ".join(said.splitlines()[-3:])
            )
        return ready

    def _remove_stale_pid_file(self) -> None:
        """Remove what a killed server has left, since its process id may be somebody else's by now.

        None of our servers is alive here. A server that somebody started by hand would be, so look for one.
        """
        path = self._cluster.data / "postmaster.pid"
        try:
            pid = abs(int(path.read_text().split("\n", 1)[0]))
        except FileNotFoundError:
            return
        except ValueError:
            pid = 0
        if pid and _runs_in(pid, self._cluster.data):
            raise LabError(
                f"{self._cluster.home} is in use by a Postgres that was started by hand (process {pid}). "
                f"Stop it first: kill -INT {pid}"
            )
        path.unlink(missing_ok=True)

    # Administration

    def _psql(self, statement: str) -> None:
        done = subprocess.run(
            [
                str(self._cluster.binaries.program("psql")),
                *("--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--set=VERBOSITY=terse"),
                f"--command={statement}",
                f"host={HOST} port={self.port} user={SUPERUSER} dbname=postgres connect_timeout=10",
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={**clean_environment(), "PGPASSWORD": self._password},
            cwd="/",
        )
        if done.returncode != 0:
            raise LabError(f"{statement} failed: {done.stderr.strip()}")


def _runs_in(pid: int, data: Path) -> bool:
    """Whether the process is a Postgres on that data directory."""
    if sys.platform == "linux":
        try:
            return os.path.samefile(f"/proc/{pid}/cwd", data)
        except OSError:
            return False
    named = subprocess.run(["ps", "-p", str(pid), "-o", "comm="], capture_output=True, text=True, check=False)
    return "postgres" in named.stdout


def _port_taken(port: int) -> LabError:
    return LabError(
        f"port {port} on {HOST} is taken by another program. Find it with: ss -ltnp 'sport = :{port}', stop it, or "
        "choose another port."
    )


def _keep_quiet(_message: str) -> None:
    return


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
