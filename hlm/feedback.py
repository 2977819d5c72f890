"""The byte in which the LLM's server says what the LLM thinks of a token (free feedback).

Bit 7 says whether the token is what the LLM itself would have put there: its most likely token in
greedy decoding, its own draw with the request's shared randomness otherwise. Bits 0-6 are
``round(-8 ln y)``, at most 127, for the token's probability y.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


def feedback_bytes(log_prob: Tensor, choice: Tensor) -> NDArray[np.uint8]:
    """What the server writes, uint8 [n].

    Parameters
    ----------
    log_prob : Tensor
        float [n], nats, <= 0; -inf is the largest code.
    choice : Tensor
        bool [n]: the token is the LLM's own.
    """
    code = (-8.0 * log_prob.double()).round().clamp(0, 127).nan_to_num(127.0)
    return (code.byte() | (choice.byte() << 7)).cpu().numpy()


def read_feedback(feedback: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """What the device reads.

    Parameters
    ----------
    feedback : numpy.ndarray
        uint8, of any shape.

    Returns
    -------
    log_prob : numpy.ndarray
        float64, nats, in -15.875 .. 0, within 1/16 of the server's where that is above -15.9375.
    choice : numpy.ndarray
        int8, 1 where the token is the LLM's own, else 0.
    """
    return -(feedback & 0x7F).astype(np.float64) / 8, (feedback >> 7).astype(np.int8)
