from __future__ import annotations

import csv
import io
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from clients.policy import FixedPolicy, RoutingInput
from clients.records import Stage, TokenRecords, Traffic
from fedhlm_app.cli.blocks import print_blocks
from fedhlm_app.cli.compare import run_comparison, settings_of
from fedhlm_app.compare import DEFAULT_METHODS, METHODS, Comparison, Method, Plan, chosen_methods
from fedhlm_app.compare import contender as contender_module
from fedhlm_app.compare.calibration import Calibration, threshold_of_share
from fedhlm_app.compare.tables import as_csv, as_json, result_rows
from fedhlm_app.compare.tally import Tally, Took, payload_bytes
from fedhlm_app.settings import Settings, SettingsError
from hlm.channels import LINKS, Times
from hlm.line import LineSums
from hlm.randomness import DrawKeys
from hlm.wire import Request
from tests.wire_rows import Row, rows_of

SMALL = {"prompts": 2, "calibration_prompts": 6, "tokens": 5}


def comparison(methods=DEFAULT_METHODS, decoding="sampled", **options):
    settings = Settings.from_sources({"decoding": decoding}, {})
    # A clock that ticks at every look: figures then do not depend on the machine.
    ticks = itertools.count()
    plan = Plan(
        chosen_methods(methods), **{**SMALL, "clock": lambda: float(next(ticks)), **options}
    )
    return Comparison.of(settings, plan)


@pytest.fixture(scope="module")
def sampled():
    return comparison().run()


def by_name(results):
    return {result["method"]: result for result in results}


def test_every_method_reports_everything(sampled):
    assert [result["method"] for result in sampled] == list(DEFAULT_METHODS)
    for result in sampled:
        assert 0 < result["tokens"] <= 10
        assert 0 <= result["sent_to_llm"] <= result["tokens"]
        assert result["trr"] == pytest.approx(1 - result["sent_to_llm"] / result["tokens"])
        assert 0 <= result["llm_agreement"] <= 1
        assert 0 <= result["certificate"] <= 1
        assert 0 <= result["accuracy"]["token"] <= 1
        assert 0 <= result["accuracy"]["label"] <= 1
        assert set(result["bytes_per_token"]) == {"uplink", "downlink"}
        assert set(result["tokens_per_second"]) == {link.name for link in LINKS}
    assert json.loads(as_json(sampled)) == sampled


def test_the_extremes_are_what_they_must_be(sampled):
    results = by_name(sampled)
    for name in ("llm", "hlm", "speculative"):
        assert results[name]["trr"] == 0
        assert results[name]["llm_agreement"] == 1
        assert results[name]["certificate"] == 0
    slm = results["slm"]
    assert (slm["trr"], slm["messages"]) == (1, 0)
    assert slm["bytes_per_token"] == {"uplink": 0, "downlink": 0}
    # Nothing crosses a link, so all links are alike.
    assert len(set(slm["tokens_per_second"].values())) == 1
    assert [name for name, result in results.items() if not result["exact"]] == ["slm", "cu-hlm"]
    # A whole distribution is two bytes an entry; an id is twelve bits.
    assert results["hlm"]["payload_bytes_per_sent_token"] == pytest.approx(2 * 4096, abs=3)
    assert 1 <= results["coupled"]["payload_bytes_per_sent_token"] <= 2
    assert 3 <= results["scalar"]["payload_bytes_per_sent_token"] <= 4


def test_free_feedback_costs_bytes_down_and_changes_no_token(sampled):
    coupled, fedhlm = by_name(sampled)["coupled"], by_name(sampled)["fedhlm-token"]
    for key in ("tokens", "sent_to_llm", "llm_agreement", "accuracy", "messages"):
        assert coupled[key] == fedhlm[key]
    assert fedhlm["bytes_per_token"]["downlink"] > coupled["bytes_per_token"]["downlink"]


def test_the_same_seed_gives_the_same_figures(sampled):
    # Nor does a method's result depend on the others'.
    again = by_name(comparison(["cu-hlm", "coupled"], accuracy=False).run())
    for name, result in again.items():
        before = {**by_name(sampled)[name], "accuracy": {"token": None, "label": None}}
        assert result == before


@pytest.mark.parametrize("decoding", ["sampled", "greedy"])
def test_lossless_methods_with_shared_draws_write_the_large_models_text(decoding):
    compared = comparison(["llm", "speculative"], decoding, tokens=9)
    contenders = [
        compared._contender(METHODS["llm"]),
        compared._contender(METHODS["speculative"]),
        compared._routed(Method("every", "", "everything"), FixedPolicy(False), 0),
    ]
    maker = compared._maker("generate")
    texts = [
        contender.make(maker.make(compared._rows[:1], np.array([5]))) for contender in contenders
    ]
    assert np.array_equal(texts[0].token, texts[1].token)
    assert np.array_equal(texts[0].token, texts[2].token)
    assert not np.array_equal(texts[2].token, texts[2].draft)
    # Blocks save messages, not tokens.
    assert contenders[1].tally.tokens == contenders[2].tally.tokens
    assert contenders[1].tally.messages < contenders[2].tally.messages


def test_in_greedy_decoding_all_verify_greedily():
    results = by_name(comparison(["hlm", "cu-hlm", "fedhlm-token"], "greedy", accuracy=False).run())
    assert all(result["exact"] for result in results.values())
    assert results["hlm"]["payload_bytes_per_sent_token"] <= 2
    # The LLM's choice is one token, so an unverified one is either it or a loss.
    fedhlm = results["fedhlm-token"]
    assert fedhlm["llm_agreement"] + fedhlm["certificate"] == pytest.approx(1)


@pytest.mark.parametrize("name", ["fedhlm-token", "fedhlm", "llm"])
def test_bytes_are_those_of_the_messages_and_of_nothing_else(name, monkeypatch):
    compared = comparison([name], accuracy=False, share=0.6)
    compared.calibration = compared._calibrate()
    service = compared._contender(METHODS[name])
    transport = service.recorder._transport
    up, down, until = [], [], []
    handle, stream = transport.service.handle, transport.service.stream

    def weighed(payload):
        answer = handle(payload)
        up.append(len(payload))
        down.append(len(answer))
        return answer

    def weighed_frames(payload):
        up.append(len(payload))
        for frames in stream(payload):
            down.append(len(frames))
            yield frames

    monkeypatch.setattr(transport.service, "handle", weighed)
    monkeypatch.setattr(transport.service, "stream", weighed_frames)
    unseen = contender_module.read_unseen

    def read_unseen(*args):
        until.append((sum(up), sum(down), len(up)))
        unseen(*args)

    monkeypatch.setattr(contender_module, "read_unseen", read_unseen)
    service.make(compared._maker("generate").make(compared._rows[:1], np.array([1])))
    counted = until[0] if until else (sum(up), sum(down), len(up))
    tally = service.tally
    assert (tally.uplink, tally.downlink, tally.messages) == counted
    assert tally.messages >= tally.round_trips > 0


@pytest.mark.slow
def test_thresholds_are_calibrated_on_other_items_and_hold_the_share():
    compared = comparison(["coupled", "u-hlm"], prompts=24, calibration_prompts=48, tokens=8)
    assert not set(compared._rows) & set(compared._calibration_rows)
    held = replace(compared.plan, equal_share=True, accuracy=False, share=0.4)
    compared = Comparison(
        compared.settings, held, compared.slm, compared.llm, compared.tokenizer, compared.items
    )
    for result in compared.run():
        # 192 tokens: four standard deviations of a share of .4, and as much for the calibration.
        assert abs(result["sent_to_llm"] / result["tokens"] - 0.4) < 0.2


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=200),
    st.floats(0, 1),
)
def test_a_share_is_met_in_expectation_whatever_ties(steps, share):
    uncertainty = np.array(steps) / 20
    policy = threshold_of_share(uncertainty, share)
    threshold, kept_at = policy.threshold, policy.kept_at
    expected = (uncertainty > threshold).mean() + (uncertainty == threshold).mean() * (1 - kept_at)
    assert expected == pytest.approx(share, abs=1e-9)
    rows = np.arange(uncertainty.size)
    kept = policy.keep(RoutingInput(uncertainty, DrawKeys(0, rows.astype(np.uint64), rows)))
    assert kept[uncertainty < threshold].all()
    assert not kept[uncertainty > threshold].any()


def test_the_certificate_of_coupled_draws_is_the_races():
    records = TokenRecords(1, 4)
    records.present[:] = True
    records.stage[0] = [Stage.LOCAL, Stage.LOCAL, Stage.LLM_ACCEPTED, Stage.LLM_RESAMPLED]
    records.token[0] = records.draft[0] = [7, 8, 9, 10]
    records.token[0, 3] = 11
    records.choice[0] = records.draft_choice[0] = [1, 0, 1, 0]
    records.probability[0] = 0.5
    records.log_prob[0] = np.log([0.5, 0.25, 0.5, 0.5])
    race, ratio, greedy = Tally(LINKS), Tally(LINKS), Tally(LINKS)
    took = Took(Times(LINKS), 0.0, 1.0, 0, [])
    race.add_text(records, Traffic(), took, greedy=False, race=True)
    ratio.add_text(records, Traffic(), took, greedy=False, race=False)
    greedy.add_text(records, Traffic(), took, greedy=True, race=True)
    assert (race.certificate, ratio.certificate, greedy.certificate) == (1.0, 0.5, 1.0)
    # Agreement means the same for every method, so that they can be compared.
    assert race.agreement == ratio.agreement == 1 + 0.5 + 1 + 1
    assert greedy.agreement == 3.0
    assert (race.tokens, race.sent) == (4, 2)


def test_speed_is_compute_plus_a_round_trip_a_message(sampled):
    for name in ("slm", "hlm", "coupled", "fedhlm-token", "speculative"):
        result = by_name(sampled)[name]
        tokens, compute = result["tokens"], sum(result["seconds_per_token"].values())
        carried = sum(result["bytes_per_token"].values())
        assert result["round_trips"] == result["messages"]
        for link in LINKS:
            trips = result["messages"] * link.round_trip_s
            seconds = compute * tokens + trips + 8 * carried * tokens / link.rate_bits_per_s
            assert result["tokens_per_second"][link.name] == pytest.approx(tokens / seconds)


def test_a_stream_pays_one_round_trip_and_the_pace_of_its_frames(sampled):
    result = by_name(sampled)["llm"]
    texts, tokens = result["texts"], result["tokens"]
    assert result["round_trips"] == result["messages"] == texts
    assert result["llm_decoded"] == {link.name: tokens for link in LINKS}
    # One tick for each frame, and for the device between two of them: only the server's count.
    # The first frame has no token, and whatever the device does at its start and end does.
    compute = result["seconds_per_token"]["server"] * tokens
    assert compute == pytest.approx(tokens + 2 * texts)
    for link in LINKS:
        seconds = tokens / result["tokens_per_second"][link.name]
        assert compute + texts * link.round_trip_s < seconds < compute + 4 * texts


def test_spans_cost_fewer_round_trips_than_single_tokens():
    options = {"accuracy": False, "tokens": 12, "prompts": 3, "share": 0.6}
    results = by_name(comparison(["fedhlm-token", "fedhlm"], "greedy", **options).run())
    token, spans = results["fedhlm-token"], results["fedhlm"]
    assert spans["round_trips"] < token["round_trips"] == token["messages"]
    assert spans["messages"] > spans["round_trips"]  # stops, which nobody waits for
    assert spans["certificate"] <= token["certificate"]
    assert all(
        spans["sent_to_llm"] <= decoded <= spans["tokens"] * 2
        for decoded in spans["llm_decoded"].values()
    )


def test_a_paced_llm_takes_its_time():
    settings = Settings.from_sources({"decoding": "greedy"}, {})
    plan = Plan(chosen_methods(["llm"]), 1, 2, 6, accuracy=False, llm_ms=30)
    (result,) = Comparison.of(settings, plan).run()
    assert 0.03 <= result["seconds_per_token"]["server"] < 0.3


@pytest.mark.parametrize("words", ["1", "1,x", "0,60", "1,-60", "1,nan"])
def test_a_link_that_is_none_is_named(words, capsys):
    options = {**SMALL, "links": [words]}
    assert run_comparison("slm", options, {}, [], None, None) == 2
    assert f"--link '{words}'" in capsys.readouterr().err


@pytest.mark.parametrize(("verifier", "fields", "size"), [
    ("coupled", {}, 2),
    ("scalar", {"weight": 9}, 4),
    ("full", {"weights": np.full(4096, 16)}, 8194),
])  # fmt: skip
def test_the_payload_is_what_the_draft_adds(verifier, fields, size):
    row = Row(3, 20, np.arange(4), 9, **fields)
    bits = 16 if verifier == "full" else 8
    request = Request(verifier, 4096, rows_of([row]), decoding="sampled", bits=bits)
    assert payload_bytes(request) == pytest.approx(size, abs=1)


def test_a_line_that_does_not_rise_is_said_to_need_more_prompts():
    falling = LineSums.of(np.array([0.1, 0.9]), np.array([0.8, 0.2]))
    with pytest.raises(ValueError, match=r"calibration prompts: their 2 tokens.*slope"):
        Calibration({}, {}, falling, falling).line


def test_wrong_plans_are_refused_by_name():
    with pytest.raises(ValueError, match=r"'magic' given; allowed are llm, slm"):
        chosen_methods(["hlm", "magic"])
    with pytest.raises(ValueError, match=r"share = 1.5"):
        Plan(chosen_methods(["hlm"]), share=1.5)
    with pytest.raises(ValueError, match=r"tokens = 0"):
        Plan(chosen_methods(["hlm"]), tokens=0)
    with pytest.raises(ValueError, match=r"the dataset has \d+ items"):
        comparison(["slm"], prompts=10_000)


def test_the_command_writes_json_and_csv(tmp_path, capsys):
    files = [str(tmp_path / name) for name in ("result.json", "result.csv")]
    code = run_comparison("slm,coupled", {**SMALL, "accuracy": False}, {}, [], *files)
    assert code == 0
    results = json.loads((tmp_path / "result.json").read_text())
    assert [result["method"] for result in results] == ["slm", "coupled"]
    rows = list(csv.DictReader((tmp_path / "result.csv").open()))
    assert [row["method"] for row in rows] == ["slm", "coupled"]
    assert float(rows[1]["bytes_per_token.uplink"]) == results[1]["bytes_per_token"]["uplink"]
    assert rows[0]["accuracy.token"] == ""
    out, err = capsys.readouterr()
    assert "coupled" in out
    assert "making texts" in err


def test_json_on_standard_output_stands_alone(capsys):
    assert run_comparison("slm", {**SMALL, "accuracy": False}, {}, [], "-", None) == 0
    assert [result["method"] for result in json.loads(capsys.readouterr().out)] == ["slm"]


def test_wrong_settings_end_with_status_2(capsys):
    assert run_comparison("nothing", dict(SMALL), {}, [], None, None) == 2
    assert "allowed are llm" in capsys.readouterr().err
    assert run_comparison("slm", dict(SMALL), {}, ["temperature=-1"], None, None) == 2
    assert "temperature" in capsys.readouterr().err


def test_decoding_is_sampled_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("FEDHLM_DECODING", raising=False)
    assert settings_of({}, [], 24).decoding == "sampled"
    assert settings_of({}, ["decoding=greedy"], 24).decoding == "greedy"
    monkeypatch.setenv("FEDHLM_DECODING", "greedy")
    assert settings_of({}, [], 24).decoding == "greedy"
    with pytest.raises(SettingsError, match="llm-context"):
        settings_of({}, [], 10_000)


def test_tables_hold_every_method(sampled):
    console = Console(file=io.StringIO(), width=80)
    headings, rows = result_rows(sampled)
    print_blocks(console, headings, rows, caption="caption")
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80 and lines[-1] == "caption"
    # In two blocks or more, each with all methods; no figure is lost.
    assert sum(line.startswith("fedhlm-token ") for line in lines) >= 2
    written = " ".join(lines).split()
    assert all(cell in written for row in rows for cell in row)
    assert as_csv(sampled).count("\n") == len(DEFAULT_METHODS) + 1
