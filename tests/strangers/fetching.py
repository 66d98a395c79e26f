"""What a suite runs on: its source distribution from the package index, and an environment for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from strangers.catalogue import CACHE, HERE, REPOSITORY, Source, Suite


class FetchError(Exception):
    """Something could not be fetched or installed; the message says what, and what the client said."""


def fetch_source(source: Source) -> Path:
    """The unpacked source distribution, fetched and checked against its hash where it is not there yet.

    Raises:
        FetchError: it cannot be had, or is another file than the one that was pinned.
    """
    if source.folder.is_dir():
        return source.folder
    downloads = CACHE / "downloads" / source.folder.name
    downloads.mkdir(parents=True, exist_ok=True)
    wanted = downloads / "source.txt"
    wanted.write_text(source.requirement + "\n")
    # pip asks the package's build backend for its metadata before it keeps the file; the backends are pinned, too.
    arguments = ("download", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--require-hashes")
    _run(
        f"download the sources of {source}",
        [environment("tools"), "-m", "pip", *arguments, "--dest", downloads, "--requirement", wanted],
    )
    archives = list(downloads.glob("*.tar.gz"))
    if len(archives) != 1:
        raise FetchError(
            f"cannot unpack the sources of {source}: expected one .tar.gz in {downloads}, found {archives}"
        )
    return _unpack(archives[0], source.folder)


def _unpack(archive: Path, folder: Path) -> Path:
    scratch = folder.with_name(folder.name + ".new")
    shutil.rmtree(scratch, ignore_errors=True)
    with tarfile.open(archive) as opened:
        opened.extractall(scratch, filter="data")
    (root,) = scratch.iterdir()
    root.rename(folder)
    shutil.rmtree(scratch)
    return folder


def environment(name: str) -> Path:
    """The Python of the environment that `requirements/NAME.txt` pins, made where it is not there or has changed.

    Raises:
        FetchError: a package cannot be installed.
    """
    requirements = HERE / "requirements" / f"{name}.txt"
    folder = CACHE / "environments" / name
    python, stamp = folder / "bin" / "python", folder / "made-from.txt"
    wanted = f"{sys.version}\n{REPOSITORY}\n{requirements.read_text()}"
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    uv = [_uv(), *_certificates()]
    _run(
        f"make the environment {name!r}",
        [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder],
    )
    install = [*uv, "pip", "install", "--quiet", "--python", python]
    _run(
        f"install what the environment {name!r} needs",
        [*install, "--require-hashes", "--no-build", "--requirement", requirements],
    )
    if name != "tools":
        library = REPOSITORY / "packages" / "steadypool"
        _run("install steadypool", [*install, "--no-deps", "--editable", library])
    stamp.write_text(wanted)
    return python


def prepare(suite: Suite) -> tuple[Path, Path]:
    """The Python of a suite's environment, and the folder of its sources."""
    return environment(suite.environment), fetch_source(suite.source)


def _uv() -> Path:
    found = sorted((REPOSITORY / ".tools").glob("uv-*"))
    if not found:
        raise FetchError("uv is not in .tools/: run `make setup` first")
    return found[-1]


def _certificates() -> list[str]:
    """The machine's certificates, where it has any: a company's proxy is known there and not among uv's own."""
    stores = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
    return ["--system-certs"] if any(Path(store).is_file() for store in stores) else []


def _run(purpose: str, command: list[str | Path]) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise FetchError(
            f"cannot {purpose}: {command[0]} ended with {done.returncode}\n{done.stdout[-4000:]}"
        )
