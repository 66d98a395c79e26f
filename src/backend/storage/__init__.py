"""Audio bytes: where they lie, and whether they are audio."""
