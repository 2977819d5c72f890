"""The stock Flower apps of `examples/`, run by `flwr run` with our strategy in Flower's place."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fedhlm_app.launch.launcher import _run_id, _status
from fedhlm_app.launch.superlink import CONNECTION, PrivateSuperLink, program

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = ("quickstart-numpy", "quickstart-pytorch")
NODES = "num-supernodes=4 client-resources-num-cpus=1 init-args-num-cpus=1"


def run(superlink: PrivateSuperLink, app: Path) -> str:
    """Run an app to its end and return its log."""
    done = subprocess.run(
        [program("flwr"), "run", str(app), CONNECTION, "--stream", "--federation-config", NODES],
        cwd=superlink.folder / "work",
        env=superlink.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    log = done.stdout + done.stderr
    assert (number := _run_id(log)) is not None, log
    # `flwr run` exits 0 whatever happened.
    assert _status(superlink, number) == ("finished:completed", ""), log
    return log


@pytest.mark.e2e
@pytest.mark.timeout(1800)
def test_stock_apps_run_with_one_import_changed(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    logs = {}
    with PrivateSuperLink(tmp_path / "superlink.log", environ) as superlink:
        for name in NAMES:
            shutil.copytree(EXAMPLES / name, tmp_path / name)
            logs[name] = run(superlink, tmp_path / name)
    for log in logs.values():
        for line in (
            "Starting HierarchicalFedAvg strategy:",
            "clusters: 2",
            "[ROUND 3/3]",
            "configure_train: Sampled 4 nodes (out of 4)",
            "aggregate_train: Received 4 results and 0 failures",
            "aggregate_evaluate: Received 4 results and 0 failures",
            "Strategy execution finished in",
        ):
            assert line in log, f"{line}\n{log}"
    found = re.search(r"Final model: \[\[(.*?)\], \[(.*?)\]\]", logs["quickstart-numpy"])
    assert found is not None, logs["quickstart-numpy"]
    learned = [float(word) for word in ", ".join(found.groups()).split(", ")]
    assert learned == pytest.approx([2.0, -1.0, 0.5, 1.0], abs=0.3)
    final = re.search(r"Final accuracy: (\S+)", logs["quickstart-pytorch"])
    assert final is not None, logs["quickstart-pytorch"]
    assert float(final.group(1)) > 0.7


@pytest.mark.parametrize("name", NAMES)
def test_an_app_says_nothing_of_ours_but_the_strategy(name: str) -> None:
    package = EXAMPLES / name / name.replace("-", "_")
    ours = re.compile(r"\b(strategies|Hierarchical\w*|clusters|fedhlm|hlm)\b")
    for module in sorted(package.glob("*.py")):
        code = [line for line in module.read_text("utf-8").splitlines() if ours.search(line)]
        lines = [line.strip() for line in code if not line.startswith('"""')]
        if module.name == "server_app.py":
            assert lines[0] == "from strategies import HierarchicalFedAvg"
            assert len(lines) == 3 and "clusters=2" in lines[2]
        else:
            assert lines == []
    shown = (EXAMPLES / name / "README.md").read_text("utf-8")
    assert "+from strategies import HierarchicalFedAvg" in shown
