"""The page of a serving device, in Chromium: with an LLM, a slow one and none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.browser import Page, browser, needs_axe, needs_browser
from tests.fedhlm_app.serve_device.devices import Down, Slow, served, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), needs_browser]

ENDED = "document.getElementById('go').disabled === false"
TEXT = "document.getElementById('text').innerText"
STATUS = "document.getElementById('status').innerText"
PROBLEM = "document.getElementById('problem').innerText"
TOKENS = "document.querySelectorAll('#text .token')"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module")
def slow(llm):
    return Slow(llm)


@pytest.fixture(scope="module")
def address(llm, slow):
    with serving(served(llm, transport=slow, initial_threshold=0.6)) as port:
        yield f"http://127.0.0.1:{port}/"


def write(page: Page, most: int = 30) -> None:
    """Ask for a text as somebody without a mouse does."""
    page.run(f"document.getElementById('most').value = {most}")
    page.run("document.getElementById('prompt').focus()")
    page.press("Enter", code=13, control=True)


def calm(page: Page, address: str) -> None:
    """No error on the console, and nothing asked of anybody else, since it was last looked at."""
    asked = {one for one in page.requests if not one.startswith((address, "data:", "about:"))}
    assert asked == set() == set(page.complaints)
    page.requests.clear()


def test_a_text_is_written_coloured_and_counted(page, address):
    page.look()
    page.open(address)
    write(page)
    page.until(f"{ENDED} && {TOKENS}.length")
    stages = page.run(f"[...{TOKENS}].map((one) => one.classList[1])")
    colours = page.run(f"[...{TOKENS}].map((one) => getComputedStyle(one).borderBottomColor)")
    assert len(stages) == 30 and len({*zip(stages, colours, strict=True)}) == len(set(stages)) > 1
    assert page.run(TEXT).startswith("Shares of the airline")
    counts = page.run(
        "Object.fromEntries([...document.querySelectorAll('#counts li')].map("
        "(one) => [one.dataset.stage, Number(one.querySelector('b').innerText)]))"
    )
    assert {name: count for name, count in counts.items() if count} == {
        name: stages.count(name) for name in set(stages)
    }
    assert page.run("Number(document.getElementById('uplink').innerText)") > 0
    assert f"30 tokens, {stages.count('local')} of them kept" in page.run(STATUS)
    assert page.run("document.querySelectorAll('#rows tr').length") == 30
    calm(page, address)


def test_the_slider_shows_what_another_threshold_would_keep(page, address):
    page.open(address)
    write(page)
    page.until(f"{ENDED} && {TOKENS}.length")
    asked = len(page.requests)
    sure = page.run("tokens.map((token) => token.uncertainty)")
    page.run("document.getElementById('threshold').focus()")
    assert page.run("document.getElementById('value').innerText") == "0.60"
    for _ in range(20):
        page.press("ArrowRight", code=39)
    assert page.run("document.getElementById('value').innerText") == "0.80"
    gains = [0.6 < one <= 0.8 for one in sure]
    marked = page.run(f"[...{TOKENS}].map((one) => one.classList.contains('gain'))")
    assert marked == gains and any(gains)
    told = page.run("document.getElementById('change').innerText")
    assert told.startswith(
        f"{sum(one <= 0.8 for one in sure)} of 30 tokens would be sure enough to keep: "
    )
    page.press("Home", code=36)
    losses = page.run(f"[...{TOKENS}].map((one) => one.classList.contains('loss'))")
    assert losses == [0 < one <= 0.6 for one in sure]
    assert len(page.requests) == asked
    calm(page, address)


def test_a_slow_llm_is_waited_for_and_a_text_can_be_stopped(page, address, slow, monkeypatch):
    monkeypatch.setattr(slow, "seconds", 2.6)
    page.open(address)
    write(page)
    page.until(f"{STATUS}.startsWith('Waiting for the next token')")
    page.until(f"{TOKENS}.length")
    assert page.run("document.getElementById('text').getAttribute('aria-busy')") == "true"
    page.press("Escape", code=27)
    page.until(ENDED)
    assert page.run(STATUS).startswith("Stopped: ")
    calm(page, address)


def test_without_the_llm_it_says_so(page):
    texts = served(None, transport=Down())
    with serving(texts) as port:
        page.open(f"http://127.0.0.1:{port}/")
        write(page)
        page.until(f"{ENDED} && {TOKENS}.length")
        assert "The LLM was not reached: the small model wrote" in page.run(PROBLEM)
        assert page.run(f"[...{TOKENS}].some((one) => one.classList.contains('unresolved'))")
        calm(page, f"http://127.0.0.1:{port}/")
    # The device is gone; what a browser itself says of that is no fault of the page.
    write(page)
    page.until(f"{ENDED} && {PROBLEM}")
    assert page.run(PROBLEM) == "The device does not answer."
    assert page.run(STATUS).startswith("Failed: 0 tokens")
    page.complaints.clear()
    page.requests.clear()


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_has_names_for_everything(page, address, dark):
    page.look(width=360, dark=dark)
    page.open(address)
    write(page)
    page.until(f"{ENDED} && {TOKENS}.length")
    page.run("document.querySelector('details').open = true")
    assert page.run("document.documentElement.scrollWidth") <= 360
    tree = page.send("Accessibility.getFullAXTree")["nodes"]
    used = [one for one in tree if not one["ignored"]]
    named = {one["role"]["value"]: one.get("name", {}).get("value") for one in used}
    for role in ("textbox", "spinbutton", "slider", "button", "heading", "columnheader"):
        assert named[role], role
    light = page.run("getComputedStyle(document.body).backgroundColor")
    assert (light == "rgb(20, 23, 26)") == dark
    if pictures := os.environ.get("PICTURES"):
        page.picture(Path(pictures) / f"phone-{'dark' if dark else 'light'}.png")
        page.look(dark=dark)
        page.picture(Path(pictures) / f"wide-{'dark' if dark else 'light'}.png")
    calm(page, address)


@needs_axe
def test_axe_finds_no_serious_fault(page, address):
    for width, dark in ((360, False), (360, True), (900, False), (900, True)):
        page.look(width=width, dark=dark)
        page.open(address)
        assert page.faults() == []
        write(page)
        page.until(f"{ENDED} && {TOKENS}.length")
        page.run("for (const one of document.querySelectorAll('details')) one.open = true")
        assert page.faults() == []
