"""Run the suites of other packages on our engine: `make strangers`, or in `tests/`: `python -m strangers [SUITE …]`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from strangers.catalogue import Difference, Suite, Variant, read_differences, read_suites
from strangers.comparing import Comparison, compare
from strangers.fetching import FetchError, prepare
from strangers.page import write_page
from strangers.running import Results, end_all, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line names, and say what differs."""
    suites = read_suites()
    options = _parsed(arguments, suites)
    chosen = list(_chosen(suites, options.suites))
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("strangers: ended from outside"))
    try:
        ready = [(suite, *prepare(suite)) for suite in chosen]
    except FetchError as error:
        print(f"strangers: {error}", file=sys.stderr)
        return 2
    campaign = Campaign(options.jobs, options.drivers, in_part="quick" in options.suites)
    comparisons = campaign.run(ready)
    problems = [line for comparison in comparisons for line in comparison.problems()]
    for line in problems:
        print(f"  {line}")
    if options.write:
        write_page(comparisons)
    bad = sum(not comparison.is_good for comparison in comparisons)
    print(f"strangers: {len(comparisons)} suites and drivers compared in {time.monotonic() - began:.0f} s")
    print(f"{len(comparisons) - bad} passed, {bad} failed")
    return 1 if problems else 0


def _parsed(arguments: Sequence[str] | None, suites: dict[str, Suite]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="strangers", description=__doc__)
    names = [*suites, "quick", "all"]
    parser.add_argument(
        "suites", nargs="*", default=["all"], metavar="SUITE", help=f"one of {', '.join(names)}"
    )
    parser.add_argument("--drivers", nargs="+", default=["asyncpg", "psycopg", "steadypool"])
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time (2)")
    parser.add_argument(
        "--write", action="store_true", help="write the results into docs/reference/strangers.md"
    )
    options = parser.parse_args(arguments)
    unknown = set(options.suites) - set(names)
    if unknown:
        parser.error(f"no suite is called {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return options


def _chosen(suites: Mapping[str, Suite], names: Sequence[str]) -> Iterator[Suite]:
    for suite in suites.values():
        if "all" in names or suite.name in names:
            yield suite
        elif "quick" in names and suite.is_quick:
            yield suite.quick()


@dataclass
class Campaign:
    """Runs suites, some at a time, and compares."""

    jobs: int
    drivers: Sequence[str]
    in_part: bool = False
    _differences: list[Difference] = field(default_factory=read_differences)

    def run(self, ready: Sequence[tuple[Suite, Path, Path]]) -> list[Comparison]:
        """The comparison of each suite on each driver, after all has been run."""
        with ThreadPoolExecutor(self.jobs) as executor:
            running = {
                (suite.name, variant): executor.submit(self._one, suite, variant, python, folder)
                for suite, python, folder in ready
                for variant in self._variants(suite)
            }
            try:
                return [
                    self._compared(suite, driver, python, folder, running)
                    for suite, python, folder in ready
                    for driver in self._drivers_of(suite)
                ]
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                end_all()
                raise

    def _drivers_of(self, suite: Suite) -> list[str]:
        return [driver for driver in suite.drivers if driver in self.drivers]

    def _variants(self, suite: Suite) -> list[Variant]:
        """Baselines first."""
        ours = [Variant("ours", driver) for driver in self._drivers_of(suite)]
        return [*dict.fromkeys(variant.baseline for variant in ours), *ours]

    def _one(self, suite: Suite, variant: Variant, python: Path, folder: Path) -> Results:
        results = run(suite, variant, python, folder)
        counts = results.counts
        said = f", {results.broken}" if results.broken else ""
        print(
            f"{suite.name:28} {variant!s:18} {counts['passed']:6} passed {counts['failed']:4} failed "
            f"{counts['skipped']:5} skipped in {results.seconds:4.0f} s{said}",
            flush=True,
        )
        return results

    def _compared(
        self,
        suite: Suite,
        driver: str,
        python: Path,
        folder: Path,
        running: dict[tuple[str, Variant], Future[Results]],
    ) -> Comparison:
        variant = Variant("ours", driver)
        stock = running[suite.name, variant.baseline].result()
        ours = running[suite.name, variant].result()
        found = compare(suite, variant, stock, ours, self._differences, in_part=self.in_part)
        if not found.unexpected or ours.broken:
            return found
        # What depends on time can be late on a busy machine. It is run once more, alone and in plain sight.
        nodes = [worse.ours.node for worse in found.unexpected if worse.ours.node]
        print(
            f"{suite.name:28} {variant!s:18} {len(nodes)} are worse than expected, and run once more",
            flush=True,
        )
        again = run(suite, variant, python, folder, nodes)
        ours.outcomes |= again.outcomes
        return compare(suite, variant, stock, ours, self._differences, in_part=self.in_part)


if __name__ == "__main__":
    sys.exit(main())
