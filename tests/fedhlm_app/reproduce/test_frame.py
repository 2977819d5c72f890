"""Pieces become files and a page, once; tables add up; a folder belongs to its options."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from fedhlm_app.reproduce import runner
from fedhlm_app.reproduce.experiments import EXPERIMENTS
from fedhlm_app.reproduce.page import page, table_json, table_of, written
from fedhlm_app.reproduce.pieces import (
    Experiment,
    Figure,
    Finding,
    Measured,
    Options,
    Piece,
    SumsError,
    Table,
    Tell,
)
from fedhlm_app.reproduce.runner import reproduce

DOCS = Path(__file__).parents[3] / "docs"


@dataclass
class Counting:
    made: list[str] = field(default_factory=list)
    fail: str = ""

    def experiment(self) -> Experiment:
        def piece(name: str) -> Piece:
            def make(inputs: str) -> Finding:
                if name == self.fail:
                    raise KeyboardInterrupt
                self.made.append(name)
                table = Table(("x", "a"), [(inputs, Measured(1234.0, 5.5)), ("none", None)])
                bars = Figure("bars", {"kept on the device": [("one", 3.0)]}, "case", "tokens")
                return Finding(f"About {name}.", table, (bars,))

            return Piece(name, f"The {name}", make)

        pieces = [piece("first"), piece("second")]
        return Experiment("ours", "Our paper", lambda o: "two", lambda o, f, t: "in", pieces)


def test_a_broken_off_reproduction_goes_on_and_its_page_has_every_piece(tmp_path):
    counting = Counting(fail="second")
    experiment = counting.experiment()
    with pytest.raises(KeyboardInterrupt):
        reproduce(experiment, Options(), tmp_path, {"ours": experiment})
    counting.fail = ""
    text = reproduce(experiment, Options(), tmp_path, {"ours": experiment}).read_text("utf-8")
    assert counting.made == ["first", "second"]
    assert "## Our paper" in text and "About second." in text
    assert "| in | 1,234 ± 5.5 |" in text and "| none | - |" in text
    assert "![The first](ours/first.svg)" in text
    drawn = (tmp_path / "ours" / "first.svg").read_text("utf-8")
    assert drawn.startswith("<?xml") and "#009e73" in drawn
    with pytest.raises(ValueError, match="quick = False, not True"):
        reproduce(experiment, Options(quick=True), tmp_path, {"ours": experiment})


def test_a_page_names_its_data_without_their_folder_and_leads_to_other_data(tmp_path):
    experiment = replace(Counting().experiment(), setup=lambda options: options.counted)
    known = {"ours": experiment}
    news = Options(str(tmp_path / "ag_news"), texts=79_280)
    text = reproduce(experiment, news, tmp_path / "out" / "news", known).read_text("utf-8")
    assert text.startswith("# Results on AG News\n")
    assert "--data ag_news`: AG News (79,280 of 120,000 training texts)\n" in text
    made = "".join(path.read_text("utf-8") for path in (tmp_path / "out").rglob("*.json"))
    assert str(tmp_path) not in made + text
    text = reproduce(experiment, Options(texts=7), tmp_path / "out", known).read_text("utf-8")
    assert text.startswith("# Results on the built-in texts\n")
    assert "The same on [AG News](news/results.md).\n" in text
    assert "`fedhlm reproduce ours`: the built-in texts (7 texts)\n" in text


def test_time_left_does_not_count_what_comes_before_the_first_piece(tmp_path, monkeypatch):
    experiment, now, told = Counting().experiment(), [0.0], []
    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])

    def opened(options: Options, folder: Path, tell: Tell) -> str:
        now[0] += 600
        return "in"

    def slow(make):
        def made(inputs: str) -> Finding:
            now[0] += 120
            return make(inputs)

        return made

    pieces = [replace(piece, make=slow(piece.make)) for piece in experiment.pieces]
    experiment = replace(experiment, open=opened, pieces=pieces)
    reproduce(experiment, Options(), tmp_path, {"ours": experiment}, told.append)
    assert told == ["1/2 first", "2/2 second, about 2 min left"]


def test_parts_that_do_not_add_up_are_no_table():
    sums = [(("local", "llm"), "tokens")]
    rows = [("a", 3, Measured(4.0, 1.0), 7), ("b", None, 4, 9)]
    table = Table(("what", "local", "llm", "tokens"), rows, sums)
    again = table_of(json.loads(json.dumps(table_json(table))))
    assert table_json(again) == table_json(table)
    with pytest.raises(SumsError, match=r"local \+ llm = 7.0, not 8.0"):
        Table(("what", "local", "llm", "tokens"), [("a", 3, 4, 8)], sums)
    clients = [("C1", 3), ("C2", 4), ("all", 7)]
    assert Table(("client", "tokens"), clients, totals=["tokens"]).rows == clients
    with pytest.raises(SumsError, match=r"tokens of all rows = 3.0, not 7"):
        Table(("client", "tokens"), clients[::2], totals=["tokens"])


@pytest.mark.parametrize("folder", [DOCS, DOCS / "ag-news"], ids=lambda folder: folder.name)
def test_published_pages_are_what_the_generator_writes_and_add_up(folder):
    text = page(folder, EXPERIMENTS)
    assert text == (folder / "results.md").read_text("utf-8")
    made = sorted(path for name in EXPERIMENTS for path in (folder / name).glob("*.json"))
    pieces = [json.loads(path.read_text("utf-8")) for path in made if path.stem != "options"]
    tables = [table_of(found["table"]) for found in pieces if found["table"]]
    assert len(tables) >= 15 and sum(bool(table.sums or table.totals) for table in tables) >= 3
    # Nothing says where on some machine the data lay.
    assert not re.search(r"(?<![\w.)])(/\w+){2}", "".join(path.read_text("utf-8") for path in made))


def test_an_interval_is_student_s():
    assert Measured.of([1.0]) == Measured(1.0, 0.0)
    measured = Measured.of([1.0, 2.0, 3.0])
    assert measured.mean == 2.0 and measured.half == pytest.approx(4.302653 / 3**0.5)
    assert written(0.123456) == "0.123" and written(-2) == "-2"
