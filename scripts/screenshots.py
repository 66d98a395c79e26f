"""Takes the documentation's pictures of the live page, `docs/images/pool-*.png`, from a service in real trouble.

    .venv/bin/python scripts/screenshots.py [folder]

Needs Chromium (scripts/system-packages.sh). The pictures differ from run to run as the figures do.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from steadypool_lab import EmbeddedPostgres  # noqa: E402
from steadypool_lab.network.proxy import Mode  # noqa: E402
from troubled import Troubled, troubled_service  # noqa: E402

WIDE = {"viewport": {"width": 1180, "height": 860}}
PHONE = {
    "viewport": {"width": 360, "height": 740},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}


def main() -> int:
    """Take them all."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/images"
    folder.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        print("screenshots: Chromium is not installed: sh scripts/system-packages.sh", file=sys.stderr)
        return 1
    server = EmbeddedPostgres.temporary().blocking
    server.start()
    try:
        with troubled_service(server.create_database("pictures")) as service, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--disable-gpu"])
            _take(service, browser, folder)
            browser.close()
    finally:
        server.close()
    return 0


def _take(service: Troubled, browser: Browser, folder: Path) -> None:
    service.database.recorder.note("start", "the service was started")
    service.keep_trickling(90)
    time.sleep(12)
    service.crowd(seconds=5, waiting=14)
    time.sleep(2.2)
    full = service.now()
    with_page(service, browser, folder / "pool-exhausted.png", WIDE)
    time.sleep(8)
    service.network(Mode.REFUSE)
    service.do(_drop(service))
    time.sleep(5)
    with_page(service, browser, folder / "pool-database-away-dark.png", WIDE | {"color_scheme": "dark"})
    service.network(Mode.PASS)
    time.sleep(8)
    with_page(service, browser, folder / "pool-phone.png", PHONE)
    then = f"#{int(full) - 5}-{int(full) + 5}"
    with_page(service, browser, folder / "pool-then.png", WIDE, then)


def with_page(
    service: Troubled, browser: Browser, path: Path, options: dict[str, object], fragment: str = ""
) -> None:
    """One picture: the page as it is after a moment, its upper part."""
    context = browser.new_context(locale="en-GB", **options)  # type: ignore[arg-type]
    page: Page = context.new_page()
    page.goto(f"{service.url}/pool{fragment}")
    page.locator("#feed").filter(has_text="live").wait_for()
    page.wait_for_timeout(1500)
    page.screenshot(path=path)
    context.close()
    print(path)


async def _drop(service: Troubled) -> None:
    service.proxy.drop_all(reset=True)


if __name__ == "__main__":
    sys.exit(main())
