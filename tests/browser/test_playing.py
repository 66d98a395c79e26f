"""Hearing tracks: the list, the player, and the keyboard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playwright.sync_api import expect

from .conftest import OpenVisit
from .kit import Service, Visit, wav

DEMO = "First Light on the Pool"


def test_the_latest_tracks_are_shown_newest_first(
    visit: OpenVisit, service: Service, uploaded: Callable[..., int]
) -> None:
    uploaded("Just now", wav(1.5))
    guest = visit().open()
    titles = guest.rows.locator(".title").all_text_contents()
    assert titles[0] == "Just now"
    assert titles == [track["title"] for track in service.tracks()]
    assert DEMO in titles
    first = guest.rows.first
    expect(first).to_contain_text("The Steady Pool")
    expect(first).to_contain_text("0:01")
    expect(guest.page.locator("#note")).to_be_hidden()
    expect(guest.page.get_by_role("region", name="Player")).to_be_hidden()


def test_playing_and_pausing(visit: OpenVisit) -> None:
    guest = visit().open()
    guest.play(DEMO)
    player = guest.page.get_by_role("region", name="Player")
    expect(player).to_contain_text(DEMO)
    expect(guest.row(DEMO)).to_have_attribute("aria-current", "true")
    before = guest.position
    guest.until(f"audio.currentTime > {before} + 0.3")
    player.get_by_role("button", name="Pause", exact=True).click()
    guest.until("audio.paused")
    expect(guest.row(DEMO).get_by_role("button", name=f"Play {DEMO}")).to_be_visible()


def test_seeking_fetches_from_there(visit: OpenVisit, uploaded: Callable[..., int]) -> None:
    uploaded("Long", wav(240, rate=44_100))  # more than Chromium takes in advance
    guest = visit().open()
    guest.play("Long")
    slider = guest.page.get_by_role("slider", name="Position in the track")
    box = slider.bounding_box()
    assert box is not None
    slider.click(position={"x": box["width"] * 0.9, "y": box["height"] / 2})
    guest.until("audio.currentTime > 200 && !audio.seeking && audio.readyState >= 2")
    there = guest.position
    guest.until(f"audio.currentTime > {there}")
    expect(guest.page.locator("#elapsed")).to_contain_text("3:")
    answers = [answer for answer in guest.responses if "/audio/" in answer.url]
    assert {answer.status for answer in answers} == {206}
    starts = [int(answer.headers["content-range"].split()[1].split("-")[0]) for answer in answers]
    assert starts[0] == 0
    assert max(starts) > 10_000_000, starts


def test_next_and_previous(visit: OpenVisit, service: Service) -> None:
    first, second, *_ = [track["title"] for track in service.tracks()]
    guest = visit().open()
    guest.play(first)
    title = guest.page.locator("#now-title")
    guest.page.get_by_role("button", name="Next track").click()
    expect(title).to_have_text(second)
    guest.page.get_by_role("button", name="Previous track").click()
    expect(title).to_have_text(first)


OPERABLE = """[...document.querySelectorAll("a[href], button, input, select, textarea")]
  .filter((element) => !element.disabled && element.checkVisibility())"""
FOCUS = f"""() => {{
  const element = document.activeElement, box = element.getBoundingClientRect(), style = getComputedStyle(element);
  const hit = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  return {{
    index: {OPERABLE}.indexOf(element),
    name: element.getAttribute("aria-label") || element.textContent.trim(),
    outline: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth),
    seen: hit !== null && element.contains(hit),
  }};
}}"""


def focused_by_tab(guest: Visit) -> list[dict[str, Any]]:
    """What has the focus after each Tab, once around."""
    found: list[dict[str, Any]] = []
    for _ in range(100):
        guest.page.keyboard.press("Tab")
        focus = guest.page.evaluate(FOCUS)
        if focus["index"] == -1:  # the page itself, between its last and its first element
            continue
        if found and focus["index"] == found[0]["index"]:
            return found
        found.append(focus)
    raise AssertionError("Tab never comes round")


def test_everything_can_be_reached_with_tab_and_is_seen_there(
    visit: OpenVisit, uploaded: Callable[..., int]
) -> None:
    for number in range(4):
        uploaded(f"More {number}", wav(1, pitch=200 + number))
    # So low that the list scrolls behind the player.
    guest = visit(viewport={"width": 1000, "height": 420}).open()
    for _ in ("the link to the pool", "Sign in", "the first track"):
        guest.page.keyboard.press("Tab")
    guest.page.keyboard.press("Enter")
    expect(guest.page.get_by_role("region", name="Player")).to_be_visible()
    guest.until("audio.ended || audio.paused || audio.currentTime > 0")
    found = focused_by_tab(guest)
    first = next(at for at, each in enumerate(found) if each["index"] == 0)
    found = found[first:] + found[:first]
    count = guest.page.evaluate(f"{OPERABLE}.length")
    assert count > 16
    assert [each["index"] for each in found] == list(range(count)), "in the order of the page"
    assert [each["name"] for each in found if each["outline"] < 2] == []
    assert [each["name"] for each in found if not each["seen"]] == []


def test_space_and_arrows(visit: OpenVisit) -> None:
    guest = visit().open()
    keyboard = guest.page.keyboard
    button = guest.row(DEMO).get_by_role("button", name=DEMO).first
    button.focus()
    keyboard.press("Space")
    guest.until("!audio.paused && audio.readyState >= 2")
    keyboard.press("Space")
    guest.until("audio.paused")
    at = guest.position
    keyboard.press("ArrowRight")
    guest.until(f"Math.abs(audio.currentTime - {at} - 5) < 0.01")
    keyboard.press("ArrowLeft")
    guest.until(f"Math.abs(audio.currentTime - {at}) < 0.01")
    # On the slider, whose own step is far smaller.
    guest.page.get_by_role("slider", name="Position in the track").focus()
    keyboard.press("ArrowRight")
    guest.until(f"Math.abs(audio.currentTime - {at} - 5) < 0.01")
    keyboard.press("ArrowLeft")
    guest.until(f"Math.abs(audio.currentTime - {at}) < 0.01")
    # Nowhere in particular: the same keys.
    guest.page.evaluate("document.activeElement.blur()")
    keyboard.press("Space")
    guest.until("!audio.paused")
    keyboard.press("ArrowRight")
    guest.until(f"audio.currentTime >= {at} + 5")
    keyboard.press("Space")
    guest.until("audio.paused")
