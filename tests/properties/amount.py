"""How many examples are tried: few and always the same ones, or many new ones with PROPERTIES=N."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

MANY = int(os.environ.get("PROPERTIES") or 0)


def amount(few: int) -> settings:
    """Settings for a test that is run with `few` examples by `make test`."""
    return settings(
        max_examples=MANY or few,
        derandomize=not MANY,
        database=None,
        deadline=None,
        # To find the shortest list that fails takes minutes.
        phases=[Phase.generate, Phase.shrink] if MANY else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
