"""Tracks and likes over HTTP."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from sqlalchemy import text

from backend.services import artists, likes, tracks
from backend.utilities.database import db_session

from .conftest import Plyr, tone

pytestmark = pytest.mark.anyio


async def test_nobody_is_signed_in_without_a_token(plyr: Plyr) -> None:
    for method, path in [
        ("GET", "/auth/me"),
        ("GET", "/tracks/me"),
        ("GET", "/tracks/liked"),
        ("POST", "/tracks/1/like"),
        ("DELETE", "/tracks/1"),
        ("POST", "/tracks/"),
        ("GET", "/queue/"),
        ("PUT", "/queue/"),
        ("GET", "/tracks/uploads/00000000-0000-0000-0000-000000000000/progress"),
    ]:
        answer = await plyr.anonymous.request(method, path)
        assert answer.status_code == 401, (method, path, answer.text)
        assert isinstance(answer.json()["detail"], str)
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_wrong_token_is_refused(plyr: Plyr) -> None:
    for header in ["Bearer wrong", "Bearer", "Basic eDp5", "Bearer a b", "Bearer ä"]:
        answer = await plyr.anonymous.get("/auth/me", headers={b"Authorization": header.encode()})
        assert answer.status_code == 401


async def test_the_session_cookie_is_looked_at_before_the_bearer_token(plyr: Plyr) -> None:
    bob = await plyr.add_artist("bob")
    answer = await plyr.client.get("/auth/me", headers={"Cookie": f"session_id={bob}"})
    assert answer.json() == {"did": "did:plc:bob", "handle": "bob"}
    answer = await plyr.client.get("/auth/me", headers={"Cookie": "session_id=stale"})
    assert answer.status_code == 401


async def test_an_expired_token_is_refused(plyr: Plyr) -> None:
    async with db_session() as session:
        await session.execute(text("UPDATE developer_tokens SET expires_at = now() - interval '1 s'"))
        await session.commit()
    assert (await plyr.client.get("/auth/me")).status_code == 401


async def test_a_token_is_kept_as_its_hash_alone(plyr: Plyr) -> None:
    async with db_session() as session:
        [row] = (await session.execute(text("SELECT * FROM developer_tokens"))).mappings()
    assert row["token_hash"] == artists.hash_token(plyr.token)
    assert plyr.token not in str(dict(row))
    assert plyr.token.encode() not in row["token_hash"]


async def test_a_track_says_everything_that_was_uploaded(plyr: Plyr) -> None:
    track_id = await plyr.upload(
        tone(1.5), title="  Sóng  ", album="Blue & Green", tags='["b", "a", "b"]', description="line\nline"
    )
    track = (await plyr.anonymous.get(f"/tracks/{track_id}")).json()
    assert track["title"] == "Sóng"
    assert track["description"] == "line\nline"
    assert track["tags"] == ["b", "a"]
    assert track["album"]["title"] == "Blue & Green"
    assert track["album"]["slug"] == "blue-green"
    assert track["duration"] == 1.5
    assert (track["file_type"], track["artist"], track["artist_handle"]) == ("wav", "Alice", "alice")
    assert (track["play_count"], track["like_count"], track["gated"]) == (0, 0, False)
    assert re.fullmatch(r"at://did:plc:alice/fm\.plyr\.track/[2-7a-z]{13}", track["atproto_record_uri"])
    assert re.fullmatch(r"bafyrei[2-7a-z]{52}", track["atproto_record_cid"])
    assert track["r2_url"].startswith(f"{plyr.url}/audio/{track['file_id']}")
    by_uri = await plyr.anonymous.get("/tracks/by-uri", params={"uri": track["atproto_record_uri"]})
    assert by_uri.json() == track


async def test_what_may_be_absent_is_never_null(plyr: Plyr) -> None:
    track = (await plyr.client.get(f"/tracks/{await plyr.upload(tone())}")).json()
    names = (
        "file_type",
        "artist",
        "tags",
        "play_count",
        "like_count",
        "visibility",
        "gated",
        "audio_storage",
    )
    assert not [name for name in names if track.get(name, "") is None]


async def test_lists_are_newest_first_and_limited(plyr: Plyr) -> None:
    ids = [await plyr.upload(tone(pitch=pitch)) for pitch in (1, 2, 3)]
    for path in ("/tracks/", "/tracks/me"):
        answer = await plyr.client.get(path, params={"limit": 2})
        assert [track["id"] for track in answer.json()["tracks"]] == ids[:0:-1]
    for limit in ("0", "-1", "x", "1001"):
        assert (await plyr.client.get("/tracks/", params={"limit": limit})).status_code == 422


async def test_two_tracks_of_one_album_share_it(plyr: Plyr) -> None:
    ids = await asyncio.gather(*(plyr.upload(tone(pitch=pitch), album="Same") for pitch in range(1, 5)))
    albums = {(await plyr.client.get(f"/tracks/{each}")).json()["album"]["id"] for each in ids}
    assert len(albums) == 1


async def test_a_track_that_is_not_there_is_a_404(plyr: Plyr) -> None:
    for path in ["/tracks/999", "/tracks/by-uri?uri=at://x", "/tracks/by-uri?uri=%00"]:
        answer = await plyr.client.get(path)
        assert answer.status_code == 404
        assert answer.json() == {"detail": "track not found"}


async def test_what_is_no_id_is_refused_before_the_database(plyr: Plyr) -> None:
    for track_id in ["0", "-1", "x", str(2**63), "1" * 400]:
        assert (await plyr.client.get(f"/tracks/{track_id}")).status_code == 422


async def test_liking_twice_is_liking_once(plyr: Plyr) -> None:
    track_id = await plyr.upload(tone())
    bob = {"Authorization": f"Bearer {await plyr.add_artist('bob')}"}

    async def like_count() -> Any:
        return (await plyr.anonymous.get(f"/tracks/{track_id}")).json()["like_count"]

    answers = await asyncio.gather(*(plyr.client.post(f"/tracks/{track_id}/like") for _ in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert await like_count() == 1
    await plyr.client.post(f"/tracks/{track_id}/like", headers=bob)
    assert await like_count() == 2
    liked = (await plyr.client.get("/tracks/liked", headers=bob)).json()["tracks"]
    assert [track["id"] for track in liked] == [track_id]
    for _ in range(2):
        assert (await plyr.client.delete(f"/tracks/{track_id}/like")).status_code == 200
    assert await like_count() == 1
    assert (await plyr.client.get("/tracks/liked")).json() == {"tracks": []}
    assert (await plyr.client.post("/tracks/999/like")).status_code == 404
    assert (await plyr.client.delete("/tracks/999/like")).status_code == 404


async def test_liking_a_track_that_was_deleted_meanwhile_is_not_an_accident(plyr: Plyr) -> None:
    async with db_session() as session:
        assert await likes.like(session, 999, "did:plc:alice") is False


async def test_only_its_artist_may_delete_a_track(plyr: Plyr) -> None:
    track_id = await plyr.upload(tone())
    bob = {"Authorization": f"Bearer {await plyr.add_artist('bob')}"}
    answer = await plyr.client.delete(f"/tracks/{track_id}", headers=bob)
    assert answer.status_code == 403
    assert isinstance(answer.json()["detail"], str)
    await plyr.client.post(f"/tracks/{track_id}/like", headers=bob)
    assert (await plyr.client.delete(f"/tracks/{track_id}")).status_code == 200
    assert (await plyr.client.get(f"/tracks/{track_id}")).status_code == 404
    assert (await plyr.client.delete(f"/tracks/{track_id}")).status_code == 404
    assert plyr.audio_files == []


async def test_a_file_is_kept_as_long_as_any_track_uses_it(plyr: Plyr) -> None:
    audio = tone()
    bob = await plyr.add_artist("bob")
    first, second = await plyr.upload(audio), await plyr.upload(audio, token=bob)
    assert len(plyr.audio_files) == 1
    await plyr.client.delete(f"/tracks/{first}")
    file_id = (await plyr.anonymous.get(f"/tracks/{second}")).json()["file_id"]
    assert (await plyr.anonymous.get(f"/audio/{file_id}/download")).content == audio


async def test_uploads_and_deletes_of_one_file_at_once_never_lose_it(plyr: Plyr) -> None:
    audio = tone()
    ids = [await plyr.upload(audio) for _ in range(4)]
    new, *_ = await asyncio.gather(
        asyncio.gather(*(plyr.upload(audio) for _ in range(4))),
        *(plyr.client.delete(f"/tracks/{each}") for each in ids),
    )
    for track_id in new:
        track = (await plyr.client.get(f"/tracks/{track_id}")).json()
        assert (await plyr.client.get(f"/audio/{track['file_id']}/download")).content == audio


COPIES = text("""
    INSERT INTO tracks (did, title, description, tags, file_id, file_type, visibility, publishing,
                        atproto_record_uri, atproto_record_cid)
    SELECT 'did:plc:bob', repeat('♪', 256), repeat('d', 10000), array_fill(repeat('♬', 50), ARRAY[20]), file_id,
           file_type, visibility, publishing, 'at://bob/' || n, 'cid' FROM tracks, generate_series(1, 3000) n
""")


async def test_an_artist_cannot_make_the_lists_of_others_fail_nor_grow(plyr: Plyr) -> None:
    """What has the greatest texts that can be published, 3,000 times: together 42 MB."""
    track_id = await plyr.upload(tone(), title="Mine", description="Of my own")
    mine = (await plyr.client.get(f"/tracks/{track_id}")).json()
    bob = {"Authorization": f"Bearer {await plyr.add_artist('bob')}"}
    async with db_session() as session:
        await session.execute(COPIES)
        await session.execute(text("INSERT INTO likes SELECT id, 'did:plc:alice' FROM tracks"))
        await session.commit()
    state = {"track_ids": [mine["file_id"]] * 2}
    put = await plyr.client.put("/queue/", json={"state": state}, headers={"If-Match": '"0"'})
    for answer in (put, await plyr.client.get("/queue/")):
        assert answer.status_code == 200
        assert answer.json()["tracks"] == [mine | {"description": None, "like_count": 1}]
    for path, headers in (("/tracks/", {}), ("/tracks/me", bob), ("/tracks/liked", {})):
        answer = await plyr.client.get(path, params={"limit": 1000}, headers=headers)
        assert answer.status_code == 200
        shown = answer.json()["tracks"]
        assert 1000 > len(shown) > 300
        assert len(answer.content) < 2 * tracks.MAX_LIST_BYTES
        assert [track["id"] for track in shown] == list(
            range(track_id + 3000, track_id + 3000 - len(shown), -1)
        )
        assert {track["description"] for track in shown} == {None}
    assert (await plyr.client.get(f"/tracks/{shown[0]['id']}")).json()["description"] == "d" * 10_000
    for viewer in (plyr.anonymous, plyr.client):
        assert (await viewer.get(f"/audio/{mine['file_id']}")).content == tone()


async def test_the_audio_of_a_file_is_that_of_the_oldest_track_that_allows_it(plyr: Plyr) -> None:
    """Copies of others neither hide it nor show more of it than they may."""
    bob = await plyr.add_artist("bob")
    decisions = (
        '{"access": {"visibility": "private"}}',
        '{"access": {"listening": "signed_in"}}',
        "{}",
        "{}",
    )
    ids = [
        await plyr.upload(tone(), title=str(number), token=bob, publishing=publishing)
        for number, publishing in enumerate(decisions)
    ]
    file_id = (await plyr.client.get(f"/tracks/{ids[-1]}")).json()["file_id"]
    names = {"anonymous": "2.wav", plyr.token: "1.wav", bob: "0.wav"}
    for token, name in names.items():
        headers = {} if token == "anonymous" else {"Authorization": f"Bearer {token}"}
        answer = await plyr.anonymous.get(f"/audio/{file_id}/download", headers=headers)
        assert answer.headers["content-disposition"].endswith(name)


PRIVATE = '{"access": {"visibility": "private"}}'
UNLISTED = '{"access": {"visibility": "unlisted"}}'


async def test_a_private_track_exists_for_its_artist_alone(plyr: Plyr) -> None:
    bob = {"Authorization": f"Bearer {await plyr.add_artist('bob')}"}
    track_id = await plyr.upload(tone(), publishing=PRIVATE)
    mine = await plyr.client.get(f"/tracks/{track_id}")
    assert mine.json()["visibility"] == "private"
    assert (await plyr.client.get("/tracks/me")).json()["tracks"] == [mine.json()]
    audio = f"/audio/{mine.json()['file_id']}"
    assert (await plyr.client.get(audio)).status_code == 200
    for answer in (
        await plyr.anonymous.get(f"/tracks/{track_id}"),
        await plyr.client.get(f"/tracks/{track_id}", headers=bob),
        await plyr.client.post(f"/tracks/{track_id}/like", headers=bob),
        await plyr.client.delete(f"/tracks/{track_id}", headers=bob),
        await plyr.anonymous.get(audio),
        await plyr.client.get(f"{audio}/download", headers=bob),
    ):
        assert answer.status_code == 404, answer.request
    assert (await plyr.anonymous.get("/tracks/")).json() == {"tracks": []}


async def test_an_unlisted_track_is_found_by_its_id_only(plyr: Plyr) -> None:
    track_id = await plyr.upload(tone(), publishing=UNLISTED)
    assert (await plyr.anonymous.get("/tracks/")).json() == {"tracks": []}
    assert (await plyr.anonymous.get(f"/tracks/{track_id}")).json()["unlisted"] is True


async def test_listening_and_downloading_follow_the_artists_decision(plyr: Plyr) -> None:
    bob = {"Authorization": f"Bearer {await plyr.add_artist('bob')}"}
    access = '{"access": {"listening": "signed_in", "downloads": "off"}}'
    track_id = await plyr.upload(tone(), publishing=access)
    gated = (await plyr.anonymous.get(f"/tracks/{track_id}")).json()
    assert gated["gated"] is True
    audio = f"/audio/{gated['file_id']}"
    assert (await plyr.anonymous.get(audio)).status_code == 401
    assert (await plyr.client.get(audio, headers=bob)).status_code == 200
    refused = await plyr.client.get(f"{audio}/download", headers=bob)
    assert refused.status_code == 403
    assert isinstance(refused.json()["detail"], str)
    assert (await plyr.client.get(f"{audio}/download")).status_code == 200


async def test_other_origins_may_read_the_headers_they_need(plyr: Plyr) -> None:
    answer = await plyr.client.get("/queue/", headers={"Origin": "https://elsewhere.example"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers
    assert "ETag" in answer.headers["access-control-expose-headers"].split(", ")
    preflight = await plyr.anonymous.options(
        "/queue/",
        headers={
            "Origin": "https://elsewhere.example",
            "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": "authorization, if-match, content-type",
        },
    )
    assert preflight.status_code == 200


async def test_the_page_runs_its_own_script_and_loads_nothing_else(plyr: Plyr) -> None:
    answer = await plyr.anonymous.get("/")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert len(re.findall(r"'sha256-", policy)) == 2
    assert "unsafe" not in policy
    assert not re.search(r"(src|href)=\"(https?:)?//", answer.text)
    assert ".innerHTML" not in answer.text
