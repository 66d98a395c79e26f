"""`python -m simulation 20000` runs so many schedules; `--seed 7` repeats one and shows it."""

from __future__ import annotations

import argparse
import json
import sys

from . import campaign
from .schedule import draw

CHUNK = 500


def main() -> int:
    """Run what the command line asks for; 1 if a rule was broken."""
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("schedules", nargs="?", type=int, default=1000, help="how many schedules to run")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the seed of the first")
    parser.add_argument(
        "--seed", type=int, help="repeat the schedule of this seed, and shrink it if it fails"
    )
    parser.add_argument("--json", action="store_true", help="say what was reached in a form for machines")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        print(draw(arguments.seed).describe())
        return _report(campaign.run_seeds([arguments.seed]))
    total = campaign.Tally()
    for start in range(arguments.first, arguments.first + arguments.schedules, CHUNK):
        tally = campaign.run_seeds(range(start, min(start + CHUNK, arguments.first + arguments.schedules)))
        total.schedules += tally.schedules
        total.steps += tally.steps
        total.seconds += tally.seconds
        total.pairs |= tally.pairs
        total.transitions |= tally.transitions
        total.failure = tally.failure
        if tally.failure is not None:
            break
        if not arguments.json:
            print(f"{total.schedules} schedules, {total.seconds:.1f} s", flush=True)
    if arguments.json:
        print(json.dumps(_as_json(total)))
        return 0 if total.failure is None else 1
    return _report(total)


def _as_json(tally: campaign.Tally) -> dict[str, object]:
    return {
        "schedules": tally.schedules,
        "steps": tally.steps,
        "seconds": tally.seconds,
        "pairs": sorted([state.value, event] for state, event in tally.pairs),
        "transitions": sorted([before.value, after.value] for before, after in tally.transitions),
        "failure": None if tally.failure is None else str(tally.failure),
    }


def _report(tally: campaign.Tally) -> int:
    if tally.failure is not None:
        print(tally.failure, file=sys.stderr)
        return 1
    print(f"{tally.schedules} schedules of {tally.steps / max(1, tally.schedules):.0f} steps, all rules held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
