"""The commands put together, and what their ends mean."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version

from cyclopts import App, CycloptsError
from cyclopts.help import DefaultFormatter, PanelSpec
from rich.box import ROUNDED, Box

from steadypool.cli.advise import advise
from steadypool.cli.completion import completion
from steadypool.cli.doctor import doctor
from steadypool.cli.output import Output
from steadypool.cli.why import why
from steadypool.errors import SteadypoolError
from steadypool.settings.validators import redact_urls

DONE, FAILED, MISUSED = 0, 1, 2
EXIT_CODES = "Exit codes: 0 done, 1 the answer is no or it failed, 2 used wrongly."
COMMANDS = "steadypool.commands"
"""Entry points of other distributions, each a module with a command of that name and the errors that it reports as
`FAILURES`; steadypool-lab adds `lab`."""
_LAB_PACKAGES = {"asyncpg", "greenlet", "matplotlib", "psycopg", "psycopg_pool", "sqlalchemy"}


def _version() -> str:
    try:
        return version("steadypool")
    except PackageNotFoundError:
        return "unknown"


app = App(
    name="steadypool",
    help="A Postgres connection pool for async Python: its tools.",
    help_epilogue=EXIT_CODES,
    version=_version,
    result_action="return_value",
)
app.command(doctor)
app.command(advise)
app.command(why)
_failures: list[type[Exception]] = [SteadypoolError]
for other in entry_points(group=COMMANDS):
    module = other.load()
    app.command(getattr(module, other.name))
    _failures += module.FAILURES
app.command(completion)


def run(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code.

    Example:
        >>> run(["lab", "no-such-command"])  # doctest: +SKIP
        2
    """
    # What libraries log is no output of ours; without any handler Python would print it.
    logging.getLogger().addHandler(logging.NullHandler())
    app.help_formatter = DefaultFormatter(panel_spec=PanelSpec(box=_frame()))
    try:
        ended = app(list(arguments), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        command = " ".join(("steadypool", *(error.command_chain or ())))
        Output().fail(f"{redact_urls(_said_by(error))} How it is used: {command} --help")
        return MISUSED
    except KeyboardInterrupt:
        return FAILED
    except tuple(_failures) as error:
        Output().fail(str(error))
        return FAILED
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _LAB_PACKAGES:
            raise
        Output().fail(
            f"this needs {error.name}, which is not installed. Install it with: pip install steadypool-lab"
        )
        return FAILED
    return ended if isinstance(ended, int) else DONE


def _frame() -> Box:
    """Around the parts of a help text: lines are for terminals, in a pipe and in a file there is text."""
    return ROUNDED if sys.stdout.isatty() else Box("    \n" * 8)


def _said_by(error: CycloptsError) -> str:
    error.verbose = False  # else it begins with its class and a place in our code
    return str(error).strip()
