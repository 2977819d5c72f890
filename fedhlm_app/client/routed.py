"""What came of routing some texts: sums for a report, and what the device may learn from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.learning.feedback import Feedback
from clients.records import TokenRecords, Traffic
from hlm.arrays import BoolArray, IntArray

if TYPE_CHECKING:
    from fedhlm_app.settings import Settings

Figures = dict[str, int | float | list[int] | list[float]]
"""What a MetricRecord is made of."""


@dataclass(frozen=True)
class Routed:
    """What came of routing some texts.

    Attributes
    ----------
    records : list of TokenRecords
        One for each batch of texts.
    traffic : Traffic
        Bytes and waiting.
    correct, answered : int
        Routed tokens that are right, of those for which it is known what is right.
    rows : list of numpy.ndarray
        int64, the items each batch was made of.
    read : int
        Kept tokens that were sent for reading, so that a rule could calibrate on them.
    calibration : numpy.ndarray or None
        bool, prompts of the first batch that a calibration may count; None where there is none.
    """

    records: list[TokenRecords]
    traffic: Traffic
    correct: int = 0
    answered: int = 0
    rows: list[IntArray] = field(default_factory=list)
    read: int = 0
    calibration: BoolArray | None = None


@dataclass(frozen=True)
class RoundResult:
    """What a device has to go by at the end of a round.

    Attributes
    ----------
    feedback : Feedback
        What gradient rules learn from.
    counted : Feedback
        Whole texts that a guarantee may rest on, each once.
    figures : dict
        Sums for the report.
    columns : dict
        The token log's columns, where the settings want one.
    newest : int
        Number of the newest stored text behind these; 0 without a store.
    """

    feedback: Feedback
    counted: Feedback
    figures: Figures
    columns: dict[str, bytes] = field(default_factory=dict)
    newest: int = 0


def figures(routed: Routed, settings: Settings) -> Figures:
    """Sums over the routed tokens, for one reply; no text, and nothing about a single token."""
    shared_draw = settings.shared_draw
    traffic = routed.traffic
    sums: dict[str, Any] = {"tokens": 0, "escalated": 0, "audited": 0, "uncertainty": 0.0}
    for name in ("agreement", "kept-loss", "ratio-beta"):
        sums |= {name: 0.0, f"{name}-known": 0}
    for records in routed.records:
        present = records.present
        sums["tokens"] += records.tokens
        sums["escalated"] += int(records.escalated.sum())
        sums["audited"] += int(records.audited.sum())
        sums["uncertainty"] += float(records.uncertainty[present].sum())
        for name, values in (
            ("agreement", records.agreement(shared_draw)[present]),
            ("kept-loss", records.kept_loss(shared_draw)[present]),
            ("ratio-beta", records.ratio_beta()[present]),
        ):
            sums[name] += float(np.nansum(values))
            sums[f"{name}-known"] += int(np.isfinite(values).sum())
        for stage, count in records.stage_counts().items():
            key = stage.replace("_", "-")
            sums[key] = sums.get(key, 0) + count
    return {
        **sums,
        "correct": routed.correct,
        "answered": routed.answered,
        "bytes-uplink": traffic.uplink,
        "bytes-downlink": traffic.downlink,
        "bytes-edge": traffic.edge,
        "bytes-measured": traffic.measured,
        "read": routed.read,
        "messages": traffic.messages,
        "streams": traffic.streams,
        "llm-decoded": traffic.decoded,
        "llm-overshot": traffic.overshot,
        "link-failures": traffic.failures,
        "link-refused": traffic.refused,
        "link-untrusted": traffic.untrusted,
        "seconds-waited": traffic.waited,
        "seconds-slm": traffic.slm,
    }


def feedback_of(routed: Routed, settings: Settings) -> Feedback:
    """What the device may learn from: uncertainties, and beta where the LLM has told it.

    Measurements made for the report alone are left out. Unresolved tokens are kept ones of unknown
    beta: gradients leave them out, and risks take them for wrong.
    """
    parts = []
    for number, records in enumerate(routed.records):
        rows, steps = np.nonzero(records.present)
        at = (rows, steps)
        loss, ratio = records.loss(settings.shared_draw)[at], records.ratio_beta()[at]
        kept, unresolved = records.kept[at], records.unresolved[at]
        known = np.isfinite(loss) & ~records.measured_only[at] & ~unresolved
        weight = np.ones(len(rows))
        if settings.audit_rate > 0:
            # An audited kept token stands for 1 / rate of them. Free feedback tells of further
            # ones, but which ones depends on what came later: it would tip the scales.
            audited = records.audited[at]
            known &= ~kept | audited
            weight[kept] = np.where(audited[kept], 1 / settings.audit_rate, 0.0)
        parts.append(
            Feedback.create(
                u=np.clip(records.uncertainty[at], 0, 1),
                beta=np.where(known, loss, 0.0),
                # Of a streamed token the LLM tells no probability; no rule there asks for it.
                ratio_beta=np.where(known, np.where(np.isnan(ratio), loss, ratio), 0.0),
                kept=kept | unresolved,
                known=known,
                weight=weight,
                prompt=rows + (number << 20),
                below=known & (ratio > 0),
                features=None if records.features is None else records.features[at],
            )
        )
    return Feedback.concatenate(parts)


def calibration_feedback(routed: Routed, settings: Settings) -> Feedback:
    """What a guarantee may rest on: the whole prompts of the first batch, each once."""
    if routed.calibration is None:
        return Feedback.empty()
    first = replace(routed, records=routed.records[:1])
    feedback = feedback_of(first, settings)
    return feedback.select(np.asarray(routed.calibration)[feedback.prompt])
