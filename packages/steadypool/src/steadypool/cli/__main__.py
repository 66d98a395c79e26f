"""`python -m steadypool.cli` is the command `steadypool`."""

from __future__ import annotations

import sys

from steadypool.cli import main

if __name__ == "__main__":
    sys.exit(main())
