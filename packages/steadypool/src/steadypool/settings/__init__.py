"""Settings of a `Database`, from arguments, variables (`DATABASE_…`) and an env file; checked when they are read."""

from steadypool.settings.database import (
    LET_GO_AFTER,
    ConnectRetry,
    Dashboard,
    DatabaseSettings,
    IdlePolicy,
    Pooler,
    PrePing,
    Reset,
    SettingRow,
    SettingsError,
    settings_table,
    variable_of,
)

__all__ = [
    "LET_GO_AFTER",
    "ConnectRetry",
    "Dashboard",
    "DatabaseSettings",
    "IdlePolicy",
    "Pooler",
    "PrePing",
    "Reset",
    "SettingRow",
    "SettingsError",
    "settings_table",
    "variable_of",
]
