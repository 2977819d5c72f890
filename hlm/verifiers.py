"""Every way of deciding an escalated token, by name: what it sends, needs and promises.

Settings, messages, clients and servers read this table, and none of them has to load tensors for
it: the classes, of `hlm.verification`, are imported when one is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from hlm.verification.interface import Verifier


class Shape(IntEnum):
    """What a device claims about the distribution its draft came from; a code of the wire."""

    NOTHING = 0
    WEIGHT = 1
    SUPPORT = 2
    PROBS = 3


class Need(IntEnum):
    """What the server has to know of the large model's next token; each includes those before."""

    TOP = 1
    """The most likely token, and log-probabilities of given tokens."""
    PROBS = 2
    """The whole distribution."""


@dataclass(frozen=True)
class VerifierKind:
    """A verifier before it is made.

    Attributes
    ----------
    home : str
        Module and class.
    words : str
        What crosses the link, for settings and documents.
    claim : Shape
        Beside the draft's id.
    bits : {8, 16}
        Units of the claim's weights: 2**-bits.
    needs : Need
        What a backend of the LLM has to offer, so that the server can decide.
    decoding : {"greedy", "sampled"}
        Whose drafts it decides.
    exact : bool
        Whether the output has exactly the large model's distribution.
    shared_draw : bool
        Whether a verdict is the token that the LLM would have put there without any draft.
    options : tuple of str
        Settings that the device's half takes as keywords; the server's needs none of them.
    """

    home: str
    words: str
    claim: Shape
    bits: int = 8
    needs: Need = Need.PROBS
    decoding: Literal["greedy", "sampled"] = "sampled"
    exact: bool = True
    shared_draw: bool = False
    options: tuple[str, ...] = ()

    def __call__(self, **options: Any) -> Verifier:
        """Make one."""
        made: Verifier = resolve_name(self.home)(**options)
        return made


VERIFIERS = {
    "full": VerifierKind(
        "hlm.verification.full:Full",
        "all probabilities up",
        Shape.PROBS,
        bits=16,
    ),
    "truncated": VerifierKind(
        "hlm.verification.truncated:Truncated",
        "top k up, not exact",
        Shape.SUPPORT,
        exact=False,
        options=("truncation_k", "theta_tv"),
    ),
    "scalar": VerifierKind(
        "hlm.verification.scalar:Scalar",
        "the draft's probability up, all of the LLM's down if rejected",
        Shape.WEIGHT,
    ),
    "coupled": VerifierKind(
        "hlm.verification.coupled:Coupled",
        "id alone, both sides draw from one seed",
        Shape.NOTHING,
        shared_draw=True,
    ),
    "greedy": VerifierKind(
        "hlm.verification.greedy:Greedy",
        "id alone, against the LLM's top token",
        Shape.NOTHING,
        needs=Need.TOP,
        decoding="greedy",
        shared_draw=True,
    ),
    "truncated-exact": VerifierKind(
        "hlm.verification.truncated:TruncatedExact",
        "top k up, the draft drawn from them",
        Shape.SUPPORT,
        options=("truncation_k", "theta_tv"),
    ),
}
"""A name's place is its code on the wire, so new names go at the end (16 at most)."""


def plain_verifier(decoding: str) -> str:
    """The verifier that asks for the LLM's own token, with nothing but an id going up."""
    return "greedy" if decoding == "greedy" else "coupled"


def shares_draw(verifier: str, decoding: str) -> bool:
    """Whether "what the LLM itself would have put there" is one definite token.

    So it is in greedy decoding, and where both sides draw with the same clocks.
    """
    return decoding == "greedy" or VERIFIERS[verifier].shared_draw


def served_verifiers(offers: Need) -> list[str]:
    """Names of the verifiers that a backend of the LLM with so much to offer can serve."""
    return [name for name, verifier in VERIFIERS.items() if verifier.needs <= offers]
