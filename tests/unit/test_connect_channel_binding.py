"""SCRAM-SHA-256-PLUS: the exchange against a server of our own, SASLprep, and the hash of a certificate."""

from __future__ import annotations

import base64
import hashlib
import hmac
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadypool.connect.channel_binding import (
    Login,
    ProvenCertificates,
    ScramPlus,
    certificate_hash,
    fingerprint,
    pin,
    prepared,
    unpin,
)
from steadypool.connect.failure import BindingRefused

PLACE = ("h", 5432, "u")


class Server:
    """The server's side of RFC 5802, for one log-in."""

    def __init__(self, password: bytes, binding: bytes, rounds: int = 4096) -> None:
        self.salt, self.rounds, self.binding = b"0123456789abcdef", rounds, binding
        self.salted = hashlib.pbkdf2_hmac("sha256", password, self.salt, rounds)

    def challenge(self, first: bytes) -> bytes:
        header, _, self.bare = first.partition(b",,")
        assert header == b"p=tls-server-end-point"
        nonce = self.bare.split(b"r=")[1] + b"server"
        self.said = b"r=" + nonce + b",s=" + base64.b64encode(self.salt) + f",i={self.rounds}".encode()
        return self.said

    def answer(self, final: bytes) -> bytes:
        without, _, proof = final.rpartition(b",p=")
        bound = base64.b64decode(without.split(b",")[0][2:])
        assert bound == b"p=tls-server-end-point,," + self.binding, "another channel"
        exchange = b",".join((self.bare, self.said, without))
        stored = hashlib.sha256(hmac.digest(self.salted, b"Client Key", "sha256")).digest()
        signature = hmac.digest(stored, exchange, "sha256")
        key = bytes(a ^ b for a, b in zip(base64.b64decode(proof), signature, strict=True))
        assert hashlib.sha256(key).digest() == stored, "wrong password"
        server_key = hmac.digest(self.salted, b"Server Key", "sha256")
        return b"v=" + base64.b64encode(hmac.digest(server_key, exchange, "sha256"))


@given(password=st.text(min_size=1, max_size=20), binding=st.binary(min_size=32, max_size=64))
def test_both_sides_agree(password: str, binding: bytes) -> None:
    client, server = ScramPlus(password, binding), Server(prepared(password), binding, rounds=2)
    client.verify(server.answer(client.final(server.challenge(client.first()))))


def test_another_certificate_or_password_does_not_pass() -> None:
    for password, binding, why in ((b"pw", b"other", "another channel"), (b"no", b"mine", "wrong password")):
        client, server = ScramPlus("pw", b"mine"), Server(password, binding)
        with pytest.raises(AssertionError, match=why):
            server.answer(client.final(server.challenge(client.first())))


def test_a_server_that_does_not_know_the_password_is_found_out() -> None:
    client, server = ScramPlus("pw", b"x"), Server(b"pw", b"x")
    answer = server.answer(client.final(server.challenge(client.first())))
    for forged in (b"", b"v=", b"v=AAAA", b"e=other-error", answer[:-5]):
        with pytest.raises(BindingRefused, match="did not prove"):
            client.verify(forged)
    with pytest.raises(BindingRefused):
        ScramPlus("pw", b"x").verify(b"v=")  # nothing was asked yet
    client.verify(answer)


@pytest.mark.parametrize(
    "challenge",
    [
        b"", b"r=", b"r=mine,s=AAAA,i=1", b"r=other,s=AAAA,i=1", b"r=mineX,s=AAAA", b"r=mineX,s=AAAA,i=0",
        b"r=mineX,s=AAAA,i=-5", b"r=mineX,s=!!,i=1", b"r=mineX,s=AAAA,i=x",
        b"\xff\xfe", b"m=ext,r=mineX,s=AAAA,i=x",
    ],
)  # fmt: skip
def test_a_strange_challenge_is_refused(challenge: bytes) -> None:
    with pytest.raises(BindingRefused, match="challenge"):
        ScramPlus("pw", b"x", nonce="mine").final(challenge)


@pytest.mark.parametrize(
    ("typed", "used"),
    [
        ("plain", "plain"),
        ("I\u00adX", "IX"),  # the examples of RFC 4013
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("a\u00a0b", "a b"),
        ("\u0007é", "\u0007é"),  # forbidden: as it was typed
        ("\u06271", "\u06271"),
        ("\u00ad", "\u00ad"),  # nothing would be left
    ],
)
def test_saslprep(typed: str, used: str) -> None:
    assert prepared(typed) == used.encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.fail("this test makes certificates with openssl: apt-get install openssl")
    return tmp_path_factory.mktemp("certificates")


@pytest.mark.parametrize(
    ("name", "key", "signature", "digest"),
    [
        ("rsa-sha1", "rsa:2048", ["-sha1"], "sha256"),
        ("rsa-sha224", "rsa:2048", ["-sha224"], "sha224"),
        ("rsa-sha256", "rsa:2048", ["-sha256"], "sha256"),
        ("rsa-sha384", "rsa:2048", ["-sha384"], "sha384"),
        ("rsa-sha512", "rsa:2048", ["-sha512"], "sha512"),
        ("ec-sha256", "ec", ["-sha256"], "sha256"),
        ("ec-sha384", "ec", ["-sha384"], "sha384"),
        ("ec-sha512", "ec", ["-sha512"], "sha512"),
        ("pss-sha256", "rsa:2048", ["-sha256", "-sigopt", "rsa_padding_mode:pss"], "sha256"),
        ("pss-sha512", "rsa:2048", ["-sha512", "-sigopt", "rsa_padding_mode:pss"], "sha512"),
    ],
)
def test_the_hash_is_that_of_the_signature(
    folder: Path, name: str, key: str, signature: list[str], digest: str
) -> None:
    der = make_certificate(folder, name, key, signature)
    assert certificate_hash(der) == hashlib.new(digest, der).digest()


def test_a_signature_without_a_hash_cannot_be_bound(folder: Path) -> None:
    with pytest.raises(BindingRefused, match="RSA or ECDSA"):
        certificate_hash(make_certificate(folder, "ed", "ed25519", []))


def make_certificate(folder: Path, name: str, key: str, signature: list[str]) -> bytes:
    curve = ["-pkeyopt", "ec_paramgen_curve:P-256"] if key == "ec" else []
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", key, *curve, *signature, "-nodes", "-subj", "/CN=x", "-days", "1",
         "-keyout", f"{name}.key", "-out", f"{name}.crt"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return ssl.PEM_cert_to_DER_cert((folder / f"{name}.crt").read_text())


@given(st.binary(max_size=200))
def test_no_certificate_breaks_the_reader(data: bytes) -> None:
    try:
        certificate_hash(data)
    except BindingRefused:
        return


def test_proofs_are_kept_by_place_and_doubt_asks_for_another() -> None:
    proven = ProvenCertificates()
    assert proven.needs_proof(PLACE)
    proven.add(PLACE, b"one")
    assert not proven.needs_proof(PLACE)
    assert proven.needs_proof(("h", 5433, "u"))
    proven.doubt(PLACE)
    assert proven.needs_proof(PLACE)
    proven.add(PLACE, b"two")
    assert not proven.needs_proof(PLACE)
    assert proven.of(PLACE) == {fingerprint(b"one"), fingerprint(b"two")}
    for number in range(100):
        proven.add(PLACE, str(number).encode())
    assert len(proven.of(PLACE)) == 64
    assert fingerprint(b"99") in proven.of(PLACE)


def test_a_pin_can_be_taken_off() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    pin(context, frozenset())
    assert context.sslobject_class is not ssl.SSLObject
    unpin(context)
    assert context.sslobject_class is ssl.SSLObject


def test_a_login_shows_no_password() -> None:
    assert "hunter2" not in repr(Login("u", "hunter2", "d"))
