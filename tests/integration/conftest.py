"""plyr itself, served by uvicorn on a real socket in the test's own event loop, on a real database."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import wave
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI

from backend.config import ServerSettings, Settings, StorageSettings
from backend.migrations.upgrade import upgrade
from backend.server import Server
from backend.services import artists
from backend.utilities.database import db_session, get_database
from steadypool import Database, DatabaseSettings
from steadypool_lab import EmbeddedPostgres

MAX_UPLOAD = 300_000


def tone(seconds: float = 0.2, pitch: int = 100) -> bytes:
    """A small WAV file; every pitch has other bytes."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(
            b"".join((i * pitch % 20_000).to_bytes(2, "little") for i in range(int(8000 * seconds)))
        )
    return buffer.getvalue()


@dataclass
class Plyr:
    """A running service, and an artist who is signed in."""

    url: str
    settings: Settings
    token: str
    client: httpx.AsyncClient
    anonymous: httpx.AsyncClient
    app: FastAPI

    @property
    def database(self) -> Database:
        return get_database()

    @property
    def held(self) -> int:
        """Connections that somebody holds; those over which strangers' statements travel are nobody's."""
        stats = self.database.stats()
        return stats.pool.leased - (0 if stats.shared is None else stats.shared.connections)

    @property
    def audio_files(self) -> list[Path]:
        """What storage holds, leftovers of uploads included."""
        return [path for path in self.settings.storage.audio_dir.rglob("*") if path.is_file()]

    async def add_artist(self, handle: str) -> str:
        """Another artist's token."""
        token = artists.new_token()
        async with db_session() as session:
            artists.add_artist(session, did=f"did:plc:{handle}", handle=handle, display_name=handle.title())
            await session.flush()
            artists.add_token(session, did=f"did:plc:{handle}", token=token, name="test")
            await session.commit()
        return token

    async def upload(self, audio: bytes, *, token: str | None = None, **fields: Any) -> int:
        """Upload, and wait for the track's id."""
        headers = {"Authorization": f"Bearer {token or self.token}"}
        data = {"title": "A title"} | fields
        answer = await self.client.post(
            "/tracks/", data=data, files={"file": ("a.wav", audio)}, headers=headers
        )
        assert answer.status_code == 202, answer.text
        events = await self.progress(answer.json()["upload_id"], headers)
        assert events[-1]["status"] == "completed", events
        return events[-1]["track_id"]

    async def progress(self, upload_id: str, headers: dict[str, str] | None = None) -> list[dict[str, Any]]:
        answer = await self.client.get(f"/tracks/uploads/{upload_id}/progress", headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


@pytest.fixture(scope="session")
def plyr_database(server: EmbeddedPostgres) -> Iterator[str]:
    """A migrated database for all tests of plyr: emptying it is much faster than making one."""
    name = f"plyr_{os.getpid()}"
    url = server.blocking.create_database(name)
    upgrade(DatabaseSettings(url=url))
    yield url
    server.blocking.drop_database(name)


@pytest.fixture
def plyr_url(plyr_database: str) -> str:
    with psycopg.connect(plyr_database) as connection:
        connection.execute("TRUNCATE artists RESTART IDENTITY CASCADE")
    return plyr_database


@pytest.fixture(params=["asyncpg", "psycopg", "steadypool"])
def driver(request: pytest.FixtureRequest) -> str:
    """What plyr is tested with, everywhere; the last is what it uses by default."""
    return request.param


def with_driver(url: str, driver: str) -> str:
    return url.replace("postgresql://", f"postgresql+{driver}://")


@pytest.fixture
def plyr_settings(plyr_url: str, tmp_path: Path, driver: str) -> Settings:
    return Settings(
        database=DatabaseSettings(url=with_driver(plyr_url, driver)),
        storage=StorageSettings(audio_dir=tmp_path / "audio", max_upload_bytes=MAX_UPLOAD),
        server=ServerSettings(data_dir=tmp_path),
    )


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[tuple[str, FastAPI]]:
    """One instance of the service: its address, and its application to look into."""
    listener = socket.create_server(("127.0.0.1", 0))
    ready, prepared = asyncio.Event(), asyncio.Event()
    prepared.set()
    server = Server(settings, grace=5, on_ready=ready.set, prepared=prepared)
    running = asyncio.create_task(server.serve([listener]))
    started = asyncio.create_task(ready.wait())
    await asyncio.wait({running, started}, return_when=asyncio.FIRST_COMPLETED)
    assert ready.is_set(), running
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", server.app
    finally:
        server.stop()
        await running


@pytest.fixture
async def plyr(plyr_settings: Settings, anyio_backend: str) -> AsyncIterator[Plyr]:
    async with serving(plyr_settings) as (url, app):
        # Plain HTTP: reading the world's certificates, to verify none, takes longer than a test's requests.
        options: dict[str, Any] = {"base_url": url, "timeout": 30.0, "verify": False}
        async with httpx.AsyncClient(**options) as client, httpx.AsyncClient(**options) as anonymous:
            running = Plyr(url, plyr_settings, "", client, anonymous, app)
            running.token = await running.add_artist("alice")
            client.headers["Authorization"] = f"Bearer {running.token}"
            yield running
