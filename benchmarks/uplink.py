"""Bytes and speed of every method at an equal share of escalated tokens, on AG News text.

    python -m benchmarks.uplink [--prompts 24] [--tokens 32] [--share 0.25] [--vocab 4096 32000]

The built-in pair (or `--slm --llm`) decodes continuations of headlines, sampled, one prompt at a
time, so that each escalated token is a message of its own. Every byte of every message counts:
headers, the ids of prompt and kept tokens that the server has not seen, claims, replies. Compute is
the processor time of one thread of this machine; links come from `hlm.channels`. AG News is looked
for in ``FEDHLM_SHARED`` or ``../shared``; without it the built-in corpus is used, and the report
says so.

A vocabulary of 32,000 is the same pair with tokens that never occur behind the 4,096: ids take 15
bits, whole distributions have 32,000 entries, and what the truncated upload leaves out is spread
over all of them. The texts do not change.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks._pair import add_pair_options, load_models, pair_settings
from benchmarks._report import write_report
from benchmarks._teacher_forced import shared_folder
from fedhlm_app.compare import DEFAULT_METHODS, Comparison, Plan, chosen_methods
from fedhlm_app.compare.calibration import Calibration
from fedhlm_app.data.dataset import items_of
from fedhlm_app.models.load import ModelPair
from hlm.channels import LINKS

PUBLISHED_COUNT = 30
"""k of CU-HLM's own table."""

PUBLISHED_SPEED_UP = 206
"""CU-HLM's throughput over HLM's, at most, in its own paper."""

AIMS = {"uplink": 6.0, "payload": 30.0}
"""How many times less than CU-HLM coupled draws should send up."""


NEVER = -1e4
"""A logit whose probability is 0; finite, since engines compare logits when they try a model."""


class PaddedHead(torch.nn.Module):
    """An output layer with further tokens that never occur."""

    def __init__(self, head: torch.nn.Module, vocab: int) -> None:
        super().__init__()
        self.head = head
        self.vocab = vocab

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of every token, `NEVER` for those that never occur."""
        logits = self.head(hidden)
        missing = self.vocab - logits.shape[-1]
        return torch.nn.functional.pad(logits, (0, missing), value=NEVER)


def padded(model: PreTrainedModel, vocab: int) -> PreTrainedModel:
    """A copy of the model with `vocab` tokens; the model itself where it has so many."""
    if model.config.vocab_size == vocab:
        return model
    if model.config.vocab_size > vocab:
        raise ValueError(f"vocab = {vocab}: the model has {model.config.vocab_size} tokens already")
    larger = copy.deepcopy(model)
    larger.lm_head = PaddedHead(larger.lm_head, vocab)
    known = larger.get_input_embeddings().weight.detach()
    more = known.new_zeros(vocab - len(known), known.shape[1])
    larger.set_input_embeddings(torch.nn.Embedding.from_pretrained(torch.cat([known, more])))
    larger.config.vocab_size = vocab
    return larger


def dataset() -> tuple[str, str]:
    """Setting `dataset`, and what to call it."""
    folder = shared_folder()
    if folder is None:
        return "builtin", "built-in corpus (AG News not found)"
    return str(folder / "data" / "ag_news" / "validation.csv.gz"), "AG News validation"


def measure(options: argparse.Namespace, pair: ModelPair, vocab: int) -> list[dict[str, Any]]:
    """Results of all methods, and of CU-HLM with its published k, at one vocabulary."""
    results: list[dict[str, Any]] = []
    slm, llm = padded(pair.slm, vocab), padded(pair.llm, vocab)
    variants: tuple[tuple[str, int, list[str]], ...] = (
        ("", 0, list(DEFAULT_METHODS)),
        (f" k={PUBLISHED_COUNT}", PUBLISHED_COUNT, ["cu-hlm"]),
    )
    calibration: Calibration | None = None
    for suffix, count, names in variants:
        settings = pair_settings(
            options,
            decoding="sampled",
            dataset=dataset()[0],
            seed=options.seed,
            truncation_k=count,
        )
        plan = Plan(
            chosen_methods(names),
            prompts=options.prompts,
            calibration_prompts=options.calibration_prompts,
            tokens=options.tokens,
            share=options.share,
            equal_share=True,
            accuracy=False,
            clock=time.process_time,
        )
        comparison = Comparison(settings, plan, slm, llm, pair.tokenizer, items_of(settings))
        found = comparison.run(
            lambda what, done, total: _tell(vocab, what, done, total), calibration
        )
        calibration = comparison.calibration
        for result in found:
            results.append({**result, "method": result["method"] + suffix})
    return results


def _tell(vocab: int, what: str, done: int, total: int) -> None:
    if done % 8 == 0:
        print(f"V = {vocab:,}: {what} {done}/{total}", flush=True)


def verdict(results: list[dict[str, Any]]) -> dict[str, Any]:
    """How coupled draws and FedHLM stand against CU-HLM and HLM."""
    by_name = {result["method"]: result for result in results}
    coupled, fedhlm, hlm = by_name["coupled"], by_name["fedhlm-token"], by_name["hlm"]
    found: dict[str, Any] = {}
    for name in ("cu-hlm", f"cu-hlm k={PUBLISHED_COUNT}"):
        other = by_name[name]
        uplink = other["bytes_per_token"]["uplink"] / coupled["bytes_per_token"]["uplink"]
        payload = other["payload_bytes_per_sent_token"] / coupled["payload_bytes_per_sent_token"]
        speed = {
            link.name: fedhlm["tokens_per_second"][link.name]
            / other["tokens_per_second"][link.name]
            for link in LINKS
        }
        found[name] = {
            "uplink_ratio": uplink,
            "payload_ratio": payload,
            "fedhlm_speed_ratio": speed,
            "uplink_aim_met": uplink >= AIMS["uplink"],
            "payload_aim_met": payload >= AIMS["payload"],
            "speed_aim_met": all(ratio >= 1 for ratio in speed.values()),
        }
    found["hlm"] = {
        "uplink_ratio": hlm["bytes_per_token"]["uplink"] / coupled["bytes_per_token"]["uplink"],
        "fedhlm_speed_ratio": {
            link.name: fedhlm["tokens_per_second"][link.name] / hlm["tokens_per_second"][link.name]
            for link in LINKS
        },
        "published_cu_hlm_speed_ratio": PUBLISHED_SPEED_UP,
    }
    return found


def markdown(results: list[dict[str, Any]]) -> str:
    """The results as a table for docs."""
    links = [link.name for link in LINKS]
    head = ["method", "exact", "sent", "up B/token", "claim B/sent", "down B/token"]
    lines = ["| " + " | ".join([*head, *(f"{link}, tokens/s" for link in links)]) + " |"]
    lines.append("|---" * 2 + "|---:" * (len(head) - 2 + len(links)) + "|")
    for result in results:
        size = result["bytes_per_token"]
        cells = [
            result["method"],
            "yes" if result["exact"] else "no",
            f"{result['sent_to_llm'] / result['tokens']:.1%}",
            f"{size['uplink']:,.1f}",
            f"{result['payload_bytes_per_sent_token']:,.1f}",
            f"{size['downlink']:,.1f}",
            *(f"{result['tokens_per_second'][link]:.1f}" for link in links),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--calibration-prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--vocab", type=int, nargs="+", help="the pair's own by default, and 32000 where it is less"
    )
    add_pair_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pair = load_models(pair_settings(options))
    own = max(model.config.get_text_config().vocab_size for model in (pair.slm, pair.llm))
    figures: dict[str, Any] = {"options": vars(options), "text": dataset()[1], "vocab": {}}
    for vocab in options.vocab or sorted({own, max(own, 32_000)}):
        results = measure(options, pair, vocab)
        figures["vocab"][str(vocab)] = {"results": results, "against": verdict(results)}
        print(f"\nV = {vocab:,}, {figures['text']}\n\n{markdown(results)}\n")
        for name, findings in figures["vocab"][str(vocab)]["against"].items():
            print(name, findings)
    print(write_report("uplink", figures))


if __name__ == "__main__":
    main()
