"""The service in a process of its own, and one person's visit to its page."""

from __future__ import annotations

import io
import json
import re
import wave
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from playwright.sync_api import ConsoleMessage, Locator, Page, Request, Response

from processes import Plyr, running_plyr
from steadypool_lab.postgres.server import PostgresServer

PATIENCE = 30_000
"""Milliseconds after which what is waited for is missing: a page shares the processors with other tests."""


def wav(seconds: float, pitch: int = 100, rate: int = 8000) -> bytes:
    """A sawtooth; every pitch has other bytes."""
    buffer = io.BytesIO()
    period = b"".join((i * pitch % 20_000).to_bytes(2, "little") for i in range(rate))
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(period * int(seconds) + period[: int(2 * rate * (seconds % 1))])
    return buffer.getvalue()


@dataclass
class Service:
    """A running service, its database, and the demo artist's token."""

    plyr: Plyr
    home: Path
    database_url: str = field(repr=False)
    postgres: PostgresServer

    @property
    def url(self) -> str:
        return self.plyr.url

    @property
    def token(self) -> str:
        return self.plyr.token

    def upload(self, title: str, audio: bytes, **fields: str) -> int:
        """Publish a track as the demo artist; returns its id when it is there."""
        headers = {"Authorization": f"Bearer {self.token}"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=30) as client:
            data = {"title": title} | fields
            answer = client.post("/tracks/", data=data, files={"file": ("a.wav", audio)})
            assert answer.status_code == 202, answer.text
            # The events end with the work.
            events = client.get(f"/tracks/uploads/{answer.json()['upload_id']}/progress").text
        last = json.loads([line for line in events.splitlines() if line.startswith("data: ")][-1][6:])
        assert last["status"] == "completed", last
        return last["track_id"]

    def delete(self, track_id: int) -> None:
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = httpx.delete(f"{self.url}/tracks/{track_id}", headers=headers)
        assert answer.status_code == 200, answer.text

    def tracks(self) -> list[dict[str, Any]]:
        return httpx.get(f"{self.url}/tracks/").raise_for_status().json()["tracks"]


@contextmanager
def running_service(postgres: PostgresServer, home: Path) -> Generator[Service]:
    """One instance with a database of its own."""
    # An outage in these tests lasts as long as a test takes, so what waits for the database waits briefly.
    url = postgres.create_database("plyr")
    with running_plyr(home, DATABASE_URL=url, DATABASE_REQUEST_DEADLINE="5") as plyr:
        yield Service(plyr, home, url, postgres)


@dataclass
class Visit:
    """One person with an empty browser on the page. What goes wrong unseen is kept, and fails the test at its end."""

    page: Page
    url: str
    wrong: list[str] = field(default_factory=list)
    responses: list[Response] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.wrong.append(f"uncaught: {error}"))
        self.page.on("request", self._request)
        self.page.on("requestfailed", self._failed)
        self.page.on("response", lambda response: self.responses.append(response))

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert"):
            self.wrong.append(f"console {message.type}: {message.text}")

    def _request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme != "data" and f"{parts.scheme}://{parts.netloc}" != self.url:
            self.wrong.append(f"left the origin: {request.url}")

    def _failed(self, request: Request) -> None:
        # A reload ends what is under way, and so does the player when somebody seeks; the queue's events end when a
        # page is left or the service stops.
        if request.failure != "net::ERR_ABORTED" and not request.url.endswith("/queue/events"):
            self.wrong.append(f"failed: {request.url} {request.failure}")

    def expect_in_console(self, pattern: str) -> None:
        """This test causes such a message on purpose, once at least."""
        self.expected.append(pattern)

    def verify(self) -> None:
        for pattern in self.expected:
            assert any(re.search(pattern, each) for each in self.wrong), f"nothing said {pattern!r}"
        unexpected = [each for each in self.wrong if not any(re.search(p, each) for p in self.expected)]
        assert unexpected == []

    def open(self, fragment: str = "", *, token: str | None = None) -> Visit:
        """Open the page; with a token, as somebody who signed in earlier."""
        if token is not None:
            self.page.add_init_script(
                f"""if (!sessionStorage.getItem("stored")) {{
                  sessionStorage.setItem("stored", "yes");
                  localStorage.setItem("plyr-token", {json.dumps(token)});
                }}"""
            )
        self.page.goto(f"{self.url}/{fragment}")
        self.rows.first.wait_for()
        return self

    @property
    def rows(self) -> Locator:
        return self.page.locator("#tracks > li")

    def row(self, title: str) -> Locator:
        return self.rows.filter(has=self.page.get_by_text(title, exact=True))

    def play(self, title: str) -> None:
        self.row(title).get_by_role("button", name=f"Play {title}").click()
        self.until("!audio.paused && audio.readyState >= 2")

    @property
    def position(self) -> float:
        """Seconds into the track that plays."""
        return self.page.evaluate("document.querySelector('audio').currentTime")

    def until(self, condition: str) -> None:
        """Wait until this JavaScript about `audio` is true."""
        # Not wait_for_function: the page's policy allows no eval, and that is how it is meant to be.
        script = f"(audio) => {condition}"
        waited = 0
        while not self.page.evaluate(f"({script})(document.querySelector('audio'))"):
            self.page.wait_for_timeout(50)
            waited += 50
            assert waited < PATIENCE, f"never: {condition}"


@contextmanager
def kept_visits() -> Generator[list[Visit]]:
    """A list for visits; at the end all are over, and whatever their consoles complained about fails the test."""
    visits: list[Visit] = []
    yield visits
    for each in visits:
        each.page.context.close()
    for each in visits:
        each.verify()
