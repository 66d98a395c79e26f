"""SQLAlchemy's pytest plugin, which takes over the whole run: that is why it is a run of its own.

    python -m pytest -c tests/contract/compliance/setup.cfg tests/contract/compliance/suite.py --dburi URL

`test_compliance.py` calls it. The database needs the schemas `test_schema` and `test_schema_2`.
"""

import os

import pytest

pytest.register_assert_rewrite("sqlalchemy.testing.assertions")

from sqlalchemy.dialects.postgresql.base import PGDialect  # noqa: E402
from sqlalchemy.testing.plugin.pytestplugin import *  # noqa: E402, F403

from steadypool.sqlalchemy import SteadyPool  # noqa: E402
from steadypool.sqlalchemy.dialects.base import BoundedDialect  # noqa: E402

# The suite looks for the ways to set up a database next to the dialect; for Postgres SQLAlchemy has them.
BoundedDialect.load_provisioning = classmethod(lambda cls: PGDialect.load_provisioning())  # type: ignore[attr-defined]

if os.environ.get("COMPLIANCE_POOL") == "steadypool":
    # The suite makes its engines by SQLAlchemy's own `create_engine`.
    BoundedDialect.get_pool_class = classmethod(lambda cls, url: SteadyPool)  # type: ignore[attr-defined]
