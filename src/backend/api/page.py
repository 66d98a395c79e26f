"""The one page, from one file, allowed to load nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

from steadypool.fastapi.dashboard import DashboardPage

router = APIRouter(include_in_schema=False)

_POOL_LINK = "<!-- the pool -->"
POOL_LINK = '<a class="chip" href="/pool">Pool</a>'
"""Shown to those who may see the page behind it."""

_FILE = Path(__file__).parent.parent / "static" / "index.html"


@router.get("/")
@router.head("/")
async def page(request: Request) -> Response:
    html, policy = _page()
    pool_page: DashboardPage = request.app.state.pool_page
    html = html.replace(_POOL_LINK, POOL_LINK if await pool_page.visible_to(request) else "")
    headers = {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(html, media_type="text/html", headers=headers)


@lru_cache(maxsize=1)
def _page() -> tuple[str, str]:
    """The page, and the policy that lets exactly its own script and style run."""
    html = _FILE.read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hashes(html, 'script')}; style-src {_hashes(html, 'style')}; "
        "connect-src 'self'; media-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return html, policy


def _hashes(html: str, element: str) -> str:
    blocks = re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
    return " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'" for block in blocks
    )
