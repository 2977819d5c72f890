"""Other packages of our common names are told: beside ours, before it, or installed over it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedhlm_app import foreign
from fedhlm_app.foreign import OURS, foreign_packages


def package(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").touch()
    return folder / name


def test_what_is_beside_ours_is_named_with_what_to_do(tmp_path: Path) -> None:
    assert foreign_packages() == []
    other = package(tmp_path / "a", "clients")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "servers.py").touch()
    (tmp_path / "b" / "strategies").mkdir()  # no package, and so never in the way of ours
    first, second = foreign_packages([str(tmp_path / "a"), str(OURS), str(tmp_path / "b")])
    assert first.startswith(f"clients at {other} is no part of fedhlm")
    assert str(OURS / "clients") in first and "environment of its own" in first
    assert second.startswith(f"servers at {tmp_path / 'b' / 'servers'} ")


def test_a_copy_of_ours_is_no_other(tmp_path: Path) -> None:
    package(tmp_path, "clients")
    package(tmp_path, "fedhlm_app")
    assert len(foreign_packages([str(tmp_path)])) == 1
    (tmp_path / "fedhlm_app" / "foreign.py").touch()
    assert foreign_packages([str(tmp_path)]) == []


def test_what_was_installed_over_ours_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fedhlm-0.1.0.dist-info").mkdir()
    record = tmp_path / "fedhlm-0.1.0.dist-info" / "RECORD"
    record.write_text("clients/__init__.py,sha256=x,1\nclients/policy.py,sha256=y,2\n")
    (package(tmp_path, "clients") / "policy.py").touch()
    monkeypatch.setattr(foreign, "OURS", tmp_path)
    assert foreign_packages([]) == []
    (tmp_path / "clients" / "http.py").touch()
    (line,) = foreign_packages([])
    assert line.startswith(f"clients at {tmp_path / 'clients' / 'http.py'} is no part of fedhlm")


def test_the_command_says_so_in_one_line(tmp_path: Path) -> None:
    """Also where the other one is found first, and ours is not found at all."""
    other = package(tmp_path, "strategies")
    done = subprocess.run(
        [sys.executable, "-m", "fedhlm_app", "--version"],
        cwd=OURS,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"fedhlm: strategies at {other} is no part of fedhlm")
    assert done.stdout.startswith("fedhlm ")
