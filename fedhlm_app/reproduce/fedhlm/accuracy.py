"""Figure 10 and Table VI: accuracy of labels by round, and against centralised learning."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedhlm_app.models.vocabulary import vocabulary_size
from fedhlm_app.reproduce.fedhlm.inputs import CLIENTS, ROUNDS, TOKENS, Inputs, Run
from fedhlm_app.reproduce.pieces import Cell, Figure, Finding, Measured, Piece, Table
from hlm.wire.bits import bits_needed

ROUNDS_SHOWN = (1, 5, 10, 15, 20, 25, 30)
PAPER = {1: "83.2 / 82.46", 5: "86.5 / 89.32", 10: "88.3 / 93.73", 15: "90.1 / 95.81",
         20: "91.4 / 96.79", 25: "92.1 / 97.33", 30: "93.2 / 97.67"}  # fmt: skip
_LABELS = {"workload": "classify"}


def _label(line: dict[str, Any]) -> float:
    return 100 * float(line["accuracy"]["label"] or 0.0)


def _over(runs: list[Run]) -> list[tuple[int, float]]:
    return [
        (one[0]["round"], float(np.mean([_label(line) for line in one])))
        for one in zip(*(run["rounds"] for run in runs), strict=True)
    ]


def _all(runs: list[Run]) -> tuple[Measured, Measured]:
    """Accuracy of labels, and share of tokens at the LLM, over whole runs."""
    right = [100 * sum(r["clients"]["correct"]) / sum(r["clients"]["answered"]) for r in runs]
    sent = [100 * (1 - float(np.mean([line["trr"] for line in r["rounds"]]))) for r in runs]
    return Measured.of(right), Measured.of(sent)


def fig_10(inputs: Inputs) -> Finding:
    """Labels by round: FedHLM's threshold against all, none, and speculative decoding."""
    seeds = inputs.seeds
    kinds = {
        "FedHLM": {"learning": "balanced"},
        "LLM (and speculative decoding)": {"learning": "none", "policy": "never"},
        "SLM only": {"learning": "none", "policy": "always"},
    }
    runs = {name: [inputs.run(s, **_LABELS, **how) for s in seeds] for name, how in kinds.items()}
    paper = {"FedHLM": "93.2 at round 30", "SLM only": "below 85",
             "LLM (and speculative decoding)": "89.5 speculative"}  # fmt: skip
    rows = [(name, *_all(made), paper[name]) for name, made in runs.items()]
    words = (
        "Speculative decoding is lossless, so its labels are the LLM's and one line stands for "
        "both; the paper's plateau of 89.5 % below the LLM cannot be. Accuracy has no trend by "
        "round: the models are not trained, only a threshold."
    )
    figure = Figure(
        "lines", {name: _over(made) for name, made in runs.items()}, "round", "labels %"
    )
    return Finding(words, Table(("method", "labels right %", "sent %", "paper"), rows), [figure])


def table_6(inputs: Inputs) -> Finding:
    """One client with everybody's data and tokens, in one place."""
    one = {"clients": 1, "clusters": 1, "tokens_per_round": CLIENTS * TOKENS, "partition": "iid"}
    apart = [inputs.run(seed, **_LABELS) for seed in inputs.seeds]
    central = [inputs.run(seed, **_LABELS, **one) for seed in inputs.seeds]
    rows: list[tuple[Cell, ...]] = []
    for number in [number for number in ROUNDS_SHOWN if number <= len(apart[0]["rounds"])]:
        cells = [
            Measured.of([_label(run["rounds"][number - 1]) for run in runs])
            for runs in (apart, central)
        ]
        rows.append((f"round {number}, labels right %", *cells, PAPER[number]))
    both = (apart, central)
    ends = [[run["rounds"][-1]["threshold"]["global"] for run in runs] for runs in both]
    rows.append(("threshold at the end", *map(Measured.of, ends), "-"))
    sent = [[100 * (1 - run["rounds"][-1]["trr"]) for run in runs] for runs in both]
    rows.append(("sent to the LLM %", *map(Measured.of, sent), "-"))
    # A threshold is eight bytes either way; a token's uncertainty and beta are nine.
    learning = 16 * CLIENTS * ROUNDS, 9 * CLIENTS * ROUNDS * TOKENS
    rows.append(("bytes of learning", *learning, "-"))
    trace = inputs.trace("classify")
    texts = trace.position * bits_needed(vocabulary_size(inputs.settings().slm) or 2) / 8
    each = float(texts.mean())
    up = [sum(line["tokens"] * (1 - line["trr"]) for line in run["rounds"]) * each for run in apart]
    rows.append(("bytes of texts sent up", Measured.of(up), int(texts.sum()), "-"))
    whole = Measured.of([one + learning[0] for one in up]), int(texts.sum()) + learning[1]
    rows.append(("whole communication, bytes", *whole, "-"))
    words = (
        "Learning in one place (same models, all clients' data) comes near the same accuracy: a "
        "single number is learned, so little is lost by averaging it. The paper's rising "
        "accuracies would take models that are trained, which its text rules out. Bytes of "
        "learning are thresholds down and up, against feedback of each token sent in; bytes of "
        "texts, as packed token ids, the escalated articles each time, against all articles once. "
        "Who gives all data away has sent them for good; who keeps them pays for each doubt."
    )
    return Finding(words, Table(("", "FedHLM", "centralised", "paper"), rows))


FIG_10 = Piece("fig-10", "Fig. 10: accuracy of labels by round", fig_10)
TABLE_6 = Piece("table-6", "Table VI: against centralised learning", table_6)
