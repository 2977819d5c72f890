"""Presets: named settings to start from. Each is a TOML file beside this one, and nothing else."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import NamedTuple

__all__ = ["DEFAULT", "PLAIN", "PRESETS", "Preset", "preset_settings"]


class Preset(NamedTuple):
    """A preset.

    Attributes
    ----------
    words : str
        What it is, in one sentence without a full stop.
    settings : dict
        What it sets, by kebab-case key; all other settings stay at their default.
    """

    words: str
    settings: dict[str, bool | int | float | str]


_ORDER = ("fedhlm", "paper", "certified", "u-hlm", "cu-hlm", "hlm", "rand-hlm", "slm", "llm")


def _read(name: str) -> Preset:
    text = Path(__file__).with_name(f"{name}.toml").read_text("utf-8")
    return Preset(**tomllib.loads(text))


PRESETS: dict[str, Preset] = {name: _read(name) for name in _ORDER}
DEFAULT = "fedhlm"
"""The preset of `fedhlm run` where none is named."""
PLAIN = "certified"
"""The preset that sets nothing. All else starts with it: real devices, which plain `flwr run` may
mean, have edge servers only where some are served, and those outside of a run have none."""


def preset_settings(name: str) -> dict[str, bool | int | float | str]:
    """What a preset sets, by kebab-case key.

    Raises
    ------
    KeyError
        When there is none of that name.
    """
    return dict(PRESETS[name].settings)
