"""Logfire: the metrics and spans of `otel`, sent to Logfire where there is a token, and shown on the console.

Without a token nothing leaves the machine and no network is needed. `LOGFIRE_TOKEN` and Logfire's other variables are
read by Logfire itself.

```python
reporting = enable(database.source, service_name="plyr")
...
await asyncio.to_thread(reporting.stop)     # sends what is left, so it may wait
```
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import logfire

from steadypool.telemetry import otel

if TYPE_CHECKING:
    from logfire import Logfire, ScrubMatch

    from steadypool.telemetry.source import Source


class Reporting:
    """What `enable` began: `logfire` is the configured instance."""

    def __init__(self, instance: Logfire, stop: Callable[[], None]) -> None:
        self.logfire = instance
        self._stop = stop

    def stop(self) -> None:
        """Report no more, and send what is left. May wait for the network: not on the event loop."""
        self._stop()
        self.logfire.shutdown(timeout_millis=3_000)


def enable(source: Source, *, service_name: str, **options: Any) -> Reporting:
    """Configure Logfire and report a pool to it.

    Args:
        source: the pool: `database.source`.
        service_name: what Logfire calls the service.
        **options: anything else for `logfire.configure`; a `scrubbing` of one's own replaces ours.

    Example:
        >>> reporting = enable(database.source, service_name="plyr", environment="production")
    """
    defaults: dict[str, Any] = {
        "send_to_logfire": "if-token-present",
        "inspect_arguments": False,
        "scrubbing": logfire.ScrubbingOptions(callback=_keep_ours),
    }
    instance = logfire.configure(service_name=service_name, **{**defaults, **options})
    config = instance.config
    stop = otel.instrument(
        source,
        meter_provider=config.get_meter_provider(),
        tracer_provider=config.get_tracer_provider(),
    )
    return Reporting(instance, stop)


def _keep_ours(match: ScrubMatch) -> Any:
    """Logfire blots out what looks like a secret: a table `sessions`, or the word `session` for a way to run SQL.

    What is reported here has no values in it, so the names may stay. None leaves the decision to Logfire.
    """
    key = match.path[1] if len(match.path) > 1 else ""
    return match.value if str(key).startswith(("db.", "steadypool.")) else None
