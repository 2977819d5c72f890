"""What a small model would draft at every place of texts that the large one wrote."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from clients.decoding.drafting import RouterConfig
from clients.decoding.routing import Router
from clients.policy import FixedPolicy
from clients.records import Stage, TextBatch, Traffic
from hlm.arrays import BoolArray, FloatArray, IntArray
from hlm.verification import VERIFIERS, plain_verifier

_MOST_PROBABILITIES = 1 << 24
"""Of all places of a batch, in float64: 128 MiB."""


@dataclass(frozen=True)
class Recorded:
    """Drafts of a device at every place of texts that the LLM wrote.

    Attributes
    ----------
    uncertainty : float64 [texts, positions]
        Of the drafts; 0 behind a text's end, where the run of sure drafts has none.
    wrong : bool [texts, positions]
        Whether the draft is another token than the LLM's; False behind a text's end.
    lengths, prompts : int64 [texts]
        Tokens that the LLM wrote of each, at least 1, and tokens before these.
    """

    uncertainty: FloatArray
    wrong: BoolArray
    lengths: IntArray
    prompts: IntArray

    @property
    def present(self) -> BoolArray:
        """Places before the texts' ends, [texts, positions]."""
        return np.asarray(np.arange(self.wrong.shape[1]) < self.lengths[:, None])

    def halves(self) -> tuple[Recorded, Recorded]:
        """Every other text, to fit on, and the rest, to judge on."""
        fitted, judged = (
            Recorded(*(column[start::2] for column in vars(self).values())) for start in (0, 1)
        )
        return fitted, judged

    def threshold(self, risk: float) -> float:
        """Largest uncertainty up to which at most a share `risk` of tokens is sure and wrong.

        -1 where there is none.
        """
        uncertainty, wrong = self.uncertainty[self.present], self.wrong[self.present]
        order = np.argsort(uncertainty)
        risks = np.cumsum(wrong[order]) / order.size
        within = int(np.searchsorted(risks, risk, side="right"))
        return float(uncertainty[order[within - 1]]) if within else -1.0


def alone(model: PreTrainedModel, config: RouterConfig) -> Router:
    """A model that decides every token by itself."""
    drafter = VERIFIERS[plain_verifier(config.sampling.decoding)]()
    return Router(model, config, FixedPolicy(True), drafter, [])


def record(
    slm: PreTrainedModel,
    writer: Router,
    prompts: Sequence[IntArray],
    tokens: int,
    config: RouterConfig,
    listen: Callable[[int, int], None] = lambda done, wanted: None,
) -> Recorded:
    """Let the LLM continue prompts, and the device read along.

    Parameters
    ----------
    slm : transformers.PreTrainedModel
        Reads along.
    writer : Router
        Makes the LLM's texts: `alone`, or all of it escalated.
    prompts : sequence of numpy.ndarray
        int64 [n_i] token ids.
    tokens : int
        Most tokens that the LLM writes of each text, >= 1; a text also ends at an end token.
    config : RouterConfig
        How tokens are drawn, the same for both, and how uncertainty is measured.
    listen : callable
        Told how many texts of how many are done.
    """
    reader = alone(slm, config)
    vocab = int(slm.config.get_text_config().vocab_size)
    batch = min(max(1, _MOST_PROBABILITIES // (tokens * vocab)), 50)
    shape = len(prompts), tokens
    uncertainty, wrong = np.zeros(shape), np.zeros(shape, np.bool_)
    lengths: list[IntArray] = []
    for begin in range(0, len(prompts), batch):
        listen(begin, len(prompts))
        chosen = slice(begin, begin + batch)
        sessions = np.arange(begin, begin + len(prompts[chosen]))
        written = TextBatch(prompts[chosen], sessions, room=tokens)
        by_llm = writer.generate(written, tokens, Traffic())
        texts = [written.text(row) for row in range(len(sessions))]
        given = TextBatch(texts, sessions, given=True)
        by_slm = reader.score(given, written.prompt_lengths, Traffic())
        steps = by_slm.draft.shape[1]
        uncertainty[chosen, :steps] = np.where(by_slm.present, by_slm.uncertainty, 0.0)
        # What the LLM could not be asked about is not known to be right.
        other = by_slm.draft != by_llm.token[:, :steps]
        other |= by_llm.stage[:, :steps] == Stage.UNRESOLVED
        wrong[chosen, :steps] = by_slm.present & other
        lengths.append(by_slm.present.sum(axis=1))
    return Recorded(
        uncertainty, wrong, np.concatenate(lengths), np.array([len(prompt) for prompt in prompts])
    )


def decode_ms(
    router: Router,
    prompts: Sequence[IntArray],
    tokens: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Time of a token on this machine, in ms, where one text is written at a time.

    The median over prompts, after one that does not count. The prompt's own reading is part of it.
    """
    taken = []
    for session, prompt in enumerate([prompts[0], *prompts]):
        text = TextBatch([prompt], np.array([session]), room=tokens)
        begin = clock()
        made = router.generate(text, tokens, Traffic()).present.sum()
        taken.append(1000 * (clock() - begin) / made)
    return float(np.median(taken[1:]))
