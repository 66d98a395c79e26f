"""The server of the run."""

import pytest

from pytest_databases.docker import Service as PostgresService


@pytest.fixture(scope="session")
def postgres_service() -> PostgresService:
    return PostgresService()
