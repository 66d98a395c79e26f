"""The routes, and what they share. No SQL here: services do that."""
