"""Not there: no test that is selected uses it."""


class Cluster:
    """A name that the suite imports."""
