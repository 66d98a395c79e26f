"""Audio over HTTP: ranges, conditions, and counting plays."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from backend.services.audio import count_play
from backend.utilities.database import db_session

from .conftest import Plyr, tone

pytestmark = pytest.mark.anyio


@dataclass
class Audio:
    content: bytes
    path: str
    etag: str
    track_id: int


@pytest.fixture
async def audio(plyr: Plyr) -> Audio:
    content = tone(0.5)
    track_id = await plyr.upload(content, title='Sóng "x"/\r\ny')
    file_id = (await plyr.client.get(f"/tracks/{track_id}")).json()["file_id"]
    return Audio(content, f"/audio/{file_id}", f'"{file_id}"', track_id)


async def plays(plyr: Plyr, audio: Audio) -> int:
    return (await plyr.anonymous.get(f"/tracks/{audio.track_id}")).json()["play_count"]


async def test_the_whole_file(plyr: Plyr, audio: Audio) -> None:
    answer = await plyr.anonymous.get(audio.path)
    assert answer.status_code == 200
    assert answer.content == audio.content
    assert answer.headers["etag"] == audio.etag
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "audio/wav"
    assert answer.headers["content-length"] == str(len(audio.content))
    assert "content-range" not in answer.headers


PARTS = [
    ("bytes=0-0", 0, 1),
    ("bytes=100-199", 100, 200),
    ("bytes=100-", 100, None),
    ("bytes=-100", -100, None),
    ("bytes=-999999", 0, None),
    ("bytes=0-999999", 0, None),
    ("BYTES=5-9", 5, 10),
]


async def test_a_part_of_it(plyr: Plyr, audio: Audio) -> None:
    for header, start, stop in PARTS:
        answer = await plyr.anonymous.get(audio.path, headers={"Range": header})
        expected = audio.content[start:stop]
        assert answer.status_code == 206
        assert answer.content == expected
        first = start if start >= 0 else len(audio.content) + start
        last = first + len(expected) - 1
        assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(audio.content)}"
        assert answer.headers["content-length"] == str(len(expected))


async def test_a_part_that_is_not_there(plyr: Plyr, audio: Audio) -> None:
    for header in ["bytes=999999-", "bytes=-0", "bytes=999999-9999999"]:
        for path in (audio.path, f"{audio.path}/download"):
            answer = await plyr.anonymous.get(path, headers={"Range": header})
            assert answer.status_code == 416
            assert answer.headers["content-range"] == f"bytes */{len(audio.content)}"
            assert "detail" in answer.json()


async def test_what_is_no_range_gets_the_whole(plyr: Plyr, audio: Audio) -> None:
    for header in ["bytes=9-5", "items=0-5", "bytes=a-b", "bytes=0-1,5-6", "bytes", ""]:
        answer = await plyr.anonymous.get(audio.path, headers={"Range": header})
        assert (answer.status_code, answer.content) == (200, audio.content)


async def test_head_says_what_get_would(plyr: Plyr, audio: Audio) -> None:
    for headers in ({}, {"If-None-Match": audio.etag}):
        for path in (audio.path, f"{audio.path}/download"):
            head = await plyr.anonymous.head(path, headers=headers)
            get = await plyr.anonymous.get(path, headers=headers)
            assert head.status_code == get.status_code
            assert head.content == b""
            assert dict(head.headers) | {"date": ""} == dict(get.headers) | {"date": ""}


async def test_a_range_means_nothing_to_head(plyr: Plyr, audio: Audio) -> None:
    for header in ("bytes=5-9", "bytes=999999-"):
        head = await plyr.anonymous.head(audio.path, headers={"Range": header})
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(audio.content)))


async def test_what_the_client_has_is_not_sent_again(plyr: Plyr, audio: Audio) -> None:
    for value in (audio.etag, f'"x", W/{audio.etag}', "*"):
        answer = await plyr.anonymous.get(audio.path, headers={"If-None-Match": value})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == audio.etag
    other = await plyr.anonymous.get(audio.path, headers={"If-None-Match": '"x"'})
    assert other.status_code == 200


async def test_a_range_counts_only_for_the_file_it_was_meant_for(plyr: Plyr, audio: Audio) -> None:
    for value, status in ((audio.etag, 206), ('"x"', 200), (f"W/{audio.etag}", 200)):
        headers = {"Range": "bytes=5-9", "If-Range": value}
        assert (await plyr.anonymous.get(audio.path, headers=headers)).status_code == status


async def test_a_download_has_a_name_that_breaks_out_of_nothing(plyr: Plyr, audio: Audio) -> None:
    answer = await plyr.anonymous.get(f"{audio.path}/download")
    assert answer.content == audio.content
    name = "S%C3%B3ng%20%22x%22%2F%0D%0Ay.wav"
    assert answer.headers["content-disposition"] == f"attachment; filename*=UTF-8''{name}"


async def test_audio_that_is_not_there_is_a_404(plyr: Plyr) -> None:
    for file_id in ["0" * 64, "x", "..%2f..%2fetc%2fpasswd", "0" * 63 + "G"]:
        for path in (f"/audio/{file_id}", f"/audio/{file_id}/download"):
            assert (await plyr.anonymous.get(path)).status_code == 404


async def test_a_hundred_plays_at_once_are_a_hundred(plyr: Plyr, audio: Audio) -> None:
    async def play() -> None:
        async with db_session() as session:
            await count_play(session, audio.track_id)
            await session.commit()

    await asyncio.gather(*(play() for _ in range(100)))
    assert await plays(plyr, audio) == 100


async def test_one_listener_plays_a_track_once_in_a_while(plyr: Plyr, audio: Audio) -> None:
    answers = await asyncio.gather(
        *(plyr.anonymous.get(audio.path, headers={"Range": "bytes=0-2"}) for _ in range(50)),
        *(plyr.anonymous.get(audio.path) for _ in range(50)),
    )
    assert {answer.status_code for answer in answers} == {200, 206}
    assert await plays(plyr, audio) == 1
    second = await plyr.upload(audio.content, title="The same once more")
    await plyr.anonymous.get(audio.path, params={"track": second})
    await plyr.client.get(audio.path)  # signed in: another listener
    assert await plays(plyr, audio) == 2
    assert (await plyr.client.get(f"/tracks/{second}")).json()["play_count"] == 1


async def test_only_listening_from_the_beginning_is_a_play(plyr: Plyr, audio: Audio) -> None:
    for method, headers in [
        ("HEAD", {}),
        ("GET", {"Range": "bytes=0-1"}),
        ("GET", {"Range": "bytes=100-"}),
        ("GET", {"If-None-Match": audio.etag}),
        ("GET", {"Range": "bytes=999999-"}),
    ]:
        await plyr.anonymous.request(method, audio.path, headers=headers)
    await plyr.anonymous.get(f"{audio.path}/download")
    assert await plays(plyr, audio) == 0
    await plyr.anonymous.get(audio.path, headers={"Range": "bytes=0-"})
    assert await plays(plyr, audio) == 1


async def test_a_play_counts_for_the_track_that_was_chosen(plyr: Plyr, audio: Audio) -> None:
    second = await plyr.upload(audio.content, title="The same once more")
    await plyr.anonymous.get(audio.path, params={"track": second})
    assert await plays(plyr, audio) == 0
    assert (await plyr.client.get(f"/tracks/{second}")).json()["play_count"] == 1
    assert (await plyr.anonymous.get(audio.path, params={"track": 999})).status_code == 404
