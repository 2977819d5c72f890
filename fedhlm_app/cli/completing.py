"""Options that many commands have, `--set KEY=VALUE` first, and what a shell completes in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from fedhlm_app.presets import PLAIN, PRESETS


def set_option(words: str) -> Any:
    """The option, with what it says of itself."""
    return typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help=words, autocompletion=settings_keys
    )


def file_option(words: str, *names: str) -> Any:
    """An option that names a file to write, refused before any work where there can be none."""
    return typer.Option(*names, metavar="FILE", help=words, callback=_place)


def folder_option(words: str) -> Any:
    """An option that names a folder to write, made if absent; a file's name is refused at once."""
    return typer.Option(metavar="FOLDER", help=words, file_okay=False)


def _place(value: Any) -> Any:
    path = Path("-" if value is None else value)
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder; allowed is a file")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"{path}: there is no folder {path.parent}")
    return value


def model_option() -> Any:
    """An option that names a model."""
    known = "builtin, smollm2, smollm2-small"
    return typer.Option(help=f"{known}, a folder, a .gguf file or a hub name.")


def preset_option(default: str = PLAIN) -> Any:
    """``--preset NAME``, completed with their names; without it a command starts from `default`."""
    return typer.Option(
        "--preset",
        metavar="NAME",
        help=f"Settings to start from, {default} by default; `fedhlm presets` lists them.",
        autocompletion=preset_names,
    )


def preset_names(incomplete: str) -> list[tuple[str, str]]:
    """Presets that begin so, each with its sentence."""
    return [(name, one.words) for name, one in PRESETS.items() if name.startswith(incomplete)]


def settings_keys(incomplete: str) -> list[tuple[str, str]]:
    """Keys that begin so, each with ``=`` and its meaning; behind ``=`` the values by name."""
    from fedhlm_app.settings import Settings, rows
    from fedhlm_app.settings.words import named_values

    key, equals, value = incomplete.partition("=")
    if not equals:
        return [(f"{row.name}=", row.description) for row in rows() if row.name.startswith(key)]
    field = Settings.model_fields.get(key.replace("-", "_"))
    names = [] if field is None else named_values(field)
    return [(f"{key}={name}", "") for name in names if name.startswith(value)]
