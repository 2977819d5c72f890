from __future__ import annotations

import json
import shutil

import pytest

from fedhlm_app import preflight
from fedhlm_app.settings import Settings
from fedhlm_assets import asset_path
from tests.models import random_model


def check(**changes):
    given = {key.replace("_", "-"): value for key, value in changes.items()}
    preflight.check(Settings.from_sources(given, {}))


def write_items(folder, rows):
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_defaults_pass():
    check()


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="clinets"):
        check(clinets=3)


def test_a_value_out_of_range_is_refused():
    with pytest.raises(ValueError, match="rounds"):
        check(rounds=0)


def test_more_clusters_than_clients_are_refused():
    with pytest.raises(ValueError, match="clusters"):
        check(clients=3, clusters=4)


def test_a_missing_file_is_refused():
    with pytest.raises(ValueError, match="no/such/file"):
        check(dataset="/no/such/file.csv")


def test_a_missing_column_is_refused(tmp_path):
    path = write_items(tmp_path, [{"text": "a b c", "label": 0}] * 50)
    with pytest.raises(ValueError, match="headline"):
        check(dataset=path, text_columns="headline")


def test_an_empty_dataset_is_refused(tmp_path):
    path = write_items(tmp_path, [{"text": "  ", "label": 0}] * 5)
    with pytest.raises(ValueError, match="no text"):
        check(dataset=path)


def test_fewer_items_than_clients_are_refused(tmp_path):
    path = write_items(tmp_path, [{"text": "a b c", "label": 0}] * 5)
    with pytest.raises(ValueError, match="clients = 20"):
        check(dataset=path)


def test_a_context_longer_than_the_model_allows_is_refused():
    with pytest.raises(ValueError, match="128"):
        check(prompt_tokens=100, tokens_per_prompt=60, tokens_per_round=60)


def test_different_tokenizers_are_refused_with_both_named(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = tmp_path / "other"
    vocabulary = {f"word{number}": number for number in range(64)}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="word0"))
    PreTrainedTokenizerFast(tokenizer_object=plain).save_pretrained(other)
    random_model("llama").save_pretrained(other)
    with pytest.raises(ValueError, match="builtin") as error:
        check(llm=str(other))
    assert str(other) in str(error.value)


def test_nothing_is_loaded_before_the_checks(monkeypatch, tmp_path):
    # A pair whose weights cannot be read passes: the checks look at configs and tokenizers only.
    folder = tmp_path / "pair"
    shutil.copytree(asset_path("pair/llm"), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if asset_path("pair").joinpath(name).exists():
            shutil.copy(asset_path("pair").joinpath(name), folder / name)
    (folder / "model.safetensors").write_bytes(b"not weights")
    check(llm=str(folder))
