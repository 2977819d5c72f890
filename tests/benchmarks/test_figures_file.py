from __future__ import annotations

import json

import torch

from benchmarks import _report


def test_a_figure_names_its_machine(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(_report, "OUT", tmp_path / "out")
    report = json.loads(_report.write_report("some", {"ratio": 0.5}).read_text("utf-8"))
    assert report["figures"] == {"ratio": 0.5}
    facts = report["facts"]
    assert facts["cores"] >= 1 and facts["torch"] == torch.__version__
    assert facts["processor"] in report["machine"]


def test_instruction_sets_come_from_what_the_processor_says(monkeypatch) -> None:
    said = {"model name": "Some CPU", "cpu family": "6", "flags": "fpu avx2 amx_tile avx512f"}
    monkeypatch.setattr(_report, "_cpuinfo", lambda: said)
    facts = _report.machine_facts()
    assert facts["instructions"] == ["avx2", "avx512f", "amx_tile"]
    assert (facts["processor"], facts["family"]) == ("Some CPU", "6/?/?")
