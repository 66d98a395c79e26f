"""What waits for one subscriber: bounded, in order, and nobody sleeps through it."""

from __future__ import annotations

import asyncio

import pytest

from steadypool import errors
from steadypool.listener.buffer import Gap, Notification, NotificationBuffer, Overflow

pytestmark = pytest.mark.anyio


def said(word: str, channel: str = "c") -> Notification:
    return Notification(channel, word, 1)


def box(size: int = 3, overflow: Overflow = Overflow.DROP_OLDEST) -> NotificationBuffer:
    return NotificationBuffer(size, overflow)


async def everything(mailbox: NotificationBuffer) -> list[str]:
    return [_shown(await mailbox.take()) for _ in range(len(mailbox))]


def _shown(thing: Notification | Gap) -> str:
    return thing.payload if isinstance(thing, Notification) else f"gap {thing.since:g}-{thing.until:g}"


async def test_in_order() -> None:
    mailbox = box()
    for number, word in enumerate("abc"):
        assert mailbox.put(said(word), number) is None
    assert await everything(mailbox) == ["a", "b", "c"]


async def test_dropping_the_oldest_opens_one_gap() -> None:
    mailbox = box()
    opened = [mailbox.put(said(word), number) for number, word in enumerate("abcdef")]
    assert [gap is not None for gap in opened] == [False, False, False, True, False, False]
    assert mailbox.dropped == 3
    assert len(mailbox) == 4
    assert await everything(mailbox) == ["gap 0-5", "d", "e", "f"]
    # once it was taken, the next one is another
    for number, word in enumerate("xyzw", 10):
        mailbox.put(said(word), number)
    assert await everything(mailbox) == ["gap 10-13", "y", "z", "w"]


async def test_conflating_keeps_one_of_each_and_gives_up_all_together() -> None:
    mailbox = box(overflow=Overflow.CONFLATE)
    for number, word in enumerate("abaabb"):
        assert mailbox.put(said(word), number) is None
    assert mailbox.put(said("a", "other"), 6) is None
    assert len(mailbox) == 3
    assert mailbox.dropped == 0
    assert mailbox.put(said("d"), 7) is not None
    assert mailbox.dropped == 4
    mailbox.put(said("e"), 8)
    assert await everything(mailbox) == ["gap 0-7", "e"]


async def test_gaps_are_joined_and_come_first() -> None:
    mailbox = box()
    mailbox.put(said("a"), 0.0)
    mailbox.put_gap(Gap(5.0, 6.0, "one"))
    mailbox.put_gap(Gap(4.0, 5.5, "two"))
    mailbox.put_gap(Gap(7.0, 8.0, "one"))
    assert len(mailbox) == 2
    gap = await mailbox.take()
    assert gap == Gap(4.0, 8.0, "one; two")
    assert await everything(mailbox) == ["a"]


async def test_a_reason_does_not_grow_for_ever() -> None:
    mailbox = box()
    for number in range(1000):
        mailbox.put_gap(Gap(0.0, 1.0, f"reason {number}"))
    gap = await mailbox.take()
    assert isinstance(gap, Gap)
    assert len(gap.reason) <= 400
    assert gap.reason.endswith("reason 999")


async def test_held_back_until_it_is_let_go_except_gaps() -> None:
    mailbox = box()
    mailbox.hold_back()
    takers = [asyncio.create_task(mailbox.take()) for _ in range(2)]
    mailbox.put(said("a"), 0.0)
    mailbox.put(said("b"), 0.0)
    await asyncio.sleep(0.01)
    assert not any(taker.done() for taker in takers)
    mailbox.put_gap(Gap(0.0, 1.0, "why"))
    await asyncio.sleep(0.01)
    assert sum(taker.done() for taker in takers) == 1
    mailbox.let_go()
    assert {_shown(thing) for thing in await asyncio.gather(*takers)} <= {"gap 0-1", "a"}
    assert await everything(mailbox) == ["b"]


async def test_the_end_wakes_everybody() -> None:
    mailbox = box()
    takers = [asyncio.create_task(mailbox.take()) for _ in range(3)]
    await asyncio.sleep(0)
    mailbox.end()
    async with asyncio.timeout(30):
        for ended in await asyncio.gather(*takers, return_exceptions=True):
            assert isinstance(ended, StopAsyncIteration)


async def test_what_waits_is_taken_before_the_end_is_told() -> None:
    mailbox = box()
    mailbox.put(said("a"), 0.0)
    mailbox.end(errors.NotificationsBlocked("deaf"))
    assert _shown(await mailbox.take()) == "a"
    depth = []
    for _ in range(5):
        with pytest.raises(errors.NotificationsBlocked) as caught:
            await mailbox.take()
        depth.append(len(caught.traceback))
    assert depth == [depth[0]] * 5  # one error, raised again and again, does not grow
    mailbox.resume()
    taker = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    assert not taker.done()
    mailbox.put(said("b"), 0.0)
    assert _shown(await taker) == "b"


async def test_held_back_and_ended_does_not_wait_for_ever() -> None:
    mailbox = box()
    mailbox.hold_back()
    mailbox.put(said("a"), 0.0)
    mailbox.end()
    async with asyncio.timeout(30):
        with pytest.raises(StopAsyncIteration):
            await mailbox.take()


@pytest.mark.parametrize("late", [False, True])
async def test_a_cancelled_taker_passes_the_news_on(late: bool) -> None:
    mailbox = box()
    first = asyncio.create_task(mailbox.take())
    second = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    if late:
        mailbox.put(said("a"), 0.0)  # the first is told, and cancelled before it could take
    first.cancel()
    if not late:
        mailbox.put(said("a"), 0.0)
    async with asyncio.timeout(30):
        assert _shown(await second) == "a"
    assert first.cancelled() or first.cancelling()
