"""Pairs whose models have different tokenizers, from the settings to the text."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from clients.decoding.drafting import RouterConfig
from clients.records import TextBatch, Traffic
from fedhlm_app.cli import app
from fedhlm_app.cli import serve as serve_command
from fedhlm_app.client.feedback_folder import ServedPolicy
from fedhlm_app.client.inference import sampling_of, uncertainty_of
from fedhlm_app.client.prompted import Ask, PromptedModel
from fedhlm_app.compare import Comparison, Plan, chosen_methods
from fedhlm_app.estimate.measuring import _writer, measure
from fedhlm_app.estimate.terms import Terms
from fedhlm_app.hosting.llm import build_service
from fedhlm_app.hosting.pairs import check_pair, ids_on_the_wire
from fedhlm_app.learning.gradients import initial_policy
from fedhlm_app.models.load import load_llm, load_slm
from fedhlm_app.models.sources import PairError
from fedhlm_app.models.vocabulary import fingerprint, load_tokenizer
from fedhlm_app.server.preflight import require_model
from fedhlm_app.settings import SettingsError
from fedhlm_app.trace.recording import record
from fedhlm_app.transport.transports import DirectTransport
from tests.fedhlm_app.in_process import Runner, settings_of
from tests.other_tokenizers import save
from tests.servers.openai.fake import Fake

PROMPT = "Shares of the airline"


@pytest.fixture(scope="module")
def slm(tmp_path_factory):
    return save("unigram", tmp_path_factory.mktemp("slm"))


@pytest.fixture(scope="module")
def lower(tmp_path_factory):
    return save("word-pieces", tmp_path_factory.mktemp("lower"))


def own_text():
    """What the built-in LLM writes alone."""
    tokenizer = load_tokenizer()
    ids = [tokenizer.bos_token_id, *tokenizer.encode(PROMPT, add_special_tokens=False)]
    with torch.inference_mode():
        found = load_llm().generate(torch.tensor([ids]), max_new_tokens=30, do_sample=False)
    return tokenizer.decode(found[0], skip_special_tokens=True).removeprefix(PROMPT)


def generate(*words):
    return CliRunner().invoke(app, ["generate", PROMPT, *words])


def test_generate_writes_the_llms_own_text_where_nothing_is_kept(slm):
    found = generate("--slm", slm, "--threshold", "-1", "-n", "20", "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert len(told["text"]) > 20 and own_text().startswith(told["text"])
    assert told["stages"]["llm_accepted"] + told["stages"]["llm_resampled"] == len(told["tokens"])


def test_one_tokenizer_and_other_numbers_of_logits(tmp_path):
    slm, llm, less = (save("byte-level", tmp_path / str(n), n, n) for n in (1024, 960, 890))
    found = generate("--slm", slm, "--llm", llm, "--decoding", "sampled", "-n", "8", "--json")
    assert found.exit_code == 0 and len(json.loads(found.stdout)["tokens"]) == 8, found.output
    found = generate("--slm", slm, "--llm", less)
    assert found.exit_code == 2 and not found.stdout, found.output
    assert "the slm writes 900 token ids, and the llm only 890" in " ".join(found.stderr.split())


@pytest.mark.parametrize("kind", ["vllm", "hosted"])
def test_a_server_that_speaks_openai_stands_behind_it_too(slm, kind):
    with Fake(kind).serving() as url:
        changes = {"llm_backend": f"openai:{url}", "slm": slm, "initial_threshold": -1}
        settings = settings_of(learning="none", **changes)
        model = PromptedModel(settings, 0, DirectTransport(build_service(settings)))
        policy = ServedPolicy(initial_policy(settings))
        (answer,) = model.continued([Ask(model.read_prompt(PROMPT, 12), 12, 1)], policy)
    assert answer.text and own_text().startswith(answer.text)
    assert answer.stages["unresolved"] == 0


def test_the_tokenizer_of_a_server_at_llm_address_is_told_or_found_to_be_wrong(slm, tmp_path):
    load_tokenizer().save_pretrained(tmp_path)
    load_llm().config.save_pretrained(tmp_path)
    with Fake("vllm").serving() as url:
        words = ("--slm", slm, "--llm-address", url, "--threshold", "-1", "-n", "8", "--json")
        found = generate(*words)
        assert found.exit_code == 2 and not found.stdout, found.output
        assert "let llm (--llm) name the server's own" in " ".join(found.stderr.split())
        found = generate(*words, "--llm", str(tmp_path))
    assert found.exit_code == 0, found.output
    assert own_text().startswith(json.loads(found.stdout)["text"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"decoding": "sampled"}, "setting 'decoding' = 'sampled'"),
        ({"workload": "score"}, "setting 'workload' = 'score'"),
        ({"workload": "classify"}, "with them: generate"),
        ({"slm": "builtin", "llm": "lower"}, "the llm's does not keep text as it is"),
        ({"slm": "lower"}, "a u - turn <unk>"),
    ],
)
def test_what_text_cannot_do_is_refused_before_work_starts(slm, lower, changes, says):
    names = {"lower": lower, "slm": slm}
    given = {key: names.get(value, value) for key, value in {"slm": "slm", **changes}.items()}
    settings = settings_of(**given)
    with pytest.raises(ValueError, match="different tokenizers") as error:
        check_pair(settings)
    assert says in str(error.value) and given["slm"] in str(error.value)
    with pytest.raises(ValueError, match="different tokenizers"):
        build_service(settings)


def test_commands_that_cannot_do_it_name_both_models(slm):
    found = generate("--slm", slm, "--chat")
    assert found.exit_code == 2 and "chat: slm" in " ".join(found.stderr.split())
    found = generate("--slm", slm, "--decoding", "sampled")
    assert found.exit_code == 2 and "with them: greedy" in " ".join(found.stderr.split())
    with pytest.raises(PairError, match=r"slm0' and llm 'builtin' .* a trace needs one for both"):
        record(settings_of(slm=slm, workload="score"))


def test_a_comparison_has_the_llms_own_text_and_counts_no_right_tokens(slm):
    settings = settings_of(slm=slm, decoding="greedy")
    plan = Plan(
        chosen_methods(["llm", "slm", "hlm", "speculative", "fedhlm"]),
        prompts=2,
        calibration_prompts=3,
        tokens=6,
    )
    llm, alone, hlm, speculative, fedhlm = Comparison.of(settings, plan).run()
    for method in (hlm, speculative):
        assert method["sent_to_llm"] == method["tokens"] == llm["tokens"] == 12
        assert method["llm_agreement"] == 1 and method["unresolved"] == 0
    assert alone["llm_agreement"] < 1 and fedhlm["llm_decoded"]["1 Mbit/s 60 ms"] > 0
    assert llm["accuracy"] == {"token": None, "label": None}


def test_an_estimate_is_of_the_llms_own_texts(slm):
    settings = settings_of(slm=slm, tokens_per_prompt=12)
    prompt = np.array(load_tokenizer(slm).encode(PROMPT, add_special_tokens=False))
    text = TextBatch([prompt], np.zeros(1, np.int64), room=12)
    config = RouterConfig(sampling_of(settings), uncertainty_of(settings), 1, 0, frozenset())
    writer, clock = _writer(settings, load_slm(slm), config)
    assert writer.generate(text, 12, Traffic()).tokens == 12 and clock() > 0
    assert own_text().startswith(load_tokenizer(slm).decode(text.text(0)[len(prompt) :]).strip())
    terms = Terms(llm_ms=1.0, slm_ms=1.0)
    made = measure(settings, 4, terms, ["llm_ms"], lambda *_: None)
    assert made.terms.llm_ms > 0 and made.terms.slm_ms == 1
    assert made.fitted.lengths.tolist() == made.judged.lengths.tolist() == [12, 12]
    assert made.fitted.wrong.mean() > 0.5  # a random model


def test_a_run_in_one_process(slm, tmp_path, monkeypatch):
    runner = Runner(monkeypatch)
    changes = {"slm": slm, "clients": 2, "clusters": 1, "rounds": 1, "escalation": "span"}
    runner.service = build_service(settings_of(**changes))
    _, folder, _ = runner.run(tmp_path, **changes)
    summary = folder.summary()
    assert summary["tokens"] == 40 and summary["unresolved"] == 0
    assert summary["llm_agreement"] > 0 and summary["exchanges"]["streams"] > 0


def test_a_served_llm_speaks_the_ids_of_its_devices(slm, monkeypatch):
    served = []

    def run(app, listener, ready, *_):
        listener.close()
        ready("here")
        served.append(app)

    monkeypatch.setattr(serve_command, "run_until_stopped", run)
    found = CliRunner().invoke(app, ["serve", "llm", "--slm", slm, "--port", "0"])
    assert found.exit_code == 0 and len(served) == 1, found.output
    vocab = len(load_tokenizer(slm))
    assert f"serving builtin at here (vocabulary {vocab}," in found.stdout
    settings = settings_of(slm=slm, llm_address="127.0.0.1:9")
    assert ids_on_the_wire(settings) == ("slm", slm)
    told = {"vocab": vocab, "tokenizer": fingerprint(slm), "verifiers": ["greedy"]}
    require_model(settings, told)
    with pytest.raises(SettingsError, match=rf"'slm' = .* a vocabulary of {vocab} tokens.*--slm"):
        require_model(settings, {**told, "vocab": vocab - 1})
