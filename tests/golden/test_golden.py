"""What users get stays as it was: runs of every kind against results on file.

A change of behaviour on purpose is written down with `python -m tests.golden --write`.
"""

from __future__ import annotations

import copy
import json
import shutil

import pytest

from fedhlm_app.settings import Settings
from fedhlm_app.settings.words import named_values
from hlm.verification import VERIFIERS
from tests.golden import store
from tests.golden.cases import RUNS, covered
from tests.golden.results import CASES, result

FILES = sorted(store.FOLDER.glob("golden-*.json"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_run_ends_as_it_did(name):
    kind = store.machine_kind()
    file = store.load(kind)
    same = file["machine"] == kind
    if name not in file["cases"]:
        pytest.skip(f"not yet on file here: python -m tests.golden --write {name}")
    lines = store.differences(file["cases"][name], result(name), same)
    assert not lines, f"{name}:\n" + "\n".join(lines)
    if not same:
        pytest.skip(f"texts and thresholds were not compared: {store.elsewhere(file)}")


def test_the_files_hold_every_case_and_no_other():
    # A new case is first written on one kind of machine.
    held = [set(json.loads(file.read_text("utf-8"))["cases"]) for file in FILES]
    assert set.union(*held) == set(CASES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_kind_of_machine_finds_its_own_file(file, tmp_path, monkeypatch):
    known = json.loads(file.read_text("utf-8"))
    kind = known["machine"]
    assert store.load(kind) == known
    assert store.load({**kind, "torch": "99.0"}) == known  # the nearest
    # Written anew it takes its own file's place and nobody else's.
    for one in FILES:
        shutil.copy(one, tmp_path)
    monkeypatch.setattr(store, "machine_kind", lambda: {**kind, "torch": "99.0"})
    assert store.save({}, tmp_path).name == file.name
    assert sorted(one.name for one in tmp_path.iterdir()) == [one.name for one in FILES]


@pytest.mark.parametrize(
    "field",
    ["learning", "strategy", "workload", "policy", "cache_mode", "peer_mode", "personalisation",
     "decoding", "uncertainty", "router_optimizer", "escalation"],
)  # fmt: skip
def test_every_value_is_covered(field):
    allowed = set(named_values(Settings.model_fields[field])) - {"auto"}
    assert covered(field) == allowed


def test_every_verifier_and_tier_is_covered():
    # Blocks of drafts are a matter of `fedhlm compare`.
    assert covered("verification") == set(VERIFIERS) - {"block"}
    assert covered("inter_cluster") == {True, False}


def test_tokens_are_decided_at_every_stage():
    cases = store.load(store.machine_kind())["cases"]
    for stage in ("local", "cache", "peer", "edge", "llm_accepted", "llm_resampled"):
        assert any(cases[name]["resolution"][stage] for name in RUNS), stage


def test_a_change_is_named():
    golden = store.load(store.machine_kind())["cases"]["paper"]
    found = copy.deepcopy(golden)
    assert store.differences(golden, found, True) == []
    found["threshold"]["global"] += 1e-6
    found["resolution"]["local"] += 1
    found["texts"]["digest"] = "other"
    lines = store.differences(golden, found, True)
    assert [line.split(":")[0] for line in lines] == [
        "resolution/local",
        "texts/digest",
        "threshold/global",
    ]
    # On another processor a token may flip, but nothing may be missing or grow without bound.
    assert store.differences(golden, found, False) == []
    found["bytes"]["uplink"] *= 2
    del found["audited"]
    lines = store.differences(golden, found, False)
    assert [line.split(":")[0] for line in lines] == ["audited", "bytes/uplink"]
