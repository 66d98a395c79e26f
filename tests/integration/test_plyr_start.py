"""Starting and ending plyr: the ways it can go wrong, and several at once."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from backend import migrations
from backend.config import ServerSettings, Settings, StorageSettings
from backend.database_role import ensure_role
from backend.launch import _with_database
from backend.migrations.upgrade import MigrationError, upgrade
from backend.models import Base
from backend.services.demo import ensure_demo
from backend.storage.local import LocalStorage
from backend.utilities.database import build_database
from conditions import until
from steadypool import DatabaseSettings
from steadypool_lab import EmbeddedPostgres, FaultProxy, Mode

from .conftest import tone

# -- migrations ----------------------------------------------------------------------------------------------


def test_of_several_migrations_at_once_one_does_the_work(database_url: str) -> None:
    settings = DatabaseSettings(url=database_url)
    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(upgrade, [settings] * 4))
    assert sorted(done) == [False, False, False, True]
    assert upgrade(settings) is False


def test_the_migrations_make_what_the_models_say(plyr_database: str) -> None:
    engine = sa.create_engine(plyr_database.replace("://", "+psycopg://"), poolclass=sa.NullPool)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_the_newest_revision_is_the_one_that_a_start_looks_for() -> None:
    [folder] = migrations.__path__
    config = Config()
    config.set_main_option("script_location", folder)
    assert ScriptDirectory.from_config(config).get_current_head() == migrations.HEAD


def test_a_database_of_a_newer_plyr_is_left_alone(database_url: str) -> None:
    upgrade(DatabaseSettings(url=database_url))
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(MigrationError, match="9999"):
        upgrade(DatabaseSettings(url=database_url))


def test_every_spelling_of_the_url_can_be_migrated(database_url: str) -> None:
    for scheme in ("postgres://", "postgresql+asyncpg://", "postgresql+psycopg://"):
        url = database_url.replace("postgresql://", scheme)
        upgrade(DatabaseSettings(url=f"{url}?sslmode=prefer&application_name=x"))


# -- its role in the embedded Postgres -----------------------------------------------------------------------


def test_the_service_is_no_superuser_and_owns_what_an_earlier_version_made() -> None:
    server = EmbeddedPostgres.temporary().blocking
    server.start()
    try:
        upgrade(DatabaseSettings(url=server.url))  # as the superuser, as earlier versions did
        with psycopg.connect(server.url) as connection:
            connection.execute("INSERT INTO artists (did, handle, display_name) VALUES ('a', 'b', 'c')")
        with ThreadPoolExecutor(3) as threads:
            [url] = set(threads.map(ensure_role, [server.url] * 3))
        assert upgrade(DatabaseSettings(url=url)) is False
        with psycopg.connect(url, autocommit=True) as connection:
            said = connection.execute(
                "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles "
                "WHERE rolname = current_user"
            )
            assert said.fetchone() == (False,) * 5
            owner = connection.execute(
                "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"
            )
            assert owner.fetchone() == ("plyr",)
            assert connection.execute("SELECT handle FROM artists").fetchall() == [("b",)]
            for forbidden in ("COPY artists TO PROGRAM 'true'", "SELECT pg_read_file('PG_VERSION')"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(forbidden)
            connection.execute("DROP TABLE likes")  # a later migration may change what is there
        with psycopg.connect(server.url) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public AUTHORIZATION pg_database_owner")
        assert upgrade(DatabaseSettings(url=url)) is True  # and it makes a new database by itself
    finally:
        server.close()


@pytest.mark.anyio
async def test_the_service_starts_as_its_role(tmp_path: Path) -> None:
    settings = Settings(server=ServerSettings(data_dir=tmp_path))
    async with AsyncExitStack() as stack:
        started = await _with_database(settings.model_copy(update={"database": DatabaseSettings()}), stack)
        assert started.database.url is not None
        with psycopg.connect(started.database.url.get_secret_value()) as connection:
            said = connection.execute("SELECT current_user, current_setting('is_superuser')").fetchone()
        assert said == ("plyr", "off")


# -- the demo ------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_several_first_starts_at_once_make_one_demo(plyr_settings: Settings, tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "audio", StorageSettings().max_upload_bytes)

    async def start() -> str | None:
        async with build_database(plyr_settings) as database:
            return await ensure_demo(database, storage, tmp_path / "token", lambda _: None)

    tokens = await asyncio.gather(*(start() for _ in range(2)))
    assert len(set(tokens)) == 1
    assert tokens[0] == (tmp_path / "token").read_text().strip()
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    async with build_database(plyr_settings) as database, database.session() as session:
        assert (await session.execute(text("SELECT count(*) FROM tracks"))).scalar_one() == 4
        assert (await session.execute(text("SELECT count(*) FROM developer_tokens"))).scalar_one() == 1


@pytest.mark.anyio
async def test_a_database_with_artists_of_its_own_gets_no_demo(
    plyr_settings: Settings, tmp_path: Path
) -> None:
    storage = LocalStorage(tmp_path / "audio", 10**6)
    async with build_database(plyr_settings) as database:
        async with database.session() as session:
            await session.execute(text("INSERT INTO artists VALUES ('did:x', 'x', 'X')"))
            await session.commit()
        assert await ensure_demo(database, storage, tmp_path / "token", lambda _: None) is None
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240


# -- processes -----------------------------------------------------------------------------------------------


@dataclass
class Started:
    process: asyncio.subprocess.Process
    output: list[str]
    url: str = ""
    token: str = ""

    async def wait(self) -> tuple[int, str, str]:
        """Exit code, and everything it said."""
        rest, errors = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, "".join(self.output) + rest.decode(), errors.decode()


@asynccontextmanager
async def plyr_process(cwd: Path, **environment: str) -> AsyncIterator[Started]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("DATABASE_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "backend",
        cwd=cwd,
        env=ours | {"PORT": "0"} | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Started(process, [])
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def until_ready(started: Started) -> None:
    assert started.process.stdout is not None
    async with asyncio.timeout(60):
        while line := (await started.process.stdout.readline()).decode():
            started.output.append(line)
            if found := re.search(r"plays at (http\S+)/", line):
                started.url = found[1]
            if found := re.match(r"PLYR_TOKEN=(\S+)", line):
                started.token = found[1]
            if "Ctrl-C" in line:
                return
    raise AssertionError((await started.wait())[1:])


@pytest.mark.anyio
async def test_what_stands_in_the_way_is_said_in_one_message(tmp_path: Path, database_url: str) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / ".data").write_text("this should have been a folder")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        authority, _, name = database_url.rpartition("/")
        cases: list[tuple[dict[str, str], str, Path]] = [
            ({"PORT": port}, f"port {port} on 127.0.0.1 is taken", tmp_path),
            ({"PORT": "lots"}, "PORT='lots'", tmp_path),
            ({"DATABASE_POOL_SIZE": "0"}, "DATABASE_POOL_SIZE=0", tmp_path),
            (
                {"DATABASE_URL": f"{authority}/nothing_{name}"},
                f'database "nothing_{name}" does not exist',
                tmp_path,
            ),
            (
                {"DATABASE_URL": database_url.replace("postgres:", "u:hush", 1)},
                "cannot be used: cannot connect to u@127.0.0.1",
                tmp_path,
            ),
            ({"DATABASE_URL": "mysql://u:hush@h/x"}, "DATABASE_URL", tmp_path),
            ({"DATABASE_URL": "postgresql://u:hush@h:99999/x"}, "DATABASE_URL", tmp_path),
            ({"DATABASE_URL": "postgresql://u:hush@h/x?sslmode=bogus"}, "sslmode=bogus: allowed", tmp_path),
            ({"DATABASE_URL": "postgresql+foo://u:hush@h/x"}, "allowed: postgresql://", tmp_path),
            ({}, ".data", damaged),
        ]

        async def check(environment: dict[str, str], says: str, cwd: Path) -> None:
            async with plyr_process(cwd, **environment) as started:
                code, output, errors = await started.wait()
            assert code == 1, (environment, output, errors)
            assert errors.startswith("plyr cannot start: "), errors
            assert says in errors
            assert "Traceback" not in output + errors
            assert "hush" not in output + errors
            assert len(errors.splitlines()) <= 3

        await asyncio.gather(*(check(*case) for case in cases))


@pytest.mark.anyio
async def test_a_database_that_is_not_there_yet_is_awaited(
    tmp_path: Path, proxied_url: str, proxy: FaultProxy
) -> None:
    """It serves as soon as the database does: whoever came before has waited for that, and health was answered."""
    proxy.mode = Mode.REFUSE
    async with plyr_process(tmp_path, DATABASE_URL=proxied_url, DATABASE_REQUEST_DEADLINE="60") as started:
        assert started.process.stdout is not None
        async with asyncio.timeout(60):
            while not (answers := re.search(r"answers at (http\S+)/;", "".join(started.output))):
                started.output.append((await started.process.stdout.readline()).decode())
        assert any("is awaited" in line and "Connection refused" in line for line in started.output)
        async with httpx.AsyncClient(base_url=answers[1], timeout=60) as client:
            assert (await client.get("/livez")).status_code == 200
            assert (await client.get("/readyz")).status_code == 503
            impatient = await client.get("/tracks/", headers={"X-Request-Timeout": "0.2"})
            assert (impatient.status_code, impatient.headers["Retry-After"]) == (503, "1")
            early = asyncio.create_task(client.get("/tracks/"))
            await asyncio.sleep(0.1)
            assert not early.done()
            proxy.mode = Mode.PASS
            assert (await early).status_code == 200
            assert (await client.get("/readyz")).status_code == 200
        await until_ready(started)
        started.process.terminate()
        assert (await started.wait())[0] == 0


@pytest.mark.anyio
async def test_two_starts_share_one_folder_and_the_last_one_ends_the_server(tmp_path: Path) -> None:
    async with plyr_process(tmp_path) as one, plyr_process(tmp_path) as two:
        await asyncio.gather(until_ready(one), until_ready(two))
        assert one.url != two.url
        assert one.token == two.token
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {one.token}"}) as client:
            upload = {"data": {"title": "Shared"}, "files": {"file": ("a.wav", tone())}}
            assert (await client.post(f"{one.url}/tracks/", **upload)).status_code == 202
            one.process.send_signal(signal.SIGTERM)
            code, output, errors = await one.wait()
            assert (code, errors) == (0, ""), output
            titles = [track["title"] for track in (await client.get(f"{two.url}/tracks/")).json()["tracks"]]
            assert len(titles) == 5
            assert titles[0] == "Shared"
        two.process.send_signal(signal.SIGINT)
        code, output, errors = await two.wait()
        assert (code, errors) == (0, ""), output
    pid_files = list((tmp_path / ".data").rglob("postmaster.pid"))
    assert pid_files == []


@pytest.mark.anyio
async def test_requests_in_flight_finish_after_the_signal(tmp_path: Path, database_url: str) -> None:
    async with plyr_process(tmp_path, DATABASE_URL=database_url) as started:
        await until_ready(started)
        host, port = started.url.removeprefix("http://").split(":")
        body = b'--x\r\nContent-Disposition: form-data; name="title"\r\n\r\nLate\r\n'
        rest = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + tone()
        rest += b"\r\n--x--\r\n"
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST /tracks/ HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {started.token}\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\n"
            f"Content-Length: {len(body + rest)}\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        await until(lambda: any((tmp_path / ".data/audio/tmp").glob("*")), seconds=60)
        started.process.send_signal(signal.SIGTERM)
        await until(lambda: refuses(host, int(port)), seconds=60)
        writer.write(rest)
        assert b"202" in await reader.readline()
        code, output, errors = await started.wait()
        writer.close()
        assert (code, errors) == (0, ""), output
    with psycopg.connect(database_url) as connection:
        [[status]] = connection.execute("SELECT status FROM uploads").fetchall()
    assert status == "completed"


@pytest.mark.anyio
async def test_a_signal_during_the_start_ends_it_cleanly(tmp_path: Path) -> None:
    async with plyr_process(tmp_path) as started:
        assert started.process.stdout is not None
        line = await started.process.stdout.readline()  # the first word of a long step
        assert b"plyr: " in line
        started.process.send_signal(signal.SIGTERM)
        code, output, errors = await started.wait()
    assert (code, errors) == (0, ""), output
    assert list((tmp_path / ".data").rglob("postmaster.pid")) == []


@pytest.mark.anyio
async def test_a_signal_ends_it_though_nobody_reads_what_it_says(tmp_path: Path, database_url: str) -> None:
    """As in `make run | head`: with its output closed, it was deaf to signals."""
    reader, writer = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "backend",
        cwd=tmp_path,
        env=os.environ | {"PORT": "0", "DATABASE_URL": database_url},
        stdout=writer,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(writer)

    def read_until_ready() -> None:
        with os.fdopen(reader) as lines:
            assert any("Ctrl-C" in line for line in lines)

    try:
        await asyncio.wait_for(asyncio.to_thread(read_until_ready), 60)
        process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.wait_for(process.communicate(), 30)
        assert (process.returncode, errors.decode()) == (0, "")
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def refuses(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False
