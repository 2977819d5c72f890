"""Learning from texts that a device served: which of them count in a round, and what is next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from logging import getLogger
from typing import TYPE_CHECKING

import numpy as np

from clients.learning.feedback import Feedback
from clients.learning.feedback_reader import FeedbackReader
from clients.records import Traffic
from fedhlm_app.client.feedback_folder import (
    FeedbackFolder,
    ServedPolicy,
    TextNote,
    difference,
    digest,
    made_with,
)
from fedhlm_app.client.routed import RoundResult, Routed, figures
from fedhlm_app.client.take_back import RUN_COUNTS, learns_take_back
from fedhlm_app.learning.router import escalates_all
from fedhlm_app.learning.rules import reads_kept, sums_rule
from hlm.arrays import FloatArray
from hlm.risk import ESCALATE_ALL

if TYPE_CHECKING:
    from fedhlm_app.settings import Settings

logger = getLogger("flwr")


def told_since(
    folder: FeedbackFolder, settings: Settings, policy: Mapping[str, FloatArray], bookmark: int
) -> RoundResult:
    """What texts after a bookmark tell, at most `tokens-per-round` tokens of them, the newest.

    Parameters
    ----------
    folder : FeedbackFolder
        Of the device.
    settings : Settings
        Of the run. Texts made with other ones are left out.
    policy : mapping
        The round's policy: float64 arrays by name. In generation a certified rule counts texts
        that were made with exactly this one, and no others.
    bookmark : int
        Number of the last text that an earlier round has had.

    Raises
    ------
    ValueError
        When the newest text was made with other settings, or the run does not generate text.
    """
    if settings.workload != "generate":
        raise ValueError(
            f"workload = {settings.workload!r}: what a device serves is generated text; "
            "with feedback-store set workload=generate"
        )
    everything, lines, after = Feedback.empty(), dict[int, str](), bookmark
    # No file: nobody has asked for a text yet.
    if folder.store_file.exists():
        with FeedbackReader(folder.store_file) as store:
            # A store that was deleted counts from 1 again.
            after = bookmark if bookmark <= store.newest() else 0
            everything, lines = store.read(after)
    notes = {number: TextNote.from_json(line) for number, line in lines.items()}
    ours = made_with(settings)
    fitting = {number for number, note in notes.items() if not difference(note.made, ours)}
    newest = max(notes, default=after)
    if notes and newest not in fitting:
        raise ValueError(
            f"feedback-store {str(folder.path)!r}: settings of the serving device and of the run "
            f"differ ({difference(notes[newest].made, ours)}); start `fedhlm serve device` with "
            "the settings of the run"
        )
    if len(fitting) < len(notes):
        left_out = len(notes) - len(fitting)
        logger.warning("%d stored texts were made with other settings: left out", left_out)
    feedback = _of_texts(everything, fitting)
    sums: Counter[str] = Counter()
    for number in sorted(fitting):
        sums.update(notes[number].figures)
    nothing = figures(Routed([], Traffic()), settings)
    counts = {}
    if learns_take_back(settings):
        # No more than a round's tokens count, in proportion: the server refuses more.
        counted = sum(sums[name] for name in RUN_COUNTS)
        share = min(1.0, settings.tokens_per_round / max(1, counted))
        counts = {name: sums[name] * share for name in RUN_COUNTS}
    return RoundResult(
        feedback.select(slice(-settings.tokens_per_round, None)),
        _countable(feedback, notes, settings, policy),
        {**nothing, **sums, **counts},
        newest=newest,
    )


def _countable(
    feedback: Feedback,
    notes: dict[int, TextNote],
    settings: Settings,
    policy: Mapping[str, FloatArray],
) -> Feedback:
    """Whole texts that a guarantee may rest on, the newest that fit into a round."""
    rule = sums_rule(settings)
    if rule is None:
        return Feedback.empty()
    # Where neither reading nor audits tell of kept tokens, what is known depends on what was kept.
    chosen = {number for number, note in notes.items() if note.read or settings.audit_rate > 0}
    if rule.sequential:
        wanted = digest(policy)
        chosen = {number for number in chosen if notes[number].policy == wanted}
    feedback = _of_texts(feedback, chosen)
    numbers, sizes = np.unique(feedback.prompt, return_counts=True)
    return _of_texts(feedback, set(numbers[rule.fitting(sizes)].tolist()))


def _of_texts(feedback: Feedback, numbers: set[int]) -> Feedback:
    return feedback.select(np.isin(feedback.prompt, sorted(numbers)))


def next_policy(
    settings: Settings,
    arrays: Mapping[str, FloatArray],
    server_round: int,
    consumed: int,
    consumed_before: int = 0,
    *,
    calibrating: bool,
    take_back: Sequence[float] = (),
) -> ServedPolicy:
    """What a device serves with after a round's message.

    Parameters
    ----------
    settings : Settings
        Of the run.
    arrays : mapping
        What the client would start from if the next round came now.
    server_round : int
        The present round, from 1.
    consumed, consumed_before : int
        Number of the newest text that was learned from, and of that before this round.
    calibrating : bool
        The server has asked for sums: `arrays` may hold a threshold that is under test.
    take_back : sequence of float
        The last round's counts, see `ServedPolicy`.
    """
    placed, last = dict(arrays), server_round >= settings.rounds
    rule = sums_rule(settings) if calibrating else None
    untested = last and rule is not None and rule.sequential
    if untested or (not last and escalates_all(settings, server_round + 1)):
        # A threshold that nobody will test any more has no guarantee to give.
        placed["threshold"] = np.array([ESCALATE_ALL])
    read = not last and reads_kept(settings, server_round + 1, calibrating)
    made = made_with(settings)
    return ServedPolicy(
        placed, server_round, read, consumed, consumed_before, made, list(take_back)
    )
