"""A model that no way of reading is right for is refused before anything starts."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from fedhlm_app.cli.run import BAD_SETTINGS, run_job
from fedhlm_app.models import trying
from fedhlm_app.models.sources import PairError
from fedhlm_app.models.vocabulary import load_tokenizer
from fedhlm_app.settings import Settings


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model that looks ahead, with the built-in tokenizer; verdicts are kept in `tmp_path`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "looks-ahead"
    load_tokenizer().save_pretrained(path)
    config = AutoConfig.for_model(
        "bert",
        vocab_size=4096,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def test_a_model_that_looks_ahead_ends_the_command_before_a_run(
    folder, tmp_path, monkeypatch, capsys
):
    given = {"llm": str(folder), "run-dir": str(tmp_path / "runs"), "rounds": 1}
    assert run_job(given, [], as_json=False) == BAD_SETTINGS
    told = " ".join(capsys.readouterr().err.split())
    assert f"setting 'llm' = '{folder}'" in told
    assert "cannot be used: it is not causal" in told
    assert not list((tmp_path / "runs").glob("*"))

    # The verdict is remembered: the model is not loaded for it again.
    def loaded_again(*_):
        raise AssertionError("loaded again")

    monkeypatch.setattr(trying, "_tried_apart", loaded_again)
    settings = Settings.from_sources({"llm": str(folder)}, {})
    with pytest.raises(PairError, match="not causal"):
        trying.try_models(settings)
    (folder / "config.json").touch()
    with pytest.raises(AssertionError, match="loaded again"):
        trying.try_models(settings)


def test_built_in_and_distant_models_are_not_loaded(monkeypatch):
    monkeypatch.setattr(trying, "_remembered", lambda *_: "loaded")
    trying.try_models(Settings.from_sources({}, {}))
    distant = {"llm": "some/model", "llm-address": "127.0.0.1:1", "slm": "some/model"}
    trying.try_models(Settings.from_sources(distant, {}), simulated=False)
