"""The settings as a table: what `fedhlm settings` and docs/settings.md show."""

from __future__ import annotations

import json
from typing import NamedTuple

from fedhlm_app.settings.field import Group, kebab
from fedhlm_app.settings.groups_job import DataGroup, JobGroup, ModelGroup
from fedhlm_app.settings.groups_learning import FederationGroup, LearningGroup
from fedhlm_app.settings.groups_routing import EdgeGroup, RoutingGroup
from fedhlm_app.settings.words import allowed_values, in_words, unit_of

GROUPS: dict[str, type[Group]] = {
    "Job": JobGroup,
    "Models": ModelGroup,
    "Data": DataGroup,
    "Routing": RoutingGroup,
    "Edge": EdgeGroup,
    "Learning": LearningGroup,
    "Federation": FederationGroup,
}


class SettingRow(NamedTuple):
    """One line of the table of settings."""

    group: str
    name: str
    default: str
    unit: str
    allowed: str
    description: str


USUAL = frozenset(
    (
        "preset", "name", "seed", "clients", "clusters", "cluster-by", "rounds",
        "tokens-per-round", "tokens-per-prompt", "token-log", "token-texts", "trackers",
        "slm", "llm", "llm-device", "llm-dtype", "llm-address",
        "dataset", "text-columns", "label-column", "partition", "workload",
        "decoding", "temperature", "uncertainty", "policy", "initial-threshold", "verification",
        "escalation", "cache-mode", "peer-mode",
        "learning", "fidelity-budget", "confidence", "learn-rounds", "personalisation", "privacy",
        "strategy", "edge-rule", "cloud-rule",
    )
)  # fmt: skip
"""Settings that many look for; the others are shown when they are asked for."""


def rows() -> list[SettingRow]:
    """Return every setting in the order of declaration."""
    return [
        SettingRow(
            group=group,
            name=kebab(name),
            default=in_words(field.default),
            unit=unit_of(field),
            allowed=allowed_values(field),
            description=field.description or "",
        )
        for group, model in GROUPS.items()
        for name, field in model.model_fields.items()
    ]


def markdown_table() -> str:
    """Return the table of settings in Markdown, one table per group."""
    parts = []
    for group in GROUPS:
        lines = [
            f"**{group}**\n",
            "| setting | default | unit | allowed | meaning |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| `{row.name}` | {f'`{row.default}`' if row.default else ''} | {row.unit} "
            f"| {row.allowed} | {row.description} |"
            for row in rows()
            if row.group == group
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def toml_block() -> str:
    """Return `[tool.flwr.app.config]` of pyproject.toml: every default under its comment."""
    defaults = {
        kebab(name): field.default
        for model in GROUPS.values()
        for name, field in model.model_fields.items()
    }
    lines = [
        "[tool.flwr.app.config]",
        "# Every key is a setting (`fedhlm settings` shows them as a table). Above each: its",
        "# meaning, and in brackets its unit and range. `fedhlm settings --toml` prints it.",
    ]
    for group in GROUPS:
        lines.append(f"\n# ---- {group} ----")
        for row in rows():
            if row.group == group:
                lines.append(f"# {comment(row)}")
                lines.append(f"{row.name} = {json.dumps(defaults[row.name])}")  # TOML, too
    return "\n".join(lines) + "\n"


def comment(row: SettingRow) -> str:
    """Return the one-line comment of a setting: meaning, then unit and range in brackets."""
    allowed = "" if row.allowed == "text" else row.allowed
    limits = "; ".join(part for part in (row.unit, allowed) if part)
    return f"{row.description} [{limits}]" if limits else row.description
