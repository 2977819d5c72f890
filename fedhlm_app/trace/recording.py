"""Records a trace: every token is drafted by the small model and verified by the large one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clients.decoding.routing import Router
from clients.policy import FixedPolicy
from clients.records import Stage, TextBatch, Traffic
from clients.resolvers.chain import Asked, Escalation, Resolution
from fedhlm_app.client.inference import RoutedModel
from fedhlm_app.data.chats import check_chats
from fedhlm_app.data.dataset import items_of
from fedhlm_app.data.prompts import TEXT_TOKENS, Prompt, prompts
from fedhlm_app.hosting.llm import build_service
from fedhlm_app.hosting.pairs import check_one_tokenizer
from fedhlm_app.models.vocabulary import load_tokenizer
from fedhlm_app.settings import Settings, SettingsError
from fedhlm_app.trace.file import Trace
from fedhlm_app.transport.transports import DirectTransport
from hlm.arrays import Array, FloatArray
from hlm.measures import MEASURES
from hlm.peers.agreement import SketchMaker
from hlm.randomness import DrawKeys

__all__ = ["record"]

_PLAIN = {
    "policy": "never", "verification": "auto", "audit_rate": 0.0, "cache_mode": "off",
    "peer_mode": "off", "escalation": "token", "free_feedback": True,
}  # fmt: skip
"""Settings of the recording itself: everything is escalated, and the LLM tells what it thinks."""
_NAMES = ("item", "position", "draft", "token", "answer", "probability", "log_prob", "context")


class _Contexts:
    """A resolver that decides nothing and notes the sketch of every context it sees."""

    needs_hidden = True
    verifies = False

    def __init__(self) -> None:
        self.seen: list[NDArray[np.uint64]] = []
        self._maker: SketchMaker | None = None

    def resolve(self, escalation: Escalation) -> Resolution[None]:
        assert escalation.hidden is not None
        hidden = escalation.hidden.numpy()
        if self._maker is None:
            self._maker = SketchMaker(hidden.shape[1], 64, 0)
        self.seen.append(self._maker.sketch(hidden)[0].copy().view(np.uint64)[:, 0])
        return Resolution.none(len(escalation.rows))

    def learn(
        self, escalation: Escalation, final: Resolution[Any], asked: Asked[None] | None
    ) -> Traffic:
        return Traffic()


class _Reader:
    """Both models and the router that takes texts past them, noting all that a trace holds.

    Parameters
    ----------
    settings : Settings
        Of the recording, with `_PLAIN`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.service = build_service(settings)
        self.device = RoutedModel(settings, 0, DirectTransport(self.service))
        self.measured: dict[str, list[FloatArray]] = {
            name: [] for name, kind in MEASURES.items() if "uniforms" not in kind.takes
        }
        self.columns: dict[str, list[NDArray[Any]]] = {name: [] for name in _NAMES}
        self._contexts = _Contexts()
        self._router = Router(
            self.device.model,
            replace(self.device.config, uncertainty=self._measure),
            FixedPolicy(kept=False),
            self.device.verifier,
            [self._contexts, self.device.uplink],
            learning=False,
        )

    def _measure(self, logits: Array, draft: Array, keys: DrawKeys) -> Array:
        given = {"draft": draft, "temperature": self.settings.uncertainty_temperature}
        for name, values in self.measured.items():
            kind = MEASURES[name]
            found = kind.load()(logits, **{one: given[one] for one in kind.takes})
            values.append(found.numpy())
        return found

    def read(self, rows: NDArray[np.int64], made: list[Prompt]) -> None:
        """Route texts and add what is found to the columns.

        Parameters
        ----------
        rows : numpy.ndarray
            int64 [texts], their numbers in the dataset.
        made : list of Prompt
            Their prompts.

        Raises
        ------
        RuntimeError
            When the LLM does not answer for all tokens.
        """
        scored = self.settings.workload == "score"
        tokens, traffic = [prompt.tokens for prompt in made], Traffic()
        texts = TextBatch(tokens, rows, room=0 if scored else 1, given=scored)
        if scored:
            first = np.array([prompt.given for prompt in made], np.int64)
            records = self._router.score(texts, first, traffic)
            answers = np.concatenate([one.tokens[one.given :] for one in made])
        else:
            records = self._router.generate(texts, 1, traffic)
            answers = np.array([prompt.answer for prompt in made])
        if traffic.failures or (records.stage[records.present] == Stage.UNRESOLVED).any():
            raise RuntimeError(f"items {rows[0]} to {rows[-1]}: the LLM did not answer for all")
        at = np.nonzero(records.present)
        found = (
            rows[at[0]], records.position[at], records.draft[at], records.token[at], answers,
            records.probability[at], records.log_prob[at], self._contexts.seen[-1],
        )  # fmt: skip
        for values, added in zip(self.columns.values(), found, strict=True):
            values.append(added)

    def pair(self) -> dict[str, str]:
        """Checksums of both models."""
        return {
            "slm": checksum(self.device.model),
            "llm": checksum(getattr(self.service.engine, "model", None)),
        }


def record(settings: Settings, listen: Callable[[int, int], None] = lambda a, b: None) -> Trace:
    """Read all items of the dataset with both models, here and now.

    Parameters
    ----------
    settings : Settings
        Models, data, workload, lengths of texts, temperature of uncertainty.
    listen : callable
        Told how many items of how many are read.

    Raises
    ------
    SettingsError
        On settings under which contexts or drafts depend on routing.
    PairError
        On models of different tokenizers.
    """
    check_one_tokenizer(settings, "a trace")
    if settings.workload == "generate" or settings.decoding != "greedy":
        raise SettingsError(
            f"settings 'workload' = {settings.workload!r} and 'decoding' = {settings.decoding!r}: "
            "what follows depends on what was routed before; set workload=score or classify, and "
            "decoding=greedy"
        )
    asked, settings = settings, settings.model_copy(update=_PLAIN)
    items, tokenizer = items_of(settings), load_tokenizer(settings.slm)
    check_chats(items, settings, settings.workload)
    reader = _Reader(settings)
    scored = settings.workload == "score"
    longest = settings.prompt_tokens + settings.tokens_per_prompt if scored else TEXT_TOKENS
    # As many texts at a time as a device has in a round: sums of floats depend on a batch's shape.
    each = settings.tokens_per_prompt if scored else 1
    count = max(1, settings.tokens_per_round // each)
    for begin in range(0, len(items), count):
        listen(begin, len(items))
        rows = np.arange(begin, min(begin + count, len(items)))
        made = prompts(items, tokenizer, rows, settings.workload, settings.prompt_tokens, longest)
        reader.read(rows, made)
    listen(len(items), len(items))
    about = {
        "settings": asked.to_run_config(),
        "label-names": list(items.label_names),
        "lead": int(tokenizer.bos_token_id is not None),
        "chat": items.chat,
        "pair": reader.pair(),
    }
    joined = {name: np.concatenate(values) for name, values in reader.columns.items()}
    return Trace(
        joined["item"],
        joined["position"],
        joined["draft"],
        joined["token"],
        joined["answer"],
        {name: np.concatenate(values) for name, values in reader.measured.items()},
        joined["probability"],
        joined["log_prob"],
        joined["context"],
        items.labels(),
        about,
    )


def checksum(model: torch.nn.Module | None) -> str:
    """16 hexadecimal digits of the names, shapes and values of a model's parameters; "" of none."""
    found = hashlib.sha256()
    if model is None:
        return ""
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(value.shape)}".encode())
        found.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
