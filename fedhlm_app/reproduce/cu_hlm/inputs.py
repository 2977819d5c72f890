"""What CU-HLM's pieces are made from: real tokens with both distributions, and runs of methods."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedhlm_app.client.inference import sampling_of
from fedhlm_app.compare import METHODS, Comparison, Plan
from fedhlm_app.data.dataset import items_of
from fedhlm_app.data.prompts import prompts
from fedhlm_app.models.load import load_llm, load_slm
from fedhlm_app.models.vocabulary import load_tokenizer
from fedhlm_app.reproduce.cu_hlm.channel import RayleighChannel
from fedhlm_app.reproduce.pieces import Options, Tell
from fedhlm_app.results.runs import write_atomically
from fedhlm_app.settings import Settings
from hlm.arrays import FloatArray
from hlm.line import LineSums, UncertaintyLine
from hlm.sampling import distribution, draw
from hlm.uncertainty import temperature_sweep

SAMPLES = 20
"""Temperatures of U-HLM's sweep."""
ROUND_TRIP_S = 0.005
SNRS_DB = (-10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0)
BANDWIDTHS_HZ = (1e5, 2e5, 5e5, 1e6, 2e6, 5e6, 1e7)
BANDWIDTH_HZ, SNR_DB = 1e6, 10.0
"""Of the other sweep; the abstract names neither, so they are ours."""
COMPARED = ("llm", "slm", "hlm", "u-hlm", "cu-hlm", "coupled", "fedhlm-token", "fedhlm")
PRONE, SHARE = " (risk-prone)", " (25 % sent)"
"""Behind a method with a line of its own: what its threshold is, if not the risk-averse one."""
_MOST_NUMBERS = 8_000_000  # of distributions kept for k*: 64 MB


def channels() -> list[RayleighChannel]:
    """All channels of both sweeps, each once."""
    found = [RayleighChannel(BANDWIDTH_HZ, snr) for snr in SNRS_DB]
    found += [RayleighChannel(width, SNR_DB) for width in BANDWIDTHS_HZ]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Tokens:
    """Places of real texts at which the small model drafts and the large one would verify.

    Attributes
    ----------
    uncertainty : float64 [n]
        U-HLM's temperature sweep.
    beta : float64 [n]
        Chance that the draft is rejected, eq. 3.
    chance : float64 [n]
        x_d, the draft's own probability.
    distance : float64 [n]
        TV(x, y): the mean of beta over drafts.
    sorted_probs : float64 [m, vocab]
        x of the first m places, descending.
    """

    uncertainty: FloatArray
    beta: FloatArray
    chance: FloatArray
    distance: FloatArray
    sorted_probs: FloatArray

    @cached_property
    def line(self) -> UncertaintyLine:
        """U-HLM's line, fitted here."""
        return LineSums.of(self.uncertainty, self.beta).fit()


Result = Mapping[str, Any]
"""Figures of a method (`fedhlm_app.compare.tally.Tally.figures`)."""


@dataclass(frozen=True)
class Inputs:
    """Everything, once for each seed.

    Attributes
    ----------
    tokens : sequence of Tokens
    runs : sequence of mapping of method to Result
        Methods of `COMPARED`; those with a line also with `PRONE` and `SHARE` behind the name.
    """

    tokens: Sequence[Tokens]
    runs: Sequence[Mapping[str, Result]]


def sizes(options: Options) -> tuple[int, int, int]:
    """Texts whose tokens are recorded, texts that methods make, and tokens of each of these."""
    return (24, 4, 8) if options.quick else (150, 12, 16)


def settings_of(options: Options, seed: int) -> Settings:
    """Settings of a seed; refuses what `options` says wrong."""
    given = {**options.settings, "dataset": options.data, "decoding": "sampled", "seed": seed}
    return Settings.from_sources(given, {})


def setup(options: Options) -> str:
    """What all figures have in common."""
    recorded, made, length = sizes(options)
    return (
        f"drafts sampled; tokens of {recorded} texts; {made} texts of {length} tokens made by "
        f"every method; {options.seeds} seeds, {options.counted}; a Rayleigh channel at its "
        f"ergodic rate, {1e3 * ROUND_TRIP_S:g} ms there and back, processor time of this machine"
    )


def opened(options: Options, folder: Path, tell: Tell) -> Inputs:
    """Record tokens, and run the methods; a seed's runs that are in the folder are read."""
    tokens, runs = [], []
    for seed in range(options.seeds):
        settings = settings_of(options, seed)
        tell(f"seed {seed + 1} of {options.seeds}: tokens")
        tokens.append(recorded(settings, sizes(options)[0]))
        path = folder / f"runs-{seed}.json"
        if not path.is_file():
            tell(f"seed {seed + 1} of {options.seeds}: methods")
            made = compared(settings, *sizes(options)[1:])
            write_atomically(path, json.dumps(made, allow_nan=False) + "\n")
        runs.append(json.loads(path.read_text("utf-8")))
    return Inputs(tokens, runs)


@torch.inference_mode()
def recorded(settings: Settings, count: int) -> Tokens:
    """Read `count` texts with both models, each place in its true context."""
    slm, llm, items = load_slm(settings.slm), load_llm(settings.llm), items_of(settings)
    rng = np.random.default_rng(settings.seed)
    rows = rng.permutation(len(items))[:count]
    sampling, kept = sampling_of(settings), 0
    parts: dict[str, list[FloatArray]] = {name: [] for name in Tokens.__annotations__}
    for prompt in prompts(items, load_tokenizer(settings.slm), rows, "score"):
        ids = torch.from_numpy(prompt.tokens)[None]
        logits = slm(input_ids=ids).logits[0, :-1]
        x = distribution(logits, sampling)
        y = distribution(llm(input_ids=ids).logits[0, :-1], sampling)
        draft = draw(x, torch.from_numpy(rng.random(len(x))))
        x_draft, y_draft = (p.gather(1, draft[:, None])[:, 0].numpy() for p in (x, y))
        sweep = torch.from_numpy(rng.random((len(x), SAMPLES)))
        parts["uncertainty"].append(temperature_sweep(logits, draft, sweep).numpy())
        parts["beta"].append(np.clip(1 - y_draft / x_draft, 0, 1))
        parts["chance"].append(np.clip(x_draft, 0, 1))
        parts["distance"].append(0.5 * (x - y).abs().sum(dim=1).numpy())
        room = max(0, _MOST_NUMBERS // x.shape[1] - kept)
        parts["sorted_probs"].append(np.sort(x[:room].numpy(), axis=1)[:, ::-1])
        kept += len(parts["sorted_probs"][-1])
    return Tokens(**{name: np.concatenate(values) for name, values in parts.items()})


def compared(settings: Settings, texts: int, length: int) -> dict[str, Result]:
    """Figures by method, of the same texts over all channels."""
    links = [channel.link(ROUND_TRIP_S) for channel in channels()]

    def plan(names: Sequence[str], threshold: str = "") -> Plan:
        return Plan(
            [METHODS[name] for name in names],
            prompts=texts,
            calibration_prompts=8 + 2 * texts,
            tokens=length,
            risk_prone=threshold == PRONE,
            equal_share=threshold == SHARE,
            links=links,
            clock=time.process_time,
        )

    first = Comparison.of(settings, plan(COMPARED))
    found: dict[str, Result] = {one["method"]: one for one in first.run()}
    for threshold in (PRONE, SHARE):
        again = Comparison.of(settings, plan(("u-hlm", "cu-hlm"), threshold))
        for one in again.run(calibration=first.calibration):
            found[one["method"] + threshold] = one
    return found
