"""The paper's own figures, where two of them cannot both hold."""

from __future__ import annotations

from fedhlm_app.reproduce.fedhlm.inputs import Inputs
from fedhlm_app.reproduce.pieces import Finding, Piece, Table

HITS = (0.35, 0.42, 0.46, 0.50, 0.52, 0.55, 0.58, 0.60, 0.63, 0.66)
"""Cache hit ratios of Table V."""
LLM_TOKENS = (650, 580, 540, 500, 480, 450, 420, 400, 370, 340)
"""LLM tokens of Table V."""


def made(inputs: Inputs) -> Finding:
    """Arithmetic on published numbers alone."""
    del inputs
    exact = sum(
        round(1000 * (1 - hit)) == tokens for hit, tokens in zip(HITS, LLM_TOKENS, strict=True)
    )
    rows = (
        (
            "Tokens at the LLM",
            f"Table V: {sum(LLM_TOKENS):,} for ten clients",
            "Table IV: 708 for all twenty",
        ),
        (
            "Table V's two columns",
            f"LLM tokens = 1000 (1 - hit ratio) in {exact} of {len(HITS)} rows",
            "said to be measured",
        ),
        (
            "Accuracy of a hybrid",
            "Fig. 10: 93.2 % at round 30",
            "at most that of the SLM (< 85 %) plus the share escalated (5.51 %)",
        ),
        (
            "Speculative decoding",
            "Fig. 10: plateaus at 89.5 %, below the LLM",
            "is lossless: its text is the LLM's",
        ),
        ("U-HLM", "Table IV: 82.5 % escalated", "its own paper: 45.93 % skipped"),
        ("Share that stays at the edge", "abstract: over 95 %", "at alpha = .1: 80.2 %"),
        ("Fig. 4", "a threshold that is learned, labelled U-HLM", "U-HLM's threshold is fixed"),
    )
    words = (
        "These pairs contradict each other, so no measurement can agree with both; below are ours, "
        "tuned towards neither."
    )
    return Finding(words, Table(("What", "Says", "Against"), rows))


PUBLISHED = Piece("published", "Published figures that cannot all hold", made)
