"""Prompts in, routed text out: the device's own loop between the rounds of a federation."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging import getLogger
from typing import NoReturn

import numpy as np

from clients.decoding.ways import best_ways
from clients.learning.feedback_store import FeedbackStore
from clients.policies import POLICIES
from clients.records import Stage, TextBatch
from fedhlm_app.client.feedback_folder import (
    FeedbackFolder,
    ServedPolicy,
    TextNote,
    difference,
    digest,
    made_with,
)
from fedhlm_app.client.from_store import next_policy
from fedhlm_app.client.inference import RoutedModel
from fedhlm_app.client.routed import Routed, feedback_of, figures
from fedhlm_app.learning.gradients import initial_policy
from fedhlm_app.models.vocabulary import load_tokenizer
from fedhlm_app.settings import Settings
from hlm.arrays import IntArray
from hlm.transport import Transport
from servers.engine.engine import context_limit

SESSIONS = 1 << 32
"""Session numbers that the wire has."""

logger = getLogger(__name__)


class BadPrompt(ValueError):
    """A prompt that cannot be answered; the message names field, value and what is allowed."""


@dataclass(frozen=True)
class Answer:
    """A continued text.

    Attributes
    ----------
    text : str
        What follows the prompt, without special tokens.
    tokens : list of (str, Stage)
        Each new token's text, and who decided it.
    uplink, downlink : int
        Bytes of messages to and from the LLM.
    threshold : float or None
        What uncertainties were compared with; None for a policy without a threshold.
    server_round : int
        The federated round that threshold came with; 0 for that of the settings.
    ended : bool
        The text came to its end, before `max_tokens`.
    """

    text: str
    tokens: list[tuple[str, Stage]]
    uplink: int
    downlink: int
    threshold: float | None
    server_round: int
    ended: bool

    @property
    def stages(self) -> dict[str, int]:
        """Tokens by the stage that decided them, all stages named."""
        counts = Counter(stage for _, stage in self.tokens)
        return {stage.key: counts[stage] for stage in Stage}


class ServedTexts:
    """Continues prompts with the router of the federation, and keeps what it was told.

    One text at a time: not to be called from two threads at once.

    Parameters
    ----------
    settings : Settings
        Those of the run that learns from this device.
    client : int
        The device's number; it keys random draws.
    transport : Transport
        Reaches the LLM.
    folder : FeedbackFolder, optional
        Where feedback is kept and policies come from; without, nothing is kept.

    Raises
    ------
    ValueError
        On settings that a serving device cannot follow.
    """

    def __init__(
        self,
        settings: Settings,
        client: int,
        transport: Transport,
        folder: FeedbackFolder | None = None,
    ) -> None:
        if settings.peer_mode != "off":
            raise ValueError(
                f"peer-mode = {settings.peer_mode!r}: a serving device reaches no edge server; "
                "set peer-mode=off"
            )
        self.settings = settings
        self.folder = folder
        self.routed = RoutedModel(settings, client, transport, _no_edge)
        if self.routed.edge is not None:
            self.routed.edge.join(0, 1, {})
        self.tokenizer = load_tokenizer(settings.slm)
        self.context = min(settings.llm_context, context_limit(self.routed.model))
        best_ways(self.routed.model, self.context)
        self.counts: Counter[str] = Counter()
        self.policy_problem = self.store_problem = ""
        self._made = made_with(settings)
        first = next_policy(settings, initial_policy(settings), 0, 0, calibrating=True)
        # Without a store nobody learns from what the LLM would say of kept tokens.
        self.policy = first if folder is not None else replace(first, read=False)
        self._seen: object = None
        self._store = None if folder is None else FeedbackStore(folder.store_file)
        self._session = 0 if self._store is None else self._store.newest()
        self.take_up_policy()

    @property
    def threshold(self) -> float | None:
        """What uncertainties are compared with at present."""
        learned = POLICIES[self.settings.policy].learns
        return float(self.policy.arrays["threshold"][0]) if learned else None

    def read_prompt(self, prompt: str, max_tokens: int) -> IntArray:
        """Tokens of a prompt, int64 [length], its start token among them.

        Raises
        ------
        BadPrompt
            When there is no text in it, or no room for the answer.
        """
        found = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if not found:
            raise BadPrompt(f"prompt = {prompt!r}: must be text of at least one token")
        start = self.tokenizer.bos_token_id
        tokens = np.array([*([] if start is None else [start]), *found], np.int64)
        if len(tokens) + max_tokens > self.context:
            raise BadPrompt(
                f"prompt = {len(tokens)} tokens and max_tokens = {max_tokens}: "
                f"must be at most {self.context} together"
            )
        return tokens

    def answer(self, prompt: str, max_tokens: int) -> Answer:
        """Continue a prompt by up to `max_tokens` tokens (>= 1).

        Raises
        ------
        BadPrompt
            See `read_prompt`.
        WireError
            When the LLM server finds a request of this device invalid.
        """
        tokens = self.read_prompt(prompt, max_tokens)
        self.take_up_policy()
        in_force, threshold = self.policy, self.threshold
        self._session += 1
        texts = TextBatch([tokens], np.array([self._session % SESSIONS]), room=max_tokens)
        policy = self.routed.policy(in_force.arrays)
        records, traffic, read = self.routed.route(
            policy, texts, max_tokens, reading=in_force.read, measuring=False
        )
        self._keep(Routed([records], traffic, read=read), in_force)
        present = records.present[0]
        chosen = records.token[0][present].tolist()
        stages = [Stage(stage) for stage in records.stage[0][present].tolist()]
        pieces = [str(self.tokenizer.decode([token])) for token in chosen]
        answer = Answer(
            text=str(self.tokenizer.decode(chosen, skip_special_tokens=True)),
            tokens=list(zip(pieces, stages, strict=True)),
            uplink=traffic.uplink,
            downlink=traffic.downlink,
            threshold=threshold,
            server_round=in_force.server_round,
            ended=chosen[-1] in self.routed.config.end_tokens,
        )
        self.counts.update(answer.stages)
        if lost := answer.stages[Stage.UNRESOLVED.key]:
            words = "%d of %d tokens of a text stayed unresolved: the LLM did not decide them"
            logger.warning(words, lost, len(answer.tokens))
        self.counts.update(texts=1, uplink=answer.uplink, downlink=answer.downlink)
        return answer

    def _keep(self, routed: Routed, in_force: ServedPolicy) -> None:
        """Write what was told of a text to the store: numbers, and no token of it."""
        if self._store is None:
            return
        note = TextNote(
            self._made,
            digest(in_force.arrays),
            in_force.read,
            figures(routed, self.settings),
        )
        try:
            self._store.append(feedback_of(routed, self.settings), note.to_json())
        except (sqlite3.Error, ValueError) as error:
            # Whoever asked shall have the text all the same.
            self.store_problem = str(error)
            self.counts["not-stored"] += 1
            logger.warning("feedback of a text is lost: %s", error)

    def take_up_policy(self) -> None:
        """Serve with what the policy file says, once it has changed.

        A file that cannot be used leaves the present policy in force; `policy_problem` and the
        log say why.
        """
        if self.folder is None:
            return
        try:
            status = self.folder.policy_file.stat()
        except FileNotFoundError:
            return
        seen = (status.st_mtime_ns, status.st_size, status.st_ino)
        if seen == self._seen:
            return
        self._seen = seen
        with self._told_of_problems():
            policy = self.folder.read_policy()
            if policy is None:
                return
            if differs := difference(policy.made, self._made):
                raise ValueError(
                    f"{self.folder.policy_file} is of a run with other settings ({differs}); "
                    "start `fedhlm serve device` with those of the run"
                )
            found, allowed = (
                ", ".join(f"{name} [{len(value)}]" for name, value in one.arrays.items())
                for one in (policy, self.policy)
            )
            if found != allowed:
                raise ValueError(f"{self.folder.policy_file}: arrays {found}; allowed: {allowed}")
            self.policy = policy

    @contextmanager
    def _told_of_problems(self) -> Iterator[None]:
        try:
            yield
            self.policy_problem = ""
        except ValueError as error:
            self.policy_problem = str(error)
            logger.warning("the policy stays as it is: %s", error)

    def stored_tokens(self) -> int | None:
        """Tokens in the store; None without one."""
        return None if self._store is None else len(self._store)

    def close(self) -> None:
        """Close the store."""
        if self._store is not None:
            self._store.close()


def _no_edge(cluster: int) -> NoReturn:
    raise ValueError(f"cluster {cluster}: a serving device reaches no edge server")
