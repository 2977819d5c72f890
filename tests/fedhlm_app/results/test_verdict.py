"""The sentence on top of a result says what is known and no more."""

from __future__ import annotations

import pytest

from fedhlm_app.results.report.rows import figures, text_lines
from fedhlm_app.results.report.verdict import verdict
from fedhlm_app.settings import Settings
from tests.fedhlm_app.launch_apps import summary

CERTIFIED = {
    "budget": 0.05, "sureness": 0.95, "rounds": 0,
    "groups": 1, "certified": 1, "prompts": 0, "lacking": 0, "trial": 0.0, "gathering": False,
}  # fmt: skip
LACKING = CERTIFIED | {
    "rounds": 3, "certified": 0, "prompts": 24, "lacking": 35, "trial": -1.0, "gathering": True,
}  # fmt: skip


def found(guarantee, **changes):
    resolution = {"local": 4000, "cache": 380, "peer": 0, "edge": 0, "llm_accepted": 13620,
                  "llm_resampled": 0, "unresolved": 0}  # fmt: skip
    return summary(Settings()) | {
        "tokens": 18000, "resolution": resolution, "trr": 4380 / 18000, "certificate": 0.0279,
        "guarantee": guarantee, **changes,
    }  # fmt: skip


START = "Of 18,000 tokens 4,380 were decided on their device; "


@pytest.mark.parametrize(
    ("guarantee", "says"),
    [
        (
            CERTIFIED,
            "under the certified threshold at most 5 % are kept and wrong, with 95 % confidence",
        ),
        (
            CERTIFIED | {"sureness": None, "budget": 0.125},
            "under the certified threshold at most 12.5 % are kept and wrong, on average over runs",
        ),
        (
            LACKING | {"groups": 4, "certified": 3},
            "under 3 of 4 thresholds, which are certified, at most 5 % are kept and wrong, "
            "with 95 % confidence",
        ),
        (
            LACKING,
            "nothing is certified: 24 prompts judged, at least 35 more needed "
            "(3 rounds at these settings)",
        ),
        (
            LACKING | {"gathering": False},
            "nothing is certified: 24 prompts judged, at least 35 more needed: "
            "raise calibration-rounds by 3",
        ),
        (
            LACKING | {"lacking": None, "rounds": None, "gathering": False},
            "nothing is certified: after 24 prompts judged the search has ended, too much of what "
            "was tried is wrong",
        ),
        (None, "2.79 % were kept and wrong where the LLM has read them; nothing is certified"),
    ],
)
def test_the_verdict(guarantee, says):
    assert verdict(found(guarantee)) == START + says


def test_without_a_reading_nobody_knows():
    assert "how many are wrong is unknown" in verdict(found(None, measured_tokens=0))


def test_a_threshold_that_keeps_nothing_is_told_in_words():
    nothing = {"global": -1.0, "clusters": {"0": -1.0, "1": 0.25}, "clients": {}}
    lines = text_lines(found(LACKING | {"groups": 2, "certified": 1}, threshold=nothing))
    text = "\n".join(lines)
    assert "-1" not in text and lines[0].startswith(START)
    assert "keeps nothing" in text and "0: none  1: 0.2500" in text
    assert "1 of 2  24 prompts judged, at least 35 more needed" in text
    assert "until then nothing is kept" in text
    tried = text_lines(found(LACKING | {"trial": 0.0312}, threshold=nothing))
    assert any("until then 0.0312 is tried" in line for line in tried)


def test_the_certificate_stands_beside_its_budget():
    rows = {row[0]: row[1:] for row in figures(found(CERTIFIED)) if row}
    assert rows["certificate"][0] == "0.0279"
    assert rows["certificate"][1].startswith("of 0.05 allowed: ")
    rows = {row[0]: row[1:] for row in figures(found(None)) if row}
    # Where nothing is certified, no row says that something is.
    assert "certificate" not in rows and rows["kept and wrong"][0] == "0.0279"
