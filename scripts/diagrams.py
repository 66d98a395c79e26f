"""The diagrams of states, as SVG: which states there are says the code, what leads from one to another is held
against the simulation by a test (for connections), and where each is drawn is said here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from html import escape

from steadypool.listener import ListenerState
from steadypool.pool.circuit_breaker import BreakerState
from steadypool.pool.lease import EntryState

WIDTH, HEIGHT = 118.0, 40.0
"""Of a state's box."""
APART = 9.0
"""Between two arrows that join the same states."""

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1c2733; text-anchor: middle; }
  .state text { font-weight: 600; dominant-baseline: central; }
  .state rect { fill: #e6f0f7; stroke: #2b6a99; stroke-width: 1.5; }
  .end rect { fill: #eceff1; stroke: #78848e; }
  .says { font-size: 11.5px; fill: #46525e; stroke: #fff; stroke-width: 4px; paint-order: stroke; }
  .way { stroke: #46525e; stroke-width: 1.4; fill: none; marker-end: url(#tip); }
  .frame { fill: none; stroke: #9aa7b2; stroke-width: 1.2; stroke-dasharray: 5 4; }
"""


@dataclass(frozen=True, slots=True)
class Arrow:
    """What leads from one state to another; `at` is where on the way its words stand, 0 to 1."""

    before: Enum
    after: Enum
    says: str
    at: float = 0.5


@dataclass(frozen=True, slots=True)
class Diagram:
    """One picture. From every state inside of the frame, an arrow leads to each of `exits`."""

    title: str
    size: tuple[float, float]
    places: Mapping[Enum, tuple[float, float]]
    arrows: Sequence[Arrow]
    frame: tuple[float, float, float, float] | None = None
    exits: Mapping[Enum, str] | None = None
    ends: Sequence[Enum] = ()

    @property
    def framed(self) -> list[Enum]:
        """The states that stand inside of the frame."""
        if self.frame is None:
            return []
        left, top, width, height = self.frame
        return [
            state
            for state, (x, y) in self.places.items()
            if left <= x <= left + width and top <= y <= top + height
        ]

    def moves(self) -> set[tuple[Enum, Enum]]:
        """From which state into which, the frame's arrows told one by one."""
        drawn = {(arrow.before, arrow.after) for arrow in self.arrows}
        return drawn | {(state, leaves) for state in self.framed for leaves in self.exits or {}}

    def svg(self) -> str:
        """The picture; its own background, so that it can be read in the dark as well."""
        width, height = self.size
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
                f'height="{height:g}" role="img" aria-label="{escape(self.title)}">',
                f"<title>{escape(self.title)}</title>",
                f"<style>{STYLE}</style>",
                '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
                'orient="auto"><path d="M0 0 8 4 0 8z" fill="#46525e"/></marker></defs>',
                f'<rect width="{width:g}" height="{height:g}" rx="8" fill="#fff"/>',
                *self._inside(),
                "</svg>\n",
            ]
        )

    def _inside(self) -> Iterator[str]:
        if self.frame is not None:
            left, top, width, height = self.frame
            yield f'<rect class="frame" x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="10"/>'
            for state, says in (self.exits or {}).items():
                x, y = self.places[state]
                yield from _way((x, top + height), (x, y - HEIGHT / 2), says, 0.45)
        for arrow in self.arrows:
            yield from _way(*self._ends_of(arrow), arrow.says, arrow.at)
        for state, (x, y) in self.places.items():
            kind = "state end" if state in self.ends else "state"
            yield (
                f'<g class="{kind}"><rect x="{x - WIDTH / 2:g}" y="{y - HEIGHT / 2:g}" width="{WIDTH:g}" '
                f'height="{HEIGHT:g}" rx="7"/><text x="{x:g}" y="{y:g}">{escape(str(state.value))}</text></g>'
            )

    def _ends_of(self, arrow: Arrow) -> tuple[tuple[float, float], tuple[float, float]]:
        """Where an arrow begins and ends: on the boxes' borders, beside the one that comes back."""
        (x1, y1), (x2, y2) = self.places[arrow.before], self.places[arrow.after]
        length = math.hypot(x2 - x1, y2 - y1)
        back = any((a.before, a.after) == (arrow.after, arrow.before) for a in self.arrows)
        aside = APART if back else 0.0
        dx, dy = (x2 - x1) / length, (y2 - y1) / length
        x1, y1, x2, y2 = x1 - dy * aside, y1 + dx * aside, x2 - dy * aside, y2 + dx * aside
        reach = min(
            WIDTH / 2 / abs(dx) if dx else math.inf,
            HEIGHT / 2 / abs(dy) if dy else math.inf,
        )
        return (x1 + dx * reach, y1 + dy * reach), (x2 - dx * (reach + 1), y2 - dy * (reach + 1))


def _way(begin: tuple[float, float], end: tuple[float, float], says: str, at: float) -> Iterator[str]:
    (x1, y1), (x2, y2) = begin, end
    yield f'<path class="way" d="M{x1:.1f} {y1:.1f} L{x2:.1f} {y2:.1f}"/>'
    lines = says.split("\n")
    x, y = x1 + (x2 - x1) * at, y1 + (y2 - y1) * at + 4 - 7 * (len(lines) - 1)
    for number, line in enumerate(lines):
        yield f'<text class="says" x="{x:.1f}" y="{y + 14 * number:.1f}">{escape(line)}</text>'


S = EntryState
CONNECTION = Diagram(
    "The states of a pool's connection",
    (800, 520),
    {
        S.OPENING: (110, 70),
        S.STUCK: (110, 230),
        S.IDLE: (400, 150),
        S.PROVING: (690, 70),
        S.SILENT: (690, 230),
        S.LEASED: (270, 340),
        S.RESETTING: (540, 340),
        S.CLOSING: (270, 470),
        S.GONE: (540, 470),
    },
    (
        Arrow(S.OPENING, S.IDLE, "is open"),
        Arrow(S.OPENING, S.STUCK, "takes long"),
        Arrow(S.STUCK, S.IDLE, "is open after all"),
        Arrow(S.IDLE, S.LEASED, "handed out", 0.75),
        Arrow(S.LEASED, S.IDLE, "given back clean", 0.65),
        Arrow(S.LEASED, S.RESETTING, "given back unclean"),
        Arrow(S.RESETTING, S.IDLE, "is clean"),
        Arrow(S.IDLE, S.PROVING, "asked", 0.4),
        Arrow(S.PROVING, S.IDLE, "answers", 0.35),
        Arrow(S.PROVING, S.SILENT, "takes long"),
        Arrow(S.IDLE, S.SILENT, "a sibling is silent", 0.28),
        Arrow(S.SILENT, S.IDLE, "answers late", 0.2),
        Arrow(S.CLOSING, S.GONE, "the server has let go"),
    ),
    frame=(25, 25, 750, 355),
    exits={
        S.CLOSING: "failed, dead, too old, too many, or unclean for good",
        S.GONE: "cut off at once",
    },
    ends=(S.CLOSING, S.GONE),
)

B = BreakerState
BREAKER = Diagram(
    "The states of the breaker",
    (800, 130),
    {B.CLOSED: (120, 65), B.OPEN: (680, 65)},
    (
        Arrow(B.CLOSED, B.OPEN, "an attempt to connect failed"),
        Arrow(B.OPEN, B.CLOSED, "an attempt succeeded, or somebody else heard from the server"),
    ),
)

L = ListenerState
LISTENER = Diagram(
    "The states of the listener",
    (800, 520),
    {
        L.IDLE: (110, 70),
        L.STARTING: (110, 220),
        L.CONNECTED: (400, 145),
        L.RECONNECTING: (690, 220),
        L.DEAF: (400, 320),
        L.DORMANT: (690, 70),
        L.CLOSED: (400, 470),
    },
    (
        Arrow(L.IDLE, L.STARTING, "somebody subscribes"),
        Arrow(L.STARTING, L.CONNECTED, "hears"),
        Arrow(L.STARTING, L.DEAF, "proven deaf"),
        Arrow(L.CONNECTED, L.RECONNECTING, "lost", 0.35),
        Arrow(L.RECONNECTING, L.CONNECTED, "hears again", 0.4),
        Arrow(L.RECONNECTING, L.DEAF, "proven deaf"),
        Arrow(L.DEAF, L.CONNECTED, "hears at last"),
        Arrow(L.CONNECTED, L.DORMANT, "not used, may sleep"),
        Arrow(L.DORMANT, L.RECONNECTING, "used again"),
    ),
    frame=(25, 25, 750, 355),
    exits={L.CLOSED: "closed"},
    ends=(L.CLOSED,),
)


def all_of_them() -> dict[str, str]:
    """Each picture by its name."""
    return {
        "states-connection": CONNECTION.svg(),
        "states-breaker": BREAKER.svg(),
        "states-listener": LISTENER.svg(),
    }
