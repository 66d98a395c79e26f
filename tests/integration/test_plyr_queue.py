"""The queue: nobody's change is lost without notice."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from .conftest import Plyr, tone

pytestmark = pytest.mark.anyio


async def put(plyr: Plyr, state: Any, revision: object, **headers: str) -> httpx.Response:
    return await plyr.client.put(
        "/queue/", json={"state": state}, headers={"If-Match": f'"{revision}"'} | headers
    )


async def test_a_new_queue_is_empty(plyr: Plyr) -> None:
    answer = await plyr.client.get("/queue/")
    assert answer.headers["etag"] == '"0"'
    assert answer.json() == {
        "state": {
            "track_ids": [],
            "current_index": 0,
            "current_track_id": None,
            "shuffle": False,
            "original_order_ids": [],
            "auto_advance": True,
        },
        "revision": 0,
        "tracks": [],
    }


async def test_the_state_is_kept_as_given(plyr: Plyr) -> None:
    state = {"track_ids": ["x"], "mine": {"deep": [1, 2.5, None, "é\n\\u0000 is fine"]}, "current_index": 7}
    answer = await put(plyr, state, 0)
    assert answer.status_code == 200
    assert answer.headers["etag"] == '"1"'
    assert answer.json() == {"state": state, "revision": 1, "tracks": []}
    read = await plyr.client.get("/queue/")
    assert (read.json(), read.headers["etag"]) == (answer.json(), '"1"')


async def test_tracks_come_in_the_order_of_the_queue_and_each_once(plyr: Plyr) -> None:
    ids = [await plyr.upload(tone(pitch=pitch)) for pitch in (1, 2)]
    one, two = [(await plyr.client.get(f"/tracks/{each}")).json() for each in ids]
    state = {"track_ids": [two["file_id"], "gone", one["file_id"], two["file_id"]]}
    answer = await put(plyr, state, 0)
    assert answer.json()["tracks"] == [two, one]
    assert answer.json()["state"] == state
    assert (await plyr.client.get("/queue/")).json() == answer.json()


async def test_a_queue_that_repeats_one_track_is_answered_in_no_more_than_it_took(plyr: Plyr) -> None:
    track_id = await plyr.upload(tone(), description="x" * 10_000, title="y" * 256)
    file_id = (await plyr.client.get(f"/tracks/{track_id}")).json()["file_id"]
    most = plyr.settings.queue.max_tracks
    answer = await put(plyr, {"track_ids": [file_id] * most}, 0)
    assert answer.status_code == 200
    sent = len(answer.request.content)
    for read in (answer, await plyr.client.get("/queue/")):
        assert len(read.json()["tracks"]) == 1
        assert len(read.content) < sent + 2000
    refused = await put(plyr, {"track_ids": [file_id] * (most + 1)}, 1)
    assert refused.status_code == 422
    assert refused.json()["detail"] == "state.track_ids: a queue names 2,000 tracks at most"


async def test_the_private_tracks_of_others_are_not_shown(plyr: Plyr) -> None:
    bob = await plyr.add_artist("bob")
    track_id = await plyr.upload(tone(), token=bob, publishing='{"access": {"visibility": "private"}}')
    headers = {"Authorization": f"Bearer {bob}"}
    file_id = (await plyr.client.get(f"/tracks/{track_id}", headers=headers)).json()["file_id"]
    assert (await put(plyr, {"track_ids": [file_id]}, 0)).json()["tracks"] == []
    assert len((await put(plyr, {"track_ids": [file_id]}, 0, **headers)).json()["tracks"]) == 1


async def test_of_ten_writers_with_one_revision_exactly_one_wins(plyr: Plyr) -> None:
    for revision in range(3):
        answers = await asyncio.gather(
            *(put(plyr, {"track_ids": [], "writer": writer}, revision) for writer in range(10))
        )
        assert sorted(answer.status_code for answer in answers) == [200] + [409] * 9
        [winner] = [answer.json() for answer in answers if answer.status_code == 200]
        assert winner["revision"] == revision + 1
        assert (await plyr.client.get("/queue/")).json() == winner


async def test_who_loses_is_told_how_it_looks_now(plyr: Plyr) -> None:
    current = (await put(plyr, {"track_ids": ["a"]}, 0)).json()
    for stale in (0, 2, 10**17):
        answer = await put(plyr, {"track_ids": ["b"]}, stale)
        assert answer.status_code == 409
        assert answer.headers["etag"] == '"1"'
        body = answer.json()
        assert isinstance(body.pop("detail"), str)
        assert body == current


async def test_a_revision_is_not_conjured_from_nothing(plyr: Plyr) -> None:
    assert (await put(plyr, {"track_ids": []}, 5)).status_code == 409
    assert (await plyr.client.get("/queue/")).json()["revision"] == 0


async def test_an_if_match_that_is_no_quoted_integer_is_a_400(plyr: Plyr) -> None:
    for header in ["0", "", '"x"', 'W/"0"', "*", '"0", "1"', '"-1"', '"1.0"', '""', '"01"', '"٣"']:
        headers = {b"If-Match": header.encode()}
        answer = await plyr.client.put("/queue/", json={"state": {}}, headers=headers)
        assert answer.status_code == 400
        assert isinstance(answer.json()["detail"], str)


async def test_without_an_if_match_nothing_is_changed(plyr: Plyr) -> None:
    answer = await plyr.client.put("/queue/", json={"state": {}})
    assert answer.status_code == 428


async def test_a_queue_that_is_known_is_not_sent_again(plyr: Plyr) -> None:
    await put(plyr, {"track_ids": []}, 0)
    for value, status in (('"1"', 304), ('W/"1"', 304), ("*", 304), ('"0"', 200), ("1", 200)):
        answer = await plyr.client.get("/queue/", headers={"If-None-Match": value})
        assert answer.status_code == status
        assert answer.headers["etag"] == '"1"'


BAD_STATES = [
    b"",
    b"{",
    b"[]",
    b"{}",
    b'{"state": null}',
    b'{"state": []}',
    b'{"state": {"track_ids": "x"}}',
    b'{"state": {"track_ids": [1]}}',
    b'{"state": {"x": NaN}}',
    b'{"state": {"x": 1e999}}',
    b'{"state": {"x": "\\u0000"}}',
    b'{"state": {"\\u0000": 1}}',
    b'{"state": {"x": "\\ud800"}}',
    b'{"state": {"x": "\xff"}}',
    b'{"state": {"x": ' + b"[" * 5000 + b"]" * 5000 + b"}}",
    b'{"state": {"x": ' + b"9" * 5000 + b"}}",
]


async def test_a_state_that_cannot_be_kept_is_refused(plyr: Plyr) -> None:
    for body in BAD_STATES:
        headers = {"If-Match": '"0"', "Content-Type": "application/json"}
        answer = await plyr.client.put("/queue/", content=body, headers=headers)
        assert answer.status_code == 422, (body[:60], answer.text)
        assert isinstance(answer.json()["detail"], str)


async def test_a_queue_that_is_too_large_is_refused(plyr: Plyr) -> None:
    answer = await put(plyr, {"track_ids": [], "x": "y" * 300_000}, 0)
    assert answer.status_code == 413


@pytest.mark.parametrize("value", [b"[]", b"{}", b"1", b'""', b"[" * 100 + b"]" * 100])
async def test_a_queue_of_too_many_values_is_refused_before_it_is_read(plyr: Plyr, value: bytes) -> None:
    """A quarter of a megabyte of them takes half a second of the event loop; nobody need have signed in."""
    assert (await put(plyr, {"track_ids": ["," * 50_000]}, 0)).status_code == 200, (
        "within a string it is none"
    )
    for begin, end in ((b'{"state": {"x": [', b"]}}"), (b'{"state": {"x": ', b"}}")):
        body = begin + b",".join([value] * (240_000 // (len(value) + 1))) + end
        headers = {"If-Match": '"0"', "Authorization": "Bearer nobody"}
        answer = await plyr.anonymous.put("/queue/", content=body, headers=headers)
        assert answer.status_code == 422
        assert "at most 9,000 values" in answer.json()["detail"]


async def test_queues_are_ones_own(plyr: Plyr) -> None:
    await put(plyr, {"track_ids": ["a"]}, 0)
    bob = {"Authorization": f"Bearer {await plyr.add_artist('bob')}"}
    assert (await plyr.client.get("/queue/", headers=bob)).json()["revision"] == 0
