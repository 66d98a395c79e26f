"""Whether somebody else's instrumentation draws a span for a statement, so that ours is not a second one.

What each of them covers was found by running it (`tests/integration/test_telemetry_upstream.py`): that of asyncpg
covers all that goes through `Connection` and `PreparedStatement`; that of SQLAlchemy what goes through a cursor,
and nothing at all on SQLAlchemy 2.1, which it refuses; that of psycopg only connections that `psycopg.connect` opened,
which steadypool's are not.
"""

from __future__ import annotations

import sys


def draws(driver: str, way: str, *, commit: bool) -> bool:
    """Whether an upstream instrumentation that is active now draws this statement.

    Args:
        driver: `asyncpg` or `psycopg`.
        way: `session` or `dedicated`.
        commit: whether the statement is a COMMIT.
    """
    if driver == "asyncpg" and _active("asyncpg", "AsyncPGInstrumentor"):
        return True
    return way == "session" and not commit and _active("sqlalchemy", "SQLAlchemyInstrumentor")


def _active(package: str, name: str) -> bool:
    module = sys.modules.get(f"opentelemetry.instrumentation.{package}")
    if module is None:
        return False
    # Each of these classes is a singleton: calling it gives the one that may have been switched on.
    instrumentor = getattr(module, name, None)
    return instrumentor is not None and bool(instrumentor().is_instrumented_by_opentelemetry)
