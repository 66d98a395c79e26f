"""The settings tree of the service. Everything about the database is steadypool's own settings, restated nowhere.

Read the first time somebody asks, never at import: `get_settings()`.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from steadypool import DatabaseSettings
from steadypool.settings.validators import check_numeric, check_switch, shown

MIB = 1024 * 1024
DAY = 86_400.0

_ENVIRONMENT = SettingsConfigDict(extra="ignore", frozen=True, validate_default=True)


def _seconds(low: float, high: float) -> BeforeValidator:
    return BeforeValidator(check_numeric(low, high, "s", whole=False, off=False, hint=""))


def _whole(low: int, high: int, unit: str = "") -> BeforeValidator:
    return BeforeValidator(check_numeric(low, high, unit, whole=True, off=False, hint=""))


def _count_or_off(high: int) -> BeforeValidator:
    return BeforeValidator(check_numeric(1, high, "", whole=True, off=True, hint="write off for no limit"))


def _not_empty(value: object) -> object:
    if not str(value).strip():
        raise ValueError("it is empty; unset it for the default")
    return value


def _public_url(value: object) -> object:
    if value is None:
        return None
    parts = urlsplit(str(value))
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
        raise ValueError("allowed: http://… or https://…, with a host, without user and query")
    return str(value)


class ConfigError(ValueError):
    """One or more variables cannot work; one line for each."""


class ObservabilitySettings(BaseSettings):
    """What is reported about the service, and where to."""

    model_config = SettingsConfigDict(_ENVIRONMENT, env_prefix="LOGFIRE_")

    enabled: Annotated[bool, BeforeValidator(check_switch)] = Field(
        default=False,
        description="Report traces and metrics by Logfire: on the console, and to Logfire if LOGFIRE_TOKEN is set.",
    )


class MetricsSettings(BaseSettings):
    """What is served for Prometheus."""

    model_config = SettingsConfigDict(_ENVIRONMENT, env_prefix="METRICS_")

    enabled: Annotated[bool, BeforeValidator(check_switch)] = Field(
        default=False,
        description="Serve the pool's metrics at /metrics, to everybody who reaches the service.",
    )


class QueueSettings(BaseSettings):
    """The connection that listens for changes of queues."""

    model_config = SettingsConfigDict(_ENVIRONMENT, env_prefix="QUEUE_")

    connect_timeout: Annotated[float, _seconds(0.001, 3600)] = Field(
        default=15.0, description="Seconds for the listener's connect, everything included."
    )
    heartbeat_interval: Annotated[float, _seconds(0.001, DAY)] = Field(
        default=5.0, description="Seconds between two heartbeats."
    )
    max_state_bytes: Annotated[int, _whole(1024, 16 * MIB, "bytes")] = Field(
        default=MIB // 4, description="Largest queue that is kept, as JSON."
    )
    max_tracks: Annotated[int, _whole(1, 100_000)] = Field(
        default=2000, description="Most tracks that a queue may name, repetitions included."
    )


class StorageSettings(BaseSettings):
    """Where audio lies and how much of it is accepted."""

    model_config = SettingsConfigDict(_ENVIRONMENT, env_prefix="STORAGE_")

    audio_dir: Path = Field(default=Path(".data/audio"), description="The folder of the audio files.")
    max_upload_bytes: Annotated[int, _whole(1, 64 * 1024 * MIB, "bytes")] = Field(
        default=512 * MIB, description="Largest audio file that is accepted."
    )


class ServerSettings(BaseSettings):
    """Where the service listens. `HOST` and `PORT` are what every platform sets, hence no prefix."""

    model_config = SettingsConfigDict(_ENVIRONMENT, populate_by_name=True)

    host: Annotated[str, BeforeValidator(_not_empty)] = Field(
        default="127.0.0.1", description="The address to listen on."
    )
    port: Annotated[int, _whole(0, 65_535)] = Field(default=8000, description="The port; 0 takes a free one.")
    data_dir: Path = Field(
        default=Path(".data"),
        description="The folder of the embedded Postgres and the demo token.",
        validation_alias="PLYR_DATA_DIR",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Origins whose pages may use the session cookie, separated by commas; "
        "without any, every origin may call with a bearer token.",
    )

    public_url: Annotated[str | None, BeforeValidator(_public_url)] = Field(
        default=None,
        description="The address that clients reach the service by, such as https://plyr.example behind a proxy; "
        "without it, URLs in answers name the address that a request came to.",
        validation_alias="PUBLIC_URL",
    )
    max_connections: Annotated[
        int | None, BeforeValidator(check_numeric(4, 1_000_000, "", whole=True, off=True, hint=""))
    ] = Field(
        default=None,
        description="Connections that are open at once; off: as many as the limit of open files allows, at most 4096.",
        validation_alias="SERVER_MAX_CONNECTIONS",
    )
    max_head_bytes: Annotated[int, _whole(1024, MIB, "bytes")] = Field(
        default=32 * 1024,
        description="Largest head of a request (request line and headers), and largest trailers.",
        validation_alias="SERVER_MAX_HEAD_BYTES",
    )
    head_timeout: Annotated[float, _seconds(0.001, 3600)] = Field(
        default=10.0,
        description="Seconds for a head to arrive completely.",
        validation_alias="SERVER_HEAD_TIMEOUT",
    )
    min_body_rate: Annotated[int, _whole(0, 1024 * MIB, "bytes/s")] = Field(
        default=1024,
        description="Bytes per second that the body of a request brings at least, over ten seconds.",
        validation_alias="SERVER_MIN_BODY_RATE",
    )

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(origin.strip() for origin in value.split(",") if origin.strip())
        return value


class UploadSettings(BaseSettings):
    """The class of work that takes longer than a request of the API."""

    model_config = SettingsConfigDict(_ENVIRONMENT, env_prefix="UPLOAD_")

    statement_timeout: Annotated[float, _seconds(0.001, DAY)] = Field(
        default=30.0, description="Seconds that one SQL statement of an upload may run."
    )


class LimitSettings(BaseSettings):
    """How much one client or artist may ask of this process; several processes each allow as much. `off` lifts one."""

    model_config = SettingsConfigDict(_ENVIRONMENT, env_prefix="LIMIT_")

    requests_per_address: Annotated[int | None, _count_or_off(10**9)] = Field(
        default=12_000, description="Requests that one address may send in a minute."
    )
    requests_per_artist: Annotated[int | None, _count_or_off(10**9)] = Field(
        default=6_000, description="Requests that one artist may send in a minute."
    )
    streams: Annotated[int | None, _count_or_off(10**6)] = Field(
        default=128, description="Audio and events that one listener may receive at the same time."
    )
    uploads_at_once: Annotated[int | None, _count_or_off(10**6)] = Field(
        default=32, description="Uploads that one artist may send at the same time."
    )
    uploads_per_day: Annotated[int | None, _count_or_off(10**9)] = Field(
        default=1_000, description="Uploads that one artist may send in a day."
    )
    upload_bytes_per_day: Annotated[int | None, _count_or_off(2**60)] = Field(
        default=64 * 1024 * MIB, description="Bytes of uploads that one artist may send in a day."
    )
    copies: Annotated[int | None, _count_or_off(10**6)] = Field(
        default=20, description="Tracks that one artist may make of one file."
    )
    play_interval: Annotated[
        float | None, BeforeValidator(check_numeric(0.001, DAY, "s", whole=False, off=True, hint=""))
    ] = Field(default=30.0, description="Seconds in which the plays of a track by one listener count as one.")


class Settings(BaseModel):
    """All settings of the service."""

    model_config = ConfigDict(frozen=True)

    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    observability: ObservabilitySettings = Field(default_factory=ObservabilitySettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    queue: QueueSettings = Field(default_factory=QueueSettings)
    storage: StorageSettings = Field(default_factory=StorageSettings)
    uploads: UploadSettings = Field(default_factory=UploadSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    server: ServerSettings = Field(default_factory=ServerSettings)


def load_settings() -> Settings:
    """Read the environment now.

    Raises:
        ConfigError: a variable cannot work; says which, its value, and what is allowed.
        steadypool.errors.ConfigurationError: the same for a `DATABASE_*` variable.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = _explain(error)
    raise ConfigError(
        "\n".join(problems)
    )  # out here: pydantic's own error quotes values, which may be secret


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read from the environment when first asked for."""
    return load_settings()


def _explain(error: ValidationError) -> list[str]:
    """One line for each variable; pydantic knows the model by its title and the field by its place."""
    models: dict[str, type[BaseSettings]] = {
        model.__name__: model
        for model in (
            ObservabilitySettings,
            MetricsSettings,
            QueueSettings,
            StorageSettings,
            UploadSettings,
            LimitSettings,
            ServerSettings,
        )
    }
    model = models.get(error.title)
    prefix = str(model.model_config.get("env_prefix", "")) if model is not None else ""
    return [
        f"{_variable(prefix, detail['loc'])}={shown(detail['input'])!r}: "
        f"{detail.get('ctx', {}).get('error') or detail['msg']}"
        for detail in error.errors(include_url=False)
    ]


def _variable(prefix: str, location: tuple[int | str, ...]) -> str:
    name = str(location[0]) if location else ""
    return name if name.isupper() else f"{prefix}{name}".upper()
