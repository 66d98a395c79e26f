"""Stands in for the client of Google, which the suite imports and no test that is selected uses."""


class Client:
    """A name in the annotations of the suite."""
