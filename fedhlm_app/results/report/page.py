"""The pages: the report of a run, and runs side by side."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhlm_app.results.report import curves, sections
from fedhlm_app.results.report.charts import stage_legend
from fedhlm_app.results.report.templates import fill
from fedhlm_app.results.report.verdict import verdict
from fedhlm_app.results.runs import CHECKPOINT, REPORT, RunFolder, write_atomically
from fedhlm_app.results.stages import STAGE_WORDS

Lines = Sequence[Mapping[str, Any]]


def write_report(folder: RunFolder) -> Path:
    """Write `report.html` of a run, finished or not, and return its path.

    Parameters
    ----------
    folder : RunFolder
        A folder with at least `config.json`.
    """
    path = folder.path / REPORT
    metrics = folder.metrics()
    # PyArrow comes along, which nobody needs who writes no report.
    from fedhlm_app.results.token_log import read_log

    log = read_log(folder, round=metrics[-1]["round"]) if metrics else None
    page = render(
        folder.path.name,
        folder.config(),
        metrics,
        folder.summary(),
        error=folder.failure(),
        resume=resume_words(folder),
        log=None if log is None else log.to_pylist(),
    )
    write_atomically(path, page)
    return path


def resume_words(folder: RunFolder) -> tuple[str, str]:
    """How to go on with a run that has not come to its end: words, and the command if any."""
    done = (folder.progress() or {"round": 0})["round"]
    rounds = folder.config()["settings"]["rounds"]
    if folder.summary() is not None and done >= rounds:
        return (
            "All its rounds are done; a new run, with what stood in the way mended, starts",
            "fedhlm run",
        )
    if not (folder.path / CHECKPOINT).exists():
        return "No checkpoint was saved, so it has to be started anew", "fedhlm run"
    return (
        f"{done} of {rounds} rounds are done; go on from there",
        f"fedhlm run --resume {shlex.quote(str(folder.path))}",
    )


def render(
    name: str,
    config: Mapping[str, Any],
    metrics: Lines,
    summary: Mapping[str, Any] | None,
    *,
    error: str = "",
    resume: tuple[str, str] = ("", ""),
    log: Lines | None = None,
) -> str:
    """Return the page of a run as HTML that loads nothing from elsewhere.

    Parameters
    ----------
    name : str
        The run folder's name, the page's title.
    config : Mapping[str, Any]
        `config.json`.
    metrics : Lines
        The lines of `metrics.jsonl`; a figure that a line lacks is left out of its chart.
    summary : Mapping[str, Any] | None
        `summary.json`, None for a run that is under way or has failed.
    error : str
        Why it failed; empty when it has not.
    resume : (str, str)
        `resume_words`, for one that has not come to its end.
    log : Lines or None
        The token log's rows of the last round; None for a run without one.
    """
    settings = config["settings"]
    shown = curves.thinned(metrics)
    what = (
        f"clients: {settings['clients']}, clusters: {settings['clusters']}, rounds: "
        f"{len(metrics)} of {settings['rounds']}; {settings['workload']} with "
        f"{settings['decoding']} decoding, {settings['policy']} policy, "
        f"{settings['learning']} learning; started {config['started']}"
    )
    if len(shown) < len(metrics):
        what += f"; charts show {len(shown)} of the rounds"
    headings, clients = sections.clients(metrics, summary)
    more = len({c for line in metrics for c in line.get("by_client", {})}) - len(clients)
    clusters = curves.by_cluster(metrics)
    examples = sections.examples(log or [])
    changed, others = sections.settings_rows(settings)
    return fill(
        "page",
        name=name,
        what=what,
        error=error,
        resume=resume,
        finished=summary is not None,
        verdict="" if summary is None else verdict(summary),
        cards=[] if summary is None else sections.cards(summary),
        decided=""
        if summary is None
        else curves.decided({"": summary["resolution"]}, "All rounds"),
        charts=curves.charts_of(shown) if metrics else [],
        by_cluster=curves.decided(clusters, "Who decided") if len(clusters) > 1 else "",
        clusters=sections.clusters(summary),
        clients=clients,
        client_headings=headings,
        clients_note="all rounds"
        + ("; held-out: kept and wrong in the last evaluation" * (("held-out", "wide") in headings))
        + (f"; {more:,} more are left out" if more > 0 else ""),
        examples=examples,
        examples_legend=_stages_of(log or []),
        logged="" if log is None or examples else _LOGGED,
        changed=changed,
        others=others,
        facts={**config.get("machine", {}), **config.get("versions", {})},
    )


_LOGGED = (
    "The log holds each token's stage, uncertainty and beta, and no text; `fedhlm tokens` shows "
    "it. A run with token-texts = true has examples here."
)


def _stages_of(log: Lines) -> str:
    found = {row["stage"] for row in log}
    return stage_legend([stage for stage in STAGE_WORDS if stage in found])
