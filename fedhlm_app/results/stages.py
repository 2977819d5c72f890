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

# Okabe and Ito's colours, told apart with any colour vision.
PALETTE = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#b8a900", "#7f7f7f",
)  # fmt: skip

STAGE_COLOURS = {
    "local": "#009e73",
    "cache": "#b8a900",
    "peer": "#cc79a7",
    "edge": "#0072b2",
    "llm_accepted": "#56b4e9",
    "llm_resampled": "#e69f00",
    "unresolved": "#d55e00",
}
