"""The parts of the embedded Postgres that need no Postgres."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from steadypool_lab import LabError, PostgresServer
from steadypool_lab.postgres.account import Account
from steadypool_lab.postgres.ports import free_port, is_free, listen
from steadypool_lab.postgres.startup_errors import disk_full, explained, postgres_failed, telling_lines
from steadypool_lab.postgres.supervisor import FileLock, children_of, kill_server, wait_for

STRANGER = Account("stranger", 54321, 54321, switch=True)


def test_a_lock_is_shared_by_many_or_had_by_one(tmp_path: Path) -> None:
    path = tmp_path / "some.lock"
    assert not FileLock.is_held(path)
    first, second, third = (FileLock(path) for _ in range(3))
    assert first.acquire(shared=True, seconds=0)
    assert second.acquire(shared=True, seconds=0)
    assert not third.acquire(shared=False, seconds=0)
    assert not FileLock.is_held(path), "shared is not held"
    first.close()
    second.release()
    assert third.acquire(shared=False, seconds=0)
    assert FileLock.is_held(path)
    assert not second.acquire(shared=True, seconds=0.03)
    third.close()
    assert not FileLock.is_held(path)
    second.close()


def test_a_lock_lives_as_long_as_a_process_that_inherited_it(tmp_path: Path) -> None:
    path = tmp_path / "some.lock"
    lock = FileLock(path)
    assert lock.acquire(shared=False, seconds=0)
    heir = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock.fd,))
    lock.close()
    assert FileLock.is_held(path)
    heir.communicate(b"\n")
    assert not FileLock.is_held(path)


def test_a_family_dies_together() -> None:
    parent = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60 & echo ready; wait"], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    parent.stdout.readline()
    children = children_of(parent.pid)
    assert len(children) == 2
    kill_server(parent.pid)
    assert parent.wait(5) == -9
    # The pipe ends when the last of them has let go of it.
    assert parent.stdout.read() == b""
    parent.stdout.close()
    kill_server(parent.pid)


def test_waiting_is_bounded() -> None:
    answers = iter([False, False, True])
    assert wait_for(lambda: next(answers), 5)
    assert not wait_for(lambda: False, 0.02)


def test_free_ports_are_below_the_range_of_outgoing_connections() -> None:
    port = free_port()
    assert 20_000 <= port < 32_768
    with listen(port):
        assert not is_free(port)
    assert is_free(port)


def test_who_can_enter_what(tmp_path: Path) -> None:
    here = tmp_path / "open" / "closed" / "inside"
    here.mkdir(parents=True)
    for step in (here, *here.parents):
        if step.stat().st_uid == os.geteuid() and step.is_relative_to(tmp_path):
            step.chmod(0o755)
    top = here.parents[1]
    myself = Account("me", os.geteuid(), os.getegid(), switch=False)
    assert myself.can_enter(here)
    # Where the test's own directory is closed to strangers, so is all below it.
    reachable = STRANGER.can_enter(tmp_path)
    assert STRANGER.can_enter(here) == reachable
    (top / "closed").chmod(0o700)
    assert not STRANGER.can_enter(here)
    assert STRANGER.can_enter(top) == reachable
    (top / "link").symlink_to("/usr")
    assert STRANGER.can_enter(top / "link") == reachable
    (here / "link").symlink_to("/usr")
    assert not STRANGER.can_enter(here / "link")
    assert not STRANGER.can_enter(tmp_path / "missing")


def test_owner_group_and_others_are_told_apart(tmp_path: Path) -> None:
    if not STRANGER.can_enter(Path("/usr/bin")):
        pytest.fail("this system closes /usr/bin")
    found = Path("/usr/bin/env").stat()
    for account in (
        STRANGER,
        Account("owner", found.st_uid, 1, switch=True),
        Account("group", 1, found.st_gid, True),
    ):
        assert account.can_read(Path("/usr/bin/env"))
    assert not STRANGER.can_read(Path("/etc/shadow"))
    assert Account("root", 0, 0, switch=True).can_read(Path("/etc/shadow"))


def test_of_a_log_the_telling_lines_are_kept() -> None:
    log = "LOG: starting\nFATAL:  wrong\nHINT:  do this\nLOG: bye\n"
    assert telling_lines(log) == ["FATAL:  wrong", "HINT:  do this"]
    assert telling_lines("a\n\nb\n") == ["a", "b"]
    assert telling_lines("") == []
    assert len(telling_lines("ERROR: x\n" * 20)) == 5


@pytest.mark.parametrize(
    "said",
    [
        "FATAL:  could not write to file: No space left on device",
        "FATAL:  could not extend file: wrote only 4096 of 8192 bytes\nHINT:  Check free disk space.",
        "initdb: error: Disk quota exceeded",
    ],
)
def test_a_full_disk_is_recognised(tmp_path: Path, said: str) -> None:
    error = postgres_failed("creating the database", tmp_path, said, "advice")
    assert "the disk is full" in str(error)
    assert "advice" not in str(error)
    with pytest.raises(LabError, match=r"writing failed: the disk is full \(\d+ MB free at /"):
        with explained("writing", tmp_path / "not" / "there"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert str(tmp_path) in str(disk_full("writing", tmp_path / "missing"))


def test_the_advice_to_start_over_is_for_damaged_data_only(tmp_path: Path) -> None:
    damaged = postgres_failed(
        "starting", tmp_path, 'FATAL:  could not read file "global/pg_control"', "move it"
    )
    assert str(damaged).endswith("move it")
    setting = postgres_failed(
        "starting", tmp_path, 'FATAL:  invalid value for parameter "work_mem"', "move it"
    )
    assert str(setting).endswith('"work_mem"')
    assert "did not say why" in str(postgres_failed("starting", tmp_path, "", "move it"))


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.EACCES, "Run this as"), (errno.EROFS, "can be written"), (errno.EIO, "error.")],
)
def test_what_the_system_refuses_is_explained(tmp_path: Path, number: int, hint: str) -> None:
    with pytest.raises(LabError, match=rf"^reading failed: {tmp_path}: .*{hint}"):
        with explained("reading", tmp_path):
            raise OSError(number, os.strerror(number))


def test_before_the_first_start_there_is_no_port(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path / "postgres")
    with pytest.raises(LabError, match="not been started"):
        _ = server.port
    assert server.pid is None
    assert not server.is_running
    server.stop()
    assert not (tmp_path / "postgres").exists()
