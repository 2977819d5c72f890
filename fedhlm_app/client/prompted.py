"""A device that continues prompts, for people and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from jinja2 import TemplateError

from clients.policies import POLICIES
from clients.records import Stage, TextBatch, TokenRecords, Traffic
from fedhlm_app.client.feedback_folder import ServedPolicy
from fedhlm_app.client.inference import RoutedModel
from fedhlm_app.client.routed import Routed
from fedhlm_app.models.small import readable
from fedhlm_app.models.text_stream import TextStream
from fedhlm_app.models.vocabulary import load_tokenizer, one_tokenizer
from fedhlm_app.settings import Settings, SettingsError
from hlm.arrays import IntArray
from hlm.transport import Transport

SESSIONS = 1 << 32
"""Session numbers that the wire has."""


Messages = list[dict[str, str]]
"""Of a chat, each with `role` and `content`."""


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
    uncertainty : float or None
        Of the device's draft for it, in [0, 1]: what a threshold is compared with. None where the
        LLM writes every token, and nothing was drafted.
    probability : float or None
        The small model's of the token, in (0, 1]; None where the token is not its draft.
    uplink, downlink : int
        Bytes to and from the LLM for it; texts that shared a message share its bytes.
    """

    text: str
    stage: Stage
    uncertainty: float | None
    probability: float | None = None
    uplink: int = 0
    downlink: int = 0

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "text": self.text,
            "stage": self.stage.key,
            "uncertainty": self.uncertainty,
            "uplink": self.uplink,
            "downlink": self.downlink,
        }


@dataclass(frozen=True)
class Ask:
    """A prompt, and what is wanted of its continuation.

    Attributes
    ----------
    prompt : numpy.ndarray
        int64 [length], see `PromptedModel.read_prompt`.
    most : int
        Most new tokens, >= 1, as `read_prompt` was told.
    session : int
        Number of the text; of two texts with one number draws and caches would be the same.
    on_token : callable
        Called with each token once it is decided; True ends the text behind it.
    on_end : callable
        Called with the text where it ends before others of the same call.
    """

    prompt: IntArray
    most: int
    session: int
    on_token: Callable[[Token], bool | None] = lambda token: None
    on_end: Callable[[Continuation], None] = lambda text: None


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
            "tokens": [token.as_json() for token in self.tokens],
            "stages": self.stages,
            "bytes": {"uplink": traffic.uplink, "downlink": traffic.downlink},
            "threshold": self.threshold,
            "round": self.policy.server_round,
            "finish": "end" if self.ended else "length",
        }


class PromptedModel(RoutedModel):
    """Routed inference of texts that begin with a prompt.

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
        self.context = readable(self.model, settings.llm_context)

    def read_prompt(
        self, prompt: str | Messages, most: int, named: str = "max_tokens ="
    ) -> IntArray:
        """Tokens of a prompt, int64 [length], its start token among them.

        Parameters
        ----------
        prompt : str or list of dict
            Text to continue, or the messages of a chat (`role` and `content`), which are put into
            the tokenizer's chat template.
        most : int
            Most tokens of the answer, >= 1.
        named : str
            What `most` is called where it was given, for the message.

        Raises
        ------
        BadPrompt
            When there is no text in it, no room for the answer, or no chat template that fits.
        """
        if chat := not isinstance(prompt, str):
            said, text = "".join(one["content"] for one in prompt), self._templated(prompt)
        else:
            said = text = prompt
        found = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not said.strip() or not found:
            raise BadPrompt(f"prompt = {prompt!r}: must be text of at least one token")
        # A chat template has its own start.
        start = None if chat else self.tokenizer.bos_token_id
        tokens = np.array([*([] if start is None else [start]), *found], np.int64)
        if len(tokens) + most > self.context:
            raise BadPrompt(
                f"prompt = {len(tokens)} tokens and {named} {most}: "
                f"must be at most {self.context} together"
            )
        return tokens

    def _templated(self, messages: Messages) -> str:
        slm, llm = self.settings.slm, self.settings.llm
        if not (self.settings.llm_address or one_tokenizer(slm, llm)):
            raise BadPrompt(
                f"chat: slm {slm!r} and llm {llm!r} have different tokenizers, and so no chat "
                "template in common; give text to continue"
            )
        if not self.tokenizer.chat_template:
            raise BadPrompt(
                f"chat: the tokenizer of slm {self.settings.slm!r} has no chat template; give a "
                "model that was made for chats, or text to continue"
            )
        try:
            found = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        except TemplateError as error:
            raise BadPrompt(f"messages: the chat template refuses them: {error}") from None
        return str(found)

    def threshold(self, policy: ServedPolicy) -> float | None:
        """What uncertainties are compared with; None for a policy without a threshold."""
        learned = POLICIES[self.settings.policy].learns
        return float(policy.arrays["threshold"][0]) if learned else None

    def continued(
        self, asks: Sequence[Ask], policy: ServedPolicy, drafting: bool = True
    ) -> list[Continuation]:
        """Continue prompts in lockstep; uncertain tokens of a step share a message to the LLM.

        Parameters
        ----------
        asks : sequence of Ask
            At least one, with a session of its own each.
        policy : ServedPolicy
            Keeps or escalates, and says when texts are taken back from the LLM.
        drafting : bool
            See `route`.

        Raises
        ------
        WireError
            When the LLM server finds a request of this device invalid.
        """
        sessions = np.array([ask.session % SESSIONS for ask in asks])
        most = max(ask.most for ask in asks)
        texts = TextBatch([ask.prompt for ask in asks], sessions, room=most)
        growing = _Growing(asks, texts, policy, self)
        self.heard(policy.take_back)
        records, traffic, read = self.route(
            self.policy(policy.arrays),
            texts,
            most,
            reading=policy.read,
            measuring=False,
            drafting=drafting,
            on_step=growing.decided,
        )
        growing.share(np.arange(len(asks)), traffic)
        return [growing.whole(row, records, int(read[row])) for row in range(len(asks))]


class _Growing:
    """Texts of a batch on their way: tells of each token, and what it cost."""

    def __init__(
        self, asks: Sequence[Ask], texts: TextBatch, policy: ServedPolicy, model: PromptedModel
    ) -> None:
        self._asks, self._texts, self._policy = asks, texts, policy
        self._threshold, self._ends = model.threshold(policy), model.config.end_tokens
        self._found: list[list[Token]] = [[] for _ in asks]
        self._shares = [Traffic() for _ in asks]
        self._streams = [TextStream(model.tokenizer, ask.prompt.tolist()) for ask in asks]
        self._counted, self._running = Traffic(), set(range(len(asks)))

    def share(self, rows: IntArray, traffic: Traffic) -> list[Traffic]:
        """Share out among texts what has come to `traffic` since."""
        parts = traffic.since(self._counted).split(len(rows))
        for row, part in zip(rows, parts, strict=True):
            self._shares[row].include(part)
        self._counted.include(traffic.since(self._counted))
        return parts

    def whole(self, row: int, records: TokenRecords, read: int = 0) -> Continuation:
        """A text that has ended; the LLM told of `read` tokens that were kept."""
        routed = Routed([records.select(np.array([row]))], self._shares[row], read=read)
        at_end = int(records.token[row, records.present[row]][-1]) in self._ends
        return Continuation(self._found[row], self._policy, self._threshold, at_end, routed)

    def decided(
        self, records: TokenRecords, rows: IntArray, steps: IntArray, traffic: Traffic
    ) -> None:
        """Tell of a step's tokens, and of texts that end with them."""
        asked = rows[records.escalated[rows, steps]]
        caused = asked if len(asked) else rows
        parts = dict(zip(caused.tolist(), self.share(caused, traffic), strict=True))
        ended = []
        for row, step in zip(rows.tolist(), steps.tolist(), strict=True):
            if self._take(records, row, step, parts.get(row, Traffic())):
                self._running.discard(row)
                ended.append(row)
        # Where kept tokens are read, no text is whole before all are.
        if self._running and not self._policy.read:
            for row in ended:
                self._asks[row].on_end(self.whole(row, records))

    def _take(self, records: TokenRecords, row: int, step: int, part: Traffic) -> bool:
        """Tell of one token; whether its text ends with it."""
        ask, at = self._asks[row], (row, step)
        number, stage = int(records.token[at]), Stage(records.stage[at])
        full = len(self._found[row]) + 1 == ask.most
        drafted, known = records.draft[at] >= 0, number == records.draft[at]
        token = Token(
            self._streams[row].add(number, last=full or number in self._ends),
            stage,
            float(records.uncertainty[at]) if drafted else None,
            float(records.probability[at]) if known else None,
            part.uplink,
            part.downlink,
        )
        self._found[row].append(token)
        stopped = ask.on_token(token) or full
        self._texts.stopped[row] = stopped
        return stopped or number in self._ends


def _no_edge(cluster: int) -> NoReturn:
    raise ValueError(f"cluster {cluster}: a device outside of a run reaches no edge server")
