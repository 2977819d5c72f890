"""The settings model: the groups together, and the ways to build it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, field_validator, model_validator

from fedhlm_app.learning.rules import BUDGETED, GRADIENTS, GUARANTEE, LINE
from fedhlm_app.models.sources import SMOLLM2, SMOLLM2_SMALL
from fedhlm_app.presets import PLAIN
from fedhlm_app.settings.conflicts import conflicts, why_not_span
from fedhlm_app.settings.errors import SettingsError, from_validation
from fedhlm_app.settings.field import kebab
from fedhlm_app.settings.groups_job import DataGroup, JobGroup, ModelGroup
from fedhlm_app.settings.groups_learning import FederationGroup, LearningGroup
from fedhlm_app.settings.groups_routing import EdgeGroup, RoutingGroup
from fedhlm_app.settings.sources import (
    DECIDED,
    Scalar,
    absolute,
    given_by_user,
    looks_like_path,
    with_preset,
)
from fedhlm_app.settings.words import allowed_values
from hlm.verifiers import plain_verifier, shares_draw

PLACES = ("run-dir", "name", "resume")
"""Settings that say where a run is written, and nothing about it."""
DERIVED = ("learning", "learn-rounds", "clusters", "slm")
"""Settings that others may decide, where nobody gives them."""
GRADIENT_SETTINGS = (
    "strategy", "edge-rule", "cloud-rule", "local-steps", "local-batch", "learning-rate",
    "privacy", "initial-threshold", "cost-transmit", "cost-error",
)  # fmt: skip
"""Settings that mean nothing to a certified rule: whoever gives one wants gradients."""


def chosen_rule(given: Mapping[str, object], defaults: Mapping[str, Scalar]) -> str:
    """The learning rule that `auto` stands for, from the settings given by kebab-case key."""
    if given.get("policy") == "u-hlm":
        return LINE
    costs = ("cost-transmit", "cost-error")
    if str(given.get("learn-rounds", 0)) != "0" and given.get("policy", "threshold") == "threshold":
        return GRADIENTS if any(name in given for name in costs) else BUDGETED
    wants_gradients = any(
        given.get(name, defaults[name]) != defaults[name] for name in GRADIENT_SETTINGS
    )
    # A guarantee is about a cluster's clients, and does not outlive its members.
    moving = bool(given.get("recluster-every", 0))
    moving = moving and given.get("personalisation") in ("cluster", "shrunk")
    if wants_gradients or moving or given.get("policy") == "router":
        return GRADIENTS
    return GUARANTEE


def chosen_learn_rounds(given: Mapping[str, object]) -> int:
    """The rounds that ``learn-rounds=auto`` stands for: two fifths of all.

    None where what is learned could not be certified (see `conflicts`), or no round would be left.
    """
    alone = given["personalisation"] in ("local", "shrunk") or given["privacy"] != "none"
    moving = str(given["recluster-every"]) != "0" and given["personalisation"] == "cluster"
    rounds = str(given["rounds"])
    return 0 if alone or moving or not rounds.isdigit() else int(rounds) * 2 // 5


# pydantic collects fields from the last base to the first.
class Settings(
    FederationGroup, LearningGroup, EdgeGroup, RoutingGroup, DataGroup, ModelGroup, JobGroup
):
    """All settings of one run. Frozen; keys are kebab-case outside and snake_case inside.

    Build it with `from_run_config` (inside an app) or `from_sources` (a command line); both
    raise `SettingsError` with one line for each thing that is wrong.
    """

    @field_validator("cluster_by", mode="before")
    @classmethod
    def _assigned_is_round_robin(cls, value: object) -> object:
        return "round-robin" if value == "assigned" else value

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: object, info: Any) -> object:
        # pydantic reads True as 1; `clients=true` is a mistake.
        if isinstance(value, bool) and not isinstance(cls.defaults()[kebab(info.field_name)], bool):
            raise ValueError("not a switch")
        return value

    @model_validator(mode="before")
    @classmethod
    def _choose_rule(cls, given: object) -> object:
        if not isinstance(given, Mapping):
            return given
        named = {kebab(str(key)): value for key, value in given.items()}
        if named.get("learning", "auto") != "auto":
            return given
        rest = {key: value for key, value in given.items() if kebab(str(key)) != "learning"}
        return {**rest, "learning": chosen_rule(named, cls.defaults())}

    @model_validator(mode="before")
    @classmethod
    def _choose_learn_rounds(cls, given: object) -> object:
        if not isinstance(given, Mapping):
            return given
        named = {kebab(str(key)): value for key, value in given.items()}
        if named.get("learn-rounds") != "auto":
            return given
        rest = {key: value for key, value in given.items() if kebab(str(key)) != "learn-rounds"}
        return {**rest, "learn-rounds": chosen_learn_rounds({**cls.defaults(), **named})}

    @model_validator(mode="before")
    @classmethod
    def _choose_slm(cls, given: object) -> object:
        # The built-in one has other tokens.
        if isinstance(given, Mapping) and given.get("llm") == SMOLLM2 and "slm" not in given:
            return {**given, "slm": SMOLLM2_SMALL}
        return given

    @model_validator(mode="before")
    @classmethod
    def _no_more_clusters_than_clients(cls, given: object) -> object:
        if not isinstance(given, Mapping) or "clusters" in given:
            return given
        clients = str(given.get("clients", ""))
        if clients.isdigit() and 0 < int(clients) < cls.model_fields["clusters"].default:
            return {**given, "clusters": int(clients)}
        return given

    @model_validator(mode="after")
    def _no_conflict(self) -> Self:
        if found := conflicts(self):
            raise SettingsError("\n".join(found))
        return self

    @classmethod
    def defaults(cls) -> dict[str, Scalar]:
        """Return every setting's default by kebab-case key, in the order of declaration."""
        return {kebab(name): field.default for name, field in cls.model_fields.items()}

    @classmethod
    def from_run_config(
        cls,
        run_config: Mapping[str, Scalar],
        environ: Mapping[str, str] | None = None,
        base: Path | None = None,
        runs: Path | None = None,
    ) -> Self:
        """Build the settings inside a Flower app, from `context.run_config`.

        Precedence: defaults, then the preset, the environment (`FEDHLM_CLIENTS` for `clients`),
        and what the user set in the run-config. Keys of a complete run-config that hold the default
        count as not set, since Flower fills in all defaults before an app sees them.

        Parameters
        ----------
        run_config : Mapping[str, Scalar]
            Kebab-case key to value, complete or partial.
        environ : Mapping[str, str] | None
            Environment; `os.environ` when None.
        base : Path | None
            Folder that relative paths start from; the working folder when None.
        runs : Path | None
            Folder that a relative `run-dir` or `resume` starts from; `base` when None.

        Raises
        ------
        SettingsError
            Unknown key, value out of range, or settings in conflict.
        """
        return cls.from_sources(given_by_user(run_config, cls.defaults()), environ, base, runs)

    @classmethod
    def from_sources(
        cls,
        overrides: Mapping[str, Scalar],
        environ: Mapping[str, str] | None = None,
        base: Path | None = None,
        runs: Path | None = None,
        preset: str = PLAIN,
    ) -> Self:
        """Build the settings of a command line: every override wins over the environment.

        Parameters, errors and precedence are those of `from_run_config`; `preset` is the one to
        start from where none is named.
        """
        environ = os.environ if environ is None else environ
        given = with_preset(overrides, environ, cls.defaults(), preset)
        try:
            settings = cls.model_validate(given)
        except ValidationError as error:
            ranges = {kebab(name): allowed_values(f) for name, f in cls.model_fields.items()}
            raise from_validation(error, ranges) from None
        return settings.with_absolute_paths(Path.cwd() if base is None else base, runs)

    def with_absolute_paths(self, base: Path, runs: Path | None = None) -> Self:
        """Return a copy in which every path is absolute.

        Relative ones start from `base`; `run-dir` and `resume` from `runs`, where it is given.
        """
        runs = base if runs is None else runs
        return self.model_copy(
            update={
                "run_dir": absolute(self.run_dir, runs, always=True),
                "resume": absolute(self.resume, runs, always=True),
                "slm": absolute(self.slm, base),
                "llm": absolute(self.llm, base),
                "dataset": absolute(self.dataset, base),
                "llm_ca_file": absolute(self.llm_ca_file, base, always=True),
                "llm_token_file": absolute(self.llm_token_file, base, always=True),
            }
        )

    def check_paths(self) -> None:
        """Refuse files and folders that do not exist, before anything is started.

        Raises
        ------
        SettingsError
            Naming each setting and its missing path.
        """
        missing = [
            f"setting {name!r} = {value!r}: no such file or folder"
            for name in ("slm", "llm", "dataset", "resume", "llm-ca-file", "llm-token-file")
            if (value := getattr(self, name.replace("-", "_")))
            and (name not in ("slm", "llm", "dataset") or looks_like_path(value))
            and not Path(value).exists()
        ]
        if missing:
            raise SettingsError("\n".join(missing))

    def to_run_config(self) -> dict[str, Scalar]:
        """Return all settings by kebab-case key, as Flower's run-config has them."""
        values: dict[str, Scalar] = self.model_dump(by_alias=True)
        return values

    def handed_on(self) -> dict[str, Scalar]:
        """Return a run-config from which `from_run_config` makes these settings and no others."""
        values = self.to_run_config()
        return {DECIDED: values.pop("preset"), **values}

    def changed(self) -> dict[str, Scalar]:
        """Return what makes these settings of the preset, by kebab-case key.

        Without `PLACES`, and without what follows from the rest (see `followed`).
        """
        changed = self._unlike_preset()
        for key in DERIVED:
            rest = {name: value for name, value in changed.items() if name != key}
            with suppress(SettingsError):
                again = self.from_sources({"preset": self.preset, **rest}, {})
                if again._unlike_preset() == self._unlike_preset():
                    changed = rest
        return changed

    def followed(self) -> dict[str, Scalar]:
        """Return what is not as the preset has it because of `changed`, by kebab-case key."""
        changed = self.changed()
        return {key: v for key, v in self._unlike_preset().items() if key not in changed}

    def _unlike_preset(self) -> dict[str, Scalar]:
        plain = self.from_sources({"preset": self.preset}, {}).to_run_config()
        return {
            key: value
            for key, value in self.to_run_config().items()
            if value != plain[key] and key not in PLACES
        }

    @property
    def edges(self) -> list[str]:
        """Addresses of the served edge servers, one a cluster; empty in a simulation."""
        return [one.strip() for one in self.edge_addresses.split(",") if one.strip()]

    @property
    def verifier(self) -> str:
        """Name of the verification method, `auto` resolved by the decoding."""
        if self.verification != "auto":
            return self.verification
        return plain_verifier(self.decoding)

    @property
    def loads_llm(self) -> bool:
        """Whether the weights of `llm` are read here: it is not served, nor run by another."""
        return not self.llm_address and self.llm_backend.partition(":")[0] == "engine"

    @property
    def streams(self) -> bool:
        """Whether escalations open streams: given texts have their next token already."""
        if self.workload != "generate" or self.escalation == "token":
            return False
        return self.escalation == "span" or not why_not_span(self)

    @property
    def shared_draw(self) -> bool:
        """Whether "what the LLM itself would have put there" is one definite token."""
        return shares_draw(self.verifier, self.decoding)
