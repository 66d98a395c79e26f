"""Copies of queues: what is kept, and what is not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backend.services.queue_cache import Queue, QueueCache

DID = "did:plc:a"


def at(revision: int) -> Queue:
    return Queue({"track_ids": [str(revision)]}, revision)


def revision_of(cache: QueueCache, did: str = DID) -> int | None:
    found = cache.get(did)
    return None if found is None else found.revision


def test_a_copy_is_dropped_when_there_is_something_newer_and_only_then() -> None:
    cache = QueueCache()
    cache.keep(DID, at(5))
    cache.changed(DID, 5)
    cache.changed("did:plc:b", 6)
    assert revision_of(cache) == 5
    cache.changed(DID, 6)
    assert revision_of(cache) is None


def test_an_older_copy_does_not_replace_a_newer_one() -> None:
    cache = QueueCache()
    cache.keep(DID, at(5))
    cache.keep(DID, at(4))
    assert revision_of(cache) == 5


def test_what_was_read_before_a_change_was_heard_is_not_kept() -> None:
    cache = QueueCache()
    with cache.reading(DID) as reading, cache.reading(DID) as other:
        cache.changed(DID, 6)
        cache.changed(DID, 3)
        cache.keep_read(DID, at(5), reading)
        assert revision_of(cache) is None
        cache.keep_read(DID, at(6), other)
        assert revision_of(cache) == 6


def test_what_was_read_across_a_gap_is_not_kept() -> None:
    cache = QueueCache()
    cache.keep("did:plc:b", at(1))
    for lose in (cache.clear, lambda: cache.forget(DID)):
        with cache.reading(DID) as reading:
            lose()
            cache.keep_read(DID, at(5), reading)
        assert revision_of(cache) is None
    assert len(cache) == 0


def test_a_reading_that_is_over_is_not_remembered() -> None:
    cache = QueueCache()
    with cache.reading(DID):
        with cache.reading(DID):
            pass
        assert cache._readings
    assert not cache._readings


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60)), max_size=30))
def test_the_copies_take_no_more_than_they_may(puts: list[tuple[str, int]]) -> None:
    cache = QueueCache(max_bytes=100)
    for number, (did, length) in enumerate(puts):
        cache.keep(did, Queue({"x": "y" * length}, number))
        kept = {each: found for each in "abc" if (found := cache.get(each)) is not None}
        assert sum(len(found.state["x"]) + 9 for found in kept.values()) == cache._bytes <= 100
        assert did in kept  # what was used last stays


def test_what_was_not_used_for_longest_goes_first() -> None:
    cache = QueueCache(max_bytes=60)
    for did in "ab":
        cache.keep(did, Queue({"x": "y" * 15}, 1))
    assert cache.get("a") is not None
    cache.keep("c", Queue({"x": "y" * 15}, 1))
    assert [cache.get(did) is not None for did in "abc"] == [True, False, True]


def test_a_queue_larger_than_all_room_is_not_kept() -> None:
    cache = QueueCache(max_bytes=10)
    cache.keep(DID, Queue({"x": "y" * 50}, 1))
    assert len(cache) == 0
