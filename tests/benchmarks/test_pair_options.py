"""Every benchmark takes the same pair options, or says that it has no pair."""

from __future__ import annotations

import argparse
import ast
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import _teacher_forced
from benchmarks._pair import add_pair_options, digest_of, load_models, pair_settings
from fedhlm_app.models.vocabulary import label_tokens
from tests import other_tokenizers

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
NAMES = sorted(file.stem for file in FOLDER.glob("[a-z]*.py"))
OPTIONS = ("--slm", "--llm", "--device", "--dtype")


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_takes_a_pair_or_says_that_it_has_none(name, monkeypatch, capsys) -> None:
    said = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text("utf-8"))) or ""
    if "no model pair" in " ".join(said.split()):
        return
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main()
    told = capsys.readouterr().out
    assert ended.value.code == 0
    assert [option for option in OPTIONS if f"{option} " not in told] == []


def test_benchmarks_are_found() -> None:
    assert {"routed_decode", "spans", "aggregation"} <= set(NAMES)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_pair_reads_given_texts(dtype, tmp_path, monkeypatch) -> None:
    """With a tokenizer that has no beginning of a text and no topic token."""
    monkeypatch.setattr(_teacher_forced, "CACHE", tmp_path / "out")
    small, large = (other_tokenizers.save("byte-level", tmp_path / f"{n}", n) for n in (0, 1))
    parser = argparse.ArgumentParser()
    add_pair_options(parser)
    given = parser.parse_args(["--slm", small, "--llm", large, "--dtype", dtype])
    pair = load_models(pair_settings(given))
    rows = [(0, "Oil prices rose"), (3, "A probe has landed")]
    found = _teacher_forced.forced(rows, pair)
    assert found.given[found.is_label].tolist() == [
        list(label_tokens(pair.tokenizer).values())[label] for label, _ in rows
    ]
    for prompt in (0, 1):
        chosen = found.prompt == prompt
        text = torch.tensor([[pair.tokenizer.eos_token_id, *found.given[chosen]]])
        for model, top in ((pair.slm, found.draft), (pair.llm, found.top)):
            with torch.inference_mode():
                logits = model(text).logits[0, :-1]
            # The texts of a batch are padded, which may turn a tie in bfloat16.
            best = logits.amax(-1) - logits[np.arange(chosen.sum()), top[chosen]]
            assert float(best.max()) <= (0 if dtype == "float32" else 0.1)


def test_weights_in_another_format_are_other_weights() -> None:
    model = torch.nn.Linear(2, 2)
    one, other = digest_of([model]), digest_of([model.to(torch.bfloat16)])
    assert one != other and other == digest_of([model]) != digest_of([model], b"data")
