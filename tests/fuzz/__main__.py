"""Fuzz one target with atheris: `make fuzz TARGET=lexer SECONDS=60`, or in `tests/`: `python -m fuzz lexer 60`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["steadypool"]):
    from fuzz.targets import TARGETS


def main() -> None:
    """Run the target that the command line names, for so many seconds; a finding is written to a file and ends it."""
    name, seconds = sys.argv[1], int(sys.argv[2])
    if name not in TARGETS:
        sys.exit(f"fuzz: there is no target {name!r}; there are {', '.join(TARGETS)}")
    with tempfile.TemporaryDirectory(prefix="steadypool-corpus-") as folder:
        for number, seed in enumerate(TARGETS[name].seeds):
            Path(folder, str(number)).write_bytes(seed)
        options = [f"-max_total_time={seconds}", "-timeout=10", "-max_len=4096", f"-artifact_prefix={name}-"]
        atheris.Setup([sys.argv[0], *options, *sys.argv[3:], folder], TARGETS[name].one_input)
        atheris.Fuzz()


main()
