"""The paper's letter from end to end: a small run of exactly the preset `paper`."""

from __future__ import annotations

from fedhlm_app.presets import preset_settings
from tests.fedhlm_app.in_process import Runner


def test_the_preset_of_the_paper_runs_as_the_paper_says(tmp_path, monkeypatch) -> None:
    size = {"clients", "clusters", "rounds", "tokens-per-round", "tokens-per-prompt"}
    _, folder, _ = Runner(monkeypatch).run(tmp_path, preset="paper")
    summary, lines = folder.summary(), folder.metrics()
    assert summary["settings"]["preset"] == "paper"
    assert preset_settings("paper").items() <= summary["settings"].items()
    assert summary["changed"].keys() <= {*size, "evaluate-every", "escalation"}
    # Eq. 5 is negative everywhere: the threshold only rises, and nothing is certified.
    first, second = (line["threshold"]["global"] for line in lines)
    assert 0.5 < first < second < 1 and summary["guarantee"] is None
    # Algorithm 1, line 23: n_k counts what left the device, whoever decided it.
    for line in lines:
        sent = line["tokens"] - line["resolution"]["local"]
        assert sum(line["weights"].values()) == sent > 0
    assert summary["resolution"]["cache"] > 0 and summary["bytes"]["edge"] > 0
    # Whole distributions go up: two bytes for each word of the vocabulary at least.
    asked = summary["resolution"]["llm_accepted"] + summary["resolution"]["llm_resampled"]
    assert asked == 0 or summary["bytes"]["uplink"] > 4096 * asked
