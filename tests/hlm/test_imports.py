"""Imports run one way: hlm <- clients, servers, strategies <- fedhlm_app."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WINGS = ("clients", "servers", "strategies")
ROOMS = ("hlm", *WINGS, "fedhlm_app", "fedhlm_assets")
FORBIDDEN = {
    "hlm": {*WINGS, "fedhlm_app", "fedhlm_assets"},
    **{wing: {*WINGS, "fedhlm_app"} - {wing} for wing in WINGS},
    "fedhlm_app": set(),
    "fedhlm_assets": {"hlm", *WINGS, "fedhlm_app"},
}
SHARED_MATHS_MAY_USE = {"numpy", "torch", "hlm", "__future__"} | sys.stdlib_module_names
NO_OUTSIDE_WORLD = {"socket", "http", "urllib", "subprocess", "multiprocessing", "shutil", "os"}


def imported(source: str, package: str) -> set[str]:
    """Top-level names that a module imports anywhere, also inside functions and by name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(package if node.level else (node.module or "").split(".")[0])
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in {"import_module", "importlib.import_module", "__import__"}
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            names.add(str(node.args[0].value).split(".")[0])
    return names


def modules(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def test_the_reader_of_imports_sees_every_kind():
    source = """
import numpy as np
import clients.policy, json
from servers.llm import Engine
from . import sibling
def late():
    from strategies import fedprox
    importlib.import_module("fedhlm_app.results.runs")
"""
    seen = {"numpy", "clients", "json", "servers", "hlm", "strategies", "fedhlm_app"}
    assert imported(source, "hlm") == seen


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_lies_below(room):
    files = modules(room)
    assert files, f"{room} has no modules, so this test would check nothing"
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in imported(path.read_text(encoding="utf-8"), room) & FORBIDDEN[room]
    }
    assert not wrong


def test_shared_maths_needs_numpy_and_torch_only():
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules("hlm")
        for name in imported(path.read_text(encoding="utf-8"), "hlm")
        if name not in SHARED_MATHS_MAY_USE or name in NO_OUTSIDE_WORLD
    }
    assert not wrong


def test_nothing_shipped_imports_tests_or_benchmarks():
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for room in ROOMS
        for path in modules(room)
        for name in imported(path.read_text(encoding="utf-8"), room) & {"tests", "benchmarks"}
    }
    assert not wrong
