"""The house as `docs/architecture.md` tells of it: its files, no dead module, no import circle.

Read from the sources alone; nothing of the project is imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("hlm", "clients", "servers", "strategies", "fedhlm_app", "fedhlm_assets")
ENTRIES = (
    "fedhlm_app.__main__",
    "fedhlm_app.launch.clientapp",
    "fedhlm_app.cli",
    "fedhlm_app.client_app",
    "fedhlm_app.server_app",
    # Imported by Ray Serve, as `deploy/ray-serve/llm.yaml` says.
    "fedhlm_app.hosting.replicas",
    # Imported by other people's Flower apps, as README shows.
    "strategies",
)
UNREACHED: dict[str, str] = {}
"""Modules that nothing which runs imports, each with the reason why it stays."""

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def _nodes(tree: ast.AST, *, inside_functions: bool) -> Iterator[ast.AST]:
    """Nodes of a file without what only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if function and not inside_functions:
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for other in node.orelse:
                yield other
                yield from _nodes(other, inside_functions=inside_functions)
            continue
        yield node
        yield from _nodes(node, inside_functions=inside_functions)


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text("utf-8"))


def _imported(tree: ast.AST, *, inside_functions: bool) -> Iterator[tuple[str, str]]:
    """Pairs of a module and the name taken from it; the name is empty where all of it is."""
    for node in _nodes(tree, inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"relative import: {ast.unparse(node)}"
            yield from ((node.module, alias.name) for alias in node.names)


@cache
def _exports(package: str) -> dict[str, str]:
    """Names of a package's `__init__`, and the module of this project each comes from."""
    found = _imported(_tree(package), inside_functions=False)
    return {name: _origin(module, name) for module, name in found if module in MODULES and name}


def _origin(module: str, name: str) -> str:
    """The module that a name comes from, however many packages pass it on."""
    if f"{module}.{name}" in MODULES:
        return f"{module}.{name}"
    if MODULES[module].name == "__init__.py":
        return _exports(module).get(name, module)
    return module


def _used(tree: ast.AST) -> set[str]:
    """Modules that a file may use: imported anywhere in it, or named in a string.

    A package that only passes a name on is not thereby a user of all the other names it has.
    """
    used = set()
    for module, name in _imported(tree, inside_functions=True):
        if module in MODULES:
            used.add(_origin(module, name) if name else module)
    for node in _nodes(tree, inside_functions=True):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            # Commands that are loaded at their first use: `package.module:attribute`.
            module = node.value.partition(":")[0]
            if "." in module and module in MODULES:
                used.add(module)
    return used


def _reachable(entries: set[str]) -> set[str]:
    reached: set[str] = set()
    waiting = set(entries)
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting |= _used(_tree(module)) - reached
    return reached


def _packages_of(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts))} & MODULES.keys()


def test_every_module_is_reachable_from_what_runs() -> None:
    examples = set()
    for path in sorted((ROOT / "examples").rglob("*.py")):
        examples |= _used(ast.parse(path.read_text("utf-8")))
    reached = _reachable({*ENTRIES} | examples)
    # A folder's `__init__` runs before any module in it.
    reached |= {package for module in reached for package in _packages_of(module)}
    unreached = MODULES.keys() - reached
    dead = sorted(unreached - UNREACHED.keys())
    assert not dead, f"no command, app, public name or example comes to {', '.join(dead)}"
    assert UNREACHED.keys() <= unreached, "reached by now: take it from the list of exceptions"


def test_no_module_needs_itself_to_be_imported() -> None:
    needs: dict[str, set[str]] = {}
    for module in MODULES:
        own = _packages_of(module)
        found = set()
        for name, part in _imported(_tree(module), inside_functions=False):
            if name not in MODULES:
                continue
            whole = f"{name}.{part}"
            # `from package import module` inside that package waits for the module alone: its
            # packages are being imported already.
            target = whole if whole in MODULES else name
            found |= {target} | (_packages_of(target) - own - {module})
        needs[module] = found
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        raise AssertionError(f"imports in a circle: {' <- '.join(error.args[1])}") from None


def _quoted() -> set[str]:
    """Everything in backquotes in `docs/architecture.md`."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    return set(re.findall(r"`([^`\s]+)`", text))


def test_every_file_that_the_page_names_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    linked = {f"docs/{name}" for name in re.findall(r"\]\(([^)#:]+)\)", text)}
    paths = {name.partition(":")[0] for name in _quoted() if "/" in name or name.endswith(".toml")}
    assert len(paths) > 90, "the page's paths are not found: are they still in backquotes?"
    missing = sorted(name for name in paths | linked if not (ROOT / name).exists())
    assert not missing, f"docs/architecture.md names what is not there: {', '.join(missing)}"


def test_every_folder_has_its_line() -> None:
    folders = {
        f"{path.parent.relative_to(ROOT)}/"
        for path in MODULES.values()
        if path.name == "__init__.py"
    }
    lost = sorted(folders - _quoted())
    assert not lost, f"docs/architecture.md does not tell of {', '.join(lost)}"


def _defines(file: str, name: str) -> bool:
    """Whether a file has a class or function of this name, dotted for methods."""
    body = ast.parse((ROOT / file).read_text("utf-8")).body
    for part in name.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [node for node in body if isinstance(node, kinds) and node.name == part]
        if not found:
            return False
        body = found[0].body
    return True


def test_every_name_that_the_page_gives_with_its_file_is_there() -> None:
    named = sorted(name for name in _quoted() if ".py:" in name)
    assert len(named) > 60, "names are not found: do they still stand behind a file and a colon?"
    missing = [entry for entry in named if not _defines(*entry.split(":"))]
    assert not missing, f"docs/architecture.md names what is not there: {', '.join(missing)}"
