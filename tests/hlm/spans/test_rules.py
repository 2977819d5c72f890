"""Take-back rules: the learned one is the best for its chain, by enumeration of all texts."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from hlm.spans import AT_ONCE, NEVER, ONE_BY_ONE, SpanCosts, TakeBack, certain, learned
from hlm.spans.courses import course, spent
from hlm.spans.rules import planned
from hlm.spans.runs import COUNTS, chances_of

TOKENS = 6
TEXTS = np.array(list(product((False, True), repeat=TOKENS)))
COSTS = SpanCosts(llm_ms=40, slm_ms=5, round_trip_ms=30)
PRICED = SpanCosts(9, 5, 10, per_ms=0.5, input_price=0.2, output_price=3, request_price=8)
SLOW = SpanCosts(llm_ms=8.5, slm_ms=5, round_trip_ms=4)
NEAR = SpanCosts(llm_ms=80, slm_ms=5, round_trip_ms=5)
SHARED = SpanCosts(llm_ms=6, slm_ms=2, round_trip_ms=13, beside_ms=0.4)

LASTING = np.array([[10.0, 0.0], [10.0, 10.0], [1.0, 99.0]])
EVEN = np.array([[0.0, 10.0], [10.0, 10.0], [5.0, 5.0]])


def expected_cost(rule: TakeBack, counts: np.ndarray, costs: SpanCosts) -> float:
    """Mean over all texts of `TOKENS` drafts, each with its chance."""
    sure = chances_of(counts)
    before = np.column_stack([np.zeros(len(TEXTS), np.int64), TEXTS + 1])[:, :-1]
    chances = np.where(TEXTS, sure[before], 1 - sure[before]).prod(axis=1)
    return float(chances @ spent(course(TEXTS, rule), costs).cost)


@pytest.mark.parametrize("ahead", [1, 2, 3])
@pytest.mark.parametrize("costs", [COSTS, PRICED, SLOW, NEAR, SHARED])
def test_the_plan_costs_what_it_says_and_no_other_decision_costs_less(
    ahead: int, costs: SpanCosts
) -> None:
    for seed in range(5):
        counts = 20 * np.random.default_rng(seed).random(COUNTS)
        cost, rule = planned(counts, costs, TOKENS, ahead)
        assert cost == pytest.approx(expected_cost(rule, counts, costs))
        for remaining, state in product(range(1, TOKENS + 1), range(1, ahead + 1)):
            other = rule.table.copy()
            other[remaining, state] ^= True
            changed = replace(rule, table=other)
            assert cost <= expected_cost(changed, counts, costs) + 1e-9


def test_runs_that_last_are_taken_back_and_single_sure_drafts_are_not() -> None:
    costs = SpanCosts(llm_ms=20, slm_ms=5, round_trip_ms=60)
    single = LASTING.copy()
    single[2] = 100, 0
    assert planned(LASTING, costs, 60, 1)[1].take_back(np.array([1]), np.array([40]))
    assert not planned(single, costs, 60, 1)[1].take_back(np.array([1]), np.array([40]))


def test_a_text_nearly_at_its_end_is_taken_back_as_nobody_has_to_return() -> None:
    _, rule = planned(np.ones(COUNTS), SpanCosts(20, 5, 200), 60, 1)
    runs, remaining = np.ones(3, np.int64), np.array([1, 30, 99])
    assert rule.take_back(runs, remaining).tolist() == [True, False, False]


def test_more_drafts_are_asked_for_only_where_they_save_time() -> None:
    assert learned(EVEN, SpanCosts(40, 5, 60), 60).ahead == 2
    assert learned(EVEN, SpanCosts(20, 5, 60), 60).ahead == 4
    assert learned(EVEN, SpanCosts(40, 5, 0), 60).ahead == 1
    assert learned(EVEN, SpanCosts(40, 40, 60), 60) is NEVER


def test_without_counts_only_drafts_already_made_count() -> None:
    rule = learned(np.zeros(COUNTS), SpanCosts(20, 5, 30), 60)
    assert rule.ahead == 3  # 35 ms of a return, 15 ms saved by each
    runs = np.arange(4)
    assert rule.take_back(runs, np.full(4, 50)).tolist() == [False, False, False, True]
    assert learned(np.zeros(COUNTS), SpanCosts(20, 5, 60), 60) is NEVER  # five drafts
    assert learned(np.zeros(COUNTS), SpanCosts(8.5, 5, 5), 60) is NEVER  # three, in 15 ms


def test_near_a_slow_llm_nothing_is_decoded_in_vain() -> None:
    assert learned(EVEN, NEAR, 60) is ONE_BY_ONE
    assert certain(NEAR) is ONE_BY_ONE
    # After an unsure draft hardly ever a sure one: a stream saves many round trips.
    assert learned(np.array([[9.0, 1.0], [95.0, 5.0], [5.0, 5.0]]), NEAR, 60).streams
    assert certain(SpanCosts(20, 5, 5)).streams


@pytest.mark.parametrize("llm_ms", [8.5, 20, 40, 80])
@pytest.mark.parametrize("round_trip_ms", [5, 30, 60])
def test_no_rule_is_slower_than_one_token_at_a_time_or_the_llm_alone(
    llm_ms: float, round_trip_ms: float
) -> None:
    costs = SpanCosts(llm_ms, 5, round_trip_ms)
    for seed in range(20):
        counts = 20 * np.random.default_rng(seed).random(COUNTS)
        rule = learned(counts, costs, TOKENS, 2)
        least = expected_cost(rule, counts, costs)
        assert 0.99 * least <= expected_cost(ONE_BY_ONE, counts, costs) + 1e-9
        assert least <= expected_cost(NEVER, counts, costs) + 1e-9


def test_a_device_does_not_read_along_for_less_than_a_hundredth() -> None:
    counts = np.array([[109.0, 141.0], [4106.0, 3199.0], [3191.0, 4254.0]])
    costs = SpanCosts(8.5, 5, 60)
    planned_cost, _ = planned(counts, costs, 30, 1)
    assert 0.99 * costs.plain(30) < planned_cost < costs.plain(30)
    assert learned(counts, costs, 30) is NEVER
    assert learned(counts, SpanCosts(8.5, 1, 60), 30).reads_along


def test_a_device_does_not_read_along_where_that_holds_the_stream_up() -> None:
    counts = np.array([[109.0, 141.0], [4106.0, 3199.0], [3191.0, 4254.0]])
    costs = SpanCosts(llm_ms=6, slm_ms=2.5, round_trip_ms=37)
    assert learned(counts, costs, 30).reads_along
    assert learned(counts, replace(costs, beside_ms=0.2), 30) is NEVER


def test_streams_are_opened_only_where_they_save_a_hundredth_of_one_token_at_a_time() -> None:
    """What they have the LLM decode in vain is not worth less."""
    worth = []
    for round_trip_ms in np.arange(20.0, 35.0, 0.5):
        costs = SpanCosts(80, 5, float(round_trip_ms))
        rule = learned(EVEN, costs, TOKENS, 2)
        alone, streamed = (
            expected_cost(other, EVEN, costs)
            for other in (ONE_BY_ONE, planned(EVEN, costs, TOKENS, 1)[1])
        )
        worth.append(streamed / alone)
        assert rule.streams == (worth[-1] < 0.99)
    assert min(worth) < 0.99 < max(worth) and any(0.99 < share < 1 for share in worth)


@pytest.mark.parametrize(("rule", "taken"), [(AT_ONCE, [False, True]), (NEVER, [False, False])])
def test_the_two_ends(rule: TakeBack, taken: list[bool]) -> None:
    assert rule.take_back(np.array([0, 1]), np.array([9, 1])).tolist() == taken
    assert rule.reads_along == any(taken)


def test_arguments_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="tokens, ahead: 0, 1"):
        learned(np.ones(COUNTS), COSTS, 0, 1)
