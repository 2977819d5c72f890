"""The cells of a sweep: every combination of settings, and what they differ in."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedhlm_app.learning.rules import GRADIENTS, GUARANTEE
from fedhlm_app.settings import Settings, SettingsError
from fedhlm_app.settings.field import kebab
from fedhlm_app.settings.model import PLACES
from fedhlm_app.settings.sources import Scalar, with_preset
from fedhlm_app.settings.words import in_words

_PLACE = (*PLACES, "workers", "checkpoint", "token-log", "token-texts", "trackers")
"""Settings that do not change a result, so cells that differ in them are the same cell."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes
    ----------
    varied : dict
        The settings that make this cell, as they were written.
    settings : Settings
        All of them.
    shown : dict
        What the table says of the cell: `varied`, and every other setting in which it differs
        from another cell, both with what ``auto`` came to stand for.
    """

    varied: dict[str, str]
    settings: Settings
    shown: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Eight hexadecimal digits that depend on everything that can change the result."""
        counted = {k: v for k, v in self.settings.to_run_config().items() if k not in _PLACE}
        return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:8]


def cells_of(base: Mapping[str, Scalar], grids: Sequence[str], lists: Sequence[str]) -> list[Cell]:
    """Every combination of the grids, once for each entry of the list.

    Where no cell is told its learning rule, ``auto`` is resolved once: if one cell needs
    gradients, all learn by them. Cells are compared in what was varied and in nothing else.

    Parameters
    ----------
    base : mapping
        Settings of all cells, by kebab-case key.
    grids : sequence of str
        ``key=value,value,...`` each.
    lists : sequence of str
        ``key=value key=value ...`` each: settings that go together.

    Raises
    ------
    SettingsError
        Naming a word that is not understood, the cell whose settings are wrong, or the learning
        rules that one ``auto`` would stand for.
    """
    axes = [_axis(grid) for grid in grids]
    keys = [axis[0][0] for axis in axes]
    if repeated := {key for key in keys if keys.count(key) > 1}:
        raise SettingsError(f"--grid {sorted(repeated)[0]}: given twice")
    bundles: list[dict[str, str]] = [_bundle(entry) for entry in lists] or [{}]
    points = list(itertools.product(*axes))
    varied = [{**bundle, **dict(point)} for bundle, point in itertools.product(bundles, points)]
    made = [_settings(base, words) for words in varied]
    common = _common_rule(base, varied, made)
    cells: dict[str, Cell] = {}
    for words, settings in zip(varied, made, strict=True):
        if common and _is_auto(base, words) and settings.learning != common:
            settings = _settings(base, words, common)
        cell = Cell(words, settings)
        cells.setdefault(cell.key, cell)
    return _with_differences(list(cells.values()))


def _settings(base: Mapping[str, Scalar], words: Mapping[str, str], rule: str = "auto") -> Settings:
    """One cell's settings; `rule` in place of the learning rule where that is not auto."""
    given = {**base, **words}
    if rule != "auto":
        given["learning"] = rule
    try:
        settings = Settings.from_sources(given)
        settings.check_paths()
    except SettingsError as error:
        raise SettingsError(f"cell {_words(words)}: {error}") from None
    return settings


def _is_auto(base: Mapping[str, Scalar], words: Mapping[str, str]) -> bool:
    """Whether nobody has said by which rule this cell learns."""
    told = with_preset({**base, **words}, os.environ, Settings.defaults())
    return told.get("learning", "auto") == "auto"


def _common_rule(
    base: Mapping[str, Scalar], varied: Sequence[Mapping[str, str]], made: Sequence[Settings]
) -> str:
    """The one learning rule of all cells that leave it to `auto`; empty where none does."""
    found: dict[str, str] = {}
    for words, settings in zip(varied, made, strict=True):
        if _is_auto(base, words):
            found.setdefault(settings.learning, _words(words))
    if len(found) > 1 and found.keys() != {GRADIENTS, GUARANTEE}:
        stands_for = "; ".join(f"{rule} in {words}" for rule, words in found.items())
        raise SettingsError(
            f"setting 'learning' = 'auto' would stand for different rules ({stands_for}): the "
            "cells would differ in more than what is varied; set one for all, for example "
            f"--set learning={GRADIENTS}, or name it in each --cell"
        )
    return GRADIENTS if len(found) > 1 else next(iter(found), "")


def _resolved(settings: Settings) -> dict[str, Scalar]:
    """All settings, with what stands behind those that leave the choice to others."""
    values = settings.to_run_config()
    values["verification"] = settings.verifier
    return values


def _with_differences(cells: list[Cell]) -> list[Cell]:
    """The cells, each with every setting in which any two of them differ."""
    values = [_resolved(cell.settings) for cell in cells]
    rates = {cell.settings.learning for cell in cells} - {values[0]["learning"]}
    if rates or len({value["router-optimizer"] for value in values}) > 1:
        # Which step size a rule or an optimizer takes by itself; imports PyTorch.
        from fedhlm_app.learning.gradients import own_step_sizes

        for value, cell in zip(values, cells, strict=True):
            value.update(own_step_sizes(cell.settings))
    differing = [
        key
        for key in values[0]
        if key not in _PLACE and any(value[key] != values[0][key] for value in values)
    ]
    shown = []
    for cell, value in zip(cells, values, strict=True):
        words = {kebab(key): word for key, word in cell.varied.items()}
        told = {
            key: words[key] if words.get(key, "auto") != "auto" else in_words(value[key])
            for key in dict.fromkeys((*words, *differing))
        }
        shown.append(replace(cell, shown=told))
    return shown


def _axis(grid: str) -> list[tuple[str, str]]:
    key, equals, values = grid.partition("=")
    found = [value.strip() for value in values.split(",")]
    if not equals or not key.strip() or not all(found):
        raise SettingsError(
            f"--grid {grid!r}: must be key=value,value,..., for example --grid seed=0,1,2"
        )
    return [(key.strip(), value) for value in dict.fromkeys(found)]


def _bundle(entry: str) -> dict[str, str]:
    found = {}
    for word in entry.split():
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise SettingsError(
                f"--cell {entry!r}: must be key=value words, "
                "for example --cell 'strategy=fedprox proximal-mu=1'"
            )
        found[key] = value
    if not found:
        raise SettingsError("--cell: empty")
    return found


def _words(varied: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in varied.items()) or "(defaults)"
