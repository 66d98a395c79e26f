"""Uploads: streamed, limited, checked, and never lost once accepted."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import foreign_audio
from backend.services import uploads
from backend.services.upload_jobs import MAX_TRIES, UploadJobs
from backend.utilities.database import UPLOADS, db_session
from conditions import until

from .conftest import MAX_UPLOAD, Plyr, tone

pytestmark = pytest.mark.anyio


def form(audio: bytes, **fields: str) -> dict[str, Any]:
    return {"data": {"title": "A title"} | fields, "files": {"file": ("a.wav", audio)}}


HARMFUL = [
    b"MPCKAA\0",
    foreign_audio.nested_boxes(5_000),
    foreign_audio.m4a(1, 2**64 - 1),
    foreign_audio.wav(8000, 2**32 - 1, bytes(100)),
    foreign_audio.id3(foreign_audio.compressed_frame(64)),
    foreign_audio.POLYGLOT,
]


async def test_a_harmful_file_is_a_415_and_hinders_nobody(plyr: Plyr) -> None:
    wav = tone()
    track_id = await plyr.upload(wav)
    file_id = (await plyr.client.get(f"/tracks/{track_id}")).json()["file_id"]
    mallory = {"Authorization": f"Bearer {await plyr.add_artist('mallory')}"}
    attack = [
        asyncio.create_task(plyr.client.post("/tracks/", **form(content), headers=mallory))
        for content in HARMFUL
    ]
    assert (await plyr.anonymous.get(f"/audio/{file_id}")).content == wav
    assert await plyr.upload(tone(pitch=7))
    for answer in await asyncio.gather(*attack):
        assert answer.status_code == 415, answer.text
        assert "not audio" in answer.json()["detail"]
    assert len(plyr.audio_files) == 2


async def test_progress_is_told_until_the_track_is_there(plyr: Plyr) -> None:
    answer = await plyr.client.post("/tracks/", **form(tone()))
    assert answer.status_code == 202
    events = await plyr.progress(answer.json()["upload_id"])
    assert events[-1]["status"] == "completed"
    assert {event["status"] for event in events[:-1]} <= {"processing"}
    track = await plyr.anonymous.get(f"/tracks/{events[-1]['track_id']}")
    assert track.json()["title"] == "A title"


async def test_progress_is_for_the_uploader_alone(plyr: Plyr) -> None:
    upload_id = (await plyr.client.post("/tracks/", **form(tone()))).json()["upload_id"]
    bob = {"Authorization": f"Bearer {await plyr.add_artist('bob')}"}
    for each in (upload_id, uuid.uuid4()):
        answer = await plyr.client.get(f"/tracks/uploads/{each}/progress", headers=bob)
        assert answer.status_code == 404
    assert (await plyr.client.get("/tracks/uploads/x/progress")).status_code == 422


async def test_the_largest_file_is_accepted_and_one_byte_more_is_not(plyr: Plyr) -> None:
    wav = tone()
    largest = wav + bytes(MAX_UPLOAD - len(wav))
    assert (await plyr.client.post("/tracks/", **form(largest))).status_code == 202
    answer = await plyr.client.post("/tracks/", **form(largest + b"\0"))
    assert answer.status_code == 413
    assert f"{MAX_UPLOAD:,} bytes" in answer.json()["detail"]
    assert len(plyr.audio_files) == 1


async def test_a_length_that_is_too_much_is_refused_before_the_body(plyr: Plyr) -> None:
    host, port = plyr.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"POST /tracks/ HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {plyr.token}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 99999999999\r\n\r\n".encode()
    )
    assert (await reader.readline()).startswith(b"HTTP/1.1 413")
    writer.close()


async def test_a_body_without_a_length_is_limited_too(plyr: Plyr) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(10):
            yield bytes(MAX_UPLOAD // 5)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = await plyr.client.post("/tracks/", content=endless(), headers=headers)
    assert answer.status_code == 413
    assert plyr.audio_files == []


NOT_AUDIO = [
    b"",
    b"just text",
    b"\x89PNG\r\n\x1a\n" + bytes(100),
    b"%PDF-1.7\n",
    b"<html><audio></audio></html>",
    b"ID3\x04\x00\x00\x00\x00\x00\x00" + b"not frames" * 50,
    b"RIFF\x10\x00\x00\x00WEBPVP8 " + bytes(50),
    b"RIFF\xff\xff\xff\xffWAVE",
    b"fLaC" + b"\xff" * 60,
    b"OggS" + bytes(200),
]


async def test_what_is_no_audio_is_a_415(plyr: Plyr) -> None:
    for content in NOT_AUDIO:
        answer = await plyr.client.post("/tracks/", **form(content))
        assert answer.status_code == 415, (content, answer.text)
        assert "not audio" in answer.json()["detail"]
        assert plyr.audio_files == []


BAD_FIELDS = [
    ({"title": ""}, "title"),
    ({"title": "   "}, "title"),
    ({"title": "x" * 257}, "title"),
    ({"title": "a\0b"}, "title"),
    ({"description": "a\0b"}, "description"),
    ({"tags": "rock"}, "tags"),
    ({"tags": '["ok", ""]'}, "tags"),
    ({"tags": '["a\\u0000"]'}, "tags"),
    ({"tags": '["\\ud800"]'}, "tags"),
    ({"publishing": '{"access": {"listening": "nobody"}}'}, "publishing"),
    ({"publishing": '{"acces": {}}'}, "publishing"),
]


async def test_a_field_that_cannot_be_kept_is_named(plyr: Plyr) -> None:
    for fields, name in BAD_FIELDS:
        answer = await plyr.client.post("/tracks/", **form(tone(), **fields))
        assert answer.status_code == 422, (fields, answer.text)
        assert answer.json()["detail"].startswith(name)
        assert plyr.audio_files == []


PART = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'


BAD_FORMS = [
    (b"", "ends in the middle"),
    (b"hello", "cannot be read"),
    (PART % (b"title", b"") + b"t\r\n--x--\r\n", "no file"),
    (PART % (b"file", b'; filename="a"') + b"RIFF", "ends in the middle"),
    (PART % (b"other", b'; filename="a"') + b"RIFF\r\n--x--\r\n", "one file"),
    ((PART % (b"file", b'; filename="a"') + b"RIFF\r\n") * 2 + b"--x--\r\n", "one file"),
    (PART % (b"title", b"") + b"t" * 70_000 + b"\r\n--x--\r\n", "longer than"),
    (PART % (b"title", b"") + b"\xff\r\n--x--\r\n", "UTF-8"),
    (b"--x\r\nContent-Type: text/plain\r\n\r\nt\r\n--x--\r\n", "no name"),
    (b"".join(PART % (b"f%d" % i, b"") + b"t\r\n" for i in range(30)) + b"--x--\r\n", "more than"),
]


async def test_a_form_that_is_none_says_why(plyr: Plyr) -> None:
    for body, says in BAD_FORMS:
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = await plyr.client.post("/tracks/", content=body, headers=headers)
        assert answer.status_code == 400, (says, answer.text)
        assert says in answer.json()["detail"]
        assert plyr.audio_files == []


async def test_json_is_no_form(plyr: Plyr) -> None:
    answer = await plyr.client.post("/tracks/", json={"title": "x"})
    assert answer.status_code == 400
    assert "multipart/form-data" in answer.json()["detail"]


async def test_an_upload_that_breaks_off_leaves_nothing(plyr: Plyr) -> None:
    host, port = plyr.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"POST /tracks/ HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {plyr.token}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 100000\r\n\r\n".encode()
        + PART % (b"file", b'; filename="a"')
        + bytes(1000)
    )
    await writer.drain()
    await until(lambda: len(plyr.audio_files) == 1)  # it is being received
    assert plyr.held == 0, "a connection is held while bytes arrive"
    writer.close()
    await until(lambda: plyr.audio_files == [])


async def test_no_connection_is_held_while_audio_is_sent(plyr: Plyr) -> None:
    wav = tone()
    track_id = await plyr.upload(wav + bytes(MAX_UPLOAD - len(wav)))
    file_id = (await plyr.client.get(f"/tracks/{track_id}")).json()["file_id"]
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.setblocking(False)
    host, port = plyr.url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    await loop.sock_connect(slow, (host, int(port)))
    await loop.sock_sendall(slow, f"GET /audio/{file_id} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert (await loop.sock_recv(slow, 12)) == b"HTTP/1.1 200"
    assert plyr.held == 0
    slow.close()


async def _accept(plyr: Plyr) -> uuid.UUID:
    """An upload that was accepted by a process which died before it was published."""
    track_id = await plyr.upload(tone())
    async with db_session(UPLOADS) as session:
        undo = text("UPDATE uploads SET status = 'processing', track_id = NULL WHERE track_id = :id")
        await session.execute(undo, {"id": track_id})
        await session.execute(text("DELETE FROM tracks WHERE id = :id"), {"id": track_id})
        [upload_id] = await uploads.list_unfinished(session)
        await session.commit()
    return upload_id


async def test_an_unfinished_upload_is_finished_by_the_next_start(plyr: Plyr) -> None:
    upload_id = await _accept(plyr)
    async with UploadJobs(plyr.database) as jobs:
        await jobs.resumed()
    events = await plyr.progress(str(upload_id))
    assert [event["status"] for event in events] == ["completed"]


async def test_an_unfinished_upload_is_finished_by_whoever_watches(plyr: Plyr) -> None:
    events = await plyr.progress(str(await _accept(plyr)))
    assert [event["status"] for event in events] == ["processing", "completed"]
    assert (await plyr.client.get(f"/tracks/{events[-1]['track_id']}")).status_code == 200


async def test_two_processes_publish_an_upload_once(plyr: Plyr) -> None:
    upload_id = await _accept(plyr)
    async with UploadJobs(plyr.database) as one, UploadJobs(plyr.database) as other:
        await asyncio.gather(*(jobs.finish(upload_id) for jobs in (one, other)))
    assert len((await plyr.client.get("/tracks/me")).json()["tracks"]) == 1


async def test_the_file_of_an_unfinished_upload_outlives_the_track_that_shared_it(plyr: Plyr) -> None:
    upload_id = await _accept(plyr)
    track_id = await plyr.upload(tone())
    await plyr.client.delete(f"/tracks/{track_id}")
    events = await plyr.progress(str(upload_id))
    track = (await plyr.client.get(f"/tracks/{events[-1]['track_id']}")).json()
    assert (await plyr.client.get(f"/audio/{track['file_id']}/download")).content == tone()


async def test_an_upload_that_the_database_refuses_fails_with_a_reason(plyr: Plyr) -> None:
    upload_id = await _accept(plyr)
    async with plyr.database.connection() as connection:
        await connection.execute("ALTER TABLE tracks ADD CONSTRAINT nothing CHECK (id < 0)")
        events = await plyr.progress(str(upload_id))
        await connection.execute("ALTER TABLE tracks DROP CONSTRAINT nothing")
    assert events[-1]["status"] == "failed"
    assert events[-1]["error"] == "the database refused the track"


BAD_DRAFTS = [
    """ '{"duration": 18446744073709551615}' """,  # no record of the AT Protocol holds it
    """ '{"title": null}' """,
    """ '{"publishing": {"access": {"listening": "nobody"}}}' """,
    """ jsonb_build_object('title', repeat('x', 100), 'tags', 7) """,
]


async def test_an_upload_of_which_no_track_can_be_made_fails_with_a_reason(plyr: Plyr) -> None:
    for draft in BAD_DRAFTS:
        upload_id = await _accept(plyr)
        async with db_session(UPLOADS) as session:
            await session.execute(
                text(f"UPDATE uploads SET draft = draft || {draft} WHERE id = :id").bindparams(id=upload_id)
            )
            await session.commit()
        events = await plyr.progress(str(upload_id))
        assert [event["status"] for event in events] == ["processing", "failed"], draft
        assert events[-1]["error"] == "no track can be made of it"
        assert (await plyr.progress(str(upload_id)))[0] == events[-1], "it is over, and stays so"
        await until(lambda: plyr.audio_files == [])


class _NoPauses:
    """A clock that does not let anybody wait."""

    def __init__(self) -> None:
        self.pauses = 0

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.pauses += 1


async def test_an_upload_that_never_gets_its_turn_fails_in_the_end(
    plyr: Plyr, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id = await _accept(plyr)
    clock = _NoPauses()

    async def publish(session: AsyncSession, upload_id: uuid.UUID) -> None:
        await session.execute(text("SET LOCAL lock_timeout = 1"))
        await session.execute(text("SELECT * FROM artists FOR UPDATE"))

    async with plyr.database.session() as session:
        await session.execute(text("SELECT * FROM artists FOR UPDATE"))
        monkeypatch.setattr(uploads, "publish", publish)
        async with UploadJobs(plyr.database, clock=clock) as jobs:
            await jobs.finish(upload_id)
    monkeypatch.undo()
    assert clock.pauses == MAX_TRIES - 1
    [event] = await plyr.progress(str(upload_id))
    assert (event["status"], event["error"]) == ("failed", "the database refused the track")


async def test_uploads_run_with_their_own_statement_timeout(plyr: Plyr) -> None:
    async def limit(workload: str | None) -> str:
        async with db_session(workload) as session:
            return (await session.execute(text("SHOW statement_timeout"))).scalar_one()

    assert (await limit(UPLOADS), await limit(None)) == ("30s", "10s")


async def test_file_names_of_the_client_mean_nothing(plyr: Plyr, tmp_path: Path) -> None:
    files = {"file": ("../../../etc/passwd", tone())}
    answer = await plyr.client.post("/tracks/", data={"title": "x"}, files=files)
    assert answer.status_code == 202
    [path] = plyr.audio_files
    assert path.is_relative_to(tmp_path / "audio")
