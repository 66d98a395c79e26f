"""Stands in for Google's client, which the suite's conftest imports and no test that is selected uses."""
