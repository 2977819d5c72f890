"""The report: its numbers, its charts, and that it loads nothing from elsewhere."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from fedhlm_app.results.report import charts, render, write_report
from fedhlm_app.results.report.charts import line_chart, share_bars, stacked_bars
from fedhlm_app.results.report.scale import Scale, short, size, ticks
from fedhlm_app.results.report.side_by_side import Run, render_side_by_side
from fedhlm_app.results.report.templates import fill
from fedhlm_app.results.runs import CHECKPOINT, RunFolder
from fedhlm_app.results.stages import PALETTE, STAGE_COLOURS
from fedhlm_app.results.token_log import TokenLog
from fedhlm_app.settings import Settings
from tests.browser import browser, needs_axe, needs_browser
from tests.fedhlm_app.launch_apps import summary

VOID = {"meta", "br", "hr", "img", "input", "link"}
OPEN = {"budget": 0.05, "groups": 1, "certified": 0, "trial": 0.45}


class _Balance(HTMLParser):
    """Collects the text of a page and fails on a tag that is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    settings = Settings.from_sources({"run-dir": str(tmp_path), "rounds": 3, "seed": 11}, {})
    made = RunFolder.create(settings, {})
    for number in (1, 2, 3):
        made.append_metrics(
            {
                "round": number,
                "resolution": {"local": 60 + number, "llm_accepted": 30, "llm_resampled": 10},
                "threshold": {"global": 0.5 + number / 100, "clusters": {"0": 0.4, "10": 0.6}},
                "bytes": {"uplink": 123 * number, "downlink": 50, "edge": 0},
                "certificate": 0.02,
                "guarantee": OPEN | {"certified": int(number > 1)},
                "by_client": {
                    str(client): {
                        "cluster": client % 2,
                        "resolution": {"local": 20 - client},
                        "uplink": 1500,
                        "downlink": 9,
                        "wrong": 1.0,
                        "known": 10,
                    }
                    for client in (0, 1, 10)
                },
                "llm_agreement": 0.9,
                "evaluation": {"accuracy": {"token": 0.25, "label": None}} if number == 3 else None,
            }
        )
    made.write_summary(summary(settings) | {"llm_agreement": 0.8765})
    return made


def text_of(page: str) -> str:
    parser = _Balance()
    parser.feed(page)
    assert parser.open == []
    return " ".join(parser.words)


def test_the_page_holds_the_numbers_of_the_run(folder: RunFolder) -> None:
    page = write_report(folder).read_text("utf-8")
    text = text_of(page)
    for figure in ("87.65%", "20", "0.5000", "100.00%", "0.1000", "cluster 10", "0.51", "4.5 kB"):
        assert figure in text, figure
    assert "round 2, up: 246 B" in text
    assert "round 3, kept on the device: 63 (61.2%)" in text
    # A chart has a title per point: three rounds of three thresholds.
    assert len(re.findall(r"<title>(?:global|cluster \d+), round", page)) == 9
    # What is not certified yet is marked, and the risk stands beside its budget.
    assert 'class="band"><title>not certified' in page and "on trial, round 1: 0.45" in text
    assert "budget 5%" in text and "not certified" in text
    assert 'aria-label="Threshold: line chart, global from 0.51 at round 1' in page
    assert "from peers" not in page


def test_the_page_loads_nothing(folder: RunFolder) -> None:
    page = write_report(folder).read_text("utf-8")
    assert not re.search(r"(?:src|href)\s*=|https?://|@import|url\(", page)


def test_changed_settings_stand_out(folder: RunFolder) -> None:
    page = write_report(folder).read_text("utf-8")
    seed, clients = (page.index(f'<th scope="row">{name}</th>') for name in ("seed", "clients"))
    folded = page.index("at their defaults</summary>")
    assert page.index("<h2>Settings</h2>") < seed < folded < clients


def test_a_run_that_failed_early_has_a_page_too(tmp_path: Path) -> None:
    made = RunFolder.create(Settings.from_sources({"run-dir": str(tmp_path)}, {}), {})
    text = text_of(write_report(made).read_text("utf-8"))
    assert "This run has no summary" in text and "nothing to draw" not in text
    assert "clients: 20, clusters: 4, rounds: 0 of 30; generate" in text
    made.write_failure("RoundFailed: no usable reply")
    (made.path / CHECKPOINT).write_text("{}")
    made.write_progress(2, 30, {})
    text = text_of(write_report(made).read_text("utf-8"))
    assert "The run failed" in text and "RoundFailed: no usable reply" in text
    assert "2 of 30 rounds are done" in text and f"fedhlm run --resume {made.path}" in text


def test_text_from_settings_cannot_become_markup() -> None:
    settings = Settings.from_sources({"dataset": "<script>alert(1)</script>"}, {})
    config = {"settings": settings.to_run_config(), "started": "<b>"}
    page = render("<i>", config, [], None)
    assert "<script>alert" not in page and "<b>" not in page and "<i>" not in page


def test_templates_escape_what_is_put_in_and_want_all_of_it() -> None:
    part = (0.0, 50.0, "</title><script>", "#000")
    legend = {"colours": ["#000"], "level": None, "bands": ()}
    bar = fill("shares", bars=[("", "", [part])], names=["<b>&'\""], **legend)
    assert "&lt;/title&gt;&lt;script&gt;" in bar and "&lt;b&gt;&amp;&#39;&#34;" in bar
    with pytest.raises(UndefinedError, match="names"):
        fill("shares", bars=[], **legend)


def test_only_templates_hold_markup() -> None:
    folder = Path(charts.__file__).parent
    by_hand = [path.name for path in folder.glob("*.py") if "</" in path.read_text("utf-8")]
    assert sorted(by_hand) == ["svg.py", "templates.py"]


def test_charts_are_well_formed_and_inside_their_frame() -> None:
    chart = line_chart({"a<b": [(1, 0.5), (2, 0.7)], "empty": []}, title="a<b")
    root = ElementTree.fromstring(f"<div>{chart}</div>")
    line = root.find(".//polyline")
    assert line is not None
    points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert all(0 <= x <= 640 and 0 <= y <= 260 for x, y in points)
    # A higher value is higher up.
    assert points[1][1] < points[0][1] and points[1][0] > points[0][0]
    assert [item.text for item in root.iter("li")] == [None]


def test_bars_stack_to_the_whole() -> None:
    chart = stacked_bars(
        {"a": {1: 1, 2: 3}, "b": {1: 3, 2: 1}, "none": {1: 0, 2: 0}}, title="", shares=True
    )
    root = ElementTree.fromstring(f"<div>{chart}</div>")
    heights = [float(bar.attrib["height"]) for bar in root.iter("rect")]
    assert len(heights) == 4
    whole = heights[0] + heights[2]
    assert heights[1] + heights[3] == pytest.approx(whole, abs=0.3)
    assert heights[0] / whole == pytest.approx(0.25, abs=0.01)


def test_one_round_can_be_drawn() -> None:
    for chart in (
        line_chart({"a": [(1, 0.5)]}, title=""),
        stacked_bars({"a": {1: 2.0}}, title=""),
    ):
        assert "nan" not in ElementTree.tostring(
            ElementTree.fromstring(f"<p>{chart}</p>"), "unicode"
        )


def test_shares_of_a_bar_add_up() -> None:
    root = ElementTree.fromstring(f"<p>{share_bars({'': {'a': 1, 'b': 0, 'c': 3}}, title='')}</p>")
    widths = [float(bar.attrib["width"].rstrip("%")) for bar in root.iter("rect")]
    assert widths == [25.0, 75.0]


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9), st.integers(2, 10))
def test_ticks_cover_the_data_evenly(low: float, width: float, about: int) -> None:
    marks = ticks(low, low + width, about)
    step = marks[1] - marks[0]
    slack = step * 1e-3
    assert marks[0] <= low + slack and marks[-1] >= low + width - slack
    assert 2 <= len(marks) <= 2 * about + 3
    assert all(abs(b - a - step) <= slack for a, b in itertools.pairwise(marks))


def test_ticks_need_an_order() -> None:
    with pytest.raises(ValueError, match="finite and in order"):
        ticks(2, 1)


def test_scale_maps_ends_to_ends() -> None:
    scale = Scale(0, 10, 100, 0)
    assert (scale(0), scale(10), scale(5)) == (100, 0, 50)


@pytest.mark.parametrize(("value", "text"), [(0.53, "0.53"), (1200, "1.2k"), (2e6, "2M")])
def test_numbers_on_axes_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_bytes_have_units() -> None:
    assert [size(n) for n in (0, 52, 8000, 184_915, 2.5e6)] == [
        "0 B", "52 B", "8 kB", "184.9 kB", "2.5 MB",
    ]  # fmt: skip


def test_other_lines_do_not_look_like_a_stage() -> None:
    assert not set(PALETTE) & set(STAGE_COLOURS.values())


LOGGED: dict[str, list[Any]] = {
    "round": [3, 3, 3], "client": [1, 1, 2], "cluster": [0, 0, 0], "prompt": [7, 7, 8],
    "position": [0, 1, 0], "stage": ["local", "llm_resampled", "local"],
    "uncertainty": [0.25, 0.75, 0.5], "beta": [None, 1.0, None],
}  # fmt: skip


def test_texts_are_shown_where_the_log_has_them(folder: RunFolder) -> None:
    for texts in ([None] * 3, [" <b>", " ship", " sea"]):
        with TokenLog(folder) as log:
            before = [texts[0] and "Two <i>ships", None, None]
            log.append({**LOGGED, "text": texts, "before": before})
        page = write_report(folder).read_text("utf-8")
        assert ("<h2>Examples</h2>" in page) == (texts[0] is not None)
    assert 'title="LLM: draft replaced, uncertainty 0.75, rejection probability 1.00"' in page
    assert "item 7: </span>Two &lt;i&gt;ships<span" in page
    assert "&lt;b&gt;</span>" in page and "token-texts = true" in page
    # The text with more stages is first.
    assert page.index("client 1, item 7") < page.index("client 2, item 8")


def test_runs_stand_side_by_side(fedhlm: Any, folder: RunFolder, tmp_path: Path) -> None:
    failed = RunFolder.create(Settings.from_sources({"run-dir": str(tmp_path), "seed": 12}, {}), {})
    failed.write_failure("RoundFailed: no usable reply")
    assert fedhlm("report", str(folder.path), str(tmp_path / "no")).exit_code == 2
    answer = fedhlm("report", str(folder.path), str(failed.path), "-o", str(tmp_path / "two.html"))
    assert answer.stdout.split() == [str(tmp_path / "two.html")]
    page = (tmp_path / "two.html").read_text("utf-8")
    text = text_of(page)
    assert 'data-value="failed">failed</td>' in page  # why would make the table wide
    assert (
        f"{failed.path.name} : failed: RoundFailed" in text
        and "completed" in text
        and "87.65%" in text
    )
    # Of the settings those that differ, and nothing about where the runs lie.
    for heading, there in (("seed", True), ("clients", False), ("run-dir", False)):
        assert (f'<button type="button">{heading}</button>' in page) == there
    assert f"{folder.path.name}, round 2: 0.52" in text


SORTED_AND_FILTERED = """(() => {
  const box = document.querySelector(".sorts"), body = box.querySelector("tbody");
  const names = () => [...body.rows].filter(r => !r.hidden).map(r => r.cells[0].textContent);
  const head = box.querySelectorAll("th[scope=col]")[0];
  head.firstElementChild.click(); head.firstElementChild.click();
  const sorted = [names(), head.getAttribute("aria-sort")];
  const input = box.querySelector("input"); input.value = "10";
  input.dispatchEvent(new Event("input"));
  return [sorted, [names(), box.querySelector("[role=status]").textContent]];
})()"""


@needs_browser
def test_a_browser_sorts_filters_and_fits_a_phone(folder: RunFolder, tmp_path: Path) -> None:
    address = write_report(folder).as_uri()
    with browser(tmp_path / "profile") as page:
        for dark in (False, True):
            page.look(width=360, dark=dark)
            page.open(address)
            assert page.run("document.documentElement.scrollWidth") <= 360
        by_number, filtered = page.run(SORTED_AND_FILTERED)
        assert set(page.requests) <= {address} and page.complaints == []
    # By number, not by letter; a second click turns the order round.
    assert by_number == [["10", "1", "0"], "descending"]
    assert filtered == [["10"], "1 of 3 rows"]


CUT = """[...document.querySelectorAll('.sorts .scroll')].filter((one) =>
  one.scrollWidth > one.clientWidth || one.scrollHeight > one.clientHeight).length"""


@needs_browser
def test_a_long_wide_table_is_whole_on_paper_and_named_on_a_phone(
    folder: RunFolder, tmp_path: Path
) -> None:
    label = "initial-threshold=0.{} strategy=scaffold"
    told = folder.metrics(), summary(Settings.from_sources({}, {}))
    runs = [Run(label.format(n), *told, {"strategy": "scaffold"}) for n in range(60)]
    path = tmp_path / "page.html"
    path.write_text(render_side_by_side("Sweep", runs), "utf-8")
    with browser(tmp_path / "profile") as page:
        page.look(width=360)
        page.open(path.as_uri())
        scrolled = "const one = document.querySelector('.sorts .scroll'); one.scrollLeft = 500;"
        name = "one.querySelector('tbody th').getBoundingClientRect()"
        left, width = page.run(f"(() => {{ {scrolled} return [{name}.left, {name}.width] }})()")
        assert 0 <= left < 60 and width < 180
        page.look(width=700)
        assert page.run(CUT) > 0
        page.send("Emulation.setEmulatedMedia", media="print")
        assert page.run(CUT) == 0


@needs_browser
@needs_axe
def test_axe_finds_no_serious_fault(folder: RunFolder, tmp_path: Path) -> None:
    with TokenLog(folder) as log:
        log.append({**LOGGED, "text": [" a", " ship", " sea"], "before": ["Two", None, "The"]})
    address = write_report(folder).as_uri()
    with browser(tmp_path / "profile") as page:
        for width, dark in ((360, False), (360, True), (900, False), (900, True)):
            page.look(width=width, dark=dark)
            page.open(address)
            page.run("for (const one of document.querySelectorAll('details')) one.open = true")
            assert page.faults() == []
