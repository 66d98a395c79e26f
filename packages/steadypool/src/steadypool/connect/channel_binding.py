"""`channel_binding=require` for a driver that cannot bind: the certificate is proven first, then pinned.

SCRAM-SHA-256-PLUS (RFC 5802, RFC 5929 tls-server-end-point, RFC 7677) mixes the hash of the server's certificate
into the log-in. When it succeeds, whoever holds the certificate's key also knows the password's verifier: nobody
stands between. `prove` makes such a log-in and hangs up; from then on a TLS context with `pin` talks to exactly the
certificates that were proven, and ends the handshake with any other before a word of the log-in is said.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import functools
import getpass
import hashlib
import hmac
import secrets
import socket
import ssl
import stringprep
import struct
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from steadypool.connect.failure import BindingRefused, CertificateNotProven, ServerRefused
from steadypool.connect.log_in import check_rounds

PLUS = "SCRAM-SHA-256-PLUS"
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
_PROTOCOL = 196608
_MOST_PER_PLACE = 64
_LARGEST_MESSAGE = 65_536

Result = TypeVar("Result")

Place = tuple[str, int, str | None]
"""A host, its port, and the user whose password was the proof."""


@dataclass(frozen=True, slots=True)
class Login:
    """Who logs in."""

    user: str | None
    password: str | None = field(repr=False)
    database: str | None = None


class ProvenCertificates:
    """Which certificates are proven, by place. Certificates are kept as the SHA-256 of their DER form."""

    def __init__(self) -> None:
        self._proven: dict[Place, dict[bytes, None]] = {}
        self._doubted: set[Place] = set()

    def needs_proof(self, place: Place) -> bool:
        """Whether no certificate is known there, or an unknown one was just seen."""
        return place in self._doubted or not self._proven.get(place)

    def doubt(self, place: Place) -> None:
        """An unknown certificate was seen there."""
        self._doubted.add(place)

    def add(self, place: Place, certificate: bytes) -> None:
        """Remember a proof; the oldest is forgotten when there are many."""
        known = self._proven.setdefault(place, {})
        known[fingerprint(certificate)] = None
        while len(known) > _MOST_PER_PLACE:
            del known[next(iter(known))]
        self._doubted.discard(place)

    def of(self, place: Place) -> frozenset[bytes]:
        """The fingerprints that are proven there."""
        return frozenset(self._proven.get(place, ()))


PROVEN = ProvenCertificates()
"""What this process has proven so far."""


def fingerprint(certificate: bytes) -> bytes:
    """SHA-256 of a certificate in DER form."""
    return hashlib.sha256(certificate).digest()


def pin(context: ssl.SSLContext, fingerprints: frozenset[bytes]) -> None:
    """Let handshakes with `context` succeed only where the server's certificate is one of these."""

    class Pinned(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            certificate = self.getpeercert(binary_form=True)
            if certificate is None or fingerprint(certificate) not in fingerprints:
                raise CertificateNotProven("the server's certificate is not the one that was proven")

    context.sslobject_class = Pinned


def unpin(context: ssl.SSLContext) -> None:
    """Undo `pin`."""
    context.sslobject_class = ssl.SSLObject


# -- the proof -------------------------------------------------------------------------------------------------


async def prove(context: ssl.SSLContext, hostname: str, peer: Any, login: Login, *, direct: bool) -> bytes:
    """Log in with channel binding and hang up.

    Args:
        context: what TLS demands; its own checks of names and authorities apply as well.
        hostname: the server's name, for SNI and for those checks.
        peer: the socket address to connect to.
        login: who logs in.
        direct: whether TLS starts at once, without asking (sslnegotiation=direct).

    Returns:
        The certificate of the server, in DER form; it is proven.

    Raises:
        BindingRefused: the server does not bind, or did not prove anything.
        ServerRefused: the server refused the log-in.
        OSError: the network, or TLS.
    """
    if login.password is None:
        raise BindingRefused(
            "channel_binding=require needs a password in the URL or as password=; there is none"
        )
    family = socket.AF_INET6 if len(peer) == 4 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, peer)
        if not direct:
            await loop.sock_sendall(sock, _SSL_REQUEST)
            # one byte and no more: what comes unencrypted behind it must not pass for the server's word
            if await loop.sock_recv(sock, 1) != b"S":
                raise BindingRefused("the server does not speak TLS")
        channel = _Channel(sock, context, hostname)
        certificate = await channel.handshake()
        if certificate is None:
            raise BindingRefused("the server showed no certificate")
        await _log_in(channel, login, login.password, certificate)
        return certificate


class _Channel:
    """TLS over a socket, without transports: when the socket is closed, nothing is left to end."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, hostname: str) -> None:
        self._socket = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)

    async def handshake(self) -> bytes | None:
        """Agree on the keys; returns the server's certificate in DER form."""
        await self._carry(self._tls.do_handshake)
        return self._tls.getpeercert(binary_form=True)

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        await self._carry(functools.partial(self._tls.write, data))

    async def receive(self, count: int) -> bytes:
        """Exactly so many bytes."""
        data = b""
        while len(data) < count:
            part = await self._carry(functools.partial(self._tls.read, count - len(data)))
            if not part:
                raise ConnectionResetError(
                    errno.ECONNRESET, "the server closed the connection during the log-in"
                )
            data += part
        return data

    async def _carry(self, step: Callable[[], Result]) -> Result:
        """Take a step of TLS, carrying bytes to and from the socket as long as it needs them."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._flush()
                received = await loop.sock_recv(self._socket, _LARGEST_MESSAGE)
                if received:
                    self._incoming.write(received)
                else:
                    self._incoming.write_eof()
                continue
            await self._flush()
            return result

    async def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            await asyncio.get_running_loop().sock_sendall(self._socket, data)


async def _log_in(
    channel: _Channel,
    login: Login,
    password: str,
    certificate: bytes,
) -> None:
    user = login.user or getpass.getuser()
    names = b"".join(
        f"{k}\0{v}\0".encode() for k, v in (("user", user), ("database", login.database or user))
    )
    await channel.send(struct.pack("!ii", len(names) + 9, _PROTOCOL) + names + b"\0")
    offered = (await _authentication(channel, 10)).split(b"\0")
    if PLUS.encode() not in offered:
        raise BindingRefused("the server offers no log-in with channel binding")
    exchange = ScramPlus(password, certificate_hash(certificate))
    first = exchange.first()
    await channel.send(_password_message(PLUS.encode() + b"\0" + struct.pack("!i", len(first)) + first))
    challenge = await _authentication(channel, 11)
    # In a thread: the server says how long it takes.
    await channel.send(_password_message(await asyncio.to_thread(exchange.final, challenge)))
    exchange.verify(await _authentication(channel, 12))


def _password_message(body: bytes) -> bytes:
    return b"p" + struct.pack("!i", len(body) + 4) + body


async def _authentication(channel: _Channel, expected: int) -> bytes:
    """The body of the next message, which must be a request for authentication of one kind."""
    kind, length = struct.unpack("!ci", await channel.receive(5))
    if not 4 <= length <= _LARGEST_MESSAGE:
        raise BindingRefused("the server does not speak Postgres's protocol")
    body = await channel.receive(length - 4)
    if kind == b"v":  # the server speaks an older minor version, or lacks an option: of no matter here
        return await _authentication(channel, expected)
    if kind == b"E":
        fields = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
        raise ServerRefused(fields.get(b"M", "refused"), fields.get(b"C"))
    if kind != b"R" or length < 8 or struct.unpack("!i", body[:4])[0] != expected:
        raise BindingRefused(
            "the server asks for another log-in than SCRAM, which cannot be bound to the channel"
        )
    return body[4:]


class ScramPlus:
    """The client's side of one SCRAM-SHA-256-PLUS exchange.

    Args:
        password: as it was typed.
        binding: the channel's binding data, the hash of the server's certificate.
        nonce: the client's; random unless a test gives one.
    """

    _HEADER = b"p=tls-server-end-point,,"

    def __init__(self, password: str, binding: bytes, nonce: str | None = None) -> None:
        self._password = prepared(password)
        self._binding = binding
        self._nonce = nonce or base64.b64encode(secrets.token_bytes(18)).decode()
        self._signature = b""

    def first(self) -> bytes:
        """The first message. The user is in the start-up message already, so the name stays empty."""
        return self._HEADER + self._bare()

    def _bare(self) -> bytes:
        return f"n=,r={self._nonce}".encode()

    def final(self, challenge: bytes) -> bytes:
        """The answer to the server's challenge.

        Raises:
            BindingRefused: it is none to ours.
            ClientRefused: it asks for too many rounds.
        """
        try:
            values = dict(part.split("=", 1) for part in challenge.decode("ascii").split(","))
            salt, rounds = base64.b64decode(values["s"], validate=True), check_rounds(values["i"])
            nonce = values["r"]
        except (ValueError, KeyError) as error:
            raise BindingRefused("the server's challenge is malformed") from error
        if not nonce.startswith(self._nonce) or nonce == self._nonce or rounds < 1:
            raise BindingRefused("the server's challenge is not an answer to ours")
        salted = hashlib.pbkdf2_hmac("sha256", self._password, salt, rounds)
        key = _hmac(salted, b"Client Key")
        bound = base64.b64encode(self._HEADER + self._binding)
        without_proof = b"c=" + bound + b",r=" + nonce.encode()
        exchange = b",".join((self._bare(), challenge, without_proof))
        signature = _hmac(hashlib.sha256(key).digest(), exchange)
        proof = bytes(a ^ b for a, b in zip(key, signature, strict=True))
        self._signature = _hmac(_hmac(salted, b"Server Key"), exchange)
        return without_proof + b",p=" + base64.b64encode(proof)

    def verify(self, answer: bytes) -> None:
        """Check that the server knows the password's verifier, and saw the same certificate as we did."""
        expected = b"v=" + base64.b64encode(self._signature)
        if not self._signature or not hmac.compare_digest(answer.split(b",")[0], expected):
            raise BindingRefused("the server did not prove that it knows the password")


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def prepared(password: str) -> bytes:
    """SASLprep (RFC 4013); what it forbids is used as it was typed, as Postgres does on both sides."""
    raw = password.encode()
    if password.isascii():
        return raw
    mapped = "".join(
        " " if stringprep.in_table_c12(character) else character
        for character in password
        if not stringprep.in_table_b1(character)
    )
    normal = unicodedata.normalize("NFKC", mapped)
    forbidden = (
        stringprep.in_table_a1, stringprep.in_table_c12, stringprep.in_table_c21_c22, stringprep.in_table_c3,
        stringprep.in_table_c4, stringprep.in_table_c5, stringprep.in_table_c6, stringprep.in_table_c7,
        stringprep.in_table_c8, stringprep.in_table_c9,
    )  # fmt: skip
    if not normal or any(test(character) for character in normal for test in forbidden):
        return raw
    if any(map(stringprep.in_table_d1, normal)):  # right-to-left text must be so from end to end
        mixed = any(map(stringprep.in_table_d2, normal))
        if mixed or not (stringprep.in_table_d1(normal[0]) and stringprep.in_table_d1(normal[-1])):
            return raw
    return normal.encode()


# -- the hash of a certificate -----------------------------------------------------------------------------------

_SIGNATURE_HASHES = {
    # RFC 5929: the hash of the certificate's own signature; SHA-256 in place of MD5 and SHA-1
    "2a864886f70d010104": "sha256",  # md5WithRSAEncryption
    "2a864886f70d010105": "sha256",  # sha1WithRSAEncryption
    "2a864886f70d01010e": "sha224",
    "2a864886f70d01010b": "sha256",
    "2a864886f70d01010c": "sha384",
    "2a864886f70d01010d": "sha512",
    "2a8648ce3d0401": "sha256",  # ecdsa-with-SHA1
    "2a8648ce3d040301": "sha224",
    "2a8648ce3d040302": "sha256",
    "2a8648ce3d040303": "sha384",
    "2a8648ce3d040304": "sha512",
}
_RSA_PSS = "2a864886f70d01010a"
_PSS_HASHES = {
    bytes.fromhex("0609608648016503040201"): "sha256",
    bytes.fromhex("0609608648016503040202"): "sha384",
    bytes.fromhex("0609608648016503040203"): "sha512",
    bytes.fromhex("0609608648016503040204"): "sha224",
}


def certificate_hash(certificate: bytes) -> bytes:
    """The binding data `tls-server-end-point` of a certificate in DER form.

    Raises:
        BindingRefused: its signature has no hash of its own (Ed25519), so the binding is not defined.
    """
    try:
        _, outer, _ = der_element(certificate, 0)
        _, _, after = der_element(certificate, outer)  # the part that is signed
        _, start, end = der_element(certificate, after)  # signatureAlgorithm
        _, identifier, identifier_end = der_element(certificate, start)
    except IndexError as error:
        raise BindingRefused("the server's certificate is malformed") from error
    algorithm = certificate[identifier:identifier_end].hex()
    name = _SIGNATURE_HASHES.get(algorithm)
    if algorithm == _RSA_PSS:
        name = _pss_hash(certificate[identifier_end:end])
    if name is None:
        raise BindingRefused(
            "the certificate's signature has no hash that channel binding could use; a certificate signed with RSA "
            "or ECDSA has one"
        )
    return hashlib.new(name, certificate).digest()


def _pss_hash(parameters: bytes) -> str:
    """The hash that RSA-PSS parameters name first; without one it is SHA-1, which RFC 5929 replaces."""
    named = {parameters.find(oid): name for oid, name in _PSS_HASHES.items() if oid in parameters}
    return named[min(named)] if named else "sha256"


def der_element(data: bytes, at: int) -> tuple[int, int, int]:
    """The tag, the start and the end of the DER element at `at`."""
    tag, length, start = data[at], data[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length = int.from_bytes(data[start : start + count], "big")
        start += count
    if start + length > len(data):
        raise IndexError("beyond the end")
    return tag, start, start + length
