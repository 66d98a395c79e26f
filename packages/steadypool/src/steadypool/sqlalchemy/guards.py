"""What an engine's dialect is told to enforce."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from steadypool.clock import SYSTEM_CLOCK, Clock
from steadypool.connect.network import NETWORK, Network
from steadypool.settings import Password, Pooler

TIMEOUT_OPTION = "steadypool_statement_timeout"
"""Execution option: seconds that a statement may run; the engine's own limit if absent."""


@dataclass
class Guards:
    """What an engine's dialect enforces. Seconds; None for no limit.

    `server_settings` are what the server enforces itself, even when this process has gone; start-up options, or,
    where a pooler does not let them pass, set in each transaction. `on_guards_lost` is told so, once.
    """

    statement_timeout: float | None = None
    connect_timeout: float = 30.0
    leave_timeout: float = 2.0
    password: Password | None = None
    server_settings: Mapping[str, str] = field(default_factory=dict[str, str])
    socket_options: Mapping[str, str] = field(default_factory=dict[str, str])
    pooler: Pooler = Pooler.AUTO
    on_guards_lost: Callable[[str], None] | None = None
    network: Network = NETWORK
    clock: Clock = SYSTEM_CLOCK


class LimitReached(TimeoutError):
    """A statement was given up by the client. Becomes StatementTimeout or DeadlineExceeded."""

    def __init__(self, seconds: float, deadline: float | None) -> None:
        super().__init__(f"no answer within {seconds:.2f}s")
        self.seconds = seconds
        self.deadline = deadline
