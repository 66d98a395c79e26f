"""`python -m backend`: everything that `make run` does after setting up."""

from __future__ import annotations

import sys

from backend.launch import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
