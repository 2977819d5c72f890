"""What settings say that is allowed, and yet not what their words promise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hlm.line import UHLM_LINE
from hlm.verifiers import VERIFIERS

if TYPE_CHECKING:
    from fedhlm_app.settings.model import Settings


def advice(settings: Settings) -> list[str]:
    """One sentence for every choice that is not what its name promises; empty when all are."""
    why = _same_as_fedavg(settings)
    found = [f"setting 'strategy' = '{settings.strategy}' {why}"] if why else []
    if "theta_tv" in VERIFIERS[settings.verifier].options and settings.truncation_k == 0:
        slope, intercept = UHLM_LINE
        found.append(
            f"setting 'verification' = '{settings.verifier}': the k* rule expects rejections by "
            f"U-HLM's line beta = {slope} u - {-intercept}, fitted to TinyLlama-1.1B and "
            "Llama-2-7B and not to this pair; 'truncation-k' sets k by hand"
        )
    return found


def _same_as_fedavg(settings: Settings) -> str:
    """Why the strategy computes what fedavg does; empty when it does not."""
    steps = settings.router_steps if settings.policy == "router" else settings.local_steps
    name = "router-steps" if settings.policy == "router" else "local-steps"
    batches = 0 < settings.local_batch < settings.tokens_per_round
    if settings.strategy == "fedprox" and settings.proximal_mu == 0:
        return "is fedavg with 'proximal-mu' = 0: nothing pulls; set proximal-mu above 0"
    if settings.strategy == "fednova" and not batches:
        return (
            f"is fedavg while every client takes the same steps ('{name}' = {steps}, "
            f"'local-batch' = {settings.local_batch}): set local-batch, so that clients with "
            "more tokens take more steps"
        )
    if steps > 1 or batches:
        return ""
    if settings.strategy == "fedprox":
        return (
            f"is fedavg with '{name}' = 1: the only step begins where the pull is 0; set "
            f"{name} above 1, or local-batch"
        )
    if settings.strategy == "scaffold":
        return (
            f"is fedavg with equal weights with '{name}' = 1 while every client replies: there "
            f"is no drift to correct; set {name} above 1, or local-batch"
        )
    return ""
