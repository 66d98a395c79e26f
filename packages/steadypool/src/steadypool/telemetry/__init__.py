"""Where events go. One module a destination; each needs only the events, never the pool."""
