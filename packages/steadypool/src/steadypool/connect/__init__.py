"""Opening one connection, for every driver, and letting go of it."""
