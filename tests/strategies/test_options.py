"""The keywords of the constructors and the dataclasses that take them up are one list."""

from dataclasses import fields
from typing import get_type_hints

import pytest

from strategies import Hierarchical, HierarchicalFedAvg, HierarchicalFedProx, build_strategy
from strategies.factory import METHODS
from strategies.options import MethodOptions, Options
from strategies.outbox import Start
from strategies.sampling import Participation
from strategies.tiers import TierRules
from strategies.validation import ReplyLimits

GROUPS = (TierRules, Start, Participation, ReplyLimits)


def test_every_field_is_a_keyword_of_the_same_type() -> None:
    keywords = get_type_hints(Options)
    for kind in GROUPS:
        hints = get_type_hints(kind)
        for field in fields(kind):
            assert keywords.pop(field.name) == hints[field.name], field.name
    assert set(keywords) == {
        "method", "privacy", "on_round", "records", "keep_values", "calibration", "edges",
    }  # fmt: skip


def test_every_option_of_a_method_is_a_keyword() -> None:
    own = {name for _, names in METHODS.values() for name in names}
    assert own == set(MethodOptions.__annotations__)


def test_a_keyword_that_is_none_is_named() -> None:
    for make in (
        Hierarchical,
        HierarchicalFedAvg,
        lambda **options: build_strategy("fedavg", **options),
    ):
        with pytest.raises(TypeError, match=r"keywords: edge_rules \(did you mean edge_rule\?\)"):
            make(edge_rules="median")  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"keywords: cluster \(did you mean clusters\?\)"):
        HierarchicalFedAvg(cluster=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"keywords: cluster \(did you mean cluster_map\?\)"):
        Hierarchical(cluster=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"fraction_fit \(fraction_fit is fraction_train now\)"):
        HierarchicalFedAvg(fraction_fit=0.5)  # type: ignore[call-arg]
    for other in ("proximal_mu", "min_nodes", "calibration"):
        with pytest.raises(TypeError, match=other):
            HierarchicalFedAvg(**{other: 1})  # type: ignore[arg-type]
    assert HierarchicalFedProx(proximal_mu=0.5).method.config()["proximal-mu"] == 0.5


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("fraction_train", "a", "a number"),
        ("min_train_nodes", "2", "a whole number"),
        ("min_clients", True, "a whole number"),
        ("seed", 1.5, "a whole number"),
        ("node_wait_s", None, "a number"),
        ("keep_values", "false", "True or False"),
        ("proximal_mu", "0.1", "a number"),
    ],
)
def test_a_value_of_another_type_is_named(name: str, value: object, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: {value!r}; allowed: {allowed}$"):
        HierarchicalFedProx(**{name: value})  # type: ignore[arg-type]
