"""The methods that are compared: what each escalates, and how an escalated token is decided.

Every method is a policy and a verifier of the one router, so that nothing but the method differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hlm.verification import VERIFIERS

Escalates = Literal["nothing", "everything", "at random", "above its line", "above the share"]


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes
    ----------
    name : str
        As on the command line and in results.
    words : str
        What it does, in one line.
    escalates : str
        Which tokens leave the device: none, all, a random share, those above the threshold that
        the method reads off its own fitted line, or those above the threshold that gives the
        share asked for.
    verifier : str
        Decides escalated tokens in sampled decoding. In greedy decoding the draft's id is all
        that matters, and every method verifies greedily.
    measure : str
        Uncertainty that the threshold is compared with.
    free_feedback : bool
        Whether a byte comes down about every kept token that the server reads.
    spans : bool
        Whether an escalation opens a stream, which the device takes back (`hlm.spans.learned`).
    """

    name: str
    words: str
    escalates: Escalates
    verifier: str = "coupled"
    measure: str = "closed-form"
    free_feedback: bool = False
    spans: bool = False

    def exact(self, greedy: bool) -> bool:
        """Whether all that it lets the LLM decide has exactly the LLM's distribution."""
        if self.name == "slm":
            return False
        return greedy or VERIFIERS[self.verifier].exact


METHODS = {
    method.name: method
    for method in (
        Method("llm", "the large model alone, tokens streamed down", "everything"),
        Method("slm", "the small model alone", "nothing"),
        Method("rand-hlm", "random tokens, whole distribution up", "at random", "full"),
        Method("hlm", "every token, whole distribution up", "everything", "full"),
        Method(
            "u-hlm",
            "temperature sweep, whole distribution up",
            "above its line",
            "full",
            "temperature-sweep",
        ),
        Method(
            "cu-hlm",
            "temperature sweep, top k* of the distribution up",
            "above its line",
            "truncated",
            "temperature-sweep",
        ),
        Method("speculative", "blocks of drafts, their ids up, all verified", "everything"),
        Method("scalar", "closed-form u, id and probability up", "above the share", "scalar"),
        Method("coupled", "closed-form u, id up", "above the share"),
        Method(
            "fedhlm-token",
            "closed-form u, id up, free feedback down",
            "above the share",
            free_feedback=True,
        ),
        Method(
            "fedhlm",
            "the same, and the LLM writes on until the device takes back",
            "above the share",
            free_feedback=True,
            spans=True,
        ),
    )
}

DEFAULT_METHODS = tuple(METHODS)


def chosen_methods(names: Sequence[str]) -> list[Method]:
    """Methods by name, in the order of `METHODS` and each once.

    Raises
    ------
    ValueError
        For an unknown name, or none.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        wrong = ", ".join(map(repr, unknown)) or "none"
        raise ValueError(f"methods: {wrong} given; allowed are {', '.join(METHODS)}")
    return [method for name, method in METHODS.items() if name in names]
