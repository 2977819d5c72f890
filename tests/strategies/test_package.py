from __future__ import annotations

import subprocess
import sys

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
