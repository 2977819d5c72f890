"""What README and docs tell a reader to type: it can be typed, and the tutorial is typed whole."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer
import yaml

from fedhlm_app.cli.app import app
from fedhlm_app.cli.lazy import LazyCommand
from fedhlm_app.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
OWN = ("python -m fedhlm_app ", ".venv/bin/fedhlm ", "fedhlm ")


def blocks(page: Path, languages: tuple[str, ...]) -> list[tuple[str, str]]:
    """Code blocks of a page in some languages: language and text."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text("utf-8"), re.S | re.M)
    return [(language, text) for language, text in found if language in languages]


def commands(page: Path) -> list[list[str]]:
    """Words of every command of ours that a page shows in a block, without the program's name."""
    found = []
    for _, text in blocks(page, ("", "console", "sh", "bash")):
        for line in text.replace("\\\n", " ").splitlines():
            start = next((word for word in OWN if line.startswith(word)), None)
            if start is not None:
                words = shlex.split(line.removeprefix(start), comments=True)
                found.append(words[: words.index("|")] if "|" in words else words)
    return found


def parsed(known: typer.Typer, program: str, words: list[str]) -> click.Context:
    """The context of a command line, whose options and arguments its command has taken."""
    command: click.Command = typer.main.get_command(known)
    left = list(words)
    while isinstance(command, click.Group | LazyCommand):
        if isinstance(command, LazyCommand):
            module, _, attribute = command.target.partition(":")
            command = typer.main.get_command(getattr(importlib.import_module(module), attribute))
        else:
            with click.Context(command) as context:
                _, found, left = command.resolve_command(context, left)
            assert found is not None, words
            command = found
    # Folders and files stand for the reader's own.
    for parameter in command.params:
        if isinstance(parameter.type, click.Path):
            parameter.type = click.Path()
    return command.make_context(program, left)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_one(page: Path) -> None:
    for words in commands(page):
        with parsed(app, "fedhlm", words) as context:
            known = Settings.defaults()
            for pair in context.params.get("overrides") or []:
                assert pair.partition("=")[0] in known, words


def test_pages_are_listed_and_lead_somewhere() -> None:
    listed = re.findall(r": (\w[\w/-]*\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.M)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in PAGES[1:])
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8")):
            if not target.startswith(("http:", "https:", "mailto:")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_files_for_people_and_machines_are_well_formed() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["version"] in (ROOT / "pyproject.toml").read_text("utf-8")
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        assert {"name", "description", "body"} <= yaml.safe_load(form.read_text("utf-8")).keys()


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(1800)
def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    environ = {
        **{key: value for key, value in os.environ.items() if not key.startswith("FEDHLM_")},
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
    }
    said = []
    for language, text in blocks(ROOT / "docs/tutorial.md", ("python", "console")):
        words = [sys.executable, "-c", text] if language == "python" else ["bash", "-ec", text]
        done = subprocess.run(
            words, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        said.append(done.stdout + done.stderr)
    data, _, learned, listed, used = said
    assert data == "" and (tmp_path / "news.csv").stat().st_size > 10_000
    threshold = re.search(r"^  threshold +(\d\.\d{4})", learned, re.M)
    assert threshold is not None and "at most 10 % are kept and wrong" in " ".join(learned.split())
    assert "completed" in listed and "report.html" in listed
    assert f"threshold {threshold.group(1)} of " in used


def test_code_of_ones_own_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    threshold, verified, text = (code for _, code in blocks(DOCS / "library.md", ("python",)))
    exec(threshold, {})
    average, sure = map(float, capsys.readouterr().out.split())
    assert 0 < sure < average < 1
    exec(verified, {})
    assert capsys.readouterr().out.startswith("tensor([")
    exec(text, {})
    first, *tokens = capsys.readouterr().out.splitlines()
    assert "'llm_accepted'" in first and len(tokens) == 20
