"""Keywords of strategies, by name and type; what each means stands where its dataclass does."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast, get_type_hints

from hlm.local_steps import Personalisation
from strategies.at_edge import EdgeServers
from strategies.calibrated import CalibrationOptions
from strategies.local_methods import LocalMethod
from strategies.privacy import CentralPrivacy
from strategies.record_options import RecordOptions
from strategies.records import RoundRecord
from strategies.tiers import CloudWeights, RuleSource
from strategies.validation import Bounds

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Group = TypeVar("Group", bound=DataclassInstance)
else:
    Group = TypeVar("Group")


class RuleOptions(TypedDict, total=False):
    """Rules of the two tiers; see `TierRules`."""

    edge_rule: RuleSource
    cloud_rule: RuleSource


class CommonOptions(TypedDict, total=False):
    """What all constructors take; see `TierRules`, `Start`, `Participation`, `ReplyLimits`."""

    method: LocalMethod | None
    cloud_weights: CloudWeights
    personalisation: Personalisation
    shrink_weight: float
    evaluate_every: int
    min_clients: int
    node_wait_s: float
    poll_s: float
    seed: int
    bounds: Bounds
    max_weight: float
    require_echo: bool
    metric_ranges: Mapping[str, tuple[float, float]]
    privacy: CentralPrivacy | None
    on_round: Callable[[RoundRecord], None] | None
    keep_values: bool


class RoundOptions(TypedDict, total=False):
    """What Flower's `FedAvg` has under other names, and what a stock app has no use for."""

    fraction_train: float
    fraction_evaluate: float
    min_nodes: int | None
    min_train_nodes: int
    min_evaluate_nodes: int
    records: RecordOptions
    calibration: CalibrationOptions | None
    edges: EdgeServers | None


class MethodOptions(TypedDict, total=False):
    """Keywords of the local methods; see `FedProx`, `Scaffold`, `FedNova`."""

    proximal_mu: float
    server_learning_rate: float
    weighting: str
    max_control: float
    max_local_steps: int


class Options(RuleOptions, CommonOptions, RoundOptions, total=False):
    """Keywords of `Hierarchical`."""


class StrategyOptions(CommonOptions, RoundOptions, MethodOptions, total=False):
    """Keywords of `build_strategy`."""


class DropInOptions(RuleOptions, CommonOptions, MethodOptions, total=False):
    """Keywords of `HierarchicalFedAvg` and its kin beside Flower's."""


# What older examples of Flower pass, and where Flower 1.41 has it.
_RENAMED = {
    "fraction_fit": "fraction_train",
    "min_fit_clients": "min_train_nodes",
    "min_evaluate_clients": "min_evaluate_nodes",
    "min_available_clients": "min_available_nodes",
    "fit_metrics_aggregation_fn": "train_metrics_aggr_fn",
    "evaluate_metrics_aggregation_fn": "evaluate_metrics_aggr_fn",
    "on_fit_config_fn": "start(train_config=...)",
    "on_evaluate_config_fn": "start(evaluate_config=...)",
    "evaluate_fn": "start(evaluate_fn=...)",
    "initial_parameters": "start(initial_arrays=...)",
}


def refuse_others(
    options: Mapping[str, Any], allowed: Collection[str], named: Collection[str] = ()
) -> None:
    """Raise TypeError on keywords that are not `allowed`, as Python does.

    Parameters
    ----------
    options : mapping
        By keyword.
    allowed : collection of str
        Their names.
    named : collection of str
        Further parameters of whoever was called, one of which may have been meant.
    """
    others = [name for name in options if name not in allowed]
    if others:
        hints = "; ".join(filter(None, (_hint(name, [*allowed, *named]) for name in others)))
        raise TypeError(
            f"unexpected keywords: {', '.join(others)}" + (f" ({hints})" if hints else "")
        )


def _hint(name: str, known: Collection[str]) -> str:
    """What may have been meant by a keyword; empty where nothing is near."""
    if name in _RENAMED:
        return f"{name} is {_RENAMED[name]} now"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"did you mean {near[0]}?" if near else ""


# As a run-config may hold words where an app meant numbers.
_KINDS: dict[Any, tuple[Any, str]] = {
    float: (Real, "a number"),
    int: (Integral, "a whole number"),
    int | None: (Integral | None, "a whole number or None"),
    bool: (bool, "True or False"),
}


def check_kinds(options: Mapping[str, Any]) -> None:
    """Raise ValueError on a keyword that is to be a number, or true or false, and is not."""
    hints = get_type_hints(StrategyOptions)
    for name, value in options.items():
        kind, allowed = _KINDS.get(hints.get(name), (object, ""))
        if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (bool, object)):
            raise ValueError(f"{name}: {value!r}; allowed: {allowed}")


def split(options: StrategyOptions | DropInOptions) -> tuple[MethodOptions, Options]:
    """Take the keywords of local methods apart from the others."""
    own = {key: value for key, value in options.items() if key in MethodOptions.__annotations__}
    rest = {key: value for key, value in options.items() if key not in own}
    return cast(MethodOptions, own), cast(Options, rest)


def group(kind: type[Group], options: Options) -> Group:
    """Make one of the dataclasses of those `options` that are its fields."""
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in options.items() if name in names})
