"""The table of docs/models.md against the command that writes it."""

from __future__ import annotations

import pytest

from benchmarks import families
from benchmarks._families import FAMILIES

ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in families.DOCS.read_text("utf-8").partition(families.HEAD)[2].splitlines()
    if line.startswith("|")
]


def test_the_table_names_every_family_that_is_tried():
    assert [cells[0] for cells in ROWS] == sorted(FAMILIES, key=str.lower)


@pytest.mark.parametrize(
    "family",
    ["BERT (reads both ways)", "BLOOM", "DeepSeek-V2", "GPT-Neo", "Llama 4", "Mamba 2", "RWKV"],
)
def test_a_line_of_the_table_is_what_the_command_finds(family):
    line = families.row(family, families.tried(family))
    assert [cell.strip() for cell in line.strip("|\n").split("|")] in ROWS


def test_the_table_is_written_in_its_place(tmp_path, monkeypatch):
    docs = tmp_path / "models.md"
    docs.write_text(f"before\n\n{families.HEAD}| old | fast | fast | fast |\n\nafter\n")
    monkeypatch.setattr(families, "DOCS", docs)
    families.write_table("| new | fast | fast | fast |\n")
    assert docs.read_text() == f"before\n\n{families.HEAD}| new | fast | fast | fast |\n\nafter\n"
