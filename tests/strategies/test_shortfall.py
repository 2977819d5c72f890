"""What a calibration says it lacks is what it turns out to have lacked."""

from __future__ import annotations

import numpy as np
import pytest

from fedhlm_app.learning.rules import rule_of
from fedhlm_app.settings import Settings
from hlm.risk.betting import log_terms
from strategies.shortfall import MOST, fewest


@pytest.mark.parametrize("least", [1, 2, 7, 1000, MOST - 1])
def test_the_fewest_that_are_enough(least):
    assert fewest(lambda n: n >= least) == least


def test_never_enough_is_a_bound():
    assert fewest(lambda n: False) == MOST


def calibration_of(**changes):
    given = {"learning": "certified", "workload": "score", **changes}
    rule = rule_of(Settings.from_sources(given, {}))
    return rule, rule.calibration()


def without_risk(rule, prompts):
    """A client's sums of so many prompts in which nothing is ever wrong."""
    sums = {"risk-curve": np.eye(1, rule.length)[0] * prompts}
    if rule.sequential:
        sums["wealth"] = log_terms(np.zeros(prompts), rule.levels[0], rule.bound)
    return sums


@pytest.mark.parametrize(
    ("changes", "least"),
    [
        ({}, 19),  # 1 / .05 - 1
        ({"fidelity-budget": 0.1}, 9),
        ({"audit-rate": 0.5}, 39),  # 2 / .05 - 1
        ({"learning": "certified-high-probability"}, 59),  # ln .05 / ln .95
    ],
)
def test_given_texts_lack_what_the_rule_needs_without_a_wrong_token(changes, least):
    rule, calibration = calibration_of(**changes)
    assert calibration.lacking(0) == least and calibration.heard(0) == 0
    calibration.absorb(0, {0: without_risk(rule, 4)}, {0})
    assert calibration.lacking(0) == least - 4 and calibration.heard(0) == 4
    calibration.absorb(0, {0: without_risk(rule, least - 5)}, {0})
    assert calibration.result(0) < 0 and calibration.lacking(0) == 1
    calibration.absorb(0, {0: without_risk(rule, 1)}, {0})
    assert calibration.result(0) >= 0


@pytest.mark.parametrize("learning", ["certified", "certified-high-probability"])
def test_a_bet_is_not_won_on_fewer(learning):
    rule, calibration = calibration_of(learning=learning, workload="generate")
    # Text in which everything is escalated brings the first candidate, and wins nothing.
    least = calibration.lacking(0)
    calibration.absorb(0, {0: without_risk(rule, 30)}, {0})
    assert calibration.trial(0) > 0 and calibration.lacking(0) == least
    calibration.absorb(0, {0: without_risk(rule, least - 1)}, {0})
    assert calibration.result(0) < 0 and calibration.lacking(0) == 1
    assert calibration.heard(0) == least - 1
    calibration.absorb(0, {0: without_risk(rule, 1)}, {0})
    assert calibration.result(0) > 0


def test_a_search_that_has_ended_lacks_nothing_that_could_come():
    rule, calibration = calibration_of(workload="generate")
    calibration.absorb(0, {0: without_risk(rule, 30)}, {0})
    wrong = {"risk-curve": np.ones(rule.length), "wealth": np.full(3, -1e3)}
    calibration.absorb(0, {0: wrong}, {0})
    assert calibration.lacking(0) is None
