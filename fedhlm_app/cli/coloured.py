"""Routed text on a terminal: each token in the colour of who decided it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from fedhlm_app.results.stages import STAGE_COLOURS, STAGE_WORDS

if TYPE_CHECKING:
    from fedhlm_app.client.prompted import Continuation, Token

CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), "�")
del CONTROLS[ord("\n")], CONTROLS[ord("\t")]
"""What a model writes must not steer a terminal."""


_SHORT = {
    "local": "kept",
    "cache": "from the cache",
    "llm_accepted": "accepted",
    "llm_resampled": "replaced",
    "unresolved": "unresolved",
}
"""Stages of a device without peers, where the legend has told the rest."""


class ColouredText:
    """Writes texts as they are made.

    Parameters
    ----------
    console : Console
        Plain text where it has no colours.
    uncertainty : bool
        Write each token's behind it.
    chat : bool
        What is written answers the prompt, on a line of its own.
    """

    def __init__(self, console: Console, *, uncertainty: bool = False, chat: bool = False) -> None:
        self.console, self.uncertainty, self.chat = console, uncertainty, chat
        self.plain = console.color_system is None or console.no_color

    def legend(self, stages: Sequence[str]) -> None:
        """Say what colours mean, where there are any."""
        if self.plain:
            return
        parts = [Text.assemble(("\u25a0 ", STAGE_COLOURS[s]), STAGE_WORDS[s]) for s in stages]
        self._write(Text("   ").join(parts))
        self.console.print("\n")

    def prompt(self, prompt: str) -> None:
        """Write what is continued."""
        self._write(Text(prompt.translate(CONTROLS) + "\n" * self.chat, "dim"))

    def token(self, token: Token) -> None:
        """Write a new token."""
        text = Text(token.text.translate(CONTROLS), STAGE_COLOURS[token.stage.key])
        if self.uncertainty and token.uncertainty is not None:
            text.append(f"[{token.uncertainty:.2f}]", "dim")
        self._write(text)

    def end(self) -> None:
        """End a text."""
        self.console.print()

    def _write(self, text: Text) -> None:
        # A terminal breaks lines by itself: one that is not complete has no known width.
        self.console.print(text.plain if self.plain else text, end="", soft_wrap=True, markup=False)


def account(answers: Sequence[Continuation], seconds: float, policy: str) -> str:
    """What came of all texts, in one line.

    Parameters
    ----------
    answers : sequence of Continuation
    seconds : float
        Wall clock.
    policy : str
        By what tokens were kept, and what is promised of it.
    """
    tokens = sum(len(answer.tokens) for answer in answers)
    decided = []
    for stage, words in _SHORT.items():
        count = sum(answer.stages[stage] for answer in answers)
        if count or stage in ("local", "llm_accepted", "llm_resampled"):
            decided.append(f"{count} {words} ({count / tokens:.0%})")
    up, down = (
        sum(getattr(answer.routed.traffic, way) for answer in answers)
        for way in ("uplink", "downlink")
    )
    return (
        f"{tokens} tokens: {', '.join(decided)}; {up:,} bytes up, {down:,} down; "
        f"{1000 * seconds:,.0f} ms, {tokens / seconds:.0f} tokens/s; {policy}"
    )
