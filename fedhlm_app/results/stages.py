"""How a stage is told to people: the same words and the same colour wherever it is shown."""

from __future__ import annotations

STAGE_WORDS = {
    "local": "kept on the device",
    "cache": "from the device's cache",
    "peer": "from peers",
    "edge": "from neighbouring clusters",
    "llm_accepted": "LLM: draft accepted",
    "llm_resampled": "LLM: draft replaced",
    "unresolved": "LLM not reached",
}

PALETTE = (
    "#4f6bd8", "#a0522d", "#b0307f", "#6b7b8c", "#00838f", "#8a63d2", "#7a7a1f", "#c0392b",
)  # fmt: skip
"""Of lines and bars that are no stage; none is a stage's."""

# Okabe and Ito's colours, told apart with any colour vision.
STAGE_COLOURS = {
    "local": "#009e73",
    "cache": "#b8a900",
    "peer": "#cc79a7",
    "edge": "#0072b2",
    "llm_accepted": "#56b4e9",
    "llm_resampled": "#e69f00",
    "unresolved": "#d55e00",
}
