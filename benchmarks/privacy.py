"""What differential privacy costs certified thresholds. ``python -m benchmarks.privacy``.

Every prompt's risk curve under the pair is computed once (as in `benchmarks.guarantee`). A run
draws each client's prompts from the pool, encodes their summed curve, adds the noise of an epsilon
on every device (``local``) or once a round (``central``), and reads the threshold. Its risk and
the share of tokens it keeps are those of the whole pool: the setting of both theorems. Noise
multipliers are such that all rounds together cost the epsilon named.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._noise import noise_for_epsilon
from benchmarks._pair import add_pair_options, load_models, pair_settings
from benchmarks._report import write_report
from benchmarks._risk_curves import prompt_curves, risk_at
from benchmarks._teacher_forced import corpus, forced
from benchmarks.guarantee import tokens_of
from fedhlm_app.models.load import ModelPair
from hlm.risk import (
    CurveRelease,
    conformal_threshold,
    learn_then_test,
    private_conformal_threshold,
    private_learn_then_test,
    threshold_grid,
)
from hlm.risk.private import square_root_sums

Floats = NDArray[np.float64]
GRID = threshold_grid(64)
EPSILONS = (1.0, 4.0, 8.0)
CLIENTS = (20, 200, 2000, 20_000)
ALPHAS = (0.05, 0.1)
PRIVACY_DELTA, DELTA = 1e-5, 0.05
PROMPTS, ROUNDS = 3, 5
"""Of a client in a round, and calibrating rounds: those of the default settings."""


def _rules(alpha: float) -> dict[str, tuple[Callable[..., float], Callable[..., float]]]:
    """Each rule with noise (of a `NoisyCurve`) and without (of sums and their number)."""
    return {
        "certified": (
            lambda curve: private_conformal_threshold(curve, GRID, alpha),
            lambda sums, count: conformal_threshold(sums, count, GRID, alpha),
        ),
        "certified-high-probability": (
            lambda curve: private_learn_then_test(curve, GRID, alpha, DELTA),
            lambda sums, count: learn_then_test(sums, count, GRID, alpha, DELTA),
        ),
    }


def thresholds_of(
    drawn: Floats, clients: int, alpha: float, where: str, epsilon: float, rng: np.random.Generator
) -> dict[str, Floats]:
    """Thresholds float64 [runs] of each rule for summed curves ``drawn`` [runs, G]."""
    count = clients * PROMPTS * ROUNDS
    rules = _rules(alpha)
    if where == "none":
        return {
            name: np.array([exact(sums, count) for sums in drawn])
            for name, (_, exact) in rules.items()
        }
    multiplier = noise_for_epsilon(epsilon, ROUNDS, PRIVACY_DELTA)
    release = CurveRelease(len(GRID), PROMPTS, 1.0, alpha, multiplier)
    noises = ROUNDS * (clients if where == "local" else 1)
    scale = multiplier * release.sensitivity * math.sqrt(noises)
    curves = []
    for sums in drawn:
        sent = square_root_sums(len(GRID)) @ np.diff(sums, prepend=0.0)
        noisy = sent + rng.normal(0.0, scale, len(GRID))
        curves.append(release.read(np.concatenate([[count, noises], noisy])))
    return {
        name: np.array([private(curve) for curve in curves]) for name, (private, _) in rules.items()
    }


def figures_of(
    risk: Floats, kept: Floats, runs: int, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Threshold, share kept, risk and violations by case and rule, means over ``runs``.

    ``risk`` and ``kept`` are float64 [prompts, G].
    """
    rng = np.random.default_rng(seed)
    prompts = len(risk)
    truth, share = risk.mean(axis=0), kept.mean(axis=0)
    cases = [("none", math.inf)]
    cases += [(where, epsilon) for where in ("central", "local") for epsilon in EPSILONS]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for clients in CLIENTS:
        weights = np.full(prompts, 1 / prompts)
        drawn = rng.multinomial(clients * PROMPTS * ROUNDS, weights, size=runs) @ risk
        for alpha in ALPHAS:
            for where, epsilon in cases:
                name = "none" if where == "none" else f"{where}, epsilon {epsilon:g}"
                rows = thresholds_of(drawn, clients, alpha, where, epsilon, rng)
                found[f"{clients} clients, alpha {alpha}, {name}"] = {
                    rule: _outcome(chosen, truth, share, alpha) for rule, chosen in rows.items()
                }
    return found


def _outcome(chosen: Floats, truth: Floats, share: Floats, alpha: float) -> dict[str, float]:
    runs = len(chosen)
    risks = risk_at(np.tile(truth, (runs, 1)), GRID, chosen)
    trr = risk_at(np.tile(share, (runs, 1)), GRID, chosen)
    return {
        "threshold": float(np.median(chosen)),
        "trr": float(trr.mean()),
        "risk": float(risks.mean()),
        "violations": float((risks > alpha).mean()),
        "kept_nothing": float((chosen < 0).mean()),
    }


def run(pair: ModelPair, articles: int, runs: int, seed: int = 0) -> dict[str, Any]:
    """All figures on ``articles`` held-out articles (0: all of them)."""
    name, rows = corpus("validation", articles)
    data = forced(rows, pair)
    figures: dict[str, Any] = {
        "corpus": name,
        "prompts": len(rows),
        "runs": runs,
        "prompts_per_client_and_round": PROMPTS,
        "rounds": ROUNDS,
        "privacy_delta": PRIVACY_DELTA,
        "delta": DELTA,
    }
    for workload in ("score", "classify"):
        curves = prompt_curves(*tokens_of(data, workload, "indicator"), GRID)
        figures[workload] = figures_of(*curves, runs, seed)
    return figures


def main() -> None:
    """Write ``benchmarks/out/privacy.json`` and print the gist."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--articles", type=int, default=0, help="held-out articles, 0 for all")
    parser.add_argument("--runs", type=int, default=200)
    add_pair_options(parser)
    arguments = parser.parse_args()
    figures = run(load_models(pair_settings(arguments)), arguments.articles, arguments.runs)
    for workload in ("score", "classify"):
        for case, rules in figures[workload].items():
            for rule, numbers in rules.items():
                shown = ", ".join(f"{key} {value:.3f}" for key, value in numbers.items())
                print(f"{workload} | {case} | {rule}: {shown}")
    print(write_report("privacy", {"options": vars(arguments), **figures}))


if __name__ == "__main__":
    main()
