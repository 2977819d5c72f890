"""Who knows best which drafts are wrong? ``python -m benchmarks.router``.

Greedy drafts of given text; each router ranks the tokens and the most doubtful share goes to the
large model. The learned router is trained over clients on articles of the train split, by local
Adam and a rule of `strategies` on its one flat array. Features and settings were chosen on 1,000
validation articles (``--judge choice``); what is reported (``--judge report``, the default) comes
from the other 2,800, which no choice has seen.

Two losses, each with its own oracle (send the tokens of largest loss first): the indicator that
the draft is not the large model's top-1, which is the loss of greedy decoding, and eq. 3's value
on softmax values, the paper's feedback. ``closed`` is the part of the gap between random and that
oracle which a router closes at a share.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._pair import (
    add_pair_options,
    embeddings_of,
    load_models,
    pair_settings,
    start_token,
)
from benchmarks._report import write_report
from benchmarks._risk_curves import prompt_curves, risk_at
from benchmarks._teacher_forced import MOST_LOGITS, Forced, corpus, dirichlet_clients, forced
from clients.decoding.step_features import StepFeatures
from clients.learning.feedback import Feedback
from clients.learning.minibatches import minibatch_gradient
from clients.learning.router_model import RouterLearning, RouterModel
from fedhlm_app.models.load import ModelPair
from hlm.risk import conformal_threshold, threshold_grid
from hlm.uncertainty import closed_form, disagreement, entropy
from strategies.rules import build_rule

Floats = NDArray[np.float64]
SHARES = (0.25, 0.50, 0.70)
ALPHAS = (0.01, 0.02, 0.05, 0.10)
CHOICE_ARTICLES = 1000
"""Validation articles that features and settings were chosen on."""


def judged_part(data: Forced, part: str) -> Forced:
    """The rows of `data` (all validation articles) that belong to `part`, choice or report."""
    prompts = len(data.label)
    # The draw of `_teacher_forced.articles`, by which the earliest choices were made.
    drawn = np.random.default_rng(0).choice(
        prompts, min(CHOICE_ARTICLES, prompts // 3), replace=False
    )
    rows = np.isin(data.prompt, drawn) == (part == "choice")
    kept = {f.name: getattr(data, f.name) for f in fields(data) if f.name != "label"}
    return Forced(**{name: values[rows] for name, values in kept.items()}, label=data.label)


def texts_of(data: Forced, start: int = 0) -> NDArray[np.int64]:
    """Tokens each prompt's predictions saw, int64 [prompts, longest], left-aligned."""
    texts = np.zeros((int(data.prompt.max()) + 1, int(data.position.max()) + 2), np.int64)
    texts[:, 0] = start
    texts[data.prompt, data.position + 1] = data.given
    return texts


def traces_of(data: Forced) -> NDArray[np.float32]:
    """How well the small model predicted each text (`clients.decoding.trace`), [n, longest, 3]."""
    traces = np.full((*texts_of(data).shape, 3), np.nan, np.float32)
    surprise = -np.log(np.maximum(data.x_given, np.exp(np.float32(-20))))
    told = [surprise, 1 - data.x_draft, (data.draft == data.given).astype(np.float32)]
    traces[data.prompt, data.position + 1] = np.stack(told, axis=1)
    return traces


@torch.inference_mode()
def look(
    data: Forced, pair: ModelPair, columns: StepFeatures, seed: int, untrained: bool = True
) -> tuple[NDArray[np.float32], dict[str, Floats]]:
    """Features of every token, and (with ``untrained``) the scores that need no training."""
    head: Any = pair.slm.get_output_embeddings()
    table, output = torch.from_numpy(embeddings_of(pair.slm)), head.weight.float().cpu()
    generator = np.random.default_rng(seed)
    texts, traces = texts_of(data, start_token(pair.tokenizer)), traces_of(data)
    at_once = min(2048, MOST_LOGITS // len(output))
    features, scores = [], {"closed-form": [], "disagreement-20": [], "entropy": []}  # type: ignore[var-annotated]
    for start in range(0, len(data.prompt), at_once):
        rows = slice(start, start + at_once)
        hidden = torch.from_numpy(data.hidden[rows])
        draft, position = torch.from_numpy(data.draft[rows]), torch.from_numpy(data.position[rows])
        logits = hidden @ output.T
        text, length = texts[data.prompt[rows]], data.position[rows] + 1
        past = traces[data.prompt[rows]]
        features.append(columns(logits, hidden, draft, position, table, text, length, past))
        if not untrained:
            continue
        scores["closed-form"].append(closed_form(logits, draft).numpy())
        uniforms = torch.from_numpy(generator.random((len(logits), 20)))
        scores["disagreement-20"].append(disagreement(logits, draft, 1.5, uniforms).numpy())
        scores["entropy"].append(entropy(logits).numpy())
    found = {name: np.concatenate(values) for name, values in scores.items() if values}
    return np.concatenate(features), found


def train(
    learning: RouterLearning,
    feedback: Feedback,
    owner: NDArray[np.int64],
    arguments: argparse.Namespace,
) -> Floats:
    """Rounds of one local pass of Adam on every client; the means go through a server rule.

    ``owner`` int64 [n] is the client of each token. Clients keep Adam's moments to themselves.
    The result is the mean of the last ``arguments.average`` rounds' policies.
    """
    policy = learning.model.initial(arguments.seed)
    parts = [feedback.select(owner == client) for client in np.unique(owner)]
    weights = np.array([len(part) for part in parts], dtype=np.float64)
    at = [torch.tensor(policy) for _ in parts]
    optimizers = [torch.optim.Adam([one]) for one in at]
    rule = build_rule("fedavgm", momentum=arguments.momentum)
    last: list[Floats] = []
    for round_index in range(arguments.rounds):
        rate = arguments.learning_rate * (1 - 0.9 * round_index / arguments.rounds)
        values = []
        for client, part in enumerate(parts):
            generator = np.random.default_rng([arguments.seed, round_index, client])
            gradient = minibatch_gradient(learning, part, arguments.batch, generator)
            at[client].copy_(torch.from_numpy(policy))
            optimizers[client].param_groups[0]["lr"] = rate
            for _ in range(max(len(part) // arguments.batch, 1)):
                at[client].grad = torch.from_numpy(gradient(at[client].numpy()))
                optimizers[client].step()
            values.append(at[client].numpy().copy())
        policy = rule.combine(np.stack(values), weights, policy)
        last = [*last, policy][-arguments.average :]
    return np.asarray(np.mean(last, axis=0), dtype=np.float64)


def kept_loss(
    score: Floats, beta: Floats, prompt: NDArray[np.int64], weights: Floats, ties: Floats
) -> Floats:
    """Mean kept loss at each share of ``SHARES`` and, last, its mean over all shares.

    ``weights`` float64 [B, P] counts each prompt in each of B resamples; result [B, 4].
    """
    order = np.lexsort((ties, -score))
    ordered_beta, ordered_prompt = beta[order], prompt[order]
    result = np.empty((len(weights), len(SHARES) + 1))
    for index, counts in enumerate(weights):
        weight = counts[ordered_prompt]
        sent = np.cumsum(weight)
        loss = np.cumsum(weight * ordered_beta)
        left = (loss[-1] - loss) / sent[-1]
        at = np.minimum(np.searchsorted(sent, np.array(SHARES) * sent[-1]), len(sent) - 1)
        result[index, :-1] = left[at]
        result[index, -1] = (left * weight).sum() / sent[-1]
    return result


def compare(
    scores: dict[str, Floats],
    losses: dict[str, Floats],
    prompt: NDArray[np.int64],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Agreement, kept loss and gap closed of each router, with 95 % prompt-bootstrap intervals.

    ``gain`` is the agreement beyond that of the closed form on the same resamples.
    """
    generator = np.random.default_rng(seed)
    names, row = np.unique(prompt, return_inverse=True)
    prompts = len(names)
    # Row 0 is the sample itself.
    weights = np.ones((resamples + 1, prompts))
    weights[1:] = generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    ties = generator.random(len(prompt))
    figures: dict[str, Any] = {}
    for loss, beta in losses.items():
        kept = {
            name: kept_loss(score, beta, row, weights, ties)
            for name, score in {**scores, "random": ties, "oracle": beta}.items()
        }
        gap = kept["random"] - kept["oracle"]
        figures[loss] = {
            name: {
                **{
                    f"share {share}": {
                        "kept_loss": _interval(values[:, column]),
                        "agreement": _interval(1 - values[:, column]),
                        "closed": _interval(((kept["random"] - values) / gap)[:, column]),
                        "gain": _interval((kept["closed-form"] - values)[:, column]),
                    }
                    for column, share in enumerate(SHARES)
                },
                "area_closed": _interval(((kept["random"] - values) / gap)[:, -1]),
            }
            for name, values in kept.items()
        }
    return figures


def certified_share(
    score: Floats, beta: Floats, prompt: NDArray[np.int64], seed: int
) -> dict[str, Any]:
    """Share kept and risk under conformal control at each alpha; 50 random halves of prompts."""
    grid = threshold_grid(512)
    risk, kept = prompt_curves(score, beta, prompt, grid)
    generator = np.random.default_rng(seed)
    figures = {}
    for alpha in ALPHAS:
        rows = []
        for _ in range(50):
            half = generator.random(len(risk)) < 0.5
            threshold = conformal_threshold(risk[half].sum(0), half.sum(), grid, alpha)
            chosen = np.full((~half).sum(), threshold)
            rows.append(
                [
                    risk_at(risk[~half], grid, chosen).mean(),
                    risk_at(kept[~half], grid, chosen).mean(),
                ]
            )
        means = np.mean(rows, axis=0).tolist()
        figures[f"alpha {alpha}"] = dict(zip(("risk", "trr"), means, strict=True))
    return figures


def _interval(values: Floats) -> dict[str, float]:
    """Value on the sample and the 2.5 and 97.5 % quantiles over resamples."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures; see the command's options."""
    train_name, train_rows = corpus("train", arguments.train)
    test_name, test_rows = corpus("validation", arguments.validation)
    pair = load_models(pair_settings(arguments))
    data, held_out = forced(train_rows, pair), judged_part(forced(test_rows, pair), arguments.judge)
    width = data.hidden.shape[1]
    table_width = embeddings_of(pair.slm).shape[1]
    columns = StepFeatures(width, arguments.projection, table_width, history=True, trace=True)
    features, _ = look(data, pair, columns, arguments.seed, untrained=False)
    test_features, scores = look(held_out, pair, columns, arguments.seed)
    generator = np.random.default_rng(arguments.seed)
    owner = dirichlet_clients(data.label, arguments.clients, arguments.alpha, generator)
    feedback = Feedback.create(
        np.zeros(len(data.prompt)),
        data.wrong,
        ratio_beta=data.ratio_beta,
        prompt=data.prompt,
        features=features,
    )
    seconds = {}
    for name, target, hidden in (
        ("learned", "ratio", arguments.hidden),
        ("learned-indicator", "loss", arguments.hidden),
        ("learned-logistic", "ratio", 0),
    ):
        model = RouterModel(columns.count, hidden)
        started = time.perf_counter()
        learning = RouterLearning(model, target, decay=1e-5)  # type: ignore[arg-type]
        policy = train(learning, feedback, owner[data.prompt], arguments)
        seconds[name] = time.perf_counter() - started
        scores[name] = model.score(policy, test_features)
    losses = {"indicator": held_out.wrong, "eq. 3": held_out.ratio_beta}
    figures = {
        "train": {"corpus": train_name, "articles": len(train_rows), "tokens": len(data.prompt)},
        "test": {
            "corpus": f"{test_name}, {arguments.judge} part",
            "articles": len(np.unique(held_out.prompt)),
            "tokens": len(held_out.prompt),
        },
        "settings": vars(arguments),
        "features": columns.count,
        "parameters": RouterModel(columns.count, arguments.hidden).size,
        "training_seconds": seconds,
        "same_top_1": float(1 - held_out.wrong.mean()),
        "mean_eq_3": float(held_out.ratio_beta.mean()),
        "routers": compare(scores, losses, held_out.prompt, arguments.resamples, arguments.seed),
    }
    figures["certified"] = {
        f"{name}, {loss}": certified_share(
            scores[name], losses[loss], held_out.prompt, arguments.seed
        )
        for name, loss in (
            ("closed-form", "indicator"),
            ("learned-indicator", "indicator"),
            ("closed-form", "eq. 3"),
            ("learned", "eq. 3"),
        )
    }
    return figures


def main() -> None:
    """Write ``benchmarks/out/router.json`` and print one table a loss."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=8000, help="train articles")
    parser.add_argument(
        "--validation", type=int, default=0, help="validation articles, 0 for all, or at least 60"
    )
    parser.add_argument("--judge", choices=("choice", "report"), default="report")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--alpha", type=float, default=1.0, help="Dirichlet alpha of the clients")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128, help="tokens of a local step")
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--momentum", type=float, default=0.6, help="of the server, FedAvgM")
    parser.add_argument("--average", type=int, default=3, help="last rounds averaged at the end")
    parser.add_argument("--hidden", type=int, default=64, help="tanh units")
    parser.add_argument("--projection", type=int, default=128)
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    add_pair_options(parser)
    arguments = parser.parse_args()
    # A third is for choices, and what is left is halved at random, of which no half may be empty.
    if 0 < arguments.validation < 60:
        parser.error(f"--validation {arguments.validation}: 0 for all, or at least 60")
    figures = run(arguments)
    for loss, routers in figures["routers"].items():
        print(
            f"{loss}: kept loss | agreement | gap closed, at share " + " / ".join(map(str, SHARES))
        )
        for name, values in routers.items():
            cells = [values[f"share {share}"] for share in SHARES]
            kept = " ".join(f"{cell['kept_loss']['value']:.3f}" for cell in cells)
            closed = " ".join(
                "{value:.3f} [{low:.3f}, {high:.3f}]".format(**cell["closed"]) for cell in cells
            )
            agree = " ".join(
                "{value:.3f} [{low:.3f}, {high:.3f}]".format(**cell["agreement"]) for cell in cells
            )
            overall = "{value:.3f} [{low:.3f}, {high:.3f}]".format(**values["area_closed"])
            print(f"  {name:18} {kept} | {agree} | {closed} | {overall}")
    for name, values in figures["certified"].items():
        cells = ", ".join(f"{a} {v['risk']:.3f}/{v['trr']:.3f}" for a, v in values.items())
        print(f"certified risk/TRR, {name}: {cells}")
    print(write_report("router", figures))


if __name__ == "__main__":
    main()
