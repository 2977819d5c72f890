from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import strategies


def test_exports_are_sorted_and_exist() -> None:
    names = strategies.__all__
    assert sorted(names) == sorted(set(names))
    assert all(hasattr(strategies, name) for name in names)


def test_any_flower_app_can_import_it_alone() -> None:
    code = (
        "import sys, strategies, strategies.flower_rule\n"
        "wings = {'clients', 'servers', 'fedhlm_app', 'fedhlm_assets', 'torch', 'ray'}\n"
        "print(sorted(wings & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_class_calls_a_method_past_a_child_of_its_owner() -> None:
    """What varies is an object that the one strategy runs; `Parent.method(self)` is a detour."""
    past = []
    for file in Path(strategies.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id[:1].isupper()
                and any(isinstance(given, ast.Name) and given.id == "self" for given in node.args)
            ):
                past.append(f"{file.name}:{node.lineno}")
    assert not past


def test_options_are_typed() -> None:
    for file in Path(strategies.__file__).parent.rglob("*.py"):
        assert "**options: Any" not in file.read_text(), file.name
