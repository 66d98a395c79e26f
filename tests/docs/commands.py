"""Whether a command in a document would be understood: by the command line, make, pip, or as a file that is there."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

from steadypool.cli.app import app
from steadypool.cli.doctor.run import chosen_checks

ROOT = Path(__file__).resolve().parents[2]
KNOWN = {"psql", "export", "cd", "curl", "source"}
"""Programs of other people's, whose arguments are theirs."""


def commands_in(code: str) -> list[list[str]]:
    """The words of each command: without a prompt, comments, and variables set before it."""
    joined = re.sub(r"\\\n\s*", " ", code)
    words = (shlex.split(line.removeprefix("$ "), comments=True) for line in joined.splitlines())
    return [stripped for line in words if (stripped := _without_variables(line))]


def _without_variables(words: list[str]) -> list[str]:
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return words


def check(words: list[str], files: Path) -> None:
    """Fail unless the command is there and would take these arguments."""
    program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    if program == "steadypool":
        check_ours(arguments)
    elif program == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        named = {word for word in arguments if "=" not in word}
        assert named <= targets, f"make has no {named - targets}"
    elif program in ("pip", "uv"):
        check_installing(arguments)
    elif program in ("python", "bash"):
        check_running(arguments, files)
    elif words[0].startswith(".venv/bin/"):
        assert (ROOT / words[0]).exists(), f"{words[0]} does not exist"
    else:
        assert program in KNOWN, f"what is {program}?"


def check_ours(arguments: list[str]) -> None:
    """The command line's own parser takes it; names of checks exist."""
    app.parse_args(arguments, exit_on_error=False, print_error=False)
    if arguments[0] == "doctor" and "--only" in arguments:
        chosen_checks(arguments[arguments.index("--only") + 1].split(","))


def check_installing(arguments: list[str]) -> None:
    """The extras exist."""
    project = tomllib.loads((ROOT / "packages/steadypool/pyproject.toml").read_text())["project"]
    for extras in re.findall(r"steadypool\[(.*?)\]", " ".join(arguments)):
        unknown = set(extras.split(",")) - set(project["optional-dependencies"])
        assert not unknown, f"steadypool has no extra {unknown}"


def check_running(arguments: list[str], files: Path) -> None:
    """The file is in the repository, or was made by the page."""
    if arguments[0] == "-m":
        assert arguments[1] in {"pytest", "backend", "pip", "venv", "http.server"}, arguments
    else:
        assert any((folder / arguments[0]).exists() for folder in (ROOT, files)), f"no file {arguments[0]}"
