"""A self-signed certificate for the lab's own servers, made by the system's `openssl`.

Python's standard library speaks TLS and makes no certificates. `openssl` is on practically every system that has
Python with TLS, so no package is asked for.
"""

from __future__ import annotations

import ipaddress
import shutil
import ssl
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steadypool_lab.errors import LabError


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key. Clients that verify take `path` as their root certificate (`sslrootcert`)."""

    path: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        """For the side that shows the certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["postgresql"])  # libpq insists on it for the direct handshake
        context.load_cert_chain(self.path, self.key)
        return context


def self_signed(folder: Path, names: Sequence[str] = ("localhost", "127.0.0.1")) -> Certificate:
    """Make a certificate, valid for 30 days, for these host names and addresses.

    Args:
        folder: where `server.crt` and `server.key` are written.
        names: what clients may call the server.

    Raises:
        LabError: there is no `openssl`, or it failed.

    Example:
        >>> certificate = self_signed(Path("/tmp"))  # doctest: +SKIP
    """
    program = shutil.which("openssl")
    if program is None:
        raise LabError("TLS needs the program `openssl` to make a certificate; install the package openssl")
    alternatives = ",".join(f"{'IP' if _is_address(name) else 'DNS'}:{name}" for name in names)
    # A file and no -addext: LibreSSL, which macOS has, learned that option late.
    (folder / "openssl.cnf").write_text(
        "[req]\nprompt=no\ndistinguished_name=dn\nx509_extensions=v3\n"
        f"[dn]\nCN={names[0]}\n[v3]\nsubjectAltName={alternatives}\nbasicConstraints=critical,CA:TRUE\n"
    )
    made = Certificate(folder / "server.crt", folder / "server.key")
    done = subprocess.run(
        [
            *(program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-sha256", "-days", "30"),
            *("-config", str(folder / "openssl.cnf"), "-keyout", str(made.key), "-out", str(made.path)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise LabError(f"openssl could not make a certificate: {done.stderr.strip()}")
    made.key.chmod(0o600)
    return made


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
