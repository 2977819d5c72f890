"""The chain puts together what its resolvers return; each knows of its own rows alone."""

from __future__ import annotations

import numpy as np

from clients.records import Stage, TokenFeedback, Traffic
from clients.resolvers.chain import Resolution, resolve_in_turn
from tests.escalations import Oracle, escalate

TRUTH = np.arange(10, 16)


class Tier:
    """Decides some texts, withholds others, and notes which rows it was asked about."""

    needs_hidden, verifies = False, False

    def __init__(self, decides, withholds=()):
        self.decides, self.withholds = decides, withholds
        self.learnt = []

    def resolve(self, escalation):
        resolution = Resolution.none(len(escalation.rows), escalation.rows.copy())
        mine = np.isin(escalation.rows, self.decides)
        resolution.tokens[mine], resolution.stages[mine] = 5, Stage.PEER
        held = np.isin(escalation.rows, self.withholds)
        resolution.withheld[held] = 6
        one = np.array([0])
        resolution.feedback.append(TokenFeedback(one, one, np.array([7], np.uint8), one > 0))
        resolution.traffic.edge += 3
        return resolution

    def learn(self, escalation, final, asked):
        self.learnt.append((final, asked))
        return Traffic(edge=100)


def test_each_takes_what_is_open_and_the_sum_is_everybodys():
    first, second, oracle = Tier([0, 1]), Tier([1, 2]), Oracle(TRUTH, bytes_each=10)
    final = resolve_in_turn([first, second, oracle], escalate(None, TRUTH))
    assert final.tokens.tolist() == [5, 5, 5, 13, 14, 15]
    assert (final.stages[:3] == Stage.PEER).all() and (final.stages[3:] == Stage.LLM_ACCEPTED).all()
    assert len(final.feedback) == 2
    # 3 bytes each to ask, 100 each to learn, and three rows at the oracle.
    assert (final.traffic.edge, final.traffic.uplink, final.traffic.messages) == (206, 30, 1)


def test_a_note_comes_back_to_who_wrote_it_with_its_rows():
    first, second = Tier([0, 1]), Tier([])
    resolve_in_turn([first, second, Oracle(TRUTH)], escalate(None, TRUTH))
    for tier, rows in ((first, [0, 1, 2, 3, 4, 5]), (second, [2, 3, 4, 5])):
        ((_, asked),) = tier.learnt
        assert np.flatnonzero(asked.rows).tolist() == asked.resolution.note.tolist() == rows


def test_withheld_and_audited_rows_pass_by_who_does_not_verify():
    first, second, oracle = Tier([], withholds=[0]), Tier([0, 1, 2]), Oracle(TRUTH)
    escalation = escalate(None, TRUTH)
    escalation.audited[1] = True
    final = resolve_in_turn([first, second, oracle], escalation)
    assert (final.stages == Stage.PEER).tolist() == [False, False, True, False, False, False]
    ((_, asked),) = second.learnt
    assert asked.rows.tolist() == [False, False, True, True, True, True]


def test_who_is_asked_nothing_learns_all_the_same_unless_nobody_may():
    idle, everything = Tier([]), Tier(range(6))
    final = resolve_in_turn([everything, idle], escalate(None, TRUTH))
    assert idle.learnt == [(final, None)]
    resolve_in_turn([everything, idle], escalate(None, TRUTH), learning=False)
    assert len(idle.learnt) == len(everything.learnt) == 1


def test_what_nobody_decides_stays_with_the_draft():
    final = resolve_in_turn([Tier([0])], escalate(None, TRUTH))
    assert final.tokens.tolist() == [5, 11, 12, 13, 14, 15]
    assert (final.stages[1:] == Stage.UNRESOLVED).all() and not final.is_llm_choice.any()
