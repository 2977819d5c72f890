"""All of `fedhlm reproduce fedhlm`, on few texts and with few rounds; its sums hold."""

from __future__ import annotations

import json

import pytest

from clients.records import Stage
from fedhlm_app.data.items import load_items
from fedhlm_app.reproduce.fedhlm import FEDHLM, accuracy, inputs
from fedhlm_app.reproduce.page import table_of
from fedhlm_app.reproduce.pieces import Options
from fedhlm_app.reproduce.runner import reproduce


@pytest.mark.slow
def test_every_piece_is_made_adds_up_and_is_on_the_page(tmp_path, monkeypatch):
    items = load_items("builtin")
    lines = [
        f'{items.label_names[label]},"{text.replace(chr(34), "")}"'
        for text, label in zip(items.texts(range(24)), items.labels(range(24)), strict=True)
    ]
    (tmp_path / "few.csv").write_text("label,text\n" + "\n".join(lines) + "\n", "utf-8")
    small = {"CLIENTS": 3, "CLUSTERS": 2, "ROUNDS": 2, "TOKENS": 10, "QUICK_ROUNDS": 1}
    for name, value in small.items():
        for module in (inputs, accuracy):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    options = Options(str(tmp_path / "few.csv"), quick=True, seeds=1)
    page = reproduce(FEDHLM, options, tmp_path / "out", {"fedhlm": FEDHLM}).read_text("utf-8")
    made = tmp_path / "out" / "fedhlm"
    for piece in FEDHLM.pieces:
        assert f"### {piece.title}\n" in page
        found = json.loads((made / f"{piece.name}.json").read_text("utf-8"))
        assert len(found["words"]) > 40
        if found["table"]:
            assert table_of(found["table"]).rows
        assert (made / f"{piece.name}.svg").is_file() == bool(found["figures"])
    runs = [json.loads(path.read_text("utf-8")) for path in sorted(made.glob("runs/*.json"))]
    assert len(runs) > 20
    # A whole run with every tier holds something everywhere.
    assert any(min(run["memory"].values()) > 0 for run in runs if "memory" in run)
    for run in runs:
        clients, rounds = run["clients"], run["rounds"]
        for line in rounds:
            assert sum(line["resolution"].values()) == line["tokens"]
        for stage in Stage:
            by_client = sum(counts[stage] for counts in clients["stages"])
            assert by_client == sum(line["resolution"][stage.key] for line in rounds)
        for name in {"uplink", "downlink", "edge"} & set(clients):
            assert sum(clients[name]) == sum(line["bytes"][name] for line in rounds)
