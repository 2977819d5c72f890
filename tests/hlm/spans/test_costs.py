"""Costs of spans: their ranges, their special cases, and eq. 13 for a single token."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hlm.peers.cost import PeerCosts
from hlm.spans import SpanCosts, learned
from hlm.spans.runs import COUNTS

COSTS = SpanCosts(llm_ms=40, slm_ms=5, round_trip_ms=60)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("llm_ms", 0.0),
        ("slm_ms", -1.0),
        ("round_trip_ms", math.nan),
        ("window", 0),
        ("beside_ms", -0.1),
        ("per_ms", -0.1),
        ("input_price", math.inf),
        ("output_price", -1.0),
        ("request_price", -1.0),
    ],
)
def test_a_field_out_of_range_is_named(field: str, value: float) -> None:
    fields = {"llm_ms": 40.0, "slm_ms": 5.0, "round_trip_ms": 60.0, field: value}
    with pytest.raises(ValueError, match=f"^{field}="):
        SpanCosts(**fields)  # type: ignore[arg-type]


def test_the_break_even_is_a_return_over_what_a_kept_token_saves() -> None:
    assert COSTS.break_even == pytest.approx((60 + 5) / (40 - 5))
    # A device as slow as the LLM saves nothing by keeping.
    assert SpanCosts(40, 40, 5).break_even == math.inf


def test_a_window_of_one_waits_for_every_token_and_decodes_none_in_vain() -> None:
    narrow = SpanCosts(llm_ms=40, slm_ms=5, round_trip_ms=60, window=1)
    assert narrow.streamed() == 100
    assert narrow.overshoot(50) == 0


def test_overshoot_is_a_round_trip_of_decoding_within_window_and_text() -> None:
    assert COSTS.overshoot([50, 2, 1]).tolist() == [2, 2, 1]
    assert SpanCosts(8.5, 5, 60, window=4).overshoot(50) == 3


def test_a_step_in_vain_holds_up_who_is_back_before_its_end() -> None:
    slow = SpanCosts(llm_ms=80, slm_ms=5, round_trip_ms=5)
    # 80 ms, less a round trip, the kept drafts and the unsure one.
    assert slow.held_up_ms([1, 2, 13, 14, 99], 100).tolist() == [65, 60, 5, 0, 0]
    assert SpanCosts(80, 5, 5, window=1).held_up_ms(1, 100) == 0


def test_drafts_beside_a_stream_hold_it_up_where_processors_are_shared() -> None:
    shared = SpanCosts(llm_ms=6, slm_ms=2.5, round_trip_ms=30, beside_ms=0.5)
    assert shared.streamed_ms([0, 1, 2, 4]).tolist() == [6, 6.5, 7, 10]
    assert shared.plain(10) == 30 + 10 * 6


def test_prices_are_added_to_what_time_is_worth() -> None:
    costs = SpanCosts(40, 5, 60, per_ms=2, input_price=3, output_price=7, request_price=11)
    assert costs.kept == 2 * 5 + 3
    assert costs.opened == 2 * 105 + 7 + 11
    assert costs.streamed() == 2 * 40 + 7
    assert costs.plain(10) == 2 * 60 + 11 + 10 * (2 * 40 + 7)


@given(
    share=st.floats(0.01, 0.99),
    slm=st.floats(0.1, 100),
    llm=st.floats(0.1, 100),
    round_trip=st.floats(0, 200),
)
def test_a_single_token_is_drafted_where_eq_13_says_so(
    share: float, slm: float, llm: float, round_trip: float
) -> None:
    equal = PeerCosts(peer=slm, llm=round_trip + llm)
    assume(abs(share - equal.least_hit_probability()) > 1e-6)
    counts = np.zeros(COUNTS)
    counts[0] = 1 - share, share
    rule = learned(counts, SpanCosts(llm, slm, round_trip), tokens=1)
    assert rule.reads_along == (share >= equal.least_hit_probability())
