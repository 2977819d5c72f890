"""Escalations put together by hand, for resolvers under test."""

from __future__ import annotations

import numpy as np
import torch

from clients.records import Stage, TextBatch, Traffic
from clients.resolvers.chain import Escalation, Resolution, resolve_in_turn
from hlm.randomness import DrawKeys
from hlm.verification import Claim, Draft


def escalate(hidden, drafts, uncertainty=0.8, step=0, seed=0):
    """One row a text: float [n, size] contexts (or None), int [n] drafts."""
    drafts = np.asarray(drafts, np.int64)
    rows = np.arange(len(drafts))
    tokens = torch.from_numpy(drafts)
    draft = Draft(tokens, torch.ones(len(rows)), torch.zeros(len(rows), 1), Claim(tokens))
    steps = np.full(len(rows), step)
    return Escalation(
        texts=TextBatch([np.array([1])] * len(rows), rows),
        rows=rows,
        steps=steps,
        positions=steps + 1,
        draft=draft,
        keys=DrawKeys(seed, rows.astype(np.uint64), steps + 1),
        hidden=None if hidden is None else torch.as_tensor(hidden, dtype=torch.float32),
        uncertainty=np.full(len(rows), float(uncertainty)),
        audited=np.zeros(len(rows), np.bool_),
        spans=np.zeros(len(rows), np.int64),
    )


class Oracle:
    """Stands for the LLM: knows the right token of each row, and counts its bytes."""

    needs_hidden, verifies = False, True

    def __init__(self, truth, bytes_each=10):
        self.truth = np.asarray(truth, np.int64)
        self.bytes_each = bytes_each
        self.rows = 0
        self.down = False

    def resolve(self, escalation):
        resolution = Resolution.none(len(escalation.rows))
        if self.down:
            return resolution
        self.rows += len(escalation.rows)
        resolution.traffic.messages += 1
        resolution.traffic.uplink += self.bytes_each * len(escalation.rows)
        resolution.tokens[:] = self.truth[escalation.rows]
        right = resolution.tokens == escalation.draft.tokens.numpy()
        resolution.stages[:] = np.where(right, Stage.LLM_ACCEPTED, Stage.LLM_RESAMPLED)
        return resolution

    def learn(self, escalation, final, asked):
        return Traffic()


def run(resolver, hidden, drafts, truth, traffic=None, **options):
    """Resolver, then oracle; the final resolution and the oracle."""
    oracle = Oracle(truth)
    final = resolve_in_turn([resolver, oracle], escalate(hidden, drafts, **options))
    if traffic is not None:
        traffic.include(final.traffic)
    return final, oracle
