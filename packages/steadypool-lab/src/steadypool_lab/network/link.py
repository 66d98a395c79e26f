"""What the network does to the bytes of one direction."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Direction:
    """How bytes travel one way. Immutable: to change something at run time, set another one.

    Args:
        delay: seconds that every byte spends on the way; order is kept.
        jitter: seconds by which the delay is longer or shorter, at random.
        slice: the most bytes that arrive in one piece; None for as they were sent.
        slice_pause: seconds between two pieces.
        rate: bytes a second; None for no limit.
        cut_after: bytes of a connection that arrive, after which it ends; None for never.
        silent: nothing arrives, until another direction is set.

    Raises:
        ValueError: a number that makes no sense.

    Example:
        >>> Direction(delay=0.05, jitter=0.02, slice=1).delay
        0.05
    """

    delay: float = 0.0
    jitter: float = 0.0
    slice: int | None = None
    slice_pause: float = 0.0005
    rate: float | None = None
    cut_after: int | None = None
    silent: bool = False

    def __post_init__(self) -> None:
        if min(self.delay, self.jitter, self.slice_pause) < 0:
            raise ValueError("delay, jitter and slice_pause are 0 or more seconds")
        if self.slice is not None and self.slice < 1:
            raise ValueError(f"slice is 1 or more bytes, not {self.slice}")
        if self.rate is not None and self.rate <= 0:
            raise ValueError(f"rate is more than 0 bytes a second, not {self.rate}")
        if self.cut_after is not None and self.cut_after < 0:
            raise ValueError(f"cut_after is 0 or more bytes, not {self.cut_after}")

    def arrival(self, now: float) -> float:
        """When what is sent now would arrive on an empty line."""
        return now + max(
            0.0, self.delay + (random.uniform(-self.jitter, self.jitter) if self.jitter else 0.0)
        )

    def pieces(self, data: bytes, first: float) -> Iterator[tuple[float, bytes]]:
        """The pieces in which the bytes arrive, and when; the first of them not before `first`.

        Example:
            >>> list(Direction(slice=2, slice_pause=1.0).pieces(b"abc", 5.0))
            [(5.0, b'ab'), (6.0, b'c')]
        """
        size = self.slice or len(data)
        at = first
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            if start and self.slice is not None:
                at += self.slice_pause
            if self.rate is not None:
                at += len(piece) / self.rate
            yield at, piece
