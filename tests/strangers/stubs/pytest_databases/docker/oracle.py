"""Not there: no test that is selected uses it."""

from pytest_databases.docker import Service as OracleService

__all__ = ["OracleService"]
