"""The official client, SDK and command line, against `python -m backend` in a process of its own, with each driver."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from plyrfm import AsyncPlyrClient, PlyrClient, PublishingDefaults, PublishingPolicy

from steadypool_lab import EmbeddedPostgres

CLI = Path(sys.executable).with_name("plyrfm")


@dataclass
class Service:
    url: str
    token: str


@pytest.fixture(scope="module")
def url(server: EmbeddedPostgres) -> Iterator[str]:
    name = f"plyrfm_{os.getpid()}"
    yield server.blocking.create_database(name)
    server.blocking.drop_database(name)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plyr")


@pytest.fixture(scope="module", params=["asyncpg", "psycopg", "steadypool"])
def service(request: pytest.FixtureRequest, url: str, home: Path) -> Iterator[Service]:
    """With each driver, one after the other on the same data: the demo is composed once, which takes seconds."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DATABASE_")}
    environment |= {
        "DATABASE_URL": url.replace("postgresql://", f"postgresql+{request.param}://"),
        "PORT": "0",
        "PYTHONUNBUFFERED": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "backend"], cwd=home, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    address = token = ""
    with process:
        for line in process.stdout:
            if found := re.search(r"plays at (http\S+)/", line):
                address = found[1]
            if found := re.match(r"PLYR_TOKEN=(\S+)", line):
                token = found[1]
            if "Ctrl-C" in line:
                break
        yield Service(address, token)
        process.terminate()
        rest = process.stdout.read()
    assert process.returncode == 0, rest


@pytest.fixture
def song(tmp_path: Path) -> Path:
    from backend.services.melody import Piece, render

    bell = Piece("", "", "", 240, "c5:1 e5:1", "c3:2", ((1, 1000, 4),))
    path = tmp_path / "song.wav"
    path.write_bytes(render(bell))
    return path


@pytest.fixture
def sync(service: Service) -> Iterator[PlyrClient]:
    with PlyrClient(token=service.token, api_url=service.url) as client:
        yield client


@pytest.fixture
async def client(service: Service, anyio_backend: str) -> AsyncIterator[AsyncPlyrClient]:
    async with AsyncPlyrClient(token=service.token, api_url=service.url) as client:
        yield client


def test_the_demo_can_be_heard_by_everybody(service: Service) -> None:
    with PlyrClient(api_url=service.url) as nobody:
        tracks = nobody.tracks.list()
    assert len(tracks) == 4
    for track in tracks:
        assert track.audio_url is not None
        answer = httpx.get(track.audio_url)
        assert answer.headers["content-type"] == "audio/wav"
        assert 10 < len(answer.content) / (2 * 22_050) < 21, "seconds"


def test_a_track_from_upload_to_delete(sync: PlyrClient, song: Path, tmp_path: Path) -> None:
    me = sync.me()
    assert set(me) == {"did", "handle"}
    uploaded = sync.tracks.upload(song, "Sóng", album="Album", tags={"a", "b"}, description="notes")
    track = sync.tracks.get(uploaded.track_id)
    assert (track.title, track.description, track.file_type) == ("Sóng", "notes", "wav")
    assert set(track.tags) == {"a", "b"}
    assert track.album is not None
    assert track.album.title == "Album"
    assert track.artist_handle == me["handle"]
    assert track.atproto_uri is not None
    assert track.atproto_cid is not None
    assert sync.tracks.get(track.atproto_uri) == track
    assert sync.tracks.list(limit=1) == [track]
    assert sync.tracks.my(limit=1) == [track]
    for ref in (track.id, track.atproto_uri):
        sync.tracks.like(ref)
        assert [liked.id for liked in sync.tracks.liked()] == [track.id]
        assert sync.tracks.get(ref).like_count == 1
        sync.tracks.unlike(ref)
        assert sync.tracks.liked() == []
    assert sync.tracks.download(track.id, tmp_path / "back.wav").read_bytes() == song.read_bytes()
    sync.tracks.delete(track.id)
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        sync.tracks.get(track.id)


@pytest.mark.anyio
async def test_a_track_from_upload_to_delete_async(
    client: AsyncPlyrClient, song: Path, tmp_path: Path
) -> None:
    assert set(await client.me()) == {"did", "handle"}
    quiet = PublishingDefaults(access=PublishingPolicy(visibility="unlisted", downloads="off"))
    uploaded = await client.tracks.upload(song, "Async", publishing=quiet)
    track = await client.tracks.get(uploaded.track_id)
    assert track.publishing == quiet
    assert track.id not in [each.id for each in await client.tracks.list()]
    assert track.id in [each.id for each in await client.tracks.my()]
    await client.tracks.like(track.id)
    assert [liked.id for liked in await client.tracks.liked()] == [track.id]
    await client.tracks.unlike(track.id)
    back = await client.tracks.download(track.id, tmp_path / "back.wav")
    assert back.read_bytes() == song.read_bytes()  # noqa: ASYNC240 -- a few kB in a test
    await client.tracks.delete(track.id)
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        await client.tracks.get(track.id)


def test_errors_are_what_the_client_expects(service: Service, sync: PlyrClient, tmp_path: Path) -> None:
    noise = tmp_path / "noise.mp3"
    noise.write_bytes(b"no audio at all")
    with pytest.raises(httpx.HTTPStatusError, match="415"):
        sync.tracks.upload(noise, "Noise")
    for call in (
        sync.tracks.get,
        sync.tracks.like,
        sync.tracks.unlike,
        sync.tracks.delete,
        sync.tracks.download,
    ):
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            call(10**9)
    with PlyrClient(token="plyr_wrong", api_url=service.url) as stranger:
        for call in (stranger.me, stranger.tracks.my, stranger.tracks.liked):
            with pytest.raises(httpx.HTTPStatusError, match="401"):
                call()
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            stranger.tracks.upload(noise, "Noise")


def plyrfm(service: Service, *arguments: object, token: str | None = None) -> str:
    environment = dict(os.environ) | {
        "PLYR_API_URL": service.url,
        "PLYR_TOKEN": token or service.token,
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        [CLI, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("service", ["steadypool"], indirect=True, scope="module")
def test_the_command_line(service: Service, song: Path, tmp_path: Path) -> None:
    """With one driver: it asks for what the SDK asks for, and each command is a process that takes seconds."""
    uploaded = plyrfm(service, "tracks", "upload", song, "By hand", "--tag", "one", "--album", "Hands")
    found = re.search(r"uploaded: track (\d+)", uploaded)
    assert found is not None, uploaded
    track_id = found[1]
    assert "By hand" in plyrfm(service, "tracks", "list")
    assert "Hands" in plyrfm(service, "tracks", "my")
    assert f"liked track {track_id}" in plyrfm(service, "tracks", "like", track_id)
    assert "By hand" in plyrfm(service, "tracks", "liked")
    assert "likes: 1" in plyrfm(service, "tracks", "get", track_id)
    assert "unliked" in plyrfm(service, "tracks", "unlike", track_id)
    back = tmp_path / "back.wav"
    assert "saved" in plyrfm(service, "tracks", "download", track_id, "--output", back)
    assert back.read_bytes() == song.read_bytes()
    assert "handle: demo" in plyrfm(service, "me")
    assert "deleted: By hand" in plyrfm(service, "tracks", "delete", track_id, "--yes")
    assert "track not found" in plyrfm(service, "tracks", "get", track_id)
    assert "invalid or expired token" in plyrfm(service, "tracks", "my", token="plyr_wrong")
