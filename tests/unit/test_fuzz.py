"""A short run of every fuzz target, always with the same inputs. `make fuzz` goes on where this ends."""

from __future__ import annotations

import random

import pytest

from fuzz.targets import TARGETS


def changed(rng: random.Random, seed: bytes, other: bytes) -> bytes:
    """A seed with some of its bytes replaced, removed, repeated, or taken from another."""
    data = bytearray(seed)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        to = min(len(data), at + rng.randint(0, 8))
        change = rng.randrange(5)
        if change == 0:
            data[at:to] = rng.randbytes(rng.randint(1, 4))
        elif change == 1:
            del data[at:to]
        elif change == 2:
            data[at:at] = data[at:to] * rng.randint(1, 5)
        elif change == 3:
            start = rng.randrange(len(other))
            data[at:to] = other[start : start + rng.randint(1, 30)]
        else:
            data[at:to] = rng.choice(
                [b"'", b'"', b"\\", b"$$", b"/*", b"--", b"\0", b"\xff", b";", b"@", b":", b"%"]
            )
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run(name: str) -> None:
    target, rng = TARGETS[name], random.Random(name)
    known = list(target.seeds)
    for data in (b"", *known):
        target.one_input(data)
    for _ in range(target.count):
        data = changed(rng, rng.choice(known), rng.choice(known))[:4096]
        try:
            target.one_input(data)
        except BaseException as error:
            error.add_note(f"the input was {data!r}")
            raise
        if rng.random() < 0.1:
            known.append(data)
