from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clients.records import Stage
from clients.resolvers.chain import Asked, Resolution
from clients.resolvers.hits import AuditedTier, FalseHits, audit_draws
from hlm.randomness import DrawKeys
from tests.escalations import escalate


def ended(tokens, stages):
    """How a step ended, row by row."""
    nothing = Resolution.none(len(tokens))
    return replace(nothing, tokens=np.array(tokens), stages=np.array(stages, np.int8))


def asked(withheld, rows=None):
    """What a tier said that withheld these tokens, of all rows unless told which."""
    rows = np.ones(len(withheld), np.bool_) if rows is None else rows
    return Asked(rows, replace(Resolution.none(len(withheld)), withheld=withheld))


def test_a_rate_needs_evidence_to_exceed_its_limit():
    assert not FalseHits(0, 0).exceeds(0.0)
    assert not FalseHits(3, 1).exceeds(0.1)
    assert FalseHits(100, 30).exceeds(0.1)
    assert not FalseHits(100, 100).exceeds(1.0)
    low, high = FalseHits(50, 10).interval
    assert 0.1 < low < 0.2 < high < 0.34


def test_columns_of_audit_draws_are_different_numbers():
    keys = DrawKeys(1, np.arange(100, dtype=np.uint64), np.arange(100))
    draws = np.stack([audit_draws(keys, column) for column in range(4)])
    assert (np.diff(np.sort(draws, axis=0), axis=0) > 0).all()
    assert np.array_equal(draws[2][:10], audit_draws(keys.select(np.arange(10)), 2))


def test_audited_share_is_the_rate():
    """False alarm: |Binomial(20000, .1) - 2000| > 5 sigma: 6e-7."""
    keys = DrawKeys(1, np.arange(20_000, dtype=np.uint64), np.zeros(20_000, np.int64))
    share = AuditedTier(0.1, 1.0, 1).audited(keys).mean()
    assert abs(share - 0.1) < 5 * np.sqrt(0.09 / 20_000)


def test_held_back_proposals_are_judged_by_what_the_llm_decides():
    tier = AuditedTier(1.0, 1.0, 1)
    escalation = escalate(None, [1, 2, 3, 4])
    withheld = tier.withheld(escalation, np.array([1, 2, -1, 4]))
    assert withheld.tolist() == [1, 2, -1, 4]
    stages = [Stage.LLM_ACCEPTED, Stage.LLM_RESAMPLED, Stage.LLM_ACCEPTED, Stage.UNRESOLVED]
    final = ended([1, 9, 3, 7], stages)
    tier.judge(final, asked(withheld))
    # The last row never reached the LLM, so it says nothing about the hit.
    assert (tier.false_hits.checked, tier.false_hits.wrong) == (2, 1)
    tier.judge(final, None)
    assert tier.false_hits.checked == 2


def test_a_tier_that_was_asked_about_some_rows_is_judged_by_those():
    tier = AuditedTier(1.0, 1.0, 1)
    final = ended([1, 2, 3, 4], [Stage.LLM_ACCEPTED] * 4)
    rows = np.array([False, True, False, True])
    tier.judge(final, asked(np.array([2, 9]), rows))
    assert (tier.false_hits.checked, tier.false_hits.wrong) == (2, 1)


def test_a_closed_tier_holds_everything_back_and_can_open_again():
    tier = AuditedTier(0.0, 0.2, 1)
    tier.false_hits = FalseHits(200, 190)
    assert tier.closed
    escalation = escalate(None, np.arange(50))
    final = ended(np.arange(50), [Stage.LLM_ACCEPTED] * 50)
    while tier.closed:
        withheld = tier.withheld(escalation, np.arange(50))
        assert (withheld >= 0).all()
        tier.judge(final, asked(withheld))
    assert 600 < tier.false_hits.checked < 1200
    assert (tier.withheld(escalation, np.arange(50)) < 0).all()


@pytest.mark.parametrize(("rate", "limit", "name"), [(-0.1, 1, "audit-rate"), (0, 2, "max-false")])
def test_bad_shares_are_refused(rate, limit, name):
    with pytest.raises(ValueError, match=name):
        AuditedTier(rate, limit, 1)
