"""The built-in pair, foreign pairs, and what is refused before weights are read."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, T5Config

from fedhlm_app.data.items import items_from_rows, load_items
from fedhlm_app.data.prompts import prompts
from fedhlm_app.models import sources
from fedhlm_app.models.load import load_llm, load_pair, load_slm
from fedhlm_app.models.sources import PairError
from fedhlm_app.models.vocabulary import (
    BUILTIN_LABELS,
    check_context,
    check_same_tokenizer,
    label_tokens,
    load_tokenizer,
    topic_tokens,
    vocabulary_size,
)
from fedhlm_app.pair.figures import evaluate_pair
from fedhlm_app.pair.recipe import ModelShape
from fedhlm_app.pair.tokenizer import train_tokenizer
from fedhlm_app.pair.training import new_model
from tests.models import random_model
from tests.other_tokenizers import save, wrapped

TEXTS = ["the cat sat on the mat", "a dog ran in the park", "world sports business scitech"] * 5


def save_foreign(folder, vocabulary=300, texts=TEXTS):
    """A model whose tokenizer knows no topic and no label tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["</s>"], initial_alphabet=alphabet
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    model = new_model(ModelShape(8, 1, 2, 8), len(tokenizer), 32, seed=1, specials=(0, 0, 0))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_builtin_pair_is_two_llamas_with_one_tokenizer():
    pair = load_pair()
    assert type(pair.slm).__name__ == type(pair.llm).__name__ == "LlamaForCausalLM"
    assert pair.slm.num_parameters() == 901_760
    assert pair.llm.num_parameters() == 7_155_360
    assert len(pair.tokenizer) == 4096
    labels = label_tokens(pair.tokenizer)
    assert labels == {"world": 4, "sports": 5, "business": 6, "scitech": 7}
    assert topic_tokens(pair.tokenizer) == [3]
    assert not pair.slm.training
    assert not pair.llm.training


def test_models_are_kept_per_process_and_roles_differ():
    assert load_slm() is load_slm("builtin", torch.float32, "cpu")
    assert load_llm() is load_pair().llm
    assert load_slm() is not load_llm()


def test_the_builtin_pair_knows_the_topic_of_plain_news():
    pair = load_pair()
    texts = [
        "Striker scores twice as champions win cup final. The coach praised his players.",
        "Software maker unveils new chip for computers and a faster internet search.",
    ]
    made = prompts(
        items_from_rows("two", texts, [1, 3], BUILTIN_LABELS),
        pair.tokenizer,
        [0, 1],
        "classify",
    )
    for prompt in made:
        for model in (pair.slm, pair.llm):
            with torch.inference_mode():
                logits = model(torch.from_numpy(prompt.tokens)[None]).logits[0, -1]
            assert int(logits.argmax()) == prompt.answer


def test_tokenizers_that_differ_are_refused_with_both_names(tmp_path):
    foreign = save_foreign(tmp_path / "foreign")
    with pytest.raises(PairError, match=r"slm 'builtin' \(4096 tokens\) and llm '.*foreign' \(300"):
        check_same_tokenizer("builtin", foreign)
    with pytest.raises(PairError, match="different tokenizers"):
        load_pair("builtin", foreign)
    check_same_tokenizer("builtin", "builtin")


def test_equal_vocabularies_in_two_folders_are_a_pair(tmp_path):
    pair = load_pair(save_foreign(tmp_path / "one"), save_foreign(tmp_path / "two"))
    assert pair.slm is not pair.llm


@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_no_token_uses_are_left_out(tmp_path, tied):
    """As Qwen2.5's: 151,665 tokens, 151,936 rows, in larger ones 152,064."""
    tokenizer = wrapped("byte-level")
    shape = random_model("qwen2").config.to_dict() | {"vocab_size": 1024}
    model = Qwen2ForCausalLM(Qwen2Config(**{**shape, "tie_word_embeddings": tied})).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    cut, text = load_slm(str(tmp_path)), torch.arange(9)[None]
    assert vocabulary_size(str(tmp_path)) == cut.config.vocab_size == len(tokenizer) < 1024
    with torch.inference_mode():
        assert torch.equal(cut(text).logits, model(text).logits[..., : len(tokenizer)])
    check_same_tokenizer(str(tmp_path), save("byte-level", tmp_path / "fewer", rows=960))


def test_an_llm_without_logits_for_what_the_slm_writes_is_refused(tmp_path):
    slm, llm = save("byte-level", tmp_path / "s"), save("byte-level", tmp_path / "l", rows=890)
    with pytest.raises(PairError, match=r"slm writes 900 token ids, and the llm only 890; give"):
        load_pair(slm, llm)
    # The other way about nothing is lacking: ids without a row are never drafted.
    assert load_pair(llm, slm).slm.config.vocab_size == 890


def test_a_foreign_pair_answers_with_words(tmp_path):
    pair = load_pair(*[save_foreign(tmp_path / "model")] * 2)
    assert pair.tokenizer.decode(topic_tokens(pair.tokenizer)) == " Topic:"
    first = {name: pair.tokenizer.encode(f" {name}")[0] for name in BUILTIN_LABELS}
    assert label_tokens(pair.tokenizer) == first
    items = items_from_rows("one", ["the cat"], [2], BUILTIN_LABELS)
    (prompt,) = prompts(items, pair.tokenizer, [0], "classify")
    assert pair.tokenizer.decode(prompt.tokens) == "the cat Topic:"
    assert prompt.answer == first["business"]


def test_labels_with_one_first_token_are_refused():
    with pytest.raises(PairError, match="'weather' and 'weathers'"):
        label_tokens(load_tokenizer(), ["weather", "weathers"])


def test_context_is_checked_from_the_config_alone():
    check_context("builtin", 128, "slm")
    with pytest.raises(PairError, match="llm 'builtin' has 128 positions, but a context of 129"):
        check_context("builtin", 129)


def test_a_name_that_is_nowhere_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "hub_problem", lambda: "no way there")
    for load, what in ((load_slm, "model"), (load_tokenizer, "tokenizer")):
        with pytest.raises(PairError, match=f"cannot load the {what}.*and no way there; allowed"):
            load(str(tmp_path / "nothing"))


def test_a_model_that_reads_one_text_and_writes_another_is_refused_in_short(tmp_path):
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(PairError, match=r"T5Config.*AutoModelForCausalLM") as refused:
        load_slm(str(tmp_path))
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("answer", "asked", "problem"),
    [
        (httpx.ConnectError("no such name"), 2, "https://hub cannot be reached (no such name)"),
        (httpx.ConnectTimeout("late"), 2, "https://hub cannot be reached (late)"),
        (httpx.ReadTimeout("slow"), 1, ""),
        (httpx.Response(503), 1, ""),
    ],
)
def test_the_hub_is_asked_whether_it_is_there(monkeypatch, answer, asked, problem):
    calls = []

    def head(url, timeout):
        calls.append(url)
        if isinstance(answer, httpx.Response):
            return answer
        raise answer

    monkeypatch.setattr(httpx, "head", head)
    monkeypatch.setattr(sources.time, "sleep", lambda _: None)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert sources.hub_problem.__wrapped__() == problem
    assert calls == ["https://hub"] * asked
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert sources.hub_problem.__wrapped__() == "HF_HUB_OFFLINE is set"
    assert len(calls) == asked


def test_figures_of_a_model_beside_itself(tmp_path):
    tokenizer = train_tokenizer(TEXTS, ["a", "b"], 300, tmp_path)
    model = new_model(ModelShape(8, 1, 2, 8), len(tokenizer), 64, seed=1, specials=(0, 1, 2))
    model.train(False)
    items = items_from_rows("few", TEXTS[:7], [0, 1, 0, 1, 0, 1, 1], ["a", "b"])
    figures = evaluate_pair(model, model, tokenizer, items)
    assert figures.same_top1 == figures.same_label == 1.0
    assert figures.total_variation == 0.0
    assert figures.articles == 7
    # Brute force: one sequence at a time, unpadded, the library's own loss.
    losses, tokens = 0.0, 0
    for text, label in zip(items.texts(), items.labels(), strict=True):
        ids = [1, *tokenizer.encode(text), 3, 4 + int(label), 2]
        with torch.inference_mode():
            loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
        losses += float(loss) * (len(ids) - 1)
        tokens += len(ids) - 1
    assert figures.tokens == tokens
    assert figures.slm.perplexity == pytest.approx(
        float(torch.tensor(losses / tokens).exp()), rel=1e-4
    )


def test_the_commands_of_the_pair_are_there_before_torch_is():
    code = "import sys, fedhlm_app.pair.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_the_builtin_pair_is_as_good_as_its_card_says():
    beside = Path(__file__).resolve().parents[3].parent / "shared"
    data = Path(os.environ.get("FEDHLM_SHARED", beside)) / "data" / "ag_news"
    if not (data / "validation.csv.gz").exists():
        pytest.skip(f"AG News is not at {data}; set FEDHLM_SHARED to a folder with data/ag_news")
    pair = load_pair()
    items = load_items(str(data), "validation")
    # Every tenth article; `fedhlm pair evaluate` takes them all, and minutes. The articles and the
    # weights are always the same, so that the margins only make up for the sample being one: five
    # standard errors of a share of 380, and of a perplexity whose articles differ by a third.
    sample = items.subset(np.arange(0, len(items), 10))
    figures = evaluate_pair(pair.slm, pair.llm, pair.tokenizer, sample)
    assert figures.slm.perplexity <= 38.5 * 1.09
    assert figures.llm.perplexity <= 19.9 * 1.09
    assert figures.slm.label_accuracy >= 0.891 - 0.08
    assert figures.llm.label_accuracy >= 0.912 - 0.07
    assert figures.same_top1 >= 0.541 - 0.02
