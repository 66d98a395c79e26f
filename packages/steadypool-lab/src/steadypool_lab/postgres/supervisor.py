"""The small process between the holders of a data directory and its Postgres server.

It is the server's parent, it is nobody's child, and it waits for one of two things: the server ends, then it ends
too; or the last holder is gone, however it went, then it stops the server. So a SIGKILL of every holder leaves
nothing running, and Ctrl-C in a terminal reaches the application first and the server last.

Four lock files carry all of it, and the kernel releases them when a process dies:

- `holders.lock`: shared by every holder; whoever can take it exclusively knows that there is none.
- `control.lock`: exclusive while somebody starts or stops the server.
- `server.lock`: exclusive, inherited by every process of the server: held means that one of them is alive, which
  no process id can say for sure.
- `keeper.lock`: exclusive, held by the keeper.

The last three contain the process id of their holder (for `server.lock` the postmaster's).

This file is run by its path in an isolated interpreter without site packages, so that it starts in a few
milliseconds: it imports the standard library and nothing else. The rest of the lab imports its locks from here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.01
FAST_SECONDS = 15.0
IMMEDIATE_SECONDS = 5.0
KILL_SECONDS = 5.0


class FileLock:
    """An advisory lock on a file, held by this open file and by those who inherit it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "some.lock"
        >>> mine, other = FileLock(path), FileLock(path)
        >>> mine.acquire(shared=False, seconds=0), other.acquire(shared=True, seconds=0)
        (True, False)
        >>> mine.close(); other.close()
    """

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def acquire(self, *, shared: bool, seconds: float) -> bool:
        """Take the lock within so many seconds; returns whether it was got."""
        operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB

        def attempt() -> bool:
            try:
                fcntl.flock(self.fd, operation)
            except BlockingIOError:
                return False
            return True

        return wait_for(attempt, seconds)

    def wait(self) -> None:
        """Take the lock exclusively, however long that takes."""
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def release(self) -> None:
        """Give the lock back; the file stays open."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file, which gives the lock back unless a child has inherited it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def write(self, text: str) -> None:
        """Replace what the file says about the one who holds it."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, text.encode(), 0)

    def read(self) -> str:
        """What the one who holds it has written."""
        return os.pread(self.fd, 100, 0).decode(errors="replace")

    @staticmethod
    def is_held(path: Path) -> bool:
        """Whether somebody holds the lock exclusively."""
        if not path.exists():
            return False
        probe = FileLock(path)
        try:
            # Shared, so that two who ask at the same moment do not take each other for the holder.
            return not probe.acquire(shared=True, seconds=0)
        finally:
            probe.close()


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Ask every 10 ms until the condition holds; returns whether it did within so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(POLL_SECONDS)
    return True


def remove(paths: list[str]) -> None:
    """Delete directories with all that is in them."""
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def children_of(parent: int) -> list[int]:
    """The process ids of a process's children."""
    if sys.platform == "linux":
        found: list[int] = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            with contextlib.suppress(OSError):
                # The name, in brackets, may hold anything; what follows the last bracket is state and parent.
                fields = Path("/proc", entry, "stat").read_bytes().rpartition(b")")[2].split()
                if int(fields[1]) == parent:
                    found.append(int(entry))
        return found
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout
    pairs = (line.split() for line in listing.splitlines())
    return [int(pid) for pid, ppid in pairs if int(ppid) == parent]


def send(pid: int, number: int) -> bool:
    """Send a signal; returns whether the process was there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def kill_server(pid: int) -> None:
    """SIGKILL the postmaster and everything it has started, with no chance for it to react in between."""
    if send(pid, signal.SIGSTOP):
        family = [pid, *children_of(pid)]
        for member in family:
            send(member, signal.SIGKILL)


def stop_server(pid: int, server_lock: Path, *, immediate: bool = False) -> bool:
    """Stop a postmaster: fast, then immediate, then SIGKILL, each bounded; returns whether all of it is gone."""

    def gone() -> bool:
        return not FileLock.is_held(server_lock)

    if not immediate:
        send(pid, signal.SIGINT)
        if wait_for(gone, FAST_SECONDS):
            return True
    send(pid, signal.SIGQUIT)
    if wait_for(gone, IMMEDIATE_SECONDS):
        return True
    kill_server(pid)
    return wait_for(gone, KILL_SECONDS)


class Supervisor:
    """Runs one server until it ends or nobody holds its data directory any more.

    `order` is what `steadypool_lab.postgres.server` writes: home, command, environment, log, account, the
    directories to delete when the server ends (scratch), and those to delete when its last holder is gone (temporary).
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._home = Path(order["home"])
        self._server: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()

    def run(self) -> int:
        """Start the server, leave the caller's process tree, and keep watch."""
        log = os.open(self._order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        os.dup2(log, sys.stderr.fileno())
        own = FileLock(self._home / "keeper.lock")
        life = FileLock(self._home / "server.lock")
        for lock in (own, life):
            # The one before us may be on its last instructions.
            if not lock.acquire(shared=False, seconds=KILL_SECONDS):
                os.write(log, b"FATAL:  the previous server has not ended\n")
                return 1
        life.write("")
        if os.fork():
            # The caller waits for this process only; the locks live on in the child.
            os._exit(0)
        own.write(str(os.getpid()))
        try:
            self._server = self._spawn(log, life)
        except OSError as error:
            os.write(log, f"FATAL:  could not run {self._order['command'][0]}: {error.strerror}\n".encode())
            return 1
        # The process id is true for as long as the lock is held, which the server does from here on.
        life.write(str(self._server.pid))
        life.close()
        os.close(log)
        signal.signal(signal.SIGTERM, self._terminate)
        watch = threading.Thread(target=self._watch_holders, daemon=True)
        watch.start()
        self._server.wait()
        if self._stopping.is_set():
            watch.join()
        remove(self._order["scratch"])
        # Not sys.exit: the watching thread sits in flock for good and must not be waited for.
        os._exit(0)

    def _spawn(self, log: int, life: FileLock) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._order["command"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=self._order["environment"],
            cwd="/",
            umask=0o077,
            start_new_session=True,
            pass_fds=(life.fd,),
            user=self._order["uid"],
            group=self._order["gid"],
            extra_groups=self._order["groups"],
        )

    def _terminate(self, _number: int, _frame: object) -> None:
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)

    def _watch_holders(self) -> None:
        holders = FileLock(self._home / "holders.lock")
        control = FileLock(self._home / "control.lock")
        while True:
            holders.wait()
            # A new holder takes control first and then joins the holders: never hold the second while asking
            # for the first.
            holders.release()
            control.wait()
            if holders.acquire(shared=False, seconds=0):
                self._end()
                return
            control.release()

    def _end(self) -> None:
        self._stopping.set()
        # A server that was stopped on purpose may be started again, and finds what it has left.
        if self._server is None or self._server.poll() is not None:
            return
        stop_server(self._server.pid, self._home / "server.lock")
        remove(self._order["temporary"])


if __name__ == "__main__":
    # The directory is named on the command line too, for whoever looks at the list of processes.
    sys.exit(Supervisor(json.load(sys.stdin)).run())
