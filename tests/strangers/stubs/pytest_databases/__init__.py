"""Stands in for the package that starts databases in containers: the suite gets the server of its run."""
