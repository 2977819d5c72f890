"""What is said to be a paper's is the paper's; what is ours is said to be ours."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from clients.learning.feedback import Feedback
from fedhlm_app.client.verifiers import verifier_of
from fedhlm_app.learning.gradients import step_size
from fedhlm_app.learning.rules.paper import Paper
from fedhlm_app.settings import Settings, advice, rows
from hlm.line import UHLM_LINE
from hlm.truncation.count_rules import OnlineCount

DOCS = Path(__file__).resolve().parents[2] / "docs"


def _settings(**changes: object) -> Settings:
    return Settings.from_sources({k.replace("_", "-"): v for k, v in changes.items()}, {})


def _words(name: str) -> str:
    return " ".join((DOCS / name).read_text("utf-8").split())


def test_the_papers_loss_is_that_of_its_figure_5() -> None:
    """Fig. 5: beta = .2 for every token; far above the threshold the loss is about .65."""
    loss = Paper(_settings(learning="paper")).loss(np.array([0.3]), Feedback.create([1.0], [0.2]))
    assert loss == pytest.approx(0.65, abs=0.002)


def test_the_step_sizes_are_called_ours_and_are_of_the_kind_the_paper_asks_for() -> None:
    first, decay = Paper.steps
    settings = _settings(learning="paper")
    steps = [step_size(settings, number) for number in (1, 2, 31)]
    assert steps == [first, first / (1 + decay), first / (1 + 30 * decay)]
    text = _words("learning.md")
    assert f"{first:.2g} / (1 + r) for `paper`".removeprefix("0") in text
    assert "All three are our choice" in text and "(the paper's)" not in text
    (described,) = [row.description for row in rows() if row.name == "learning-rate"]
    assert "our choice" in described and f"paper {first:g}".replace("0.", ".") in described


@pytest.mark.parametrize("method", ["truncated", "truncated-exact"])
def test_a_run_says_whose_line_the_k_star_rule_uses(method: str) -> None:
    settings = _settings(decoding="sampled", verification=method)
    rule = verifier_of(settings).rule  # type: ignore[attr-defined]
    assert isinstance(rule, OnlineCount) and (rule.slope, rule.intercept) == UHLM_LINE
    (said,) = advice(settings)
    assert "U-HLM" in said and "not to this pair" in said and "truncation-k" in said
    for number in UHLM_LINE:
        assert f"{abs(number)}" in said
        assert f"{abs(number)}".removeprefix("0") in _words("verification.md")
    assert advice(_settings(decoding="sampled", verification=method, truncation_k=16)) == []
    assert advice(_settings(decoding="sampled", verification="full")) == []


def test_the_choices_where_the_paper_is_open_are_written_down() -> None:
    text = (DOCS / "method.md").read_text("utf-8")
    table = [line for line in text.splitlines() if line.startswith("| ")]

    def row(start: str) -> str:
        (found,) = [line for line in table if line.startswith(f"| {start}")]
        return found

    penalty = Settings.defaults()["transmission-penalty"]
    assert f"transmission-penalty = {penalty}".replace("0.", ".") in row("lambda of eq. 4")
    assert "ln V" in row("Entropy")
    assert re.search(r"names no number", row("Step size"))
    assert "kept or received" in row("What the token cache holds")
