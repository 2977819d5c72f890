"""(draft, beta) of every token of given text under a model pair, computed once and cached.

In the ``score`` and ``classify`` workloads the context is the given text and does not depend on
the routing, so one pass of both models gives what any router could be asked about.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._pair import digest_of, start_token
from fedhlm_app.data.text import join_text
from fedhlm_app.models.load import ModelPair
from fedhlm_app.models.vocabulary import label_tokens, topic_tokens

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "benchmarks" / "out"
LONGEST_TEXT = 92
MOST_LOGITS = 1 << 26
"""Of a model in one pass; 256 MiB in float32."""


@dataclass(frozen=True)
class Forced:
    """Rows = predicted tokens; the last row of each prompt is the label, asked for before.

    ``prompt`` int64, ``position`` int64, ``given`` int64 (the text's own token), ``draft`` int64
    (SLM top-1), ``top`` int64 (LLM top-1), ``x_draft``, ``y_draft``, ``x_given`` float32
    (temperature 1), ``hidden`` float32 [rows, dim] (SLM's last, normalised), ``is_label`` bool,
    ``label`` int64 [prompts] (class 0-3 of each prompt).
    """

    prompt: NDArray[np.int64]
    position: NDArray[np.int64]
    given: NDArray[np.int64]
    draft: NDArray[np.int64]
    top: NDArray[np.int64]
    x_draft: NDArray[np.float32]
    y_draft: NDArray[np.float32]
    x_given: NDArray[np.float32]
    hidden: NDArray[np.float32]
    is_label: NDArray[np.bool_]
    label: NDArray[np.int64]

    @property
    def wrong(self) -> NDArray[np.float64]:
        """Beta of greedy decoding: 1 where the draft is not the LLM's top-1."""
        return (self.draft != self.top).astype(np.float64)

    @property
    def ratio_beta(self) -> NDArray[np.float64]:
        """FedHLM eq. 3 on softmax values: max(1 - y_d / x_d, 0)."""
        ratio = self.y_draft.astype(np.float64) / self.x_draft.astype(np.float64)
        return np.maximum(1 - ratio, 0.0)


def shared_folder() -> Path | None:
    """Folder with ``data/ag_news`` (``FEDHLM_SHARED``, or ``shared`` beside the checkout)."""
    folder = Path(os.environ.get("FEDHLM_SHARED", ROOT.parent / "shared"))
    return folder if (folder / "data" / "ag_news" / "validation.csv.gz").exists() else None


def articles(split: str, count: int, seed: int = 0) -> list[tuple[int, str]]:
    """``count`` (class 0-3, text) of AG News' ``split``, drawn without replacement; 0 = all."""
    folder = shared_folder()
    if folder is None:
        raise FileNotFoundError("AG News not found: set FEDHLM_SHARED to its folder")
    with gzip.open(folder / "data" / "ag_news" / f"{split}.csv.gz", "rt", encoding="utf-8") as file:
        rows = [(int(row[0]) - 1, join_text(row[1:3])) for row in csv.reader(file)]
    if count and count < len(rows):
        chosen = np.random.default_rng(seed).choice(len(rows), count, replace=False)
        rows = [rows[index] for index in sorted(chosen)]
    return rows


def builtin_articles() -> list[tuple[int, str]]:
    """(class, text) of the built-in corpus, in an order that mixes its topics."""
    topics = ("world", "sports", "business", "scitech")
    rows = []
    for number, topic in enumerate(topics):
        file = ROOT / "fedhlm_assets" / "corpus" / f"{topic}.jsonl"
        for line in file.read_text(encoding="utf-8").splitlines():
            item = json.loads(line)
            rows.append((number, join_text([item["title"], item["text"]])))
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[index] for index in order]


def corpus(split: str, count: int) -> tuple[str, list[tuple[int, str]]]:
    """Name and rows of AG News, or of the built-in corpus (even rows train, odd rows held out)."""
    if shared_folder() is not None:
        return f"ag_news {split}", articles(split, count)
    rows = builtin_articles()[(0 if split == "train" else 1) :: 2]
    return f"builtin, {'even' if split == 'train' else 'odd'} rows", rows[: count or None]


def dirichlet_clients(
    labels: NDArray[np.int64], clients: int, alpha: float, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Owner int64 [n] of each item: label c is shared out with proportions ~ Dirichlet(alpha).

    Clients differ in size as well as in labels, and some may own nothing.
    """
    owner = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        shares = generator.dirichlet(np.full(clients, alpha))
        owner[rows] = generator.choice(clients, size=len(rows), p=shares)
    return owner


@torch.inference_mode()
def forced(rows: list[tuple[int, str]], pair: ModelPair, batch: int = 32) -> Forced:
    """One pass of both models over ``rows``; cached by content under ``benchmarks/out``."""
    tokenizer: Any = pair.tokenizer
    path = CACHE / f"forced-{digest_of(pair[:2], json.dumps(rows).encode())}.npz"
    if path.exists():
        with np.load(path) as stored:
            return Forced(**{name: stored[name] for name in stored.files})
    encoded = tokenizer([text for _, text in rows], add_special_tokens=False)["input_ids"]
    start, asking = start_token(tokenizer), topic_tokens(tokenizer)
    answers = list(label_tokens(tokenizer).values())
    sequences = [
        [start, *ids[:LONGEST_TEXT], *asking, answers[label]]
        for ids, (label, _) in zip(encoded, rows, strict=True)
    ]
    batch = max(1, min(batch, MOST_LOGITS // (max(map(len, sequences)) * len(tokenizer))))
    # Batches of like length waste little padding; rows are put back in order at the end.
    order = np.argsort([len(ids) for ids in sequences], kind="stable")
    parts: dict[str, list[np.ndarray[Any, Any]]] = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        columns = _forced_batch([sequences[index] for index in chosen], chosen, pair)
        for name, values in columns.items():
            parts.setdefault(name, []).append(values)
    arrays = {name: np.concatenate(values) for name, values in parts.items()}
    in_order = np.lexsort((arrays["position"], arrays["prompt"]))
    arrays = {name: values[in_order] for name, values in arrays.items()}
    arrays["is_label"] = np.append(arrays["prompt"][1:] != arrays["prompt"][:-1], True)
    arrays["label"] = np.array([label for label, _ in rows], dtype=np.int64)
    CACHE.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return Forced(**arrays)


def _forced_batch(
    sequences: list[list[int]], prompts: NDArray[np.int64], pair: ModelPair
) -> dict[str, np.ndarray[Any, Any]]:
    longest = max(map(len, sequences))
    ids = torch.zeros((len(sequences), longest), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    # Right padding under a causal mask cannot reach the positions that are read.
    read = torch.arange(longest - 1)[None] < (lengths - 1)[:, None]
    slm, llm = (
        model(input_ids=ids.to(model.device), output_hidden_states=model is pair.slm)
        for model in pair[:2]
    )
    hidden = slm.hidden_states[-1][:, :-1].cpu()[read].float()
    x_log, y_log = (
        torch.log_softmax(found.logits[:, :-1].cpu()[read].float(), dim=-1) for found in (slm, llm)
    )
    given = ids[:, 1:][read]
    draft = x_log.argmax(-1)
    position = torch.arange(longest - 1)[None].expand(len(sequences), -1)[read]
    prompt = torch.from_numpy(prompts)[:, None].expand(-1, longest - 1)[read]
    return {
        "prompt": prompt.numpy(),
        "position": position.numpy(),
        "given": given.numpy(),
        "draft": draft.numpy(),
        "top": y_log.argmax(-1).numpy(),
        "x_draft": x_log.gather(1, draft[:, None])[:, 0].exp().numpy(),
        "y_draft": y_log.gather(1, draft[:, None])[:, 0].exp().numpy(),
        "x_given": x_log.gather(1, given[:, None])[:, 0].exp().numpy(),
        "hidden": hidden.numpy(),
    }
