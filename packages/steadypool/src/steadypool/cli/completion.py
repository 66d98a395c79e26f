"""`steadypool completion`: commands and options completed by the shell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from steadypool.cli.output import Output

if TYPE_CHECKING:
    from cyclopts import App

__all__ = ["completion"]

SHELLS = ("bash", "zsh", "fish")
Shell = Literal["bash", "zsh", "fish"]


def completion(
    shell: Shell | None = None,
    /,
    *,
    install: Annotated[bool, Parameter(negative="")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Print what makes a shell complete commands and options, or install it.

    `--install` writes it where the shell looks, and for bash and zsh adds a line to `.bashrc` or `.zshrc`; it says
    where. Without it nothing is written.

    **Examples.**

        # for this shell, from the next one that is started on
        steadypool completion --install
        # for this session only
        source <(steadypool completion bash)
        # printed, to be put where fish looks: ~/.config/fish/completions/steadypool.fish
        steadypool completion fish

    Parameters
    ----------
    shell
        Which one; by default the one of $SHELL.
    install
        Write it to its place instead of printing it.
    as_json
        Print the shell and the script, or the place, as JSON.
    """
    out = Output(as_json=as_json)
    chosen = shell or _own_shell()
    if chosen is None:
        out.fail(f"$SHELL is none of {', '.join(SHELLS)}; say which: steadypool completion bash")
        return 2
    if install:
        place = _app().install_completion(shell=chosen)
        out.result({"shell": chosen, "installed": str(place)})
        out.text(f"completion for {chosen} is in {place}; it works in the next shell that is started")
        return 0
    script = _app().generate_completion(shell=chosen)
    out.result({"shell": chosen, "script": script})
    if not as_json:
        print(script)  # as it is: a shell reads it
    return 0


def _own_shell() -> Shell | None:
    name = Path(os.environ.get("SHELL", "")).name
    return next((shell for shell in ("bash", "zsh", "fish") if shell == name), None)


def _app() -> App:
    from steadypool.cli.app import app

    return app
