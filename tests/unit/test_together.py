"""Work that several want at the same time."""

from __future__ import annotations

import asyncio

import pytest

from backend.services.together import Together
from steadypool.deadline import current_deadline, deadline

pytestmark = pytest.mark.anyio


async def test_it_is_done_once_for_all_who_wait_and_anew_for_who_comes_later() -> None:
    together: Together[int] = Together()
    began: list[object] = []
    go_on = asyncio.Event()

    async def work() -> int:
        began.append(current_deadline())
        await go_on.wait()
        return len(began)

    with deadline(60):
        waiting = [asyncio.create_task(together("a", work)) for _ in range(5)]
    other = asyncio.create_task(together("b", work))
    await asyncio.sleep(0)
    waiting[0].cancel()  # whoever began it may leave
    await asyncio.sleep(0)
    go_on.set()
    assert await asyncio.gather(*waiting[1:], other) == [2] * 5
    assert began == [None, None], "nobody's deadline is the others'"
    assert await together("a", work) == 3


async def test_an_error_is_told_to_all_and_kept_for_nobody() -> None:
    together: Together[int] = Together()

    async def fail() -> int:
        raise ValueError("on purpose")

    ends = await asyncio.gather(*(together("a", fail) for _ in range(3)), return_exceptions=True)
    assert [type(end) for end in ends] == [ValueError] * 3
    with pytest.raises(ValueError, match="on purpose"):
        await together("a", fail)
