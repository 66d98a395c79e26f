"""The live page of the pool in a browser, with troubles behind it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from steadypool.monitor import Recording
from steadypool_lab import EmbeddedPostgres
from steadypool_lab.network.proxy import Mode
from troubled import Troubled, troubled_service

from .conftest import OpenVisit
from .kit import PATIENCE, Visit, kept_visits
from .test_looks import COLOURS, PHONE, TARGETS, contrast

HOSTILE = '<img src="/nowhere" onerror="window.ran = true"></td><script>window.ran = true</script>'

See = Callable[..., Visit]


@pytest.fixture(scope="module")
def troubled() -> Iterator[Troubled]:
    server = EmbeddedPostgres.temporary().blocking
    server.start()
    try:
        with troubled_service(server.create_database("troubled")) as service:
            yield service
    finally:
        server.close()


@pytest.fixture
def see(troubled: Troubled, browser: Browser) -> Iterator[See]:
    """Opens the page; whatever its console complained about fails the test."""
    with kept_visits() as visits:

        def start(fragment: str = "", **options: Any) -> Visit:
            context = browser.new_context(locale="en-GB", timezone_id="Europe/Berlin", **options)
            context.set_default_timeout(PATIENCE)
            visits.append(Visit(context.new_page(), troubled.url))
            page = visits[-1].page
            page.goto(f"{troubled.url}/pool{fragment}")
            expect(page.locator("#feed")).to_contain_text("live")
            return visits[-1]

        yield start


def at_rest(troubled: Troubled) -> None:
    """What an earlier test began is over."""
    end = time.monotonic() + 60
    while troubled.database.pool.checkedout() or troubled.database.pool.core.waiting:
        assert time.monotonic() < end
        time.sleep(0.05)


def looked(troubled: Troubled) -> None:
    """The recorder has looked at the pool again."""
    assert troubled.do(troubled.database.watch.next_look(60.0))


def clock(troubled: Troubled) -> str:
    """The time as a person in Berlin reads it, who uses the page there."""
    from datetime import datetime
    from zoneinfo import ZoneInfo

    return datetime.fromtimestamp(troubled.now(), ZoneInfo("Europe/Berlin")).strftime("%H:%M:%S")


def test_it_stays_live_while_the_pool_is_full_and_the_database_is_away(troubled: Troubled, see: See) -> None:
    page = see().page
    expect(page.locator("#verdict")).to_have_class("good")
    expect(page.locator("#cells > li.free")).to_have_count(6)
    headline = page.locator("#headline")
    with troubled.crowded():
        expect(page.locator("#reasons")).to_contain_text("6 of 6 connections were in use")
        expect(page.locator("#verdict")).to_have_class("bad")
        expect(page.locator("#cells > li.leased")).to_have_count(6)
        expect(page.locator("#holders")).to_contain_text("POST /exports/7")
        expect(page.locator("#waiters tbody tr").first).to_contain_text("GET /tracks/")
        expect(page.locator("#reasons")).to_contain_text("steadypool why exhaustion")
    troubled.network(Mode.RESET)
    try:
        for number in range(3):
            troubled.ask(f"GET /later/{number}")
        expect(headline).to_contain_text("The database could not be reached")
        expect(page.locator("#breaker")).to_contain_text("open: one attempt at a time")
        seen = {page.locator("#feed").inner_text()}
        end = time.monotonic() + PATIENCE / 1000
        while len(seen) < 4 and time.monotonic() < end:
            page.wait_for_timeout(200)
            seen.add(page.locator("#feed").inner_text())
        assert len(seen) >= 4, f"the page stands still: {seen}"
        assert all(text.startswith("live") for text in seen)
    finally:
        troubled.network(Mode.PASS)
    at_rest(troubled)
    troubled.trickle(0.5)
    expect(page.locator("#verdict")).to_have_class("good")
    expect(page.locator("#breaker")).to_contain_text("closed")
    expect(page.locator("#breaker")).to_contain_text("answers again")


WHY = {
    "slow statements": (
        lambda troubled: troubled.crowd(seconds=2.5),
        r"exhausted by slow statements: [56] of 6 connections ran select pg_sleep\(\?\)",
        "exhaustion",
    ),
    "leak": (
        lambda troubled: troubled.leak(3.5),
        "exhausted by a leak: GET /leaky held 6 connections",
        "leaks",
    ),
    "lock": (
        lambda troubled: troubled.lock(3.0),
        "waited for a lock that PUT /titles/… kept: 3 statements",
        "statement-timeouts",
    ),
    "cold start": (lambda troubled: troubled.doze(1.5), "Opening connections was slow", "cold-start"),
    "event loop": (lambda troubled: troubled.block_the_loop(1.5), "event loop was busy", "background-work"),
}


def test_each_cause_is_named_when_somebody_looks_later(troubled: Troubled, see: See) -> None:
    spans: dict[str, tuple[int, int]] = {}
    for name, (make, _, _) in WHY.items():
        at_rest(troubled)
        looked(troubled)
        since = int(troubled.now()) + 1
        make(troubled)
        looked(troubled)
        at_rest(troubled)
        looked(troubled)
        spans[name] = since, int(troubled.now()) + 1
    page = see().page
    for name, (_, headline, runbook) in WHY.items():
        since, until = spans[name]
        page.evaluate("span => { location.hash = ''; return look(...span); }", [since, until])
        expect(page.locator("#verdict-title")).to_contain_text("Then")
        expect(page.locator("#headline")).to_contain_text(re.compile(headline))
        expect(page.locator("#reasons")).to_contain_text(f"steadypool why {runbook}")


def test_a_stranger_answers_why_it_was_slow(troubled: Troubled, see: See) -> None:
    at_rest(troubled)
    troubled.crowd(seconds=5, waiting=12)
    looked(troubled)
    looked(troubled)
    then = clock(troubled)
    at_rest(troubled)
    page = see().page
    expect(page.locator("#verdict")).not_to_contain_text("6 of 6 connections")
    page.get_by_label("Look at").fill(then)
    page.get_by_role("button", name="Look").click()
    expect(page.locator("#verdict-title")).to_contain_text("Then")
    expect(page.locator("#headline")).to_contain_text("exhausted by slow statements")
    reasons = page.locator("#reasons")
    expect(reasons).to_contain_text("6 of 6 connections were in use")
    expect(reasons).to_contain_text("5 by GET /reports/…")
    expect(page.locator("#holders tbody tr")).to_have_count(6)
    expect(page.locator("#holders")).to_contain_text("exports")
    expect(page.locator("#holders")).to_contain_text(re.compile(r"runs for .*pg_sleep\(\?\)"))
    expect(page.locator("#waiters")).to_contain_text("GET /tracks/")
    expect(page.locator("#latency")).to_contain_text(re.compile(r"waiting.*\d s"))
    expect(page.locator("#statements")).to_contain_text("pg_sleep(?)")
    expect(page.locator("#journal")).to_contain_text("pool timeouts")
    assert re.search(r"#\d+-\d+$", page.url), "the moment can be linked to"
    linked = see(page.url[page.url.index("#") :]).page
    expect(linked.locator("#reasons")).to_contain_text("5 by GET /reports/…")
    page.get_by_role("button", name="Live").click()
    expect(page.locator("#verdict-title")).to_have_text("Now")
    assert "#" not in page.url


def test_a_time_that_is_none_is_said(see: See) -> None:
    page = see().page
    field = page.get_by_label("Look at")
    field.fill("noon")
    field.press("Enter")
    expect(page.locator("#time-help")).to_have_text("a time is written 14:03 or 14:03:20")
    expect(field).to_have_attribute("aria-invalid", "true")
    field.fill("0:00")
    field.press("Enter")
    expect(page.locator("#headline")).to_have_text("Nothing was recorded of this time.")


def test_the_keyboard_reaches_everything(troubled: Troubled, see: See) -> None:
    troubled.trickle(1.0)
    page = see().page
    expect(page.locator("#plots figure")).to_have_count(4)
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.className || document.activeElement.value"
            )
        )
    assert reached[:7] == ["skip", "export", "900", "time", "go", "live", "scrub"]
    slider = page.locator("#scrub")
    slider.focus()
    expect(slider).to_have_attribute("aria-valuetext", "live")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#verdict-title")).to_contain_text("Then")
    first = slider.get_attribute("aria-valuetext") or ""
    assert re.fullmatch(r"\d\d:\d\d:\d\d to \d\d:\d\d:\d\d", first)
    page.keyboard.press("ArrowLeft")
    expect(slider).not_to_have_attribute("aria-valuetext", first)
    page.locator("#live").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#verdict-title")).to_have_text("Now")
    page.locator("input[name=range]").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("input[name=range]:checked")).to_have_value("3600")


def test_plots_are_drawn_and_can_be_clicked(troubled: Troubled, see: See) -> None:
    troubled.trickle(1.0)
    page = see().page
    figures = page.locator("#plots figure")
    expect(figures).to_have_count(4)
    expect(page.locator("#no-plots")).to_be_hidden()
    expect(figures.first).to_have_attribute("aria-label", re.compile(r"Connections in use.*now \d"))
    drawn = page.evaluate(
        """() => [...document.querySelectorAll("#plots canvas")].map((canvas) => {
          const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          return new Set(new Uint32Array(pixels.buffer)).size;
        })"""
    )
    assert len(drawn) == 4
    assert min(drawn) > 5, "a plot is empty"
    box = figures.first.locator(".u-over").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2)
    expect(page.locator("#verdict-title")).to_contain_text("Then")


def test_what_others_wrote_is_text(troubled: Troubled, see: See) -> None:
    at_rest(troubled)
    name = '"' + HOSTILE.replace('"', '""') + '"'
    troubled.ask(HOSTILE, f'select 1 as {name[:60]}"', hold=300)
    page = see().page
    expect(page.locator("#holders")).to_contain_text(HOSTILE)
    expect(page.locator("#cells .who").first).to_have_text(HOSTILE)
    leak = page.locator("#leaks summary").filter(has_text="<img")
    leak.click()
    expect(page.locator("#leaks pre").first).to_contain_text("troubled.py")
    assert page.locator("main img, main script").count() == 0
    assert page.evaluate("window.ran") is None
    troubled.relieve()
    at_rest(troubled)


def test_the_export_is_a_recording(troubled: Troubled, see: See, tmp_path: Path) -> None:
    page = see().page
    with page.expect_download() as download:
        page.get_by_role("link", name="Export JSON").click()
    path = tmp_path / "export.json"
    download.value.save_as(path)
    assert re.fullmatch(r"steadypool-\d+\.json", download.value.suggested_filename)
    recording = Recording.load(path)
    assert recording.pool == "main"
    assert recording.arrivals


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read(troubled: Troubled, see: See, scheme: str) -> None:
    at_rest(troubled)
    with troubled.crowded():
        visit = see(color_scheme=scheme)
        expect(visit.page.locator("#verdict")).to_have_class("bad")
        expect(visit.page.locator("#holders tbody tr")).to_have_count(6)
        found = visit.page.evaluate(COLOURS)
    assert len(found) > 60
    faint = [each for each in found if contrast(each["ink"], each["ground"]) < 4.5]
    assert faint == []
    at_rest(troubled)


def test_on_a_phone_nothing_is_cut_off_or_too_small(troubled: Troubled, see: See) -> None:
    at_rest(troubled)
    troubled.ask("GET /" + "Donaudampfschifffahrtsgesellschaft" * 5, hold=300)
    with troubled.crowded():
        page = see(**PHONE).page
        expect(page.locator("#verdict")).to_have_class("bad")
        expect(page.locator("#plots figure")).to_have_count(4)
        expect(page.locator("#holders")).to_contain_text("Donaudampfschifffahrtsgesellschaft")
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(overflow) == 0
        targets = [each for each in page.evaluate(TARGETS) if not each["name"].startswith("Skip")]
    assert len(targets) > 6
    assert [each for each in targets if min(each["width"], each["height"]) < 40] == []
    at_rest(troubled)


def test_plyr_leads_to_its_pool(visit: OpenVisit, service: Any) -> None:
    """`make run` switches the page on for this machine, prints its address and links it."""
    assert f"{service.url}/pool" in service.plyr.said
    page = visit().open().page
    page.get_by_role("link", name="Pool", exact=True).click()
    expect(page.locator("#feed")).to_contain_text("live")
    expect(page.locator("#pool")).to_have_text("plyr")
    expect(page.locator("#workloads")).to_contain_text("uploads")
