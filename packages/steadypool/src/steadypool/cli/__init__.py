"""The command `steadypool`; needs `pip install "steadypool[cli]"`, and its lab the distribution `steadypool-lab`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 the answer is no or it failed, 2 used wrongly.

    Example:
        >>> main(["--version"]) in (0, 1)  # doctest: +SKIP
        True
    """
    try:
        from steadypool.cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("cyclopts", "rich"):
            raise
        print(
            f"steadypool: the command line needs {error.name}, which is not installed. "
            'Install it with: pip install "steadypool[cli]"',
            file=sys.stderr,
        )
        return 1
    return run(sys.argv[1:] if arguments is None else arguments)
