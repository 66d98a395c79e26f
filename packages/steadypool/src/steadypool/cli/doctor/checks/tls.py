"""Whether the way to the server is encrypted, whether it is the right server, and until when."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import struct
from datetime import UTC, datetime

from steadypool.cli.doctor.examination import CheckContext
from steadypool.cli.doctor.finding import Finding, check, note, ok, problem, warning
from steadypool.connect.channel_binding import der_element
from steadypool.connect.dsn import Host

_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
SOON = 14
"""Days before its end from which a certificate is worth a warning."""
VERIFIED = ("verify-full", "verify-ca")


@check("tls")
async def tls(x: CheckContext) -> list[Finding]:
    """TLS: the mode, what is verified, and the days left of the certificate."""
    connection = await x.connection()
    mode = x.target.options.get("sslmode", x.target.options.get("ssl", "prefer"))
    hosts = [host for host in x.target.hosts if not host.is_socket]
    if not connection.pgconn.ssl_in_use:
        return [_plain(mode, hosts)]
    found = [_mode(mode)]
    for host in hosts:
        end = await _certificate_end(host)
        if end is not None:
            found.append(_days(host, end, x.today))
    return found


def _plain(mode: str, hosts: list[Host]) -> Finding:
    said = f"not encrypted (sslmode {mode})"
    if all(_is_near(host) for host in hosts):
        return ok(f"{said}, to this machine")
    why = "Whoever is on the way reads the data; the password too, unless it is SCRAM's."
    return warning(said, why, "?sslmode=verify-full in DATABASE_URL")


def _is_near(host: Host) -> bool:
    try:
        return ipaddress.ip_address(host.address or host.name).is_loopback
    except ValueError:
        return host.name == "localhost"


def _mode(mode: str) -> Finding:
    if mode in VERIFIED:
        return ok(f"encrypted and verified (sslmode {mode})")
    said = f"encrypted, but the server's certificate is not verified (sslmode {mode})"
    why = "Somebody who can redirect the traffic can play the server."
    return note(
        said, why, "?sslmode=verify-full in DATABASE_URL, with sslrootcert=system or the provider's file"
    )


async def _certificate_end(host: Host) -> datetime | None:
    """Until when the certificate that the host shows is valid; None where it shows none to a plain handshake."""
    reader, writer = await asyncio.open_connection(host.address or host.name, host.port)
    try:
        writer.write(_SSL_REQUEST)
        if await reader.readexactly(1) != b"S":
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = (
            ssl.CERT_NONE
        )  # it is looked at, not trusted: nothing is sent over this connection
        await writer.start_tls(context, server_hostname=host.name)
        peer: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
        certificate = None if peer is None else peer.getpeercert(binary_form=True)
        return None if certificate is None else valid_until(certificate)
    except (ssl.SSLError, asyncio.IncompleteReadError):
        return None
    finally:
        writer.transport.abort()


def valid_until(certificate: bytes) -> datetime:
    """The end of the validity of a certificate in DER form (RFC 5280, section 4.1)."""
    _, outer, _ = der_element(certificate, 0)
    _, at, _ = der_element(certificate, outer)
    if certificate[at] == 0xA0:  # the version, which version 1 leaves out
        _, _, at = der_element(certificate, at)
    for _ in ("serial number", "signature", "issuer"):
        _, _, at = der_element(certificate, at)
    _, validity, _ = der_element(certificate, at)
    _, _, after = der_element(certificate, validity)
    tag, start, end = der_element(certificate, after)
    text = certificate[start:end].decode("ascii")
    if tag == 0x17:  # UTCTime: two digits of the year, 50 to 99 are of the last century
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _days(host: Host, end: datetime, today: datetime) -> Finding:
    days = (end - today).days
    said = f"{host}: the certificate is valid for {days} more days, until {end:%Y-%m-%d}"
    if days < 0:
        return problem(
            said, "Clients that verify it are refused.", "renew the server's certificate", "log-in-refused"
        )
    if days < SOON:
        return warning(
            said, "After that, clients that verify it are refused.", "renew the server's certificate"
        )
    return ok(said)
