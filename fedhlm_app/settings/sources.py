"""Where values come from: defaults, then the environment, then run-config or command line."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from fedhlm_app import presets
from fedhlm_app.settings.address import TOKEN_VARIABLE
from fedhlm_app.settings.errors import ENVIRONMENT_PREFIX, SettingsError, closest
from fedhlm_app.settings.field import kebab

Scalar = bool | int | float | str

# A misspelt FEDHLM_CLIENTS must not be ignored, while other FEDHLM_ variables are none of ours.
_NEAR_MISS = 0.87

DECIDED = "decided-preset"
"""Key in place of ``preset`` where all other settings are decided: it changes none of them."""

DATA_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet", ".txt")
"""Files that can be read as a dataset."""


def environment_name(key: str) -> str:
    """Return a setting's environment variable: `top-p` is FEDHLM_TOP_P."""
    return ENVIRONMENT_PREFIX + key.replace("-", "_").upper()


def from_environment(environ: Mapping[str, str], keys: Collection[str]) -> dict[str, Scalar]:
    """Return the settings that the environment names, by kebab-case key.

    Raises
    ------
    SettingsError
        When a variable is one or two letters off a setting's name.
    """
    names = {environment_name(key): key for key in keys}
    values: dict[str, Scalar] = {}
    for variable, value in environ.items():
        if variable in names:
            values[names[variable]] = value
        elif variable == TOKEN_VARIABLE:
            continue  # a secret, and so no setting: settings are written down
        elif variable.startswith(ENVIRONMENT_PREFIX) and (
            near := closest(variable, [*names, TOKEN_VARIABLE], cutoff=_NEAR_MISS)
        ):
            raise SettingsError(
                f"unknown environment variable {variable!r}; did you mean {near!r}?"
            )
    return values


def with_preset(
    overrides: Mapping[str, Scalar],
    environ: Mapping[str, str],
    keys: Collection[str],
    preset: str = presets.PLAIN,
) -> dict[str, Scalar]:
    """Return what preset, environment and overrides say, by kebab-case key, the last first.

    `preset` is what they start from where they name none.

    Raises
    ------
    SettingsError
        When there is no such preset, or a variable is all but a setting's name.
    """
    # `populate_by_name` would take snake_case keys too; outside there is one spelling.
    given = from_environment(environ, keys) | {kebab(k): value for k, value in overrides.items()}
    name = str(given.setdefault("preset", preset))
    if name not in presets.PRESETS:
        near = closest(name, presets.PRESETS)
        hint = f"did you mean {near!r}?" if near else f"one of {', '.join(presets.PRESETS)}"
        raise SettingsError(f"unknown preset {name!r}; {hint}")
    return presets.preset_settings(name) | given


def without_settings(environ: Mapping[str, str], keys: Collection[str]) -> dict[str, str]:
    """Return the environment without the variables that are settings.

    A run whose settings are complete must not have them overridden a second time.
    """
    names = {environment_name(key) for key in keys}
    return {name: value for name, value in environ.items() if name not in names}


def given_by_user(
    run_config: Mapping[str, Scalar], defaults: Mapping[str, Scalar]
) -> dict[str, Scalar]:
    """Return what the user set in Flower's run-config.

    Flower hands an app its `[tool.flwr.app.config]` fused with the user's `--run-config`: every
    key is there and nothing tells which were typed. In such a complete mapping a value that
    equals the default counts as not typed; in a partial one every value counts, and in one of
    `fedhlm_app.settings.model.Settings.handed_on` too.
    """
    if DECIDED in run_config:
        rest = {key: value for key, value in run_config.items() if key != DECIDED}
        return rest | {"preset": run_config[DECIDED]}
    if not defaults.keys() <= run_config.keys():
        return dict(run_config)
    return {
        key: value
        for key, value in run_config.items()
        if key not in defaults or value != defaults[key]
    }


def looks_like_path(value: str) -> bool:
    """Tell a file or folder from `builtin` and hub names such as `org/name`."""
    return value.startswith((".", "/", "~")) or value.lower().endswith(DATA_SUFFIXES)


def absolute(value: str, base: Path, *, always: bool = False) -> str:
    """Return a path setting as an absolute path; hub names and `builtin` stay as they are.

    Parameters
    ----------
    value : str
        The setting's value.
    base : Path
        Folder that relative paths start from.
    always : bool
        The value is a path whatever it looks like.
    """
    if not value or (value == "builtin" and not always):
        return value
    path = Path(value).expanduser()
    if path.is_absolute():
        return str(path)
    if always or looks_like_path(value) or (base / path).exists():
        return str((base / path).resolve())
    return value
