"""The commands put together, and what their ends mean."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from cyclopts import App, CycloptsError

from steadypool.cli.advise import advise
from steadypool.cli.doctor import doctor
from steadypool.cli.lab import lab
from steadypool.cli.output import Output
from steadypool.cli.why import why
from steadypool.errors import SteadypoolError

DONE, FAILED, MISUSED = 0, 1, 2
_LAB_PACKAGES = {"asyncpg", "greenlet", "matplotlib", "psycopg", "psycopg_pool", "sqlalchemy"}


def _version() -> str:
    try:
        return version("steadypool")
    except PackageNotFoundError:
        return "unknown"


app = App(
    name="steadypool",
    help="A Postgres connection pool for async Python: its tools.",
    help_epilogue="Exit codes: 0 done, 1 the answer is no or it failed, 2 used wrongly.",
    version=_version,
    result_action="return_value",
)
app.command(doctor)
app.command(advise)
app.command(why)
app.command(lab)


def run(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code.

    Example:
        >>> run(["lab", "no-such-command"])  # doctest: +SKIP
        2
    """
    # What libraries log is no output of ours; without any handler Python would print it.
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        ended = app(list(arguments), exit_on_error=False)
    except CycloptsError:
        return MISUSED  # already said, with the usage
    except KeyboardInterrupt:
        return FAILED
    except (SteadypoolError, _lab_error()) as error:
        Output().fail(str(error))
        return FAILED
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _LAB_PACKAGES:
            raise
        Output().fail(
            f'this needs {error.name}, which is not installed. Install it with: pip install "steadypool[lab]"'
        )
        return FAILED
    return ended if isinstance(ended, int) else DONE


def _lab_error() -> type[Exception]:
    from steadypool.lab.errors import LabError

    return LabError
