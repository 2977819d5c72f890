"""README's blocks, typed as they stand by somebody with a small machine.

Settings in the environment make runs small; what a run starts in processes of its own is in this
one. `flwr run` is typed by `tests/e2e/test_run.py`, the stock app's change by
`tests/e2e/test_examples.py`.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fedhlm_app.cli import app
from fedhlm_app.cli import run as run_module
from fedhlm_app.data.items import load_items
from fedhlm_app.hosting.llm import build_service
from fedhlm_app.launch import RunResult
from fedhlm_app.models import trying
from fedhlm_app.results.report import write_report
from fedhlm_app.settings import Settings
from fedhlm_app.sweep import runner as sweep_runner
from fedhlm_assets import asset_path
from tests.fedhlm_app.in_process import Runner
from tests.test_docs import ROOT, blocks, commands

SMALL = {
    "CLIENTS": 4, "CLUSTERS": 2, "ROUNDS": 2, "TOKENS_PER_ROUND": 5, "TOKENS_PER_PROMPT": 5,
    "EVALUATE_EVERY": 0, "ROUTER_ROUNDS": 1, "PROFILE_PROMPTS": 4, "PROFILE_ROWS": 4,
}  # fmt: skip
SHORTER = {
    "generate": ["--tokens", "10"],
    "compare": ["--prompts", "2", "--tokens", "4", "--calibration-prompts", "4"],
    "estimate": ["--prompts", "4", "--tokens", "6"],
}


@pytest.fixture
def fedhlm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """The command in an empty folder, with a small machine's settings."""
    runner = Runner(monkeypatch)

    def launch(settings: Settings, **_: object) -> RunResult:
        runner.service = build_service(settings)
        _, folder, _ = runner.start(settings)
        write_report(folder)
        return RunResult(folder, "finished:completed", "", (), folder.summary(), 1.0)

    def call(*words: str) -> Any:
        return CliRunner().invoke(app, list(words))

    class Process:
        """`fedhlm run` of a sweep's cell."""

        def __init__(self, words: list[str], **_: object) -> None:
            self.returncode = call(*words[words.index("fedhlm_app") + 1 :]).exit_code

        def poll(self) -> int:
            return self.returncode

    monkeypatch.setattr(run_module, "launch", launch)
    monkeypatch.setattr(trying, "_tried_apart", trying._refusal)
    monkeypatch.setattr(sweep_runner, "subprocess", SimpleNamespace(Popen=Process, DEVNULL=None))
    for name, value in SMALL.items():
        monkeypatch.setenv(f"FEDHLM_{name}", str(value))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    return call


def readers_own(folder: Path) -> None:
    """Models and data under the names that README gives as examples."""
    for name, part in (("Qwen/Qwen2.5-0.5B", "slm"), ("Qwen/Qwen2.5-7B", "llm")):
        shutil.copytree(asset_path(f"pair/{part}"), folder / name)
        shutil.copy(asset_path("pair").joinpath("tokenizer.json"), folder / name)
    items = load_items("builtin")
    names = [items.label_names[label] for label in items.table["label"].to_pylist()]
    rows = list(zip(items.texts(), names, strict=True))
    (folder / "fancyzhx" / "ag_news").mkdir(parents=True)
    for path, head in (
        ("fancyzhx/ag_news/train.csv", ("text", "label")),
        ("news.csv", ("title", "body", "topic")),
    ):
        with (folder / path).open("w", encoding="utf-8", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerow(head)
            for text, label in rows:
                writer.writerow([*text.split(" ", len(head) - 2), label])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_commands_of_the_readme_do_what_it_says(fedhlm: Any, tmp_path: Path) -> None:
    readers_own(tmp_path)
    made = subprocess.run(
        ["make", "-n", "--no-print-directory", "run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()[-1]
    assert made == ".venv/bin/fedhlm run"
    typed = [["run"], *commands(ROOT / "README.md")]
    assert len(typed) > 15
    for words in typed:
        words = [*words, *SHORTER.get(words[0], [])]
        if "--resume" in words:
            # README stands for the name of a run by its beginning.
            words[-1] = str(min((tmp_path / "runs").iterdir()))
        if "llm-device=cuda" in words and not torch.cuda.is_available():
            refused = fedhlm(*words)
            assert refused.exit_code == 2 and "'llm-device' = 'cuda'" in refused.stderr
            words = ["llm-device=cpu" if word == "llm-device=cuda" else word for word in words]
        answer = fedhlm(*words)
        assert answer.exit_code == 0, f"{words}\n{answer.output}\n{answer.exception!r}"
        if words[0] == "run":
            assert "transmission reduction" in answer.stdout, words
    folders = [path for path in (tmp_path / "runs").iterdir() if (path / "report.html").exists()]
    assert len(folders) == sum(words[0] == "run" and "--resume" not in words for words in typed)


def test_python_of_the_readme_runs() -> None:
    for _, text in blocks(ROOT / "README.md", ("python",)):
        exec(compile(text, "README.md", "exec"), {})
