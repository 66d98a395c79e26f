"""The pool itself: which caller holds which connection. Knows neither SQL nor a driver, and has no clock of its own."""

from steadypool.pool.pool import Pool

__all__ = ["Pool"]
