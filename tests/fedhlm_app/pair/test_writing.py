"""Chats that a model writes itself."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from fedhlm_app.data.chats import encoded
from fedhlm_app.data.items import load_items
from fedhlm_app.models.sources import PairError
from fedhlm_app.models.vocabulary import load_tokenizer
from fedhlm_app.pair import writing
from fedhlm_app.pair.cli import pair_app
from fedhlm_app.pair.writing import write_chats
from tests.chats import save_pair


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return save_pair(tmp_path_factory.mktemp("pair"))[1]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(writing, "_BATCH", 12)
    monkeypatch.setattr(writing, "_PROMPT", 60)
    monkeypatch.setattr(writing, "_ANSWER", 10)


def test_what_is_written_is_a_dataset_of_chats(llm, tmp_path):
    out = tmp_path / "chats.jsonl"
    words = ["write", "--llm", llm, "--tokens", "60", "--out", str(out), "--no-bfloat16"]
    told = CliRunner().invoke(pair_app, words)
    assert told.exit_code == 0, told.output
    items, tokenizer = load_items(str(out)), load_tokenizer(llm)
    assert items.chat and f"{out}: {len(items)} chats, " in told.stdout
    assert "tokens written ..." in told.stderr
    answers = [one.text for one in encoded(items, tokenizer)]
    assert max(map(len, answers)) <= 10 + 2
    assert len(set(items.texts())) > 1
    chats = [json.loads(text) for text in items.texts()]
    assert all([one["role"] for one in chat] == ["user", "assistant"] for chat in chats)
    # No part of the template, and no special token, is in what was said.
    assert not any("<|" in one["content"] for chat in chats for one in chat)


def test_a_seed_gives_the_same_chats_again(llm, tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        write_chats(llm, 20, tmp_path / f"{name}.jsonl", seed, bfloat16=False)
    one, two, three = ((tmp_path / f"{n}.jsonl").read_text() for n in ("one", "two", "three"))
    assert one == two != three


def test_interrupted_it_keeps_the_chats_so_far(llm, tmp_path):
    def stop(done, of):
        if done:
            raise KeyboardInterrupt

    out = tmp_path / "chats.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write_chats(llm, 10**6, out, listen=stop, bfloat16=False)
    assert load_items(str(out)).chat
    assert [path.name for path in tmp_path.iterdir()] == ["chats.jsonl"]


def test_what_cannot_be_done_is_said_before_anything_is_loaded(llm, tmp_path, monkeypatch):
    plain = save_pair(tmp_path, None)[1]
    counting = save_pair(tmp_path / "counting", "{{ messages | length }} message")[1]
    monkeypatch.setattr(writing, "load_llm", pytest.fail)
    (tmp_path / "kept.jsonl").write_text("an hour's work", "utf-8")
    for name, out, words in (
        (llm, "chats.csv", "must be a .jsonl file"),
        (llm, "nowhere/chats.jsonl", "must be a new file in a folder that is there"),
        (llm, "kept.jsonl", "must be a new file"),
        (plain, "chats.jsonl", "has no chat template; allowed are models made for chats"),
        (counting, "chats.jsonl", "its chat template does not write the prompt as it is"),
    ):
        with pytest.raises(PairError, match=words):
            write_chats(name, 10, tmp_path / out)
