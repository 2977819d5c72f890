"""What the package carries: paths, sizes, the corpus."""

import collections
import json

import pytest

from fedhlm_app.data.items import load_items
from fedhlm_assets import asset_path

TOPICS = ("world", "sports", "business", "scitech")


def corpus():
    lines = []
    for topic in TOPICS:
        text = asset_path(f"corpus/{topic}.jsonl").read_text(encoding="utf-8")
        lines += [(topic, json.loads(line)) for line in text.splitlines()]
    return lines


def test_paths_exist_or_are_refused():
    assert asset_path().is_dir()
    with pytest.raises(FileNotFoundError, match="corpus/weather"):
        asset_path("corpus/weather.jsonl")
    with pytest.raises(ValueError, match="outside"):
        asset_path("../pyproject.toml")


def test_the_pair_is_small_enough():
    size = sum(file.stat().st_size for file in asset_path("pair").rglob("*") if file.is_file())
    assert size < 12_000_000


def test_every_item_has_its_fields_and_its_topic():
    for topic, item in corpus():
        assert set(item) == {"id", "topic", "title", "text"}
        assert item["topic"] == topic
        assert all(isinstance(value, str) and value.strip() for value in item.values())


def test_there_are_enough_items_of_each_topic():
    counts = collections.Counter(topic for topic, _ in corpus())
    assert sum(counts.values()) >= 400
    assert min(counts[topic] for topic in TOPICS) >= 100


def test_texts_have_25_to_60_words():
    wrong = {item["id"]: len(item["text"].split()) for _, item in corpus()}
    assert {name: words for name, words in wrong.items() if not 25 <= words <= 60} == {}


@pytest.mark.parametrize("field", ["id", "title", "text"])
def test_nothing_occurs_twice(field):
    values = collections.Counter(item[field].lower() for _, item in corpus())
    assert [value for value, count in values.items() if count > 1] == []


def test_items_are_not_made_from_a_template():
    """No two items share more than a third of their five-word phrases."""
    phrases = []
    for _, item in corpus():
        words = item["text"].lower().split()
        phrases.append({tuple(words[start : start + 5]) for start in range(len(words) - 4)})
    owners = collections.defaultdict(list)
    for number, found in enumerate(phrases):
        for phrase in found:
            owners[phrase].append(number)
    shared = collections.Counter()
    for numbers in owners.values():
        for position, first in enumerate(numbers):
            shared.update((first, second) for second in numbers[position + 1 :])
    alike = [pair for pair, count in shared.items() if count > len(phrases[pair[0]]) / 3]
    assert alike == []


def test_the_corpus_reads_as_items():
    items = load_items("builtin")
    assert len(items) == len(corpus())
    assert items.label_names == TOPICS
    first = corpus()[0][1]
    assert items.texts([0]) == [f"{first['title']}. {first['text']}"]
    assert set(items.labels().tolist()) == {0, 1, 2, 3}
