"""The project's own files alone, as a fresh clone has them."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_OURS = shutil.ignore_patterns(".venv", ".git", ".*_cache", "__pycache__", "runs", "out")


def checkout(folder: Path) -> Path:
    """Copy the project into a new folder: Flower's build looks at every file, and an environment
    in the checkout has 70,000.
    """
    return Path(shutil.copytree(ROOT, folder, ignore=NOT_OURS))
