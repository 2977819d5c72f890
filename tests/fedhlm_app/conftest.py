"""What tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedhlm_app.cli import app


@pytest.fixture
def fedhlm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    # Wide enough that no sentence is broken.
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: str) -> Any:
        return CliRunner().invoke(app, list(words))

    return call
