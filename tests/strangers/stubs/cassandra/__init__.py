"""Stands in for a driver that the suite imports and no test that is selected uses."""
