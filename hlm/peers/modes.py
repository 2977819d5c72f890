"""Every way in which peers resolve a token, by name: how they are found, and what counts as alike.

Settings, devices and edge servers read this table; what computes is imported when it is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, cast


@dataclass(frozen=True)
class PeerMode:
    """A value of `peer-mode`.

    Attributes
    ----------
    words : str
        For settings and documents.
    by_context : bool
        Whether peers are those who had a verified token in a similar context; otherwise those who
        are at the same step, with their drafts.
    alike : str
        Module and function of eq. 10: two arrays of embeddings to similarities, float64 in
        [-1, 1], row by row.
    """

    words: str
    by_context: bool = True
    alike: str = "hlm.peers.agreement:cosine"

    def load(self) -> Callable[..., Any]:
        """The function `alike`."""
        return cast("Callable[..., Any]", resolve_name(self.alike))


PEER_MODES = {
    "paper": PeerMode("by step as written", by_context=False),
    "context": PeerMode("by context"),
}
