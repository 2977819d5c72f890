"""A trace: what both models say of every token of a dataset, whatever the routing.

It holds for given texts (workloads ``score`` and ``classify``) and greedy drafts: there neither
contexts nor drafts depend on what was decided before. No text is in it, but token ids are: it is as
private as the dataset.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fedhlm_app.data.items import Items
from fedhlm_app.data.workload import scored_places
from fedhlm_app.settings import Settings, SettingsError
from hlm.arrays import BoolArray, FloatArray, IntArray

FIXED = (
    "slm", "llm", "dtype", "llm-dtype", "dataset", "dataset-split", "text-columns", "label-column",
    "workload", "decoding", "uncertainty-temperature",
)  # fmt: skip
"""Settings that a trace is made with: another value needs another trace."""
_KEY = b"fedhlm-trace"
_VERSION = 1


@dataclass(frozen=True)
class Trace:
    """Columns over all n tokens, item by item, in order of position.

    Attributes
    ----------
    item, position : int64 [n]
        The dataset's item, and the token's place in its text.
    draft, token, answer : int64 [n]
        What the small model drafts, what the LLM decides (its top-1), what is right (-1: unknown).
    uncertainty : dict of str to float64 [n]
        By measure, those that draw nothing.
    probability : float64 [n]
        The small model's probability of its draft.
    log_prob : float64 [n]
        The LLM's log-probability of it, as one byte tells it.
    context : uint64 [n]
        Sketch of the small model's last hidden state (`hlm.peers.agreement.SketchMaker`).
    labels : int64 [items]
        Topic of each item.
    about : mapping
        ``settings`` of the recording, names of labels, ``lead`` (1 with a first token that nobody
        foretells), ``chat`` (of chats only the answers are in here), and ``pair``, checksums of
        both models.
    """

    item: IntArray
    position: IntArray
    draft: IntArray
    token: IntArray
    answer: IntArray
    uncertainty: Mapping[str, FloatArray]
    probability: FloatArray
    log_prob: FloatArray
    context: NDArray[np.uint64]
    labels: IntArray
    about: Mapping[str, Any]

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.item)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings it was recorded with, by kebab-case key."""
        return dict(self.about["settings"])

    @cached_property
    def agrees(self) -> BoolArray:
        """Whether the draft is the LLM's own choice, bool [n]."""
        return np.asarray(self.draft == self.token)

    @cached_property
    def starts(self) -> IntArray:
        """Row of each item's first token, int64 [items + 1]."""
        counts = np.bincount(self.item, minlength=len(self.labels))
        return np.concatenate([[0], np.cumsum(counts)])

    @cached_property
    def items(self) -> Items:
        """The dataset without its texts: enough to deal it to clients."""
        names = tuple(self.about["label-names"])
        return Items(self.settings["dataset"], pa.table({"label": self.labels}), names)

    def places(
        self, items: IntArray, prompt_tokens: int, tokens_each: IntArray | int
    ) -> tuple[IntArray, IntArray]:
        """Rows from which each item's routed tokens run, and how many there are, int64 [m] each.

        Parameters
        ----------
        items : numpy.ndarray
            int64 [m].
        prompt_tokens : int
            Context before the first routed token (`score`).
        tokens_each : int or numpy.ndarray
            Most routed tokens of each.
        """
        begin = self.starts[items]
        recorded = self.starts[items + 1] - begin
        if self.settings["workload"] == "classify":
            return begin, recorded
        if self.about.get("chat"):
            return begin, np.minimum(recorded, tokens_each)
        # The first token of a text is foretold by nobody, so it is not in here.
        longest = prompt_tokens + tokens_each + self.about["lead"]
        lengths = np.minimum(recorded + 1, longest)
        first, end = scored_places(lengths, prompt_tokens, tokens_each)
        return begin + first - 1, end - first

    def refuse(self, settings: Settings) -> None:
        """Raise SettingsError, naming the setting, where this trace cannot stand in for a run."""
        wanted, made = settings.to_run_config(), self.settings
        for key in FIXED:
            if wanted[key] != made[key]:
                raise SettingsError(
                    f"setting {key!r} = {wanted[key]!r}: the trace has {made[key]!r}; record "
                    "another with fedhlm trace"
                )
        if settings.uncertainty not in self.uncertainty:
            raise SettingsError(
                f"setting 'uncertainty' = {settings.uncertainty!r}: draws anew in every round; "
                f"the trace has {', '.join(self.uncertainty)}"
            )
        for key in ("prompt-tokens", "tokens-per-prompt") if self.about.get("chat") else ():
            cut = wanted[key] != made[key] if key == "prompt-tokens" else wanted[key] > made[key]
            if cut:
                raise SettingsError(
                    f"setting {key!r} = {wanted[key]}: the trace has chats of {made[key]}; record "
                    "another with fedhlm trace"
                )
        room = made["prompt-tokens"] + made["tokens-per-prompt"]
        longest = settings.prompt_tokens + settings.tokens_per_prompt
        if settings.workload == "score" and longest > room:
            raise SettingsError(
                f"settings 'prompt-tokens' + 'tokens-per-prompt' = {longest}: the trace has texts "
                f"of {room} tokens"
            )

    def save(self, path: Path) -> None:
        """Write the file: it is there when it is whole."""
        columns = {
            "item": pa.array(self.item.astype(np.int32)),
            "label": pa.array(self.labels[self.item].astype(np.int16)),
            "position": pa.array(self.position.astype(np.int32)),
            **{name: pa.array(getattr(self, name).astype(np.int32)) for name in _TOKENS},
            **{f"u:{name}": pa.array(values) for name, values in self.uncertainty.items()},
            "probability": pa.array(self.probability),
            "log_prob": pa.array(self.log_prob.astype(np.float32)),
            "context": pa.array(self.context),
        }
        told = {**self.about, "version": _VERSION, "labels": self.labels.tolist()}
        table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(told).encode()})
        partial = path.with_name(f".{path.name}.partial")
        pq.write_table(table, partial, compression="zstd")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Read a file that `save` wrote; ValueError where it is none."""
        try:
            table = pq.read_table(path)
        except FileNotFoundError:
            raise ValueError(f"{path}: there is no such file; fedhlm trace makes one") from None
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path}: is no trace: {error}") from None
        told = (table.schema.metadata or {}).get(_KEY)
        if told is None:
            raise ValueError(f"{path}: is no trace; make one with fedhlm trace --out {path}")
        about = json.loads(told)
        if about.pop("version") != _VERSION:
            raise ValueError(f"{path}: a trace of another version; make it again with fedhlm trace")
        labels = np.array(about.pop("labels"), np.int64)
        column = {name: table[name].to_numpy() for name in table.column_names}
        tokens = {name: column[name].astype(np.int64) for name in ("item", "position", *_TOKENS)}
        return cls(
            **tokens,
            uncertainty={n.removeprefix("u:"): v for n, v in column.items() if n.startswith("u:")},
            probability=column["probability"],
            log_prob=column["log_prob"].astype(np.float64),
            context=column["context"],
            labels=labels,
            about=about,
        )


_TOKENS = ("draft", "token", "answer")
