"""What the connections of one engine over `postgresql+steadypool` have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from steadypool._clock import SYSTEM_CLOCK, Clock

_OBJECTS = (
    b"DOMAIN EXTENSION FOREIGN_TABLE FUNCTION MATERIALIZED_VIEW OPERATOR PROCEDURE ROUTINE RULE SCHEMA SEQUENCE TABLE"
    b" TYPE VIEW"
)
CHANGES_SCHEMA = frozenset(
    b"%s %s" % (verb, what.replace(b"_", b" "))
    for verb in (b"ALTER", b"CREATE", b"DROP")
    for what in _OBJECTS.split()
)
"""Command tags after which a prepared statement may mean something else."""


@dataclass
class AdapterContext:
    """What the connections of one engine have in common.

    `every_transaction` is asked for what is to be set in each transaction, by name. `leave_timeout` is how many
    seconds a ROLLBACK that nobody waits for may take. `schema` counts the changes of the schema that were seen: a
    statement that was prepared before one may return other columns after it. `one_at_a_time` is asked whether every
    answer has to be waited for: behind a pooler that is not known to carry two statements at once. `keeps_session` is
    asked whether the next transaction meets the same session: not behind a pooler that may lend it to others.
    `statement_timeout` is how many seconds a statement may run on the server, if nobody says otherwise.
    """

    every_transaction: Callable[[], Mapping[str, str]] = dict
    leave_timeout: float | None = None
    schema: int = 0
    one_at_a_time: Callable[[], bool] = lambda: False
    keeps_session: Callable[[], bool] = lambda: True
    statement_timeout: float | None = None
    clock: Clock = SYSTEM_CLOCK
