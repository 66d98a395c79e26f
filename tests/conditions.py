"""Waiting for what no event tells."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> float:
    """Wait until the condition holds, and tell how long it took; fail if it never does."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"did not hold within {seconds} s"
        await asyncio.sleep(0.005)
    return time.monotonic() - started
