"""A device that continues prompts, for people and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from clients.decoding.ways import best_ways
from clients.policies import POLICIES
from clients.records import Stage, TextBatch, TokenRecords
from fedhlm_app.client.feedback_folder import ServedPolicy
from fedhlm_app.client.inference import RoutedModel
from fedhlm_app.client.routed import Routed
from fedhlm_app.models.text_stream import TextStream
from fedhlm_app.models.vocabulary import load_tokenizer
from fedhlm_app.settings import Settings, SettingsError
from hlm.arrays import IntArray
from hlm.transport import Transport
from servers.engine.engine import context_limit

SESSIONS = 1 << 32
"""Session numbers that the wire has."""


class BadPrompt(ValueError):
    """A prompt that cannot be answered; the message names field, value and what is allowed."""


@dataclass(frozen=True)
class Token:
    """A new token of a text.

    Attributes
    ----------
    text : str
        What it adds to the text; empty where it ends inside a character.
    stage : Stage
        Who decided it.
    uncertainty : float
        Of the device's draft for it, in [0, 1]: what a threshold is compared with.
    """

    text: str
    stage: Stage
    uncertainty: float


@dataclass(frozen=True)
class Continuation:
    """What follows a prompt.

    Attributes
    ----------
    tokens : list of Token
        In order; special tokens add no text.
    policy : ServedPolicy
        By which they were routed.
    threshold : float or None
        What uncertainties were compared with; None for a policy without a threshold.
    ended : bool
        The text came to its end, before as many tokens as were allowed.
    routed : Routed
        Their records and traffic.
    """

    tokens: list[Token]
    policy: ServedPolicy
    threshold: float | None
    ended: bool
    routed: Routed

    @property
    def text(self) -> str:
        """All tokens' text."""
        return "".join(token.text for token in self.tokens)

    @property
    def stages(self) -> dict[str, int]:
        """Tokens by the stage that decided them, all stages named."""
        counts = Counter(token.stage for token in self.tokens)
        return {stage.key: counts[stage] for stage in Stage}

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        traffic = self.routed.traffic
        return {
            "text": self.text,
            "tokens": [{**vars(token), "stage": token.stage.key} for token in self.tokens],
            "stages": self.stages,
            "bytes": {"uplink": traffic.uplink, "downlink": traffic.downlink},
            "threshold": self.threshold,
            "round": self.policy.server_round,
            "finish": "end" if self.ended else "length",
        }


class PromptedModel(RoutedModel):
    """Routed inference of texts that begin with a prompt, one at a time.

    Parameters
    ----------
    settings : Settings
        Of the run whose router this is.
    client : int
        The device's number; it keys random draws.
    transport : Transport
        Reaches the LLM.

    Raises
    ------
    SettingsError
        On settings that need more than an LLM.
    """

    def __init__(self, settings: Settings, client: int, transport: Transport) -> None:
        if settings.peer_mode != "off":
            raise SettingsError(
                f"setting 'peer-mode' = {settings.peer_mode!r}: a device outside of a run reaches "
                "no edge server; set peer-mode=off"
            )
        super().__init__(settings, client, transport, _no_edge)
        if self.edge is not None:
            self.edge.join(0, 1, {})
        self.tokenizer = load_tokenizer(settings.slm)
        self.context = min(settings.llm_context, context_limit(self.model))
        best_ways(self.model, self.context)

    def read_prompt(self, prompt: str, max_tokens: int, *, chat: bool = False) -> IntArray:
        """Tokens of a prompt, int64 [length], its start token among them.

        Parameters
        ----------
        prompt : str
            Text to continue, or with `chat` what a user says to the model.
        max_tokens : int
            Most tokens of the answer, >= 1.
        chat : bool
            Put the prompt into the tokenizer's chat template.

        Raises
        ------
        BadPrompt
            When there is no text in it, no room for the answer, or no chat template.
        """
        if chat and not self.tokenizer.chat_template:
            raise BadPrompt(
                f"chat: the tokenizer of slm {self.settings.slm!r} has no chat template; give a "
                "model that was made for chats, or text to continue"
            )
        text = prompt
        if chat:
            turns = [{"role": "user", "content": prompt}]
            text = str(
                self.tokenizer.apply_chat_template(
                    turns, add_generation_prompt=True, tokenize=False
                )
            )
        found = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not prompt.strip() or not found:
            raise BadPrompt(f"prompt = {prompt!r}: must be text of at least one token")
        # A chat template has its own start.
        start = None if chat else self.tokenizer.bos_token_id
        tokens = np.array([*([] if start is None else [start]), *found], np.int64)
        if len(tokens) + max_tokens > self.context:
            raise BadPrompt(
                f"prompt = {len(tokens)} tokens and max_tokens = {max_tokens}: "
                f"must be at most {self.context} together"
            )
        return tokens

    def threshold(self, policy: ServedPolicy) -> float | None:
        """What uncertainties are compared with; None for a policy without a threshold."""
        learned = POLICIES[self.settings.policy].learns
        return float(policy.arrays["threshold"][0]) if learned else None

    def continued(
        self,
        prompt: IntArray,
        max_tokens: int,
        session: int,
        policy: ServedPolicy,
        on_token: Callable[[Token], None] = lambda token: None,
    ) -> Continuation:
        """Continue a prompt by up to `max_tokens` tokens (>= 1).

        Parameters
        ----------
        prompt : numpy.ndarray
            int64 [length], see `read_prompt`.
        max_tokens : int
            As `read_prompt` was told.
        session : int
            Number of the text; of two texts with one number draws and caches would be the same.
        policy : ServedPolicy
            Keeps or escalates, and says when texts are taken back from the LLM.
        on_token : callable
            Called with each token once it is decided.

        Raises
        ------
        WireError
            When the LLM server finds a request of this device invalid.
        """
        tokens: list[Token] = []
        stream = TextStream(self.tokenizer, prompt.tolist())

        def decided(records: TokenRecords, rows: IntArray, steps: IntArray) -> None:
            for place in zip(rows, steps, strict=True):
                token = int(records.token[place])
                last = len(tokens) + 1 == max_tokens or token in self.config.end_tokens
                text, stage = stream.add(token, last=last), Stage(records.stage[place])
                tokens.append(Token(text, stage, float(records.uncertainty[place])))
                on_token(tokens[-1])

        texts = TextBatch([prompt], np.array([session % SESSIONS]), room=max_tokens)
        self.heard(policy.take_back)
        records, traffic, read = self.route(
            self.policy(policy.arrays),
            texts,
            max_tokens,
            reading=policy.read,
            measuring=False,
            on_step=decided,
        )
        ended = int(texts.text(0)[-1]) in self.config.end_tokens
        routed = Routed([records], traffic, read=read)
        return Continuation(tokens, policy, self.threshold(policy), ended, routed)


def _no_edge(cluster: int) -> NoReturn:
    raise ValueError(f"cluster {cluster}: a device outside of a run reaches no edge server")
