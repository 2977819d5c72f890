"""The project's own files: pyproject and settings in step, the app bundle, the constraints."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from fedhlm_app.presets import PRESETS
from fedhlm_app.settings import Settings, comment, rows, toml_block
from tests.checkout import checkout

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_run_config_and_settings_have_the_same_keys_and_defaults(pyproject: dict[str, Any]) -> None:
    config = pyproject["tool"]["flwr"]["app"]["config"]
    assert config == Settings.defaults()
    for key, default in Settings.defaults().items():
        # TOML tells 1 from 1.0 and Flower keeps the difference when it parses overrides.
        assert type(config[key]) is type(default), key


def test_every_key_of_the_run_config_is_commented_with_meaning_unit_and_range() -> None:
    lines = (ROOT / "pyproject.toml").read_text("utf-8").splitlines()
    start = lines.index("[tool.flwr.app.config]")
    for row in rows():
        at = next(i for i in range(start, len(lines)) if lines[i].startswith(f"{row.name} = "))
        assert lines[at - 1] == f"# {comment(row)}", f"`fedhlm settings --toml` differs: {row.name}"


def test_the_printed_block_is_the_one_in_pyproject() -> None:
    assert toml_block() in (ROOT / "pyproject.toml").read_text("utf-8")


def test_defaults_are_allowed() -> None:
    Settings.from_run_config(Settings.defaults(), {})


def _modules_imported_by(source: str) -> set[str]:
    """Names that a file may import, inside functions too, but for type checking alone."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _reachable_from(module: str, packages: set[str]) -> set[str]:
    """Files of `packages` that a module imports, be it at once or only when it needs them."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        parts = name.split(".")
        if name in seen or parts[0] not in packages:
            continue
        seen.add(name)
        for count in range(1, len(parts) + 1):
            folder = ROOT.joinpath(*parts[:count])
            file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
            path = file.relative_to(ROOT).as_posix()
            if file.is_file() and path not in found:
                found.add(path)
                waiting += _modules_imported_by(file.read_text("utf-8"))
    return found


BUNDLED = {"hlm", "clients", "strategies", "fedhlm_app"}


def test_the_app_bundle_is_small_and_holds_the_code_only(tmp_path: Path) -> None:
    from flwr.cli.build import build_fab_from_disk

    bundle = build_fab_from_disk(checkout(tmp_path / "fedhlm"))
    assert len(bundle) < 2_000_000
    names = {
        name
        for name in zipfile.ZipFile(io.BytesIO(bundle)).namelist()
        if not name.startswith(".info/")
    }
    code = {name for name in names if name.endswith(".py")}
    presets = {f"fedhlm_app/presets/{name}.toml" for name in PRESETS}
    assert names - code == {"LICENSE", "pyproject.toml", *presets}
    wanted = _reachable_from("fedhlm_app.client_app", BUNDLED)
    wanted |= _reachable_from("fedhlm_app.server_app", BUNDLED)
    # Whole folders travel: what the apps import is in them, and nothing that runs beside the apps.
    assert wanted <= code
    assert {name.split("/")[0] for name in code} == BUNDLED
    beside = ("cli", "compare", "launch", "pair", "serve_device", "sweep")
    assert not [name for name in code if name.startswith(tuple(f"fedhlm_app/{b}/" for b in beside))]


def test_devices_import_nothing_of_servers() -> None:
    everywhere = BUNDLED | {"servers"}
    reached = _reachable_from("fedhlm_app.client_app", everywhere)
    assert not [name for name in reached if name.startswith("servers/")]
    # The check itself sees what is imported inside functions.
    started = _reachable_from("fedhlm_app.server_app", everywhere)
    assert {"servers/engine/engine.py", "servers/edge/server.py"} <= started


def test_the_wheel_names_its_packages_one_by_one(pyproject: dict[str, Any]) -> None:
    packages = pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == ["hlm", "clients", "servers", "strategies", "fedhlm_app", "fedhlm_assets"]
    assert all((ROOT / package / "__init__.py").is_file() for package in packages)


def _pins() -> dict[str, str]:
    text = (ROOT / "constraints.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}


def test_constraints_are_exact_plain_versions() -> None:
    pins = _pins()
    assert pins["torch"] == "2.13.0"
    # A local version such as 2.13.0+cpu exists on one index only.
    assert all(re.fullmatch(r"[0-9][0-9A-Za-z.]*", version) for version in pins.values()), pins
    # Flower refuses a newer one.
    assert int(pins["packaging"].split(".")[0]) < 26


def test_constraints_cover_every_direct_dependency(pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    wanted = list(project["dependencies"])
    not_tested = (
        "mlflow",
        "wandb",
        "smollm",
        "pipeline",
        "onnx",
        "llama",
    )  # or skipped where absent
    for name, extra in project["optional-dependencies"].items():
        if name not in not_tested:
            wanted += extra
    names = {re.match(r"[A-Za-z0-9._-]+", line)[0].lower() for line in wanted}  # type: ignore[index]
    assert {name.replace("_", "-") for name in names} <= _pins().keys()


@pytest.mark.parametrize(
    "target", ["run", "test", "test-slow", "lint", "lowest", "latest", "bench", "clean"]
)
def test_make_has_the_target(target: str) -> None:
    answer = subprocess.run(
        ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Version 2.0, January 2004" in text and "9. Accepting Warranty" in text


def test_the_changelog_knows_this_version(pyproject: dict[str, Any]) -> None:
    version = pyproject["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
