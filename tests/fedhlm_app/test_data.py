"""Reading, cleaning, dividing and prompting."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedhlm_app.data import files
from fedhlm_app.data.dataset import items_of
from fedhlm_app.data.items import DataError, items_from_rows, load_items
from fedhlm_app.data.partitions import label_counts, partition, split_client
from fedhlm_app.data.prompts import prompts
from fedhlm_app.data.text import clean_text, join_text, label_slug
from fedhlm_app.models.vocabulary import PairError, load_tokenizer
from fedhlm_app.settings import Settings

AG_NEWS_ROWS = (
    '"3","Wall St. Bears","Short-sellers, Wall Street\'s band, see #36;5 oil\\nagain."\n'
    '"1","","Talks &lt;b&gt;resume&lt;/b&gt; in Geneva."\n'
    '"2","None","NA"\n'
    '"4","Chips","A \\$10 chip &amp;amp; board."\n'
)


def made_items(count, labels=4, seed=0):
    generator = np.random.default_rng(seed)
    drawn = np.sort(generator.integers(labels, size=count))
    drawn[: min(labels, count)] = np.arange(min(labels, count))
    texts = [f"item number {row} of the table" for row in range(count)]
    return items_from_rows("made", texts, drawn.tolist(), [f"topic{n}" for n in range(labels)])


class TestCleaning:
    @pytest.mark.parametrize(
        ("raw", "clean"),
        [
            ("a\\nb", "a b"),
            ("costs \\$5", "costs $5"),
            ("its #39;own", "its 'own"),
            ("R&amp;D", "R&D"),
            ("&lt;b&gt;bold&lt;/b&gt; word", "bold word"),
            ("&amp;lt;i&amp;gt;twice", "twice"),
            ("  many \t spaces\n", "many spaces"),
            ("3 < 5", "3 < 5"),
        ],
    )
    def test_each_rule(self, raw, clean):
        assert clean_text(raw) == clean

    @given(st.text(st.sampled_from("a \\\n\t<>n."), max_size=60))
    def test_no_backslash_and_no_double_space_is_left(self, raw):
        clean = clean_text(raw)
        assert "\\" not in clean
        assert "  " not in clean
        assert clean == clean.strip()

    def test_empty_fields_leave_no_trace(self):
        assert join_text(["", " body "]) == "body"
        assert join_text(["Title", "body"]) == "Title. body"
        assert join_text(["", ""]) == ""

    def test_slug(self):
        assert label_slug("Sci/Tech") == "scitech"


class TestReading:
    def test_ag_news_layout_needs_no_settings(self, tmp_path):
        for split, rows in (("train", AG_NEWS_ROWS), ("validation", AG_NEWS_ROWS[:200])):
            with gzip.open(tmp_path / f"{split}.csv.gz", "wt", encoding="utf-8") as opened:
                opened.write(rows)
        items = load_items(str(tmp_path))
        assert items.label_names == ("world", "sports", "business", "scitech")
        assert items.labels().tolist() == [2, 0, 1, 3]
        assert items.texts() == [
            "Wall St. Bears. Short-sellers, Wall Street's band, see $5 oil again.",
            "Talks resume in Geneva.",
            "None. NA",
            "Chips. A $10 chip & board.",
        ]
        assert items.texts([3, 1]) == [items.texts()[3], items.texts()[1]]

    def test_split_is_chosen_by_file_name(self, tmp_path):
        (tmp_path / "train.jsonl").write_text('{"text": "t", "label": "a"}\n')
        (tmp_path / "test.jsonl").write_text('{"text": "v", "label": "a"}\n')
        assert load_items(str(tmp_path), "validation").texts() == ["v"]
        assert load_items(str(tmp_path), "train").texts() == ["t"]

    @pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "jsonl", "parquet"])
    def test_every_format_reads_alike(self, tmp_path, kind):
        from datasets import Dataset

        path = tmp_path / f"file.{kind}"
        rows = [
            {"headline": "One, two", "body": "first", "kind": "Good News"},
            {"headline": "Three", "body": "second", "kind": "bad-news"},
        ]
        table = Dataset.from_list(rows)
        if kind == "parquet":
            table.to_parquet(path)
        elif kind == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            separator = "\t" if kind == "tsv" else ","
            lines = [["headline", "body", "kind"], *([f'"{v}"' for v in r.values()] for r in rows)]
            text = "".join(separator.join(line) + "\n" for line in lines)
            path.write_bytes(gzip.compress(text.encode()) if kind == "csv.gz" else text.encode())
        items = load_items(str(path), text_column="headline, body", label_column="kind")
        assert items.texts() == ["One, two. first", "Three. second"]
        assert items.label_names == ("badnews", "goodnews")
        assert items.labels().tolist() == [1, 0]

    def test_label_names_of_integers_come_from_the_setting(self, tmp_path):
        path = tmp_path / "numbers.jsonl"
        path.write_text('{"text": "t", "label": 1}\n{"text": "u", "label": 0}\n')
        assert load_items(str(path)).label_names == ("label0", "label1")
        assert load_items(str(path), label_names=("No", "Yes")).label_names == ("no", "yes")

    def test_a_hub_dataset_has_its_own_columns_names_and_splits(self, monkeypatch):
        import datasets

        features = datasets.Features(
            {
                "text": datasets.Value("string"),
                "label": datasets.ClassLabel(names=["World", "Sci/Tech"]),
            }
        )
        table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
        asked = []

        def hub(name, split):
            asked.append((name, split))
            if split != "test":
                raise ValueError(f'Unknown split "{split}". Should be one of ["test"].')
            return table

        monkeypatch.setattr(files, "hub_problem", lambda: "")
        monkeypatch.setattr(datasets, "load_dataset", hub)
        items = load_items("someone/news", "validation")
        assert items.label_names == ("world", "scitech")
        assert items.labels().tolist() == [1, 0]
        assert asked[0] == ("someone/news", "validation")
        assert asked[-1] == ("someone/news", "test")
        with pytest.raises(DataError, match="no split for 'train'"):
            load_items("someone/news", "train")

    def test_a_hub_that_cannot_be_reached_is_named(self, monkeypatch):
        import datasets

        def unreachable(name, split):
            raise ConnectionError("no route")

        monkeypatch.setattr(datasets, "load_dataset", unreachable)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        for problem in ("", "no way there"):
            monkeypatch.setattr(files, "hub_problem", lambda problem=problem: problem)
            says = rf"dataset = 'someone/absent' .*: {problem or 'no route'}; allowed"
            with pytest.raises(DataError, match=says):
                load_items("someone/absent")
        assert datasets.config.HF_HUB_OFFLINE

    def test_labels_that_are_no_good_matter_where_they_are_asked_for(self, tmp_path):
        path = tmp_path / "gap.jsonl"
        path.write_text('{"text": "t", "label": "a"}\n{"text": "u", "label": null}\n')
        for asking in ({"workload": "classify"}, {"partition": "by-class"}):
            settings = Settings.from_sources({"dataset": str(path), **asking}, {})
            with pytest.raises(DataError, match="no label in row 1"):
                items_of(settings)
        items = items_of(Settings.from_sources({"dataset": str(path)}, {}))
        assert items.texts() == ["t", "u"] and items.label_names == ()

    def test_local_data_opens_no_connection(self, tmp_path, monkeypatch):
        import socket

        def refuse(*_args, **_options):
            raise AssertionError("a connection was opened")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        path = tmp_path / "offline.jsonl"
        path.write_text('{"text": "t", "label": "a"}\n')
        assert len(load_items(str(path))) == 1

    def test_same_arguments_are_read_once(self, tmp_path):
        path = tmp_path / "once.jsonl"
        path.write_text('{"text": "t", "label": "a"}\n')
        assert load_items(str(path)) is load_items(str(path))


class TestErrors:
    def write(self, tmp_path, text, name="data.jsonl"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    def test_missing_file(self, tmp_path):
        with pytest.raises(DataError, match=r"dataset = .*nowhere\.csv.* does not exist"):
            load_items(str(tmp_path / "nowhere.csv"))

    def test_folder_without_the_split(self, tmp_path):
        with pytest.raises(DataError, match="no file for split 'train'"):
            load_items(str(tmp_path))

    def test_folder_with_two_files_for_the_split(self, tmp_path):
        self.write(tmp_path, "", "train.csv")
        self.write(tmp_path, "", "train.jsonl")
        with pytest.raises(DataError, match=r"train\.csv, train\.jsonl"):
            load_items(str(tmp_path))

    def test_missing_text_column(self, tmp_path):
        path = self.write(tmp_path, '{"text": "t", "label": "a"}\n')
        with pytest.raises(DataError, match=r"text-columns = 'body'.*columns text, label"):
            load_items(path, text_column="body")

    def test_records_are_no_text_and_semicolons_part_no_columns(self, tmp_path):
        path = self.write(tmp_path, '{"text": [{"name": "user", "value": "t"}]}\n')
        with pytest.raises(DataError, match=r"text-columns = 'text' holds list<.*allowed is text"):
            load_items(path)
        path = self.write(tmp_path, "text;label\nOne, two;1\n", "half.csv")
        with pytest.raises(DataError, match=r"has ';' between its columns; allowed: ','"):
            load_items(path)

    def test_missing_label_column(self, tmp_path):
        path = self.write(tmp_path, '{"text": "t", "mood": "a"}\n')
        with pytest.raises(DataError, match=r"label-column = 'kind'.*columns text, mood"):
            load_items(path, label_column="kind")

    def test_texts_without_labels_are_for_all_but_what_needs_labels(self, tmp_path):
        items = load_items(self.write(tmp_path, "One, two.\n\nThree.\nFour.\nFive.\n", "t.txt"))
        assert items.texts() == ["One, two.", "Three.", "Four.", "Five."]
        assert items.label_names == () and items.labels().tolist() == [0] * 4
        assert sorted(np.concatenate(partition(items, 2, "dirichlet"))) == [0, 1, 2, 3]
        with pytest.raises(DataError, match="'by-class' needs labels"):
            partition(items, 2, "by-class")
        assert len(prompts(items, load_tokenizer(), [0, 1], "score", 4, 8)) == 2
        with pytest.raises(PairError, match=r"no labels.*label-column"):
            prompts(items, load_tokenizer(), [0, 1], "classify", 4, 8)

    def test_rows_longer_than_the_header_lose_no_text_in_silence(self, tmp_path):
        path = self.write(tmp_path, "text\nOne row, and its comma.\n", "ragged.csv")
        with pytest.raises(DataError, match="more fields than its header"):
            load_items(path)

    def test_a_file_of_no_known_type(self, tmp_path):
        with pytest.raises(DataError, match=r"notes\.doc.*allowed are \.csv"):
            load_items(self.write(tmp_path, "text,label\nt,a\n", "notes.doc"))

    def test_unknown_label(self, tmp_path):
        path = self.write(tmp_path, '{"text": "t", "label": "weather"}\n')
        with pytest.raises(DataError, match=r"label 'weather'; allowed are world, sports"):
            load_items(path, label_names=("World", "Sports"))

    def test_integer_label_out_of_range(self, tmp_path):
        path = self.write(tmp_path, '{"text": "t", "label": 2}\n')
        with pytest.raises(DataError, match=r"label 2; allowed are no, yes \(0 to 1\)"):
            load_items(path, label_names=("no", "yes"))

    def test_missing_label(self, tmp_path):
        path = self.write(tmp_path, '{"text": "t", "label": 1}\n{"text": "u", "label": null}\n')
        with pytest.raises(DataError, match="no label in row 1"):
            load_items(path)

    def test_colliding_label_names(self, tmp_path):
        path = self.write(tmp_path, '{"text": "t", "label": 0}\n')
        with pytest.raises(DataError, match="distinct"):
            load_items(path, label_names=("Sci/Tech", "scitech"))

    def test_only_empty_texts(self, tmp_path):
        path = self.write(tmp_path, '{"text": " ", "label": "a"}\n')
        with pytest.raises(DataError, match="holds no text"):
            load_items(path)

    def test_empty_file(self, tmp_path):
        with pytest.raises(DataError, match=r"empty\.csv"):
            load_items(self.write(tmp_path, "", "empty.csv"))

    def test_header_without_rows(self, tmp_path):
        with pytest.raises(DataError, match=r"header\.csv.*no data"):
            load_items(self.write(tmp_path, "text,label\n", "header.csv"))

    def test_unknown_split(self):
        with pytest.raises(DataError, match="split = 'tests'"):
            load_items("builtin", "tests")

    def test_more_clients_than_items(self):
        with pytest.raises(DataError, match=r"clients = 6 need 12 items .* has 10.*at most 5"):
            partition(made_items(10), 6)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kind": "shards"}, "partition = 'shards' is unknown"),
            ({"kind": "dirichlet", "alpha": 0.0}, r"dirichlet-alpha = 0\.0"),
            ({"seed": -1}, "seed = -1"),
            ({"clients": 0}, "clients = 0"),
        ],
    )
    def test_partition_settings(self, options, message):
        with pytest.raises(DataError, match=message):
            partition(made_items(40), **{"clients": 3, **options})


class TestPartition:
    @settings(max_examples=40, deadline=None)
    @given(
        kind=st.sampled_from(["iid", "dirichlet", "by-class"]),
        clients=st.integers(1, 12),
        alpha=st.sampled_from([0.01, 0.3, 5.0]),
        seed=st.integers(0, 50),
        labels=st.integers(1, 6),
    )
    def test_shares_are_disjoint_and_lose_nothing(self, kind, clients, alpha, seed, labels):
        items = made_items(180, labels, seed)
        assume_enough = np.bincount(items.labels()).min()
        if kind == "by-class" and assume_enough < clients:
            return
        shares = partition(items, clients, kind, alpha, seed)
        assert len(shares) == clients
        assert min(len(share) for share in shares) >= 2
        assert sorted(np.concatenate(shares).tolist()) == list(range(180))

    def test_repeats_exactly_and_depends_on_the_seed(self):
        for kind in ("iid", "dirichlet", "by-class"):
            first = partition(made_items(90), 5, kind, 0.5, seed=3)
            again = partition(made_items(90), 5, kind, 0.5, seed=3)
            other = partition(made_items(90), 5, kind, 0.5, seed=4)
            assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
            assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))

    def test_iid_shares_are_even(self):
        sizes = [len(share) for share in partition(made_items(103), 10)]
        assert max(sizes) - min(sizes) <= 1

    @settings(max_examples=25, deadline=None)
    @given(rows=st.integers(2, 300), clients=st.integers(1, 40), seed=st.integers(0, 50))
    def test_iid_shares_are_those_of_flowers_partitioner(self, rows, clients, seed):
        from datasets import Dataset
        from flwr_datasets.partitioner import IidPartitioner

        if rows < 2 * clients:
            return
        partitioner = IidPartitioner(num_partitions=clients)
        table = Dataset.from_dict({"row": list(range(rows))})
        partitioner.dataset = table.shuffle(seed=seed, keep_in_memory=True)
        for client, share in enumerate(partition(made_items(rows), clients, "iid", seed=seed)):
            assert share.tolist() == list(partitioner.load_partition(client)["row"])

    @settings(max_examples=25, deadline=None)
    @given(
        clients=st.integers(1, 12),
        alpha=st.sampled_from([0.05, 1.0, 1e6]),
        seed=st.integers(0, 50),
        labels=st.integers(1, 6),
    )
    def test_dirichlet_shares_are_those_of_flowers_partitioner(self, clients, alpha, seed, labels):
        from datasets import Dataset
        from flwr_datasets.partitioner import DirichletPartitioner

        items = made_items(180, labels, seed)
        order = np.random.default_rng(seed).permutation(180)
        partitioner = DirichletPartitioner(clients, "label", alpha, 0, seed=seed)
        partitioner.dataset = Dataset.from_dict({"label": items.labels(order), "row": order})
        expected = [list(partitioner.load_partition(client)["row"]) for client in range(clients)]
        assume(min(map(len, expected)) >= 2)  # no share is topped up
        shares = partition(items, clients, "dirichlet", alpha, seed)
        assert [share.tolist() for share in shares] == expected

    def test_small_alpha_gives_fewer_labels_a_client(self):
        items = made_items(2000)

        def largest_label_share(alpha):
            counts = label_counts(items, partition(items, 10, "dirichlet", alpha, seed=1))
            return (counts.max(axis=1) / counts.sum(axis=1)).mean()

        assert largest_label_share(0.1) > largest_label_share(1.0) > largest_label_share(100.0)

    def test_by_class_gives_one_label_each(self):
        items = made_items(200)
        counts = label_counts(items, partition(items, 8, "by-class"))
        assert ((counts > 0).sum(axis=1) == 1).all()
        assert ((counts > 0).sum(axis=0) == 2).all()

    def test_by_class_loses_no_label_with_few_clients(self):
        items = made_items(200)
        counts = label_counts(items, partition(items, 2, "by-class"))
        assert (counts.sum(axis=0) > 0).all()

    def test_cached_shares_cannot_be_changed(self):
        share = partition(made_items(20), 2)[0]
        with pytest.raises(ValueError, match="read-only"):
            share[0] = 7


class TestSplit:
    @given(count=st.integers(2, 60), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 1000))
    def test_both_parts_hold_something_and_together_all(self, count, fraction, seed):
        rows = np.arange(100, 100 + count)
        train, held_out = split_client(rows, fraction, seed)
        assert len(train) >= 1
        assert len(held_out) >= 1
        assert sorted([*train, *held_out]) == rows.tolist()

    def test_zero_holds_out_nothing(self):
        train, held_out = split_client(np.arange(1), 0.0, 0)
        assert train.tolist() == [0]
        assert not len(held_out)

    def test_refusals(self):
        with pytest.raises(DataError, match="held-out-fraction = 1"):
            split_client(np.arange(5), 1.0, 0)
        with pytest.raises(DataError, match="a client has 1 items"):
            split_client(np.arange(1), 0.5, 0)


class TestPrompts:
    items = items_from_rows(
        "two", ["The minister resigned today.", "Goal " * 100], [0, 1], ["world", "sports"]
    )

    def test_generate_cuts_the_text(self):
        tokenizer = load_tokenizer()
        made = prompts(self.items, tokenizer, [1, 0], "generate", prompt_tokens=3)
        assert all(prompt.tokens[0] == tokenizer.bos_token_id for prompt in made)
        assert all(len(prompt.tokens) == prompt.given == 4 for prompt in made)
        start = tokenizer.decode(made[1].tokens[1:])
        assert start.startswith("The")
        assert self.items.texts([0])[0].startswith(start)

    def test_score_predicts_all_but_the_first(self):
        made = prompts(self.items, load_tokenizer(), [0, 1], "score")
        assert [prompt.given for prompt in made] == [1, 1]
        assert load_tokenizer().decode(made[0].tokens[1:]) == "The minister resigned today."
        assert len(made[1].tokens) == 93

    def test_classify_ends_in_the_topic_and_knows_the_answer(self):
        tokenizer = load_tokenizer()
        made = prompts(self.items, tokenizer, [0, 1], "classify")
        assert [tokenizer.decode([prompt.answer]) for prompt in made] == [
            "<|world|>",
            "<|sports|>",
        ]
        assert all(tokenizer.decode(prompt.tokens[-1:]) == "<|topic|>" for prompt in made)

    def test_refusals(self):
        with pytest.raises(DataError, match="workload = 'chat'"):
            prompts(self.items, load_tokenizer(), [0], "chat")
        with pytest.raises(DataError, match="prompt-tokens = 0"):
            prompts(self.items, load_tokenizer(), [0], "generate", prompt_tokens=0)
        assert prompts(self.items, load_tokenizer(), []) == []
