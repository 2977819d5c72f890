import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlm.peers.cost import PeerCosts

costs = st.floats(0, 100)


@settings(max_examples=100, deadline=None)
@given(costs, costs, costs, st.floats(0, 1), st.floats(0, 1))
def test_asking_pays_from_where_eq_12_costs_less(
    peer: float, llm: float, error: float, false_hit: float, hit: float
) -> None:
    least = PeerCosts(peer, llm, error, false_hit).least_hit_probability()
    # Eq. 12, and what a wrong hit costs.
    expected = (1 - hit) * (peer + llm) + hit * (1 - false_hit) * peer
    expected += hit * false_hit * (peer + error)
    if expected < llm - 1e-9:
        assert hit >= least
    if expected > llm + 1e-9:
        assert hit < least


def test_the_papers_rule() -> None:
    assert PeerCosts(peer=2.0, llm=8.0).least_hit_probability() == 0.25
    assert PeerCosts(2.0, 8.0, error=20.0, false_hit=0.2).least_hit_probability() == 0.5
    assert PeerCosts(2.0, 8.0, error=20.0, false_hit=0.4).least_hit_probability() == math.inf
    assert PeerCosts(0.0, 0.0).least_hit_probability() == math.inf


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("peer", lambda: PeerCosts(-1.0, 1.0)),
        ("false_hit", lambda: PeerCosts(1.0, 1.0, 1.0, 2.0)),
    ],
)
def test_bad_values_are_named(name: str, build: object) -> None:
    with pytest.raises(ValueError, match=name):
        build()  # type: ignore[operator]
