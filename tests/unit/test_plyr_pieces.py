"""Small pure parts of plyr."""

from __future__ import annotations

import hashlib
import io
import re
import wave
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.config import ConfigError, load_settings
from backend.services import atproto
from backend.services.artists import hash_token, new_token
from backend.services.melody import PIECES, SAMPLE_RATE, Piece, duration, render
from backend.services.policy import PublishingPolicy, may_download, may_listen, may_see
from backend.services.tracks import slugify
from steadypool.errors import ConfigurationError

# -- settings ------------------------------------------------------------------------------------------------


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("HOST", "PORT", "CORS_ORIGINS", "DATABASE_URL", "LOGFIRE_ENABLED", "DATABASE_POOL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_the_defaults(no_environment: pytest.MonkeyPatch) -> None:
    settings = load_settings()
    assert settings.database.url is None
    assert settings.database.pool_size == 10
    assert settings.observability.enabled is False
    assert (settings.queue.connect_timeout, settings.queue.heartbeat_interval) == (15.0, 5.0)
    assert settings.uploads.statement_timeout == 30.0
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8000)


def test_every_part_is_read_from_its_own_variables(no_environment: pytest.MonkeyPatch) -> None:
    for name, value in {
        "DATABASE_POOL_SIZE": "15",
        "QUEUE_CONNECT_TIMEOUT": "3",
        "LOGFIRE_ENABLED": "true",
        "STORAGE_AUDIO_DIR": "/srv/audio",
        "HOST": "::1",
        "PORT": "9000",
        "CORS_ORIGINS": "https://a.example, https://b.example",
        "PLYR_DATA_DIR": "/srv/data",
    }.items():
        no_environment.setenv(name, value)
    settings = load_settings()
    assert settings.database.pool_size == 15
    assert settings.queue.connect_timeout == 3.0
    assert settings.observability.enabled is True
    assert settings.storage.audio_dir == Path("/srv/audio")
    assert (settings.server.host, settings.server.port) == ("::1", 9000)
    assert settings.server.cors_origins == ("https://a.example", "https://b.example")
    assert settings.server.data_dir == Path("/srv/data")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("QUEUE_CONNECT_TIMEOUT", "0", "allowed: 0.001 to 3,600 s"),
        ("QUEUE_CONNECT_TIMEOUT", "nan", "not a number; allowed: 0.001 to 3,600 s"),
        ("QUEUE_HEARTBEAT_INTERVAL", "-1", "allowed: 0.001 to 86,400 s"),
        ("QUEUE_MAX_STATE_BYTES", "1", "allowed: 1,024 to 16,777,216 bytes, a whole number"),
        (
            "UPLOAD_STATEMENT_TIMEOUT",
            "inf",
            "allowed: 0.001 to 86,400 s; there has to be a limit",
        ),
        ("STORAGE_MAX_UPLOAD_BYTES", "0", "allowed: 1 to 68,719,476,736 bytes, a whole number"),
        ("LIMIT_STREAMS", "0", "allowed: 1 to 1,000,000, or off, a whole number; write off for no limit"),
        ("QUEUE_MAX_TRACKS", "0", "allowed: 1 to 100,000, a whole number"),
        ("PORT", "65536", "allowed: 0 to 65,535, a whole number"),
        ("PORT", "lots", "not a number; allowed: 0 to 65,535, a whole number"),
        ("PORT", "", "it is empty; unset it for the default; allowed: 0 to 65,535, a whole number"),
        ("HOST", "", "it is empty; unset it for the default"),
        ("LOGFIRE_ENABLED", "perhaps", "allowed: on or off (true, false, yes, no, 1, 0)"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name_with_what_is_allowed(
    no_environment: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    no_environment.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert str(caught.value) == f"{name}={value!r}: {said}"


def test_what_steadypool_refuses_is_refused(no_environment: pytest.MonkeyPatch) -> None:
    no_environment.setenv("DATABASE_POOL_SIZE", "none")
    with pytest.raises(ConfigurationError, match="DATABASE_POOL_SIZE=none"):
        load_settings()


# -- names of the AT Protocol --------------------------------------------------------------------------------


def test_a_tid_as_the_specification_has_it() -> None:
    assert atproto.tid(0, 0) == "2222222222222"
    assert atproto.tid(2**53 - 1, 1023) == "bzzzzzzzzzzzz"


@given(st.integers(0, 2**53 - 1), st.integers(0, 1023), st.integers(0, 2**53 - 1), st.integers(0, 1023))
def test_tids_sort_by_time(time: int, clock: int, other_time: int, other_clock: int) -> None:
    one, other = atproto.tid(time, clock), atproto.tid(other_time, other_clock)
    assert re.fullmatch(r"[2-7a-j][2-7a-z]{12}", one)
    assert (one < other) == ((time, clock) < (other_time, other_clock))


def test_dag_cbor_against_the_examples_of_rfc_8949() -> None:
    for value, encoded in {
        0: "00",
        23: "17",
        24: "1818",
        1000: "1903e8",
        1000000: "1a000f4240",
        18446744073709551615: "1bffffffffffffffff",
        -1: "20",
        -1000: "3903e7",
        "ü": "62c3bc",
        b"\1\2\3\4": "4401020304",
        (1, (2, 3)): "8201820203",
        None: "f6",
    }.items():
        assert atproto.encode_dag_cbor(value).hex() == encoded
    assert atproto.encode_dag_cbor({"b": True, "aa": False, "a": None}).hex() == "a36161f66162f5626161f4"


@pytest.mark.parametrize("value", [1.5, 2**64, -(2**64) - 1, {1, 2}])
def test_what_a_record_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="cannot hold"):
        atproto.encode_dag_cbor({"x": value})  # pyright: ignore[reportArgumentType]


def test_the_cid_of_the_empty_map() -> None:
    assert atproto.cid({}) == "bafyreigbtj4x7ip5legnfznufuopl4sg4knzc2cof6duas4b3q2fy6swua"


# -- rules ---------------------------------------------------------------------------------------------------


@given(
    st.builds(
        PublishingPolicy,
        listening=st.sampled_from(["public", "signed_in", "supporters", "owner", "space"]),
        downloads=st.sampled_from(["open", "ask", "supporters", "off"]),
        visibility=st.sampled_from(["public", "unlisted", "private"]),
    )
)
def test_the_owner_may_all_and_nobody_may_take_what_they_may_not_hear(policy: PublishingPolicy) -> None:
    for rule in (may_see, may_listen, may_download):
        assert rule(policy, "owner", "owner")
    for viewer in ("other", None):
        assert may_listen(policy, "owner", viewer) or not may_download(policy, "owner", viewer)
        assert may_see(policy, "owner", viewer) or not may_listen(policy, "owner", viewer)
    assert may_listen(policy, "owner", "other") or not may_listen(policy, "owner", None)


def test_a_token_is_long_and_its_hash_is_sha_256() -> None:
    token = new_token()
    assert len(token) >= 43
    assert token != new_token()
    assert hash_token(token) == hashlib.sha256(token.encode()).digest()
    assert len(hash_token("\udc80")) == 32


@pytest.mark.parametrize(
    ("title", "slug"),
    [("Blue & Green", "blue-green"), ("  ", "untitled"), ("Größe!", "grösse"), ("夜", "夜")],
)
def test_slugs(title: str, slug: str) -> None:
    assert slugify(title) == slug


# -- the demo's music ----------------------------------------------------------------------------------------


def test_a_piece_is_the_same_bytes_every_time_and_a_sound_file() -> None:
    piece = Piece("", "", "", 120, "a4:1 -:.5 c#5:1.5", "a2:3", ((1, 1000, 2), (2, 300, 5)))
    rendered = render(piece)
    assert rendered == render(piece)
    with wave.open(io.BytesIO(rendered)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, SAMPLE_RATE)
        samples = file.readframes(file.getnframes())
    assert duration(rendered) == pytest.approx(len(samples) / 2 / SAMPLE_RATE) == 2.5
    loudest = max(
        abs(int.from_bytes(samples[i : i + 2], "little", signed=True)) for i in range(0, len(samples), 2)
    )
    assert 20_000 < loudest < 32_000, "audible, and not clipped"


def test_the_tune_and_the_bass_of_every_piece_are_as_long_as_each_other() -> None:
    for piece in PIECES:
        tune, bass = (
            sum(float(note.partition(":")[2]) for note in score.split()) for score in (piece.tune, piece.bass)
        )
        assert tune == bass, piece.title
        assert 10 <= tune * 60 / piece.beats_per_minute <= 20
