from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from steadypool_lab import EmbeddedPostgres

from .kit import PATIENCE, Service, Visit, kept_visits, running_service

# What Chromium would do beside showing the page: nothing in these tests looks beyond this machine.
FLAGS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
]

OpenVisit = Callable[..., Visit]


def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.fail(
        "these tests need Chromium, which is not installed: "
        "apt-get install --no-install-recommends chromium fonts-liberation "
        "(`make test` does it through scripts/system-packages.sh)"
    )


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all visits, with a server of its own, so that a test may stop that."""
    server = EmbeddedPostgres.temporary().blocking
    server.start()
    try:
        with running_service(server, tmp_path_factory.mktemp("plyr")) as service:
            yield service
    finally:
        server.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium without a profile. Playwright's loop runs in this thread meanwhile: only sync tests here."""
    path = chromium()
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(service: Service, browser: Browser, uploaded: Callable[..., int]) -> Iterator[OpenVisit]:
    """Opens visits; whatever their consoles complained about fails the test.

    They are over before what was `uploaded` for the test is deleted, lest a player meets that.
    """
    with kept_visits() as visits:

        def start(**options: Any) -> Visit:
            context = browser.new_context(locale="en-GB", **options)
            context.set_default_timeout(PATIENCE)
            visits.append(Visit(context.new_page(), service.url))
            return visits[-1]

        yield start


@pytest.fixture
def uploaded(service: Service) -> Iterator[Callable[..., int]]:
    """Publishes tracks that are gone after the test."""
    ids: list[int] = []

    def upload(title: str, audio: bytes, **fields: str) -> int:
        ids.append(service.upload(title, audio, **fields))
        return ids[-1]

    yield upload
    for track_id in ids:
        service.delete(track_id)
