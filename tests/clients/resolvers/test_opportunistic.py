from __future__ import annotations

import numpy as np
import pytest

from clients.resolvers.opportunistic import OpportunisticConfig, OpportunisticRule, Price
from hlm.randomness import DrawKeys

MS = {"edge": Price(per_message=5), "llm": Price(per_message=60)}


def keys(rows):
    return DrawKeys(0, np.arange(rows, dtype=np.uint64), np.arange(rows))


def sketches(rows, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, 32), dtype=np.uint8)


def outcomes(rule, count, hit, uncertainty=0.5):
    for _ in range(count):
        rule.note_hits(np.array([uncertainty]), np.array([hit]))


def test_prices_are_linear():
    price = Price(per_message=60, per_byte=0.008, per_token=2)
    assert price.of_token(2, 1000, 4) == (120 + 8) / 4 + 2


def test_eq_13_with_measured_costs():
    rule = OpportunisticRule(OpportunisticConfig(**MS, memory=1e6))
    for _ in range(50):
        rule.note_edge(1, 100, 2)  # 2.5 ms a token
        rule.note_llm(1, 100, 3)  # 20 ms a token
    assert rule.costs().least_hit_probability() == pytest.approx(2.5 / 20, rel=0.01)
    outcomes(rule, 130, True)
    outcomes(rule, 870, False)
    assert rule.worth_asking(np.array([0.5])).all()
    outcomes(rule, 120, False)
    assert not rule.worth_asking(np.array([0.5])).any()
    # A wrong hit costs 100 ms and every fifth is wrong: nothing is saved any more.
    costly = OpportunisticRule(OpportunisticConfig(**MS, error=100))
    assert not costly.worth_asking(np.array([0.5]), false_hit=0.6).any()


def test_bands_learn_apart():
    rule = OpportunisticRule(OpportunisticConfig(**MS, bands=4))
    outcomes(rule, 600, False, 0.1)
    outcomes(rule, 600, True, 0.9)
    probability = rule.hit_probability
    assert probability[0] < 0.07 and probability[3] > 0.93
    assert probability[1] == probability[2] == 0.5  # the first guess


def test_the_first_guess_is_what_was_found_out():
    rule = OpportunisticRule(OpportunisticConfig(**MS, prior_weight=10))
    rule.expect(0.0)
    assert not rule.worth_asking(np.linspace(0, 1, 9)).any()
    assert not rule.explored(sketches(4000), keys(4000)).any()  # strangers are not explored
    rule.expect(0.2)
    assert rule.worth_asking(np.linspace(0, 1, 9)).all()
    outcomes(rule, 1, True)
    outcomes(rule, 9, False)
    # (1 + 10 * .2) / (10 + 10), but for what has faded.
    assert rule.hit_probability[2] == pytest.approx(3 / 20, rel=0.05)
    rule.expect(7.0)
    assert rule.hit_probability[0] == 1.0


def test_before_the_first_question_its_cost_is_that_of_as_many_rows_as_the_llm_gets():
    rule = OpportunisticRule(OpportunisticConfig(**MS))
    assert rule.costs().peer == 5.0
    for _ in range(60):
        rule.note_llm(1, 40, 4)
    assert rule.costs().peer == pytest.approx(5 / 4, rel=0.01)
    for _ in range(60):
        rule.note_edge(1, 40, 2)
    assert rule.costs().peer == pytest.approx(5 / 2, rel=0.01)


def test_old_outcomes_fade():
    rule = OpportunisticRule(OpportunisticConfig(**MS, memory=20))
    outcomes(rule, 1000, False)
    outcomes(rule, 60, True)
    # A weight of 20 in all, nearly all hits by now, beside the first guess of 16 halves.
    assert rule.hit_probability[2] == pytest.approx((19.5 + 8) / 36, abs=0.02)


def test_without_hits_asking_stops_but_some_exploration_goes_on():
    rule = OpportunisticRule(OpportunisticConfig(**MS))
    asked = 0
    while rule.worth_asking(np.array([0.5]))[0]:
        outcomes(rule, 1, False)
        asked += 1
    assert 60 <= asked <= 140  # 8 / (16 + n) < 1 / 12, with fading
    rule.note_llm(10_000, 100_000_000, 10_000)
    explored = rule.explored(sketches(4000), keys(4000)).mean()
    assert 0.03 < explored < 0.1  # 1 / 16


def test_exploration_recovers_a_hit_probability_of_zero():
    rule = OpportunisticRule(OpportunisticConfig(**MS, overhead=1))
    outcomes(rule, 600, False)
    assert not rule.worth_asking(np.array([0.5]))[0]
    for step in range(400):
        if rule.explored(sketches(1, step), keys(1))[0]:
            outcomes(rule, 1, True)
    assert rule.worth_asking(np.array([0.5]))[0]


def test_exploration_is_the_same_for_all_devices():
    first = OpportunisticRule(OpportunisticConfig(**MS))
    second = OpportunisticRule(OpportunisticConfig(**MS))
    first.note_llm(1, 1_000_000, 10)
    second.note_llm(1, 2_000_000, 10)
    same = sketches(500)
    other_keys = DrawKeys(0, np.arange(500, dtype=np.uint64) + 77, np.arange(500) + 3)
    assert np.array_equal(first.explored(same, keys(500)), second.explored(same, other_keys))


def test_exploration_keeps_to_its_budget_from_the_first_step_on():
    rule = OpportunisticRule(
        OpportunisticConfig(**MS, overhead=0.02, credit=40, explore=1, first_edge_bytes=16)
    )
    # Forty bytes of credit are two questions of sixteen bytes and no more.
    assert rule.explored(sketches(5), keys(5)).tolist() == [True, True, False, False, False]
    rule.note_edge(1, 5000, 2)
    assert rule.budget == 40 + 0.02 * 5000  # what was worth asking is no exploration
    rule.note_edge(1, 200, 0, explored=1.0)
    assert rule.budget < 0 and not rule.explored(sketches(5), keys(5)).any()
    rule.note_llm(100, 1_000_000, 100)
    assert rule.explored(sketches(5), keys(5)).all()


def test_where_even_certain_hits_do_not_pay_nothing_is_asked():
    rule = OpportunisticRule(OpportunisticConfig(explore=1))
    rule.note_edge(1, 380, 10)
    rule.note_llm(1, 100, 10)
    assert rule.costs().least_hit_probability() > 1
    assert not rule.worth_asking(np.linspace(0, 1, 9)).any()
    assert not rule.explored(sketches(9), keys(9)).any()


def test_by_step_rows_are_drawn():
    rule = OpportunisticRule(OpportunisticConfig(**MS, explore=0.25, credit=1e6))
    drawn = rule.explored(np.zeros((4000, 0), np.uint8), keys(4000))
    assert 0.2 < drawn.mean() < 0.3


def test_state_goes_round():
    rule = OpportunisticRule(OpportunisticConfig(**MS))
    outcomes(rule, 7, True)
    rule.note_edge(1, 70, 2)
    rule.note_llm(2, 90, 3)
    again = OpportunisticRule(OpportunisticConfig(**MS))
    again.restore(rule.state())
    assert np.array_equal(again.hit_probability, rule.hit_probability)
    assert again.costs() == rule.costs() and again.budget == rule.budget
    with pytest.raises(ValueError, match="bands"):
        OpportunisticRule(OpportunisticConfig(bands=3)).restore(rule.state())
    with pytest.raises(ValueError, match="finite"):
        again.restore(rule.state() | {"hits": np.full(4, np.nan)})
    rule.joined_cluster()
    assert np.allclose(rule.hit_probability, 0.5)


@pytest.mark.parametrize(
    "field",
    [{"prior_hit": 2}, {"explore": -1}, {"memory": 0}, {"bands": 0}, {"error": -1}, {"credit": -1}],
)
def test_bad_settings_are_refused(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        OpportunisticConfig(**field)
    with pytest.raises(ValueError, match="per_byte"):
        Price(per_byte=float("nan"))
