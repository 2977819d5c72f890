"""Small models out of large ones' layers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from fedhlm_app.data.items import DataError, load_items
from fedhlm_app.models.carving import carve
from fedhlm_app.models.load import load_llm, load_pair
from fedhlm_app.models.sources import PairError
from fedhlm_app.models.vocabulary import load_tokenizer
from fedhlm_app.pair.cli import pair_app
from fedhlm_app.pair.figures import evaluate_pair


@pytest.mark.parametrize(
    ("keep", "layers", "kept"),
    [
        ("first", 4, "0, 1, 2, 3"),
        ("ends", 3, "0, 1, 5"),
        ("ends", 1, "0"),
        ("even", 3, "0, 2, 5"),
        ("even", 1, "0"),
        ("0,4,5", 1, "0, 4, 5"),
    ],
)
def test_the_layers_that_were_asked_for_are_in_it(keep, layers, kept, tmp_path):
    out = tmp_path / "slm"
    arguments = ["carve", "--llm", "builtin", "--keep", keep, "--layers", str(layers)]
    arguments += ["--tokens", "0"]
    told = CliRunner().invoke(pair_app, [*arguments, "--out", str(out)])
    assert told.exit_code == 0, told.output
    assert f"layers {kept};" in told.output
    pair = load_pair(str(out), "builtin")
    wanted = [load_llm().model.layers[int(number)] for number in kept.split(",")]
    assert len(pair.slm.model.layers) == pair.slm.config.num_hidden_layers == len(wanted)
    for there, here in zip(wanted, pair.slm.model.layers, strict=True):
        assert torch.allclose(there.mlp.up_proj.weight, here.mlp.up_proj.weight, atol=1e-3)
    assert len(load_llm().model.layers) == 6  # the LLM itself is as it was
    # Only cut, it has one matrix for embedding and head, as the LLM.
    assert pair.slm.lm_head.weight is pair.slm.model.embed_tokens.weight


def test_fitted_to_texts_it_agrees_more_often_with_the_llm(tmp_path):
    held_out = load_items("builtin", "validation")
    same = []
    for tokens in (0, 2000):
        slm, _ = carve("builtin", "first", 2, tmp_path / str(tokens), tokens=tokens)
        pair = load_pair(str(tmp_path / str(tokens)))
        ids = torch.arange(5, 105)[None]
        assert torch.allclose(pair.slm(ids).logits, slm(ids).logits, atol=0.05)  # in half precision
        figures = evaluate_pair(*pair, held_out, rows=10)
        same.append(figures.same_top1)
    assert same[1] > same[0] + 0.02
    llm = load_llm()
    assert llm.lm_head.weight is llm.model.embed_tokens.weight
    assert llm.config.tie_word_embeddings


def test_layers_that_differ_keep_their_kind(tmp_path):
    config = AutoConfig.for_model(
        "gemma3_text",
        vocab_size=4096,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "llm")
    load_tokenizer().save_pretrained(tmp_path / "llm")
    arguments = ["carve", "--llm", str(tmp_path / "llm"), "--out", str(tmp_path / "slm")]
    told = CliRunner().invoke(pair_app, [*arguments, "--keep", "0,3", "--tokens", "300"])
    assert told.exit_code == 0, told.output
    carved = AutoConfig.from_pretrained(tmp_path / "slm")
    assert carved.layer_types == ["sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layers", "6"], "--layers 6: allowed are 1 to 5, since the LLM has 6"),
        (["--keep", "last"], "--keep last: allowed are first, ends, even, or rising numbers"),
        (["--keep", "2,1"], "--keep 2,1: allowed are"),
        (["--keep", "0,6"], "from 0 to 5, such as 0,1,5"),
        (["--llm", "nowhere.gguf"], "nowhere.gguf"),
        (["--dataset", "./nowhere.csv"], "nowhere.csv"),
    ],
)
def test_what_cannot_be_carved_is_refused(options, words, tmp_path):
    arguments = ["carve", "--llm", "builtin", "--out", str(tmp_path / "slm")]
    told = CliRunner().invoke(pair_app, [*arguments, *options])
    assert told.exit_code == 2
    assert words in told.output
    assert not (tmp_path / "slm").exists()


def test_an_llm_is_not_carved_into_its_own_folder(tmp_path):
    carve("builtin", "first", 4, tmp_path / "llm", tokens=0)
    before = {path: path.read_bytes() for path in (tmp_path / "llm").iterdir()}
    with pytest.raises(PairError, match="the LLM's own folder"):
        carve(str(tmp_path / "llm"), "first", 2, tmp_path / "." / "llm", tokens=0)
    assert {path: path.read_bytes() for path in (tmp_path / "llm").iterdir()} == before


def test_texts_are_in_the_columns_that_are_named(tmp_path):
    (tmp_path / "own.csv").write_text("head,body\nOil,Prices rose again\nCup,The team won\n")
    words = ["carve", "--llm", "builtin", "--out", str(tmp_path / "slm"), "--tokens", "5"]
    words += ["--dataset", str(tmp_path / "own.csv")]
    told = CliRunner().invoke(pair_app, words)
    assert told.exit_code == 2 and "allowed are the dataset's columns head, body" in told.output
    assert CliRunner().invoke(pair_app, [*words, "--text-columns", "head,body"]).exit_code == 0


def test_texts_are_looked_at_before_the_llm_is_loaded(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        carve("./nowhere-llm", "first", 2, tmp_path / "slm", "./nowhere.csv")


@pytest.mark.parametrize(
    "words",
    [
        ["carve", "--llm", "builtin", "--out"],
        ["distil", "--slm", "builtin", "--llm", "builtin", "--dataset", "builtin", "--out"],
        ["export", "--to"],
    ],
    ids=lambda words: words[0],
)
def test_a_file_is_no_folder_to_write(words, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    told = CliRunner().invoke(pair_app, [*words, "file"])
    assert told.exit_code == 2 and "'file' is a file" in told.stderr
