"""`fedhlm estimate`: what is recorded, the sums of every way, and what the command says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from clients.decoding.drafting import RouterConfig
from fedhlm_app.cli import app
from fedhlm_app.client.inference import sampling_of, uncertainty_of
from fedhlm_app.estimate.recording import Recorded, alone, record
from fedhlm_app.estimate.sums import LEAST_MS, MOST_MS, RISKS, Estimate, verdict
from fedhlm_app.estimate.terms import Terms, message_bytes
from fedhlm_app.models.load import load_llm, load_slm
from fedhlm_app.settings import Settings
from hlm.spans.courses import ABSENT, KEPT, OPENED, STREAMED, Course

SIZES = (20, 3)
SLOW = Terms(llm_ms=80, slm_ms=5, round_trip_ms=5)


def estimate(terms: Terms, texts: int = 120) -> Estimate:
    """Texts whose drafts are sure in long runs, and wrong as often as they say."""
    rng = np.random.default_rng(0)
    hard = np.repeat(rng.random((texts, 10)) < 0.4, 4, axis=1)
    uncertainty = np.where(hard, rng.uniform(0.5, 1, hard.shape), rng.uniform(0, 0.2, hard.shape))
    lengths = rng.integers(20, 41, texts)
    present = np.arange(40) < lengths[:, None]
    uncertainty = np.where(present, uncertainty, 0.0)
    wrong = (rng.random(hard.shape) < uncertainty) & present
    recorded = Recorded(uncertainty, wrong, lengths, rng.integers(5, 17, texts))
    return Estimate(*recorded.halves(), terms, SIZES)


def spans_of(ways: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [way for way in ways if way["way"] == "spans"]


@pytest.mark.parametrize("ends", [False, True])
def test_recorded_is_what_plain_forward_passes_say(ends: bool) -> None:
    slm, llm = load_slm(), load_llm()
    prompts = [np.array([1, *range(40, 40 + length)]) for length in (3, 9, 6)]

    def written(prompt: np.ndarray) -> torch.Tensor:
        text = torch.from_numpy(prompt)[None]
        for _ in range(7):
            text = torch.cat([text, llm(text).logits[:, -1:].argmax(-1)], dim=1)
        return text

    with torch.inference_mode():
        plain = [written(prompt) for prompt in prompts]
        end = int(plain[1][0, len(prompts[1]) + 2])
        ids = frozenset([end] if ends else [])
        settings = Settings.from_sources({}, {})
        config = RouterConfig(sampling_of(settings), uncertainty_of(settings), 1, 0, ids)
        recorded = record(slm, alone(llm, config), prompts, 7, config)
        for row, (prompt, text) in enumerate(zip(prompts, plain, strict=True)):
            new = text[0, len(prompt) :].tolist()
            length = new.index(end) + 1 if ends and end in new else 7
            assert recorded.lengths[row] == length
            likeliest, draft = slm(text).logits.double().softmax(-1).max(-1)
            at = slice(len(prompt) - 1, len(prompt) - 1 + length)
            wrong = draft[0, at].numpy() != new[:length]
            assert np.array_equal(recorded.wrong[row, :length], wrong)
            assert not recorded.wrong[row, length:].any()
            expected = 1 - likeliest[0, at].numpy()
            np.testing.assert_allclose(recorded.uncertainty[row, :length], expected, atol=1e-5)
    assert (recorded.lengths.min() < 7) == ends
    assert recorded.prompts.tolist() == [4, 10, 7]


def test_the_threshold_keeps_within_the_risk_and_no_lower_than_it_must() -> None:
    recorded = estimate(SLOW).fitted
    size = recorded.lengths.sum()
    for risk in (0.02, 0.1):
        threshold = recorded.threshold(risk)
        sure = (recorded.uncertainty <= threshold) & recorded.present
        assert (sure & recorded.wrong).sum() <= risk * size < (sure & recorded.wrong).sum() + 1
    always = replace(recorded, wrong=recorded.present)
    assert always.threshold(0.5 / size) == -1


def test_a_course_is_charged_token_by_token() -> None:
    writer = np.array([
        [KEPT, OPENED, STREAMED, KEPT, OPENED, KEPT],
        [STREAMED, STREAMED, STREAMED, ABSENT, ABSENT, ABSENT],
        [KEPT, KEPT, KEPT, KEPT, KEPT, KEPT],
    ], np.int8)  # fmt: skip
    terms = Terms(
        10, 1, 0, 1e6, input_price=3e6, cached_price=1e6, output_price=7e6, request_price=100
    )
    course = Course(writer, np.zeros(writer.shape, np.int64))
    costs = replace(terms.costs((0, 0), 0.0), window=1)
    taken = terms.taken(course, costs, np.array([4, 6, 8]))
    # First text: prompt of 4 and a kept one are new to the first request; the second brings one
    # more and reads seven again. The second text is its prompt.
    assert taken.money == 3 * (5 + 1) + 7 + 3 * 6 + 7 * (3 + 3) + 100 * 3
    assert (taken.tokens, taken.requests, taken.decoded) == (15, 3, 6)
    assert taken.aim == taken.ms
    waits = replace(terms, hour_price=3.6e6)
    assert waits.taken(course, costs, np.array([4, 6, 8])).aim == taken.money + taken.ms


def test_plain_ways_come_to_what_paces_and_prices_say() -> None:
    terms = Terms(20, 5, 30, rate=1, input_price=2, output_price=8, request_price=1e-6)
    judged = estimate(terms).judged
    alone, small, *_ = estimate(terms).ways()
    tokens, texts = judged.lengths.sum(), len(judged.lengths)
    seconds = (20 * tokens + (30 + 8 * SIZES[0] / 1000) * texts) / 1000
    assert alone["tokens_per_second"] == pytest.approx(tokens / seconds)
    money = 2e-6 * judged.prompts.sum() + 8e-6 * tokens + 1e-6 * texts
    assert alone["cost_per_million"] == pytest.approx(1e6 * money / tokens)
    assert (alone["kept"], alone["at_most"], alone["saved"]) == (0, 0, 0)
    assert (small["kept"], small["cost_per_million"]) == (1, 0)
    assert small["tokens_per_second"] == pytest.approx(200)
    assert small["wrong"] == pytest.approx(judged.wrong.sum() / tokens)


def test_it_pays_over_a_short_link_to_a_slow_model() -> None:
    ways = estimate(SLOW).ways()
    found = spans_of(ways)
    assert [way["risk"] for way in found] == list(RISKS)
    assert verdict(ways).startswith("Pays from a risk of 1% on: spans write")
    for way, few in ((0.011, False), (0.031, True)):
        told = [one | {"at_most": way} for one in ways]
        assert ("So few texts stand for at most 3.1% kept" in verdict(told)) == few
    tokens = [way for way in ways if way["way"] == "one token at a time"]
    for way, token in zip(found, tokens, strict=True):
        assert way["saved"] > 0.05
        assert way["tokens_per_second"] >= token["tokens_per_second"]
        assert way["wrong"] <= token["wrong"] <= token["at_most"]
        assert LEAST_MS < way["llm_ms_above"] < SLOW.llm_ms
    # Beyond its border it does not pay.
    far = replace(SLOW, round_trip_ms=2 * found[0]["round_trip_ms_below"])
    assert spans_of(estimate(far).ways())[0]["saved"] < 0.01
    speeds = estimate(SLOW).speeds(found[-1]["threshold"], [5.0, 500.0])
    assert speeds[0] == pytest.approx(found[-1]["tokens_per_second"])
    assert speeds[1] < speeds[0]


def test_it_does_not_pay_over_a_long_link_to_a_fast_model() -> None:
    ways = estimate(Terms(llm_ms=5.5, slm_ms=5, round_trip_ms=300)).ways()
    for way in spans_of(ways):
        assert way["saved"] < 0.01
        # Where nothing is taken back, it is the LLM alone.
        assert way["tokens_per_second"] >= 0.99 * ways[0]["tokens_per_second"]
    words = verdict(ways)
    assert words.startswith("Does not pay here") and "an LLM slower than" in words


def test_prices_alone_can_decide() -> None:
    terms = Terms(5.5, 5, 300, output_price=2, hour_price=0.0)
    ways = estimate(terms).ways()
    way = spans_of(ways)[-1]
    assert way["saved"] > 0.2
    assert way["cost_per_million"] < 0.8 * ways[0]["cost_per_million"]
    assert way["round_trip_ms_below"] == MOST_MS
    # With time at a price, it is not worth the waiting.
    assert spans_of(estimate(replace(terms, hour_price=1000)).ways())[-1]["saved"] < 0.01


def test_a_message_is_as_long_as_the_wire_says() -> None:
    opening, frame = message_bytes(4096, "greedy", 16)
    assert frame == 3
    assert 10 < opening < 40
    assert message_bytes(4096, "sampled", 16)[0] > opening


@pytest.mark.parametrize(("words", "named"), [
    (["--llm-ms", "0"], "llm-ms=0.0"),
    (["--rate", "nan"], "rate=nan"),
    (["--prompts", "1"], "--prompts"),
    (["--hour-price", "0"], "hour-price=0"),
    (["--prompts", "100000"], "prompts = 100000: the dataset has 430 items"),
    (["--set", "slm=/nowhere"], "setting 'slm'"),
    (["--set", "temperature=-1"], "'temperature'"),
])  # fmt: skip
def test_wrong_settings_end_with_status_2(words: list[str], named: str) -> None:
    result = CliRunner().invoke(app, ["estimate", *words])
    assert (result.exit_code, named in result.stderr) == (2, True)


def test_the_command_records_the_builtin_pair(tmp_path: Path) -> None:
    words = "--prompts 12 --tokens 8 --llm-ms 90 --round-trip 5 --output-price 1 --out".split()
    result = CliRunner().invoke(app, ["estimate", *words, str(tmp_path)])
    assert result.exit_code == 0
    assert "recording ..." in result.stderr and "timing the SLM" in result.stderr
    assert "timing the LLM" not in result.stderr
    table = result.stdout.splitlines()[:-1]
    assert max(map(len, table)) <= 80
    assert not any("…" in line for line in table)
    made = json.loads((tmp_path / "estimate.json").read_text("utf-8"))
    assert len(made["ways"]) == 2 + 2 * len(RISKS)
    assert made["terms"]["llm_ms"] == 90 and made["terms"]["slm_ms"] > 0
    assert " ".join(made["verdict"].split()) in " ".join(result.stdout.split())
    page = (tmp_path / "estimate.html").read_text("utf-8")
    assert made["verdict"] in page and "<polyline" in page
    assert "a token of the LLM, ms</th>" in page and "trips: round trips a text" in page
    assert "trips: round trips a text" in " ".join(result.stdout.split())
    assert "http" not in page and "<script" not in page
