"""The learned router of a run: its features, its model, its learning rule, and who trains when.

Two arrays are learned, ``threshold`` and ``router``. In the first `router-rounds` rounds every
token is escalated, so that the model learns from all of them, the sure ones too. Then, with a
certified rule, the model is frozen and the threshold calibrated, on texts that the model was not
trained on: a score fitted to its calibration texts would look better there than it is. With a
gradient rule (`learning` = ``balanced``, ``paper``) the model goes on learning, and the threshold
with it, by that rule with the score in place of the uncertainty.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clients.learning.feedback import Feedback
from clients.learning.router_model import RouterLearning, RouterModel, rescored
from fedhlm_app.learning.rules import rule_of, sums_rule
from fedhlm_app.learning.rules.base import GradientRule
from fedhlm_app.models.sources import BUILTIN
from fedhlm_assets import asset_path
from hlm.arrays import FloatArray, IntArray

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from clients.decoding.drafting import StepFeatures as FeaturesOfStep
    from clients.decoding.step_features import StepFeatures
    from fedhlm_app.settings import Settings

THRESHOLD_RATE = 2.0
"""Step of the threshold over that of the model: about what the threshold rules use alone."""


@dataclass(frozen=True)
class RouterRule:
    """Threshold and model as one rule for `hlm.local_steps`, over both end to end.

    Parameters
    ----------
    router : RouterLearning
        Learns the model.
    threshold : GradientRule or None
        Learns the threshold from scores; None leaves it alone.
    threshold_rate : float
        Step of the threshold over the step of the model, >= 0.
    """

    router: RouterLearning
    threshold: GradientRule | None = None
    threshold_rate: float = 1.0

    @property
    def bounds(self) -> tuple[FloatArray, FloatArray]:
        """Those of the two parts, float64 [1 + m] each."""
        low, high = (-np.ones(1), np.ones(1)) if self.threshold is None else self.threshold.bounds
        model_low, model_high = self.router.bounds
        return np.append(low, model_low), np.append(high, model_high)

    def examples(self, feedback: Feedback) -> int:
        """Tokens of known beta that have features."""
        return self.router.examples(feedback)

    def loss(self, policy: FloatArray, feedback: Feedback) -> float:
        """The model's cross-entropy; the threshold's own loss is of another unit."""
        return self.router.loss(policy[1:], feedback)

    def gradient(self, policy: FloatArray, feedback: Feedback) -> FloatArray:
        """Gradient float64 [1 + m]."""
        step, parameters = np.zeros(1), policy[1:]
        if self.threshold is not None:
            scored = rescored(self.router.model, parameters, feedback)
            step = self.threshold_rate * self.threshold.gradient(policy[:1], scored)
        return np.append(step, self.router.gradient(parameters, feedback))


def trains_router(settings: Settings, server_round: int) -> bool:
    """Whether the model learns in this round (from 1)."""
    if settings.policy != "router" or not rule_of(settings).learns:
        return False
    return sums_rule(settings) is None or server_round <= settings.router_rounds


def escalates_all(settings: Settings, server_round: int) -> bool:
    """Whether this training round (from 1) gathers what the LLM says of every token."""
    return trains_router(settings, server_round) and server_round <= settings.router_rounds


def router_rule(settings: Settings, threshold: GradientRule | None) -> RouterRule:
    """The learning rule of the settings, around the rule of its threshold."""
    learning = RouterLearning(router_model(settings), "loss", settings.router_penalty)
    return RouterRule(learning, threshold, THRESHOLD_RATE)


def router_model(settings: Settings) -> RouterModel:
    """The model of the settings; its size follows from the small model's config alone."""
    return RouterModel(router_columns(settings).count, settings.router_hidden)


def router_columns(settings: Settings) -> StepFeatures:
    """Which columns the model sees; server and devices come to the same."""
    # PyTorch comes along, which runs without a router are spared on the server.
    from clients.decoding.step_features import StepFeatures

    hidden, embedding = _widths(settings.slm)
    return StepFeatures(hidden, settings.router_projection, embedding, history=True, trace=True)


def router_features(settings: Settings, model: PreTrainedModel) -> FeaturesOfStep:
    """Features of a step, as `clients.decoding.drafting` says for them.

    Parameters
    ----------
    settings : Settings
        Of the run.
    model : PreTrainedModel
        The small model.
    """
    columns = router_columns(settings)
    embeddings: Any = model.get_input_embeddings()
    table = embeddings.weight.detach()

    def features(
        logits: torch.Tensor,
        hidden: torch.Tensor,
        drafts: torch.Tensor,
        positions: IntArray,
        tokens: IntArray,
        traces: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        return columns(logits, hidden, drafts, positions, table, tokens, positions, traces)

    return features


def texts_of_round(
    settings: Settings, rows: IntArray, client: int, server_round: int
) -> tuple[IntArray, int]:
    """Items a round may draw from, and its number among the rounds that do.

    With a certified router half of a device's items (int64 [n], n >= 1) train the model and the
    other half calibrates; otherwise every round draws from all.
    """
    if settings.policy != "router" or sums_rule(settings) is None:
        return rows, server_round
    shuffled = np.random.default_rng([settings.seed, client, 0]).permutation(rows)
    half = len(rows) // 2
    if trains_router(settings, server_round):
        return shuffled[half:], server_round
    return (shuffled[:half] if half else rows), server_round - settings.router_rounds


@lru_cache(maxsize=8)
def _widths(slm: str) -> tuple[int, int]:
    """Hidden size of the small model, and width of its token embeddings."""
    from transformers import AutoConfig

    source = str(asset_path("pair/slm")) if slm == BUILTIN else slm
    config: Any = AutoConfig.from_pretrained(source).get_text_config()
    hidden = int(config.hidden_size)
    # OPT and ELECTRA embed tokens in a space of their own.
    embedding = getattr(config, "word_embed_proj_dim", getattr(config, "embedding_size", hidden))
    return hidden, int(embedding)
