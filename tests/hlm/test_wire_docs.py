"""The examples of docs/wire.md, run."""

import re
from pathlib import Path

from hlm.verifiers import VERIFIERS

PAGE = (Path(__file__).parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")


def hexdump(payload: bytes) -> str:
    lines = [payload[place : place + 16] for place in range(0, len(payload), 16)]
    return "\n".join(f"{16 * row:04x}  {line.hex(' ')}" for row, line in enumerate(lines))


def run_examples() -> tuple[list[str], list[str]]:
    """What the page says its examples print, and what they print."""
    printed: list[str] = []
    names = {"dump": lambda payload: printed.append(hexdump(payload))}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(compile(block, "docs/wire.md", "exec"), names)
    shown = re.findall(r"```text\n(.*?)```", PAGE, flags=re.DOTALL)
    return [block.strip("\n") for block in shown], printed


def test_the_examples_print_what_the_page_shows() -> None:
    shown, printed = run_examples()
    assert len(printed) == 2
    assert shown == printed


def test_the_page_names_every_verifier_by_its_code() -> None:
    rows = re.findall(r"^\| (\d+) \| `([a-z-]+)` \|", PAGE, flags=re.MULTILINE)
    assert rows == [(str(code), name) for code, name in enumerate(VERIFIERS)]
