"""The settings of a run: one frozen model, built from Flower's run-config, environment and CLI."""

from fedhlm_app.settings.advice import advice
from fedhlm_app.settings.errors import SettingsError
from fedhlm_app.settings.model import Settings
from fedhlm_app.settings.table import SettingRow, comment, markdown_table, rows, toml_block

__all__ = [
    "SettingRow",
    "Settings",
    "SettingsError",
    "advice",
    "comment",
    "markdown_table",
    "rows",
    "toml_block",
]
