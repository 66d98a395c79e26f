"""What is worse on our engine than on SQLAlchemy's, held against the table of expected differences."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from strangers.catalogue import Difference, Suite, Variant, is_within
from strangers.running import RANK, Outcome, Results


@dataclass(frozen=True)
class Worse:
    """A test that passes, or at least does not fail, on SQLAlchemy's engine only."""

    test: str
    stock: Outcome
    ours: Outcome

    def __str__(self) -> str:
        said = f": {self.ours.text}" if self.ours.text else ""
        return f"{self.test}\n      {self.stock.result} on stock, {self.ours.result} on ours{said}"


@dataclass
class Comparison:
    """One run of ours against its baseline."""

    suite: Suite
    variant: Variant
    stock: Results
    ours: Results
    unexpected: list[Worse] = field(default_factory=list)
    expected: list[tuple[Worse, Difference]] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether nothing differs that the table does not say, and everything that it says."""
        return not (self.unexpected or self.stale or self.stock.broken or self.ours.broken)

    def problems(self) -> list[str]:
        """What is wrong, in words."""
        where = f"{self.suite.name}, {self.variant.driver}"
        broken = [("stock", self.stock.broken), ("ours", self.ours.broken)]
        return [
            *(f"{where}: the run on {engine}: {said}" for engine, said in broken if said),
            *(f"{where}: WORSE, and not expected: {worse}" for worse in self.unexpected),
            *(f"{where}: STALE, as good as stock by now: {listed}" for listed in self.stale),
        ]


def compare(
    suite: Suite,
    variant: Variant,
    stock: Results,
    ours: Results,
    differences: Iterable[Difference],
    *,
    in_part: bool = False,
) -> Comparison:
    """Sort what is worse into expected and not, and find the lines of the table that nothing needs any more.

    After a run `in_part` only the lines whose tests were run can be found so.
    """
    table = [row for row in differences if row.suite == suite.name and variant.driver in row.drivers]
    found = Comparison(suite, variant, stock, ours)
    for worse in find_worse(stock, ours):
        row = next((row for row in table if row.covers(worse.test)), None)
        if row is None:
            found.unexpected.append(worse)
        else:
            found.expected.append((worse, row))
    needed = [worse.test for worse, _ in found.expected]
    found.stale = [
        listed
        for row in table
        if not row.sometimes
        for listed in row.tests
        if not any(is_within(test, listed) for test in needed)
        and not (in_part and not any(is_within(test, listed) for test in stock.outcomes))
    ]
    return found


def find_worse(stock: Results, ours: Results) -> list[Worse]:
    """The tests whose outcome is worse on our engine; one that is not there is worse than one that passes."""
    absent = Outcome("absent", "", "")
    unknown = Outcome("skipped", "", "")
    worse = []
    for test in sorted(stock.outcomes.keys() | ours.outcomes.keys()):
        before, now = stock.outcomes.get(test, unknown), ours.outcomes.get(test, absent)
        if RANK.get(now.result, RANK["skipped"]) > RANK[before.result]:
            worse.append(Worse(test, before, now))
    return worse
