"""Courses: the cheapest one against all there are, and what each way of writing comes to."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hlm.spans import (
    AT_ONCE,
    NEVER,
    ONE_BY_ONE,
    SpanCosts,
    best_course,
    certain,
    count_runs,
    course,
    learned,
    plain_course,
    spent,
    token_course,
)
from hlm.spans.courses import ABSENT, KEPT, OPENED, STREAMED, Course

SURE = np.random.default_rng(0).random((40, 30)) < 0.5
COSTS = SpanCosts(llm_ms=40, slm_ms=5, round_trip_ms=60)

some_costs = st.builds(
    SpanCosts,
    llm_ms=st.floats(1, 50),
    slm_ms=st.floats(0, 20),
    round_trip_ms=st.floats(0, 100),
    window=st.integers(1, 8),
    per_ms=st.floats(0, 2),
    input_price=st.floats(0, 5),
    output_price=st.floats(0, 5),
    request_price=st.floats(0, 50),
)


def every_course(sure: np.ndarray) -> Course:
    """All courses of one text in which the device keeps sure drafts only."""
    kinds = np.array(list(product((KEPT, OPENED, STREAMED), repeat=len(sure))), np.int8)
    before = np.column_stack([np.full(len(kinds), STREAMED), kinds[:, :-1]])
    allowed = (kinds != KEPT) | sure
    # A stream goes on only where there is one, and is opened only where there is none.
    allowed &= np.where(kinds == STREAMED, before != KEPT, True)
    allowed[:, 1:] &= np.where(kinds == OPENED, before == KEPT, True)[:, 1:]
    writer = kinds[allowed.all(axis=1)]
    return Course(writer, np.ones(writer.shape, np.int64), foreseen=True)


@settings(max_examples=60)
@given(
    sure=arrays.arrays(np.bool_, st.tuples(st.just(3), st.integers(1, 6))),
    costs=some_costs,
    cut=st.integers(0, 5),
)
def test_no_course_is_cheaper_than_the_best(sure: np.ndarray, costs: SpanCosts, cut: int) -> None:
    lengths = np.maximum(sure.shape[1] - np.array([0, 1, cut]), 0)
    best = spent(best_course(sure, costs, lengths), costs).cost
    for row, length in enumerate(lengths):
        least = spent(every_course(sure[row, :length]), costs).cost.min() if length else 0.0
        np.testing.assert_allclose(best[row], least, rtol=1e-9, atol=1e-9)


@settings(max_examples=40)
@given(costs=some_costs, ahead=st.integers(1, 4))
def test_no_rule_beats_the_best_course_and_all_keep_sure_drafts_only(
    costs: SpanCosts, ahead: int
) -> None:
    best = spent(best_course(SURE, costs), costs).cost
    for rule in (certain(costs, ahead), learned(count_runs(SURE), costs, 30, ahead)):
        followed = course(SURE, rule)
        assert not (followed.writer[~SURE] == KEPT).any()
        if rule.reads_along:
            assert (spent(followed, costs).cost >= best * (1 - 1e-9)).all()


def test_at_once_keeps_what_one_token_per_escalation_keeps() -> None:
    streamed, asked = course(SURE, AT_ONCE), token_course(SURE)
    assert ((streamed.writer == KEPT) == (asked.writer == KEPT)).all()
    token = spent(asked, COSTS)
    np.testing.assert_allclose(token.ms, 30 * 5 + (~SURE).sum(axis=1) * (60 + 40))
    assert token.overshoot.sum() == 0
    assert spent(streamed, COSTS).ms.sum() < token.ms.sum()
    # The server's last step of 80 ms is over 65 ms after a single kept token.
    slow = SpanCosts(llm_ms=80, slm_ms=5, round_trip_ms=5)
    assert spent(streamed, slow).ms.sum() > spent(course(SURE, ONE_BY_ONE), slow).ms.sum()


def test_never_is_the_llm_alone() -> None:
    alone = spent(course(SURE, NEVER), COSTS)
    np.testing.assert_allclose(alone.cost, COSTS.plain(30))
    assert (alone.decoded == 30).all()
    assert alone.drafts.sum() == alone.kept.sum() == 0


def test_a_course_step_by_step() -> None:
    sure = np.array([[1, 0, 1, 0, 1, 1, 0, 1, 0]], np.bool_)
    followed = course(sure, certain(COSTS), np.array([8]))
    expected = [KEPT, OPENED, STREAMED, STREAMED, KEPT, KEPT, OPENED, STREAMED, ABSENT]
    assert followed.writer.tolist() == [expected]
    assert followed.drafts.tolist() == [[1, 1, 2, 1, 2, 1, 1, 2, 0]]
    # Two unsure drafts with their round trips, three kept, three streamed; and at the only stop
    # 60 ms and two drafts of the LLM's 40 ms steps in vain, the second over 5 ms after the request
    # behind it is there: 60 ms and three drafts after the last token was sent.
    taken = spent(followed, COSTS)
    assert taken.ms.tolist() == [2 * (5 + 60 + 40) + 3 * 5 + 3 * 40 + 5]
    figures = (taken.kept, taken.requests, taken.stops, taken.overshoot, taken.decoded)
    assert [int(figure[0]) for figure in figures] == [3, 2, 1, 2, 7]


def test_a_text_is_not_charged_for_what_lies_behind_its_end() -> None:
    lengths = np.array([0, 7, 30])
    for made in (
        course(SURE[:3], AT_ONCE, lengths),
        plain_course(3, 30, lengths),
        token_course(SURE[:3], lengths),
        best_course(SURE[:3], COSTS, lengths),
    ):
        taken = spent(made, COSTS)
        assert ((made.writer != ABSENT).sum(axis=1) == lengths).all()
        assert (taken.kept + taken.decoded - taken.overshoot == lengths).all()
        assert taken.ms[0] == 0
