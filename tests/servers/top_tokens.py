"""A backend that is as far from the engine as the protocol allows.

It stands for an API that tells the most likely token and log-probabilities of given tokens. It
keeps texts as tokens and nothing of having read them, and forgets every number that it need not
tell.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from hlm.arrays import IntArray
from hlm.verifiers import Need
from servers.backend import BackendStats, Feed


class TopTokens:
    """Reads every text whole, each time."""

    offers = Need.TOP
    reading, slow = "whole texts, top tokens only", False

    def __init__(self, model: PreTrainedModel, sessions: int = 64, context: int = 64) -> None:
        self.model, self.max_sessions, self.max_context = model, sessions, context
        self.vocab = int(model.config.get_text_config().vocab_size)
        self.stats = BackendStats()
        self._texts: OrderedDict[Hashable, IntArray] = OrderedDict()

    def held(self, session: Hashable) -> int:
        return len(self._texts.get(session, ()))

    def computed(self, session: Hashable) -> int:
        return 0

    def tokens(self, session: Hashable) -> IntArray:
        return self._texts[session]

    def append(self, session: Hashable, token: int) -> None:
        if self.held(session) < self.max_context:
            self._texts[session] = np.append(self._texts[session], np.int64(token))

    def score(self, feeds: Sequence[Feed]) -> list[torch.Tensor | None]:
        return [self._score(feed) for feed in feeds]

    def _score(self, feed: Feed) -> torch.Tensor | None:
        if feed.start > self.held(feed.session):
            return None
        before = self._texts.get(feed.session, np.empty(0, np.int64))[: feed.start]
        self._texts[feed.session] = np.concatenate([before, feed.tokens])
        self._texts.move_to_end(feed.session)
        while len(self._texts) > self.max_sessions:
            self._texts.popitem(last=False)
            self.stats.evictions += 1
        if not len(feed.wanted):
            return torch.empty(0, self.vocab)
        self.stats.passes += 1
        text = torch.from_numpy(np.concatenate([before, feed.tokens])[: feed.wanted[-1]])
        with torch.inference_mode():
            log_probs = self.model(text[None]).logits[0].double().log_softmax(dim=1)
        rows = [
            self._told(log_probs[place - 1], feed.asked[feed.asked[:, 0] == place, 1])
            for place in feed.wanted.tolist()
        ]
        return torch.stack(rows)

    def _told(self, log_probs: torch.Tensor, asked: IntArray) -> torch.Tensor:
        """The top token and the asked ones; whatever else there is looks alike."""
        known = np.unique(np.append(asked, int(log_probs.argmax())))
        left = max(1 - float(log_probs[known].exp().sum()), 1e-12)
        row = torch.full((self.vocab,), np.log(left / (self.vocab - len(known))))
        row[known] = log_probs[known].float()
        return row
