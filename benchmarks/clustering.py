"""Time of clustering up to 1,000 clients, and whether it finds groups in real text.

``python -m benchmarks.clustering`` writes ``benchmarks/out/clustering.json``. Speed is measured
on made-up profiles of the default size; quality on AG News (or the built-in corpus without it),
read by the small model, dealt to clients whose group prefers one of four topics. No text is
written, so the LLM is not loaded.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import AgglomerativeClustering

from benchmarks._noise import noise_for_epsilon
from benchmarks._pair import (
    add_pair_options,
    embeddings_of,
    load_small,
    pair_settings,
    start_token,
)
from benchmarks._report import write_report
from benchmarks._teacher_forced import LONGEST_TEXT, MOST_LOGITS, corpus
from clients.decoding.slm import read_texts
from clients.learning.profile import Profile, ProfileSettings
from clients.learning.profile_making import make_profile, token_sketch
from fedhlm_app.models.vocabulary import load_tokenizer
from fedhlm_app.settings import Settings
from hlm.uncertainty import entropy
from strategies.cluster_map import shuffled
from strategies.clustering.methods import cluster_clients
from strategies.clustering.reports import adjusted_rand_index, purity

GROUPS = 4
REPEATS = 5
ARTICLES = 6000
PLAIN = "classifier, average linkage on accuracy"
Texts = list[NDArray[np.int64]]
Entropies = list[NDArray[np.float64]]


def made_up_profiles(clients: int, seed: int = 0) -> tuple[list[Profile], NDArray[np.int64]]:
    """Profiles of the default size around four centres, and the true groups."""
    settings = ProfileSettings()
    generator = np.random.default_rng(seed)
    centres = 0.12 * generator.normal(size=(GROUPS, settings.dims))
    truth = np.arange(clients, dtype=np.int64) % GROUPS
    profiles = []
    for group in truth:
        vectors = centres[group] + 0.1 * generator.normal(size=(settings.rows, settings.dims))
        entropies = generator.uniform(0.2, 0.6, size=(settings.rows, 1))
        histogram = np.histogram(entropies, settings.bins, (0, 1))[0] / settings.rows
        rows = np.hstack([vectors, entropies])
        square = (vectors**2).mean(axis=0)
        profiles.append(Profile(vectors.mean(axis=0), square, histogram, rows, settings.rows))
    return profiles, truth


def speed() -> list[dict[str, Any]]:
    """Seconds of one clustering, best and worst of three, by method and number of clients."""
    figures = []
    for clients in (100, 300, 1000):
        profiles, truth = made_up_profiles(clients)
        for method in ("classifier", "profile"):
            seconds = []
            for _ in range(3):
                start = time.perf_counter()
                result = cluster_clients(profiles, GROUPS, method)  # type: ignore[arg-type]
                seconds.append(time.perf_counter() - start)
            figures.append({
                "clients": clients,
                "method": method,
                "seconds": {"best": min(seconds), "worst": max(seconds)},
                "adjusted_rand_index": adjusted_rand_index(result.assignment, truth),
            })  # fmt: skip
            print(figures[-1], flush=True)
    return figures


def read_articles(
    settings: Settings, count: int
) -> tuple[str, Texts, Entropies, NDArray[np.int64], NDArray[np.floating]]:
    """Corpus name, token ids, entropies of the small model, labels and its embeddings."""
    # The model is so small that threads cost more than they give, the more on a busy machine.
    torch.set_num_threads(1)
    name, rows = corpus("train", count)
    slm = load_small(settings)
    tokenizer: Any = load_tokenizer(settings.slm)
    encoded = tokenizer([text for _, text in rows], add_special_tokens=False)["input_ids"]
    start = start_token(tokenizer)
    texts = [np.array([start, *ids[: LONGEST_TEXT - 1]], np.int64) for ids in encoded]
    entropies: Entropies = []
    at_once = max(1, min(64, MOST_LOGITS // (LONGEST_TEXT * len(tokenizer))))
    for begin in range(0, len(texts), at_once):
        steps = read_texts(slm, texts[begin : begin + at_once])
        entropies += [entropy(step.logits).numpy(force=True) for step in steps]
    labels = np.array([label for label, _ in rows], np.int64)
    return name, texts, entropies, labels, embeddings_of(slm)


def deal(
    labels: NDArray[np.int64], clients: int, prompts: int, share: float, seed: int
) -> list[NDArray[np.int64]]:
    """Articles of each client: `share` of them of its group's topic, the rest of any topic."""
    generator = np.random.default_rng(seed)
    decks = [list(generator.permutation(np.flatnonzero(labels == c))) for c in range(GROUPS)]
    hands = []
    for client in range(clients):
        hand = []
        for _ in range(prompts):
            own = generator.random() < share
            topic = client % GROUPS if own else int(generator.integers(GROUPS))
            if not decks[topic]:
                topic = max(range(GROUPS), key=lambda c: len(decks[c]))
            hand.append(decks[topic].pop())
        hands.append(np.array(hand, np.int64))
    return hands


def plain_agglomeration(accuracy: NDArray[np.float64]) -> NDArray[np.int64]:
    """Average linkage on how far each pair's accuracy is above chance: what one tries first."""
    distance = np.clip(2 * accuracy - 1, 0, 1)
    np.fill_diagonal(distance, 0)
    joined = AgglomerativeClustering(GROUPS, metric="precomputed", linkage="average")
    return np.asarray(joined.fit_predict(distance), np.int64)


def quality(
    articles: tuple[str, Texts, Entropies, NDArray[np.int64], NDArray[np.floating]],
    case: dict[str, Any],
) -> dict[str, Any]:
    """Mean adjusted Rand index and purity by method over REPEATS ways of dealing."""
    _, texts, entropies, labels, embeddings = articles
    settings = ProfileSettings(rows=case.get("rows", 32))
    if "epsilon" in case:
        settings = replace(
            settings, noise_multiplier=noise_for_epsilon(case["epsilon"], 1, settings.delta)
        )
    sketch = token_sketch(embeddings, settings)
    truth = np.arange(case["clients"]) % GROUPS
    methods = ("classifier", "profile", "random") if settings.rows else ("profile", "random")
    scores: dict[str, list[tuple[float, float]]] = {}
    for seed in range(REPEATS):
        generator = np.random.default_rng([seed, 1])
        hands = deal(labels, case["clients"], case["prompts"], case["share"], seed)
        cut = case["tokens"]
        profiles = [
            make_profile(
                [texts[row][:cut] for row in hand],
                [entropies[row][: cut - 1] for row in hand],
                sketch, settings, generator,
            )
            for hand in hands
        ]  # fmt: skip
        counts = np.stack([np.bincount(labels[hand], minlength=GROUPS) for hand in hands])
        for method in methods:
            if method == "random":
                found = {method: np.array(shuffled(case["clients"], GROUPS, seed))}
            else:
                result = cluster_clients(profiles, GROUPS, method, seed)  # type: ignore[arg-type]
                found = {method: result.assignment}
                if result.test is not None:
                    found[PLAIN] = plain_agglomeration(result.test.accuracy)
            for name, labelled in found.items():
                pair = (adjusted_rand_index(labelled, truth), purity(labelled, counts))
                scores.setdefault(name, []).append(pair)
    means = {
        method: dict(
            zip(("adjusted_rand_index", "purity"), np.mean(pairs, axis=0).tolist(), strict=True)
        )
        for method, pairs in scores.items()
    }
    best = case["share"] + (1 - case["share"]) / GROUPS
    return {**case, "purity_of_true_groups": best, "methods": means}


def cases(articles: int) -> list[dict[str, Any]]:
    """What to deal, as far as there are articles enough."""
    base: dict[str, Any] = {"clients": 20, "prompts": 32, "tokens": LONGEST_TEXT, "share": 1.0}
    changes: list[dict[str, Any]] = [
        {},
        {"share": 0.8},
        {"share": 0.6},
        {"tokens": 16},
        {"tokens": 16, "share": 0.8},
        {"prompts": 8},
        {"clients": 100, "share": 0.6},
        {"clients": 100, "tokens": 16, "share": 0.8},
        {"clients": 100, "prompts": 16, "tokens": 16, "share": 0.8},
        *({"prompts": 250, "rows": 0, "epsilon": epsilon} for epsilon in (16.0, 8.0, 4.0, 2.0)),
        {"prompts": 250, "rows": 32, "epsilon": 8.0},
    ]
    found = [{**base, **change} for change in changes]
    return [case for case in found if case["clients"] * case["prompts"] <= articles]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--articles", type=int, default=ARTICLES, help="that are read, at most")
    add_pair_options(parser, idle="llm")
    options = parser.parse_args()
    if not cases(options.articles):
        parser.error(f"--articles {options.articles}: at least 160, which 20 clients are dealt")
    settings = pair_settings(options)
    timings = speed()
    articles = read_articles(settings, options.articles)
    found = []
    for case in cases(len(articles[1])):
        found.append(quality(articles, case))
        print(found[-1], flush=True)
    profile = ProfileSettings()
    figures = {
        "options": vars(options),
        "speed": timings,
        "corpus": articles[0],
        "repeats": REPEATS,
        "quality": found,
        "bytes_per_profile": {
            "default": 4 * profile.length,
            "without_rows": 4 * replace(profile, rows=0).length,
        },
    }
    print(write_report("clustering", figures))


if __name__ == "__main__":
    main()
