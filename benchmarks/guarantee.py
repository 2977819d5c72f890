"""Do certified thresholds keep their word on real text? ``python -m benchmarks.guarantee``.

Every prompt's risk curve is computed once; each split draws calibration prompts, takes a
threshold from their sums, and measures it on the others. Two readings of Learn-then-Test's
promise: against the risk of the prompts left over (itself noisy, so violations are over-counted),
and against the risk of the whole pool with calibration prompts drawn independently from it, which
is exactly the theorem's setting.

``--participation RUNS`` asks, with drawn losses and no models, what is certified in vain and what
is paid where not every client answers.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._pair import add_pair_options, load_models, pair_settings
from benchmarks._participation import participation
from benchmarks._report import write_report
from benchmarks._risk_curves import by_group, personal_thresholds, prompt_curves, risk_at
from benchmarks._teacher_forced import Forced, corpus, dirichlet_clients, forced
from fedhlm_app.models.load import ModelPair
from hlm.risk import conformal_threshold, learn_then_test, threshold_grid

Floats = NDArray[np.float64]
ALPHAS = (0.01, 0.02, 0.05, 0.10)
DELTA = 0.1
GRID = threshold_grid(512)


def tokens_of(data: Forced, workload: str, loss: str) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """(u, beta, prompt) of greedy drafts: text tokens for ``score``, the label for ``classify``.

    ``loss`` is ``indicator``, the loss of greedy decoding, or ``eq. 3``, the paper's feedback.
    """
    rows = data.is_label if workload == "classify" else ~data.is_label
    beta = data.wrong if loss == "indicator" else data.ratio_beta
    u = np.clip(1 - data.x_draft[rows].astype(np.float64), 0, 1)
    return u, beta[rows], data.prompt[rows]


def splits_of(
    curves: tuple[Floats, Floats], count: int, calibration: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Conformal risk control and Learn-then-Test over random splits of prompts."""
    risk, kept = curves
    prompts = len(risk)
    order = np.argsort(rng.random((count, prompts)), axis=1)
    chosen = np.zeros((count, prompts))
    np.put_along_axis(chosen, order[:, :calibration], 1.0, axis=1)
    sums, rest = chosen @ risk, (1 - chosen) @ risk / (prompts - calibration)
    kept_rest = (1 - chosen) @ kept / (prompts - calibration)
    # Independent draws from the pool: how often each prompt is drawn is multinomial.
    drawn = rng.multinomial(calibration, np.full(prompts, 1 / prompts), size=count) @ risk
    truth = risk.mean(axis=0)[None].repeat(count, axis=0)
    figures = {}
    for alpha in ALPHAS:
        conformal = _conformal(sums, calibration, alpha)
        careful = _careful(sums, calibration, alpha)
        independent = _careful(drawn, calibration, alpha)
        careful_risk = risk_at(rest, GRID, careful)
        figures[f"alpha {alpha}"] = {
            "certified": _risk(risk_at(rest, GRID, conformal), alpha)
            | {"trr": float(risk_at(kept_rest, GRID, conformal).mean())},
            "certified-high-probability": _risk(careful_risk, alpha)
            | {
                "trr": float(risk_at(kept_rest, GRID, careful).mean()),
                "violations_left_over": float((careful_risk > alpha).mean()),
                "violations_pool": float((risk_at(truth, GRID, independent) > alpha).mean()),
            },
        }
    return figures


def audited_splits(
    tokens: tuple[Floats, Floats, NDArray[np.int64]],
    risk: Floats,
    rate: float,
    count: int,
    calibration: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """The same when every token was kept and only audits at ``rate`` show beta."""
    u, beta, prompt = tokens
    _, row = np.unique(prompt, return_inverse=True)
    share = beta / np.bincount(row)[row] / rate
    cell = np.searchsorted(GRID, u, side="left")
    wrong = np.flatnonzero(share)
    row, cell, share = row[wrong], cell[wrong], share[wrong]
    prompts = len(risk)
    sums, chosen = np.zeros((count, len(GRID))), np.zeros((count, prompts))
    for split in range(count):
        chosen[split, rng.permutation(prompts)[:calibration]] = 1
        audited = (rng.random(len(cell)) < rate) * chosen[split, row]
        sums[split] = np.cumsum(np.bincount(cell, share * audited, minlength=len(GRID) + 1)[:-1])
    rest = (1 - chosen) @ risk / (prompts - calibration)
    figures = {}
    for alpha in ALPHAS:
        bound = 1 / rate
        conformal = _conformal(sums, calibration, alpha, bound)
        careful = _careful(sums, calibration, alpha, bound)
        careful_risk = risk_at(rest, GRID, careful)
        figures[f"alpha {alpha}"] = {
            "certified": _risk(risk_at(rest, GRID, conformal), alpha),
            "certified-high-probability": _risk(careful_risk, alpha)
            | {"violations_left_over": float((careful_risk > alpha).mean())},
        }
    return figures


def client_coverage(
    risk: Floats,
    kept: Floats,
    labels: NDArray[np.int64],
    clients: int,
    count: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Risk per client of each kind of threshold, on clients whose labels are Dirichlet(.1).

    Clusters are the clients' commonest labels. Each split calibrates on a random half.
    """
    owner = dirichlet_clients(labels, clients, 0.1, rng)
    table = np.zeros((clients, labels.max() + 1))
    np.add.at(table, (owner, labels), 1)
    clusters = table.argmax(axis=1)
    figures: dict[str, Any] = {}
    for alpha in ALPHAS:
        rows: dict[str, list[list[float]]] = {}
        for _ in range(count):
            half = rng.random(len(risk)) < 0.5
            sums = by_group(risk[half], owner[half], clients)
            prompts = np.bincount(owner[half], minlength=clients).astype(np.float64)
            test = by_group(risk[~half], owner[~half], clients)
            test_prompts = np.bincount(owner[~half], minlength=clients)
            kept_test = by_group(kept[~half], owner[~half], clients)
            for tier in ("global", "cluster", "local", "shrunk"):
                thresholds = personal_thresholds(sums, prompts, GRID, alpha, tier, clusters)
                lost = risk_at(test, GRID, thresholds)
                present = test_prompts > 0
                each = lost[present] / test_prompts[present]
                in_cluster = np.bincount(clusters, lost) / np.bincount(clusters, test_prompts)
                trr = risk_at(kept_test, GRID, thresholds).sum() / test_prompts.sum()
                rows.setdefault(tier, []).append(
                    [
                        float(lost.sum() / test_prompts.sum()),
                        float((each > alpha).mean()),
                        float(each.max()),
                        float(np.nanmax(in_cluster)),
                        float(trr),
                    ]
                )
        names = ("risk", "clients_above_alpha", "worst_client", "worst_cluster", "trr")
        figures[f"alpha {alpha}"] = {
            tier: dict(zip(names, np.mean(values, axis=0).tolist(), strict=True))
            for tier, values in rows.items()
        }
    return figures


def halves(risk: Floats, count: int, rng: np.random.Generator) -> dict[str, Any]:
    """The global threshold from a random half of all clients' prompts, risk on the other half.

    How prompts are dealt to clients does not enter: curves add up.
    """
    chosen = (rng.random((count, len(risk))) < 0.5).astype(np.float64)
    sums, prompts = chosen @ risk, chosen.sum(axis=1)
    rest = (1 - chosen) @ risk / (len(risk) - prompts)[:, None]
    figures = {}
    for alpha in ALPHAS:
        found = [conformal_threshold(*one, GRID, alpha) for one in zip(sums, prompts, strict=True)]
        figures[f"alpha {alpha}"] = {
            "certified": _risk(risk_at(rest, GRID, np.array(found)), alpha)
        }
    return figures


def _conformal(sums: Floats, prompts: int, alpha: float, bound: float = 1.0) -> Floats:
    return np.array([conformal_threshold(curve, prompts, GRID, alpha, bound) for curve in sums])


def _careful(sums: Floats, prompts: int, alpha: float, bound: float = 1.0) -> Floats:
    return np.array([learn_then_test(curve, prompts, GRID, alpha, DELTA, bound) for curve in sums])


def _risk(values: Floats, alpha: float) -> dict[str, float]:
    """Mean risk over splits, its standard error, and by how much it exceeds alpha, if it does."""
    return {
        "mean_risk": float(values.mean()),
        "standard_error": float(values.std() / np.sqrt(len(values))),
        "excess": float(max(values.mean() - alpha, 0.0)),
    }


def run(
    pair: ModelPair, articles: int, splits: int, clients: int = 200, seed: int = 0
) -> dict[str, Any]:
    """All figures on ``articles`` held-out articles (0: all of them)."""
    name, rows = corpus("validation", articles)
    data = forced(rows, pair)
    calibration = int(len(rows) * 0.25)
    figures: dict[str, Any] = {
        "corpus": name,
        "prompts": len(rows),
        "calibration_prompts": calibration,
        "splits": splits,
        "delta": DELTA,
    }
    for workload in ("score", "classify"):
        for loss in ("indicator", "eq. 3"):
            rng = np.random.default_rng(seed)
            tokens = tokens_of(data, workload, loss)
            curves = prompt_curves(*tokens, GRID)
            entry = {"splits": splits_of(curves, splits, calibration, rng)}
            if loss == "indicator":
                entry["audits only, rate .25"] = audited_splits(
                    tokens, curves[0], 0.25, splits, calibration, rng
                )
                entry[f"{clients} clients, Dirichlet .1"] = client_coverage(
                    *curves, data.label, clients, max(splits // 20, 1), rng
                )
                entry["random halves"] = halves(curves[0], splits, rng)
            figures[f"{workload}, {loss}"] = entry
    return figures


def main() -> None:
    """Write ``benchmarks/out/guarantee.json`` and print the gist."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--articles", type=int, default=0, help="held-out articles, 0 for all")
    parser.add_argument("--splits", type=int, default=1000)
    parser.add_argument(
        "--participation", type=int, default=0, metavar="RUNS", help="this instead, without models"
    )
    add_pair_options(parser)
    arguments = parser.parse_args()
    if arguments.participation:
        found = participation(arguments.participation)
        for kind in ("wrong certificates", "price"):
            for name, numbers in found[kind].items():
                print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in numbers.items()))
        print(write_report("guarantee-participation", found))
        return
    figures = run(load_models(pair_settings(arguments)), arguments.articles, arguments.splits)
    for name, entry in figures.items():
        if not isinstance(entry, dict):
            print(f"{name}: {entry}")
            continue
        for kind in entry:
            for alpha, values in entry[kind].items():
                print(f"{name} | {kind} | {alpha}")
                for rule, numbers in values.items():
                    print(f"   {rule}: " + ", ".join(f"{k} {v:.4f}" for k, v in numbers.items()))
    print(write_report("guarantee", {"options": vars(arguments), **figures}))


if __name__ == "__main__":
    main()
