"""Settings by keyword, and what a client would know of tokens that a policy has routed."""

from __future__ import annotations

import numpy as np

from clients.learning.feedback import Feedback
from fedhlm_app.settings import Settings


def settings_of(**changes) -> Settings:
    return Settings.from_sources({k.replace("_", "-"): v for k, v in changes.items()}, {})


def feedback(seed=0, prompts=12, each=5, threshold=0.6) -> Feedback:
    """Drafts that are the more often wrong the more uncertain they are."""
    rng = np.random.default_rng(seed)
    u = rng.random(prompts * each)
    return Feedback.create(
        u,
        (rng.random(len(u)) < u / 2).astype(float),
        kept=u <= threshold,
        prompt=np.repeat(np.arange(prompts), each),
    )
