"""One registry of learning rules, which the settings and the docs read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedhlm_app.learning.rules import GRADIENTS, GUARANTEE, LINE, RULES, rule_of
from fedhlm_app.settings import Settings, rows

ROOT = Path(__file__).resolve().parents[4]


def test_settings_and_docs_name_the_rules_of_the_registry() -> None:
    (setting,) = [row for row in rows() if row.name == "learning"]
    assert setting.allowed == "one of auto, " + ", ".join(RULES)
    text = (ROOT / "docs" / "learning.md").read_text("utf-8")
    table = text.split("| `learning` |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE) == list(RULES)


@pytest.mark.parametrize(
    ("given", "name"),
    [({}, GUARANTEE), ({"strategy": "fedprox"}, GRADIENTS), ({"policy": "u-hlm"}, LINE)],
)
def test_auto_stands_for_rules_of_the_registry(given: dict[str, str], name: str) -> None:
    assert Settings.from_sources(given, {}).learning == name


def test_a_policy_that_learns_nothing_has_no_rule() -> None:
    assert rule_of(Settings.from_sources({"policy": "always"}, {})).name == "none"


def test_the_rules_are_read_without_torch_and_flower() -> None:
    code = "import sys, fedhlm_app.settings; print({'torch', 'flwr', 'scipy'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.strip() == "set()", found.stderr
