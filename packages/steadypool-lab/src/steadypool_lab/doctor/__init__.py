"""Checks of `steadypool doctor` that need the lab."""
