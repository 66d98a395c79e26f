"""SQLAlchemy's tests for dialects, all of them."""

from sqlalchemy.testing.suite import *  # noqa: F403
from sqlalchemy.testing.suite import ServerSideCursorsTest as _ServerSideCursorsTest


class ServerSideCursorsTest(_ServerSideCursorsTest):
    """SQLAlchemy's tests ask by the driver's name, "a huge issue as it prevents these tests from being usable by
    third party dialects"; ours answers for itself."""

    def _is_server_side(self, cursor):
        if self.engine.dialect.driver == "steadypool":
            return cursor.server_side
        return super()._is_server_side(cursor)
