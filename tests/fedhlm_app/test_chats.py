"""Datasets of chats: read, put into a template, routed, learned from."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from clients.records import TextBatch
from fedhlm_app.client.prompted import PromptedModel
from fedhlm_app.data.chats import check_chats, check_prompts, encoded
from fedhlm_app.data.files import DataError
from fedhlm_app.data.items import load_items
from fedhlm_app.data.prompts import prompts
from fedhlm_app.data.workload import BatchMaker
from fedhlm_app.hosting.llm import build_service
from fedhlm_app.models.vocabulary import load_tokenizer
from fedhlm_app.pair.cli import pair_app
from fedhlm_app.pair.sequences import batch_of, encode_items
from fedhlm_app.server import preflight
from fedhlm_app.settings import Settings
from fedhlm_app.transport.transports import DirectTransport
from tests.chats import SAID, TEMPLATE, messages, save_chats, save_pair
from tests.other_tokenizers import save


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def tokenizer(pair):
    return load_tokenizer(pair[0])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return save_chats(tmp_path_factory.mktemp("data") / "chats.jsonl")


@pytest.fixture(scope="module")
def items(file):
    return load_items(file)


class TestReading:
    def test_messages_are_kept_as_they_are(self, items):
        assert items.chat
        assert [json.loads(text) for text in items.texts()] == [messages(*one) for one in SAID]
        assert items.subset([1]).chat

    def test_a_column_of_texts_comes_first(self, tmp_path):
        items = load_items(save_chats(tmp_path / "both.jsonl", text="A text.", topic="sports"))
        assert not items.chat and items.texts()[0] == "A text."
        named = load_items(str(tmp_path / "both.jsonl"), text_column="messages")
        assert named.chat and named.label_names == ("sports",)

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            (
                messages("a", "b")[1:],
                "messages of row 1 are of assistant; allowed are chats that ask",
            ),
            ([], "messages of row 1 are of nobody; allowed"),
            (messages("a", None), "messages of row 1: each content has to be text"),
        ],
    )
    def test_a_chat_that_asks_nothing_is_refused_by_its_row(self, row, words, tmp_path):
        path = tmp_path / "chats.jsonl"
        rows = [{"messages": messages("one", "two")}, {"messages": row}]
        path.write_text("".join(json.dumps(one) + "\n" for one in rows), "utf-8")
        with pytest.raises(DataError, match=words):
            load_items(str(path))


def test_questions_alone_are_to_be_answered_and_for_nothing_else(tokenizer, tmp_path):
    path = tmp_path / "questions.jsonl"
    rows = [{"messages": messages(*SAID[0])[: 2 - row]} for row in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    items = load_items(str(path))
    whole, asked = encoded(items, tokenizer)
    assert asked.start == whole.start and asked.text == []
    one, other = prompts(items, tokenizer, [0, 1], prompt_tokens=99)
    assert one.tokens.tolist() == other.tokens.tolist() == whole.start
    check_prompts(items, tokenizer, 99, "generate")
    words = "chat 1 of .* ends with a message of 'user', and an answer is needed; only workload=gen"
    with pytest.raises(DataError, match=words):
        check_prompts(items, tokenizer, 99, "score")
    with pytest.raises(DataError, match=words):
        encode_items(items, tokenizer)


class TestTemplate:
    def test_prompt_and_answer_are_what_a_device_reads_and_writes(self, items, tokenizer, pair):
        settings = Settings.from_sources({"slm": pair[0], "llm": pair[1]}, {})
        device = PromptedModel(settings, 0, DirectTransport(build_service(settings)))
        for one, (asked, answered) in zip(encoded(items, tokenizer), SAID, strict=True):
            prompt = device.read_prompt([{"role": "user", "content": asked}], 1)
            assert one.start == prompt.tolist()
            assert tokenizer.decode(one.text) == answered + "<|eos|>"

    def test_the_last_answer_alone_is_to_foretell(self, tokenizer, tmp_path):
        turns = [*messages("one", "two"), *messages("three", "four")]
        path = tmp_path / "chats.jsonl"
        path.write_text(json.dumps({"messages": turns}) + "\n", "utf-8")
        (one,) = encoded(load_items(str(path)), tokenizer)
        assert tokenizer.decode(one.text) == "four<|eos|>"
        assert tokenizer.decode(one.start).endswith("<|user|>three<|eos|>\n<|assistant|>")

    def test_one_that_rewrites_answers_gets_the_answer_behind_its_prompt(self, items, tmp_path):
        rewriting = "{% if not add_generation_prompt %}past {% endif %}" + TEMPLATE
        tokenizer = load_tokenizer(save_pair(tmp_path, rewriting)[0])
        texts = [tokenizer.decode(one.text) for one in encoded(items, tokenizer)]
        assert texts == [f"{answered}{tokenizer.eos_token}" for _, answered in SAID]

    @pytest.mark.parametrize(
        ("template", "words"),
        [
            (None, "has no chat template; give models that were made for chats, or texts"),
            ("{{ raise_exception('no users here') }}", "template refuses a chat: no users here"),
        ],
    )
    def test_without_one_that_fits_chats_are_refused(self, template, words, items, tmp_path):
        tokenizer = load_tokenizer(save_pair(tmp_path, template)[0])
        with pytest.raises(DataError, match=words):
            encoded(items, tokenizer)


class TestPrompts:
    def test_a_long_prompt_loses_its_beginning(self, items, tokenizer):
        whole = encoded(items, tokenizer)
        for made, one in zip(
            prompts(items, tokenizer, range(4), prompt_tokens=9), whole, strict=True
        ):
            assert made.tokens.tolist() == one.start[-9:] and made.given == 9

    def test_the_answer_is_scored(self, items, tokenizer):
        most = max(len(one.start) for one in encoded(items, tokenizer))
        work = BatchMaker(items, tokenizer, "score", most, 6).make(range(4), np.arange(4))
        assert isinstance(work.texts, TextBatch)
        for row, one in enumerate(encoded(items, tokenizer)):
            known = work.answers[row][work.answers[row] >= 0].tolist()
            assert known == one.text[:6] and work.first[row] == len(one.start)

    def test_there_is_no_label_to_ask_for(self, items, tokenizer):
        with pytest.raises(DataError, match=r"'classify': .*chats; allowed are generate and score"):
            prompts(items, tokenizer, [0], "classify")

    def test_a_run_that_would_cut_every_prompt_is_refused(self, items, tokenizer, file, pair):
        lengths = [len(one.start) for one in encoded(items, tokenizer)]
        words = (
            f"prompt-tokens = 5: the prompts of .* have {min(lengths)} to {max(lengths)} tokens in "
            f"the chat template; .*: set prompt-tokens={max(lengths)}"
        )
        with pytest.raises(DataError, match=words):
            check_prompts(items, tokenizer, 5, "score")
        check_prompts(items, tokenizer, max(lengths), "score")
        check_prompts(load_items(), tokenizer, 1, "score")
        given = {"slm": pair[0], "llm": pair[1], "dataset": file, "clients": 2, "clusters": 1}
        with pytest.raises(DataError, match="set prompt-tokens="):
            preflight.check(Settings.from_sources({**given, "prompt-tokens": 5}, {}))
        preflight.check(Settings.from_sources({**given, "prompt-tokens": max(lengths)}, {}))

    def test_two_tokenizers_have_no_template_in_common(self, items, pair, tmp_path):
        given = {"slm": pair[0], "llm": save("unigram", tmp_path / "llm")}
        with pytest.raises(DataError, match="different tokenizers, so no chat template in common"):
            check_chats(items, Settings.from_sources(given, {}), "generate")


class TestTeaching:
    def test_an_answer_alone_is_predicted(self, items, tokenizer):
        made, whole = encode_items(items, tokenizer), encoded(items, tokenizer)
        batch = batch_of(made)
        for row, one in enumerate(whole):
            assert batch.tokens[row][batch.predicted[row]].tolist() == one.text
            assert batch.tokens[row][batch.mask[row]].tolist() == one.start + one.text
        short = encode_items(items, tokenizer, longest_chat=12)
        assert [len(one) for one in short] == [12] * 3 + [min(12, len(short[3]))]
        assert all(one.first <= 6 for one in short)

    def test_a_text_without_label_has_none(self, tokenizer, tmp_path):
        path = tmp_path / "texts.txt"
        path.write_text("One, two.\nThree.\n", "utf-8")
        made = encode_items(load_items(str(path)), tokenizer)
        texts = [tokenizer.decode(one.tokens[1:-1]) for one in made]
        assert texts == ["One, two.", "Three."]

    def test_labels_that_would_be_one_token_are_left_out(self, tokenizer, tmp_path, caplog):
        path = tmp_path / "numbered.csv"
        path.write_text("text,label\nOne.,0\nTwo.,1\n", "utf-8")
        made = encode_items(load_items(str(path)), tokenizer)
        assert [tokenizer.decode(one.tokens[1:-1]) for one in made] == ["One.", "Two."]
        assert "labels are left out: labels 'label0' and 'label1' both begin" in caplog.text

    @pytest.mark.parametrize("kind", ["chats", "texts"])
    def test_distilled_on_chats_or_texts_without_labels_it_agrees_more(self, kind, pair, tmp_path):
        data = tmp_path / "data"
        data.mkdir()
        for split in ("train", "validation"):
            if kind == "chats":
                save_chats(data / f"{split}.jsonl", times=8)
            else:
                text = "\n".join(answered.replace("\n", " ") for _, answered in SAID * 8)
                (data / f"{split}.txt").write_text(text, "utf-8")
        named = ["--slm", pair[0], "--llm", pair[1], "--dataset", str(data)]
        before = CliRunner().invoke(pair_app, ["evaluate", *named])
        assert before.exit_code == 0, before.output
        words = [
            "distil",
            *named,
            "--steps",
            "12",
            "--batch",
            "8",
            "--warmup",
            "2",
            "--weight",
            "1",
        ]
        words += ["--peak-rate", "1e-3", "--no-bfloat16", "--out", str(tmp_path / "out")]
        told = CliRunner().invoke(pair_app, words)
        assert told.exit_code == 0, told.output
        was, now = json.loads(before.stdout), json.loads(told.stdout)
        assert now["same_top1"] > was["same_top1"] + 0.05
        assert now["total_variation"] < was["total_variation"]
        assert now["same_label"] is now["slm"]["label_accuracy"] is None
        if kind == "chats":  # the end of a turn among them, prompts not
            tokenizer = load_tokenizer(pair[0])
            answers = encoded(load_items(str(data)), tokenizer)
            assert now["tokens"] == sum(len(one.text) for one in answers)
        card = (tmp_path / "out" / "MODEL_CARD.md").read_text("utf-8")
        assert ("A sequence is a chat" in card) == (kind == "chats")
        assert (
            "label" not in card
            and "| hidden, layers, heads, intermediate | 128, 2, 4, 320 |" in card
        )

    def test_a_new_tokenizer_has_no_template(self, file, tmp_path):
        words = ["train", "--dataset", file, "--out", str(tmp_path / "out")]
        told = CliRunner().invoke(pair_app, words)
        assert told.exit_code == 2 and "for which a new tokenizer has no template" in told.output
