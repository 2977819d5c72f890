"""The folder that a serving device shares with its SuperNode: feedback one way, the policy back.

``feedback.sqlite`` is a `FeedbackStore`; what it knows about a text is the JSON of a `TextNote`.
``policy.json`` is a `ServedPolicy`, replaced as a whole whenever a round brings another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedhlm_app.results.runs import write_atomically
from fedhlm_app.settings.sources import Scalar
from hlm.arrays import FloatArray, joined
from hlm.spans import checked_counts

if TYPE_CHECKING:
    from fedhlm_app.settings import Settings

_VERSION = 3
_READ = (2, 3)
"""Versions that can be read: before 3 there were no counts to take texts back by."""
_MADE_WITH = (
    "policy", "decoding", "temperature", "top_p", "uncertainty", "uncertainty_samples",
    "uncertainty_temperature", "audit_rate", "router_hidden", "router_projection",
)  # fmt: skip
_MADE_IN_SPANS = ("llm_round_trip", "llm_pace", "slm_pace")


def made_with(settings: Settings) -> dict[str, Scalar]:
    """What must be equal for feedback, or a policy, to mean the same; by kebab-case key."""
    names = (*_MADE_WITH, *(_MADE_IN_SPANS if settings.streams else ()))
    values = {name.replace("_", "-"): getattr(settings, name) for name in names}
    how = {"escalation": "span"} if settings.streams else {}
    return {**how, **values, "verification": settings.verifier}


def difference(theirs: dict[str, Scalar], ours: dict[str, Scalar]) -> str:
    """The first setting that differs, with both values; empty when none does."""
    for name in {**ours, **theirs}:
        if theirs.get(name) != ours.get(name):
            return f"{name} = {theirs.get(name)!r} there and {ours.get(name)!r} here"
    return ""


def digest(arrays: Mapping[str, FloatArray]) -> str:
    """A name for a policy of exactly these float64 arrays."""
    return hashlib.sha256(joined(arrays).astype("<f8").tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class TextNote:
    """What is kept of a served text, besides its tokens' feedback.

    Attributes
    ----------
    made : dict
        See `made_with`.
    policy : str
        `digest` of the policy that routed every token of it.
    read : bool
        The LLM was asked about each kept token.
    figures : dict
        Sums for the report.
    """

    made: dict[str, Scalar]
    policy: str
    read: bool
    figures: dict[str, Any]

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> TextNote:
        """What `to_json` made."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class ServedPolicy:
    """What a device serves with until the next round.

    Attributes
    ----------
    arrays : dict
        What was learned: float64 [n] by name.
    server_round : int
        Round that brought it; 0: that of the settings.
    read : bool
        Kept tokens go to the LLM for reading, since the next round calibrates on them.
    consumed : int
        Number of the newest text that a round has learned from.
    consumed_before : int
        The same without `server_round` itself: where a run goes on whose server never accepted
        that round's reply.
    made : dict
        See `made_with`.
    take_back : list of float
        Six counts by which texts are taken back from the LLM (`client.take_back`); none: empty.
    """

    arrays: dict[str, FloatArray]
    server_round: int = 0
    read: bool = False
    consumed: int = 0
    consumed_before: int = 0
    made: dict[str, Scalar] = field(default_factory=dict)
    take_back: list[float] = field(default_factory=list)


class FeedbackFolder:
    """Store and policy file of one device.

    Parameters
    ----------
    path : str or Path
        An existing folder.

    Raises
    ------
    ValueError
        If it does not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ValueError(
                f"feedback-store = {str(path)!r}: no such folder; "
                "`fedhlm serve device --store` makes it"
            )
        self.store_file = self.path / "feedback.sqlite"
        self.policy_file = self.path / "policy.json"

    def write_policy(self, policy: ServedPolicy) -> None:
        """Replace the policy file; who reads meanwhile sees the old one or the new one, whole."""
        arrays = {name: value.tolist() for name, value in policy.arrays.items()}
        values = {"version": _VERSION, **vars(policy), "arrays": arrays}
        write_atomically(self.policy_file, json.dumps(values, indent=1) + "\n")

    def read_policy(self) -> ServedPolicy | None:
        """The policy in force; None before the first.

        Raises
        ------
        ValueError
            If the file is no policy.
        """
        try:
            values = json.loads(self.policy_file.read_text(encoding="utf-8"))
            if (version := values.pop("version", 1)) not in _READ:
                raise ValueError(
                    f"version {version}, allowed: {' and '.join(map(str, _READ))}; delete the "
                    "file, and the next round of the run writes it anew"
                )
            arrays = {
                name: np.asarray(value, np.float64) for name, value in values.pop("arrays").items()
            }
            if any(value.ndim != 1 or not np.isfinite(value).all() for value in arrays.values()):
                raise ValueError("arrays must be lists of finite numbers")
            policy = ServedPolicy(arrays, **values)
            if policy.take_back:
                checked_counts(policy.take_back)
            return policy
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{self.policy_file}: no policy: {error}") from error
