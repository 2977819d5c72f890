"""What a launch is doing before the first round, read from the log of `flwr run`."""

from __future__ import annotations

FIRST = "starting Flower"
STAGES = (
    ("Successfully started run", "handing the app to Flower"),
    ("Starting Flower Simulation", "starting Ray and the clients"),
    ("Run folder: ", "loading the models"),
    ("The LLM is read this way", "waiting for the clients"),
    ("Number of rounds: ", ""),
)
"""What the log says, and what has begun then; in the order of time."""


def stage(log: str) -> str:
    """The last stage that a log tells of, in a few words; empty once rounds have begun."""
    return next((words for mark, words in reversed(STAGES) if mark in log), FIRST)
