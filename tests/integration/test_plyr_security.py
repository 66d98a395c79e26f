"""What every answer of plyr says about itself, and how one signs in: headers, hosts, tokens, links, the description."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import text

from backend.api.headers import DEFAULTS
from backend.config import Settings
from backend.services.sign_in import CODE_SECONDS, SignInCodes
from backend.utilities.database import db_session

from .conftest import Plyr, serving, tone

pytestmark = pytest.mark.anyio


@pytest.fixture
def driver() -> str:
    return "steadypool"


def requests_of(plyr: Plyr) -> list[tuple[str, str]]:
    """One request for each route and method, with ids that are nobody's."""
    described = plyr.app.openapi()["paths"]
    found = [(method.upper(), path) for path, methods in described.items() for method in methods]
    assert len(found) > 10
    return [(method, re.sub(r"\{\w*_id\}", "7", path)) for method, path in found]


async def test_every_answer_has_the_headers(plyr: Plyr) -> None:
    async def broken() -> None:
        raise RuntimeError("on purpose")

    plyr.app.add_api_route("/broken", broken)
    others = [
        ("GET", path)
        for path in ("/", "/livez", "/readyz", "/nowhere", "/openapi.json", "/tracks", "/broken")
    ]
    for client in (plyr.client, plyr.anonymous):
        for method, path in [*requests_of(plyr), *others]:
            if path.endswith("/events"):
                continue  # never ends
            answer = await client.request(method, path)
            missing = [name for name in DEFAULTS if name not in answer.headers]
            assert missing == [], (method, path, answer.status_code)
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "Authorization, Cookie" in answer.headers["vary"], (method, path)
            assert answer.headers["cache-control"] in (
                "private, no-cache",
                "private, max-age=3600",
                "no-cache",
                "no-store",
            )


async def test_a_host_that_the_client_made_up_is_in_no_url(plyr: Plyr) -> None:
    await plyr.upload(tone())
    evil = {"Host": "evil.example"}
    answer = await plyr.client.get("/tracks/", headers=evil)
    assert answer.json()["tracks"][0]["r2_url"].startswith(f"{plyr.url}/audio/")
    assert "evil" not in answer.text
    answer = await plyr.client.get("/tracks", headers=evil)
    assert answer.status_code == 307
    assert answer.headers["location"] == "/tracks/"
    port = plyr.url.rpartition(":")[2]
    answer = await plyr.client.get("/tracks/", headers={"Host": f"localhost:{port}"})
    assert answer.json()["tracks"][0]["r2_url"].startswith(f"http://localhost:{port}/audio/")


async def test_the_public_url_is_in_all_urls(plyr_settings: Settings) -> None:
    server = plyr_settings.server.model_copy(update={"public_url": "https://plyr.example/music/"})
    async with serving(plyr_settings.model_copy(update={"server": server})) as (url, app):
        async with httpx.AsyncClient(base_url=url) as client:
            running = Plyr(url, plyr_settings, "", client, client, app)
            client.headers["Authorization"] = f"Bearer {await running.add_artist('alice')}"
            running.token = client.headers["Authorization"].split()[1]
            await running.upload(tone())
            answer = await client.get("/tracks/")
    assert answer.json()["tracks"][0]["r2_url"].startswith("https://plyr.example/music/audio/")


# -- signing in by a link ------------------------------------------------------------------------------------


async def test_no_body_is_kept_without_a_bound(plyr: Plyr) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(16 * 1024)

    exchange = await plyr.anonymous.post("/auth/exchange", content=endless())
    assert (exchange.status_code, "65,536 bytes" in exchange.json()["detail"]) == (413, True)
    for method, path in requests_of(plyr):
        if method == "GET":
            continue
        headers = {"If-Match": '"0"', "Content-Type": "multipart/form-data; boundary=x"}
        answer = await plyr.client.request(method, path, content=endless(), headers=headers)
        assert answer.status_code in (200, 400, 403, 404, 413), (method, path, answer.text)


@pytest.mark.parametrize("code", ['"\\ud800"', '["\\ud800"]', "NaN", "1e999", '{"\\ud800": 1}', "null", '""'])
async def test_what_no_answer_can_hold_is_refused_without_it(plyr: Plyr, code: str) -> None:
    answer = await plyr.anonymous.post(
        "/auth/exchange", content=f'{{"code": {code}}}', headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "code"]
    assert "input" not in answer.text.replace("Input should", "")


async def test_a_form_is_bounded_as_a_whole(plyr: Plyr) -> None:
    """Not only its file: what follows the last part is read, too."""

    async def endless() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\na\r\n--x--\r\n'
        for _ in range(400):
            yield bytes(16 * 1024)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = await plyr.client.post("/tracks/", content=endless(), headers=headers)
    assert answer.status_code == 413


EVIL = {"Origin": "https://evil.example"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # no browser
        (EVIL, 403),
        (EVIL | {"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Origin": "http://127.0.0.1:3000", "Sec-Fetch-Site": "same-site"}, 403),  # cookies know no port
        ({"Origin": "http://127.0.0.1:3000"}, 403),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "https://friend.example", "Sec-Fetch-Site": "cross-site"}, 200),  # in CORS_ORIGINS
    ],
)
async def test_another_origin_changes_nothing_by_the_cookie(
    plyr: Plyr, headers: dict[str, str], status: int
) -> None:
    server = plyr.settings.server.model_copy(update={"cors_origins": ("https://friend.example",)})
    plyr.app.state.settings = plyr.settings.model_copy(update={"server": server})
    track_id = await plyr.upload(tone())
    cookie = {"Cookie": f"session_id={plyr.token}"}
    like = f"/tracks/{track_id}/like"
    assert (await plyr.anonymous.post(like, headers=cookie | headers)).status_code == status
    form: dict[str, Any] = {"data": {"title": "x"}, "files": {"file": ("a.wav", tone(pitch=7))}}
    upload = await plyr.anonymous.post("/tracks/", **form, headers=cookie | headers)
    assert upload.status_code == (202 if status == 200 else 403)
    assert (await plyr.anonymous.get("/auth/me", headers=cookie | headers)).status_code == 200
    assert (await plyr.client.post(like, headers=headers)).status_code == 200, "a token is not sent by itself"


@pytest.mark.parametrize("public_url", [None, "https://plyr.example"])
async def test_a_client_says_its_address_only_by_a_proxy(
    plyr_settings: Settings, public_url: str | None
) -> None:
    server = plyr_settings.server.model_copy(update={"public_url": public_url})
    limits = plyr_settings.limits.model_copy(update={"requests_per_address": 2})
    settings = plyr_settings.model_copy(update={"server": server, "limits": limits})
    async with serving(settings) as (url, _), httpx.AsyncClient(base_url=url) as client:
        answers = [
            (await client.get("/tracks/", headers={"X-Forwarded-For": f"192.0.2.{i}"})).status_code
            for i in range(4)
        ]
    assert answers == ([200, 200, 429, 429] if public_url is None else [200] * 4)


async def test_a_code_is_exchanged_for_a_token_that_expires_once(plyr: Plyr) -> None:
    code = plyr.app.state.sign_in_codes.issue("did:plc:alice")
    answer = await plyr.anonymous.post("/auth/exchange", json={"code": code})
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    token = answer.json()["token"]
    assert token not in (plyr.token, code)
    me = await plyr.anonymous.get("/auth/me", headers={"Authorization": f"Bearer {token}"})
    assert me.json()["handle"] == "alice"
    async with db_session() as session:
        expires = await session.scalar(
            text("SELECT expires_at FROM developer_tokens WHERE name = 'sign-in link'")
        )
    assert timedelta(days=29) < expires - datetime.now(UTC) < timedelta(days=31)
    for used in (code, "made-up", code.upper()):
        answer = await plyr.anonymous.post("/auth/exchange", json={"code": used})
        assert answer.status_code == 403
        assert "used already, or is too old" in answer.json()["detail"]


def test_a_code_is_too_old_after_a_while() -> None:
    now = 0.0
    codes = SignInCodes(lambda: now)
    first, second = codes.issue("did:plc:alice"), codes.issue("did:plc:alice")
    now = CODE_SECONDS - 1
    assert codes.take(first) == "did:plc:alice"
    assert codes.take(first) is None
    now = CODE_SECONDS
    assert codes.take(second) is None


# -- the description -----------------------------------------------------------------------------------------


async def test_the_description_names_what_the_routes_answer(plyr: Plyr) -> None:
    described: dict[str, Any] = plyr.app.openapi()["paths"]
    for route in plyr.app.routes:
        if not isinstance(route, APIRoute) or not route.include_in_schema:
            continue
        for method in route.methods:
            if (operation := described[route.path_format].get(method.lower())) is not None:
                assert "503" in operation["responses"], (method, route.path_format)
    for method, path in requests_of(plyr):
        if path.endswith("/events"):
            continue
        template = next(each for each in described if re.fullmatch(re.sub(r"\{\w*_id\}", "7", each), path))
        operation = described[template][method.lower()]
        for client in (plyr.client, plyr.anonymous):
            answer = await client.request(method, path)
            known = operation["responses"].get(str(answer.status_code))
            assert known is not None, (method, template, answer.status_code)
            kind = answer.headers["content-type"].partition(";")[0]
            assert kind in known.get("content", {}), (method, template, answer.status_code, kind)
