"""Blocks: several drafts of one text in one message, each going on from the one before it.

One pass of the model gives the laws of all drafts of a block. The drafts are decided one by one
up to the first rejection, or jointly by block verification (Sun et al., arXiv 2403.10444). A last
row without a draft asks for the token after a block that is accepted whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from hlm.quantising import law_from_weights
from hlm.randomness import DrawKeys, Purpose, exponentials, uniforms
from hlm.sampling import draw, top_token
from hlm.verification import ClaimError, block_verify
from hlm.verification.coupled import exponential_race
from hlm.wire import NO_TOKEN, Row

BLOCK_VERIFIER = "block"
"""The wire's name of block verification; every other verifier decides a block token by token."""


def runs(rows: Sequence[Row]) -> list[list[int]]:
    """Indices of the rows of each block; a row that is in no block is a run of its own."""
    found: list[list[int]] = []
    for index, row in enumerate(rows):
        if row.block and found:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def waves(rows: Sequence[tuple[Any, Row]]) -> list[int]:
    """In which forward pass each row of (session, row) can be read at the earliest, from 0.

    What a row after a block goes on from depends on how the block was decided, so it has to wait.
    """
    last: dict[Any, tuple[int, Row]] = {}
    found = []
    for session, row in rows:
        wave = 0
        if session in last:
            wave, before = last[session]
            wave += int(before.block and not row.block)
        last[session] = (wave, row)
        found.append(wave)
    return found


def own_tokens(target: torch.Tensor, decoding: str, verifier: str, keys: DrawKeys) -> torch.Tensor:
    """What the large model puts where nothing was drafted, int64 [rows].

    Parameters
    ----------
    target : torch.Tensor
        float64 [rows, vocab], the laws to draw from.
    decoding, verifier : str
        Greedy: the most likely token. ``coupled``: the race that a draft would have been compared
        with, so that the text does not depend on where blocks begin. Otherwise a sample.
    keys : DrawKeys
        Of the places.
    """
    if decoding == "greedy":
        return top_token(target)
    if verifier == "coupled":
        return exponential_race(target, exponentials(keys, target.shape[1]))
    return draw(target, uniforms(keys, Purpose.RESAMPLE, 1)[:, 0])


def verify_jointly(
    target: torch.Tensor, rows: Sequence[Row], keys: DrawKeys, bits: int
) -> list[tuple[int, int]]:
    """Block verification of every run of rows.

    The draws of a block are keyed by the place of its first draft. No two blocks of a text begin
    at one place, so none reuses a number that an earlier decision depended on.

    Parameters
    ----------
    target : torch.Tensor
        float64 [rows, vocab], the large model's law at each row's place.
    rows : sequence of Row
        Whole runs (`runs`): drafts with the device's law, at the end perhaps a row without.
    keys : DrawKeys
        Of each row's place.
    bits : int
        Unit of the device laws, ``2**-bits``.

    Returns
    -------
    list of (int, int)
        For each run the drafts that stand and the token after them (`NO_TOKEN` where all stand
        and no row asks for one more).

    Raises
    ------
    ClaimError
        If a row's weights are no law.
    """
    groups = runs(rows)
    found: list[tuple[int, int]] = [(0, NO_TOKEN)] * len(groups)
    by_size: dict[int, list[int]] = {}
    for number, group in enumerate(groups):
        by_size.setdefault(sum(rows[i].draft != NO_TOKEN for i in group), []).append(number)
    for size, numbers in by_size.items():
        # Without a row for it the law after the whole block is not needed: its draw is dropped.
        places = [(groups[n] + [groups[n][-1]])[: size + 1] for n in numbers]
        drafted = [rows[i] for place in places for i in place[:size]]
        weights = torch.from_numpy(np.stack([np.asarray(row.weights, np.int64) for row in drafted]))
        try:
            laws = law_from_weights(weights, bits).view(len(numbers), size, -1)
        except ValueError as error:
            raise ClaimError(str(error)) from error
        drafts = torch.tensor([row.draft for row in drafted]).view(len(numbers), size)
        first = keys.select(np.array([groups[n][0] for n in numbers]))
        draws = [uniforms(first, purpose, 1) for purpose in (Purpose.ACCEPT, Purpose.RESAMPLE)]
        targets = torch.stack([target[place] for place in places])
        counts, tokens = block_verify(laws, targets, drafts, torch.cat(draws, dim=1))
        for number, count, token in zip(numbers, counts.tolist(), tokens.tolist(), strict=True):
            asked = count < len(groups[number])
            found[number] = (count, token if asked else NO_TOKEN)
    return found


def joint_fields(rows: Sequence[Row], outcomes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """What `verify_jointly` found, as fields of each row's reply."""
    fields: list[dict[str, Any]] = [{} for _ in rows]
    for group, (count, token) in zip(runs(rows), outcomes, strict=True):
        for place, index in enumerate(group):
            stands = place < count
            fields[index] = {"accepted": stands, "token": rows[index].draft if stands else token}
    return fields


def skipped(rows: Sequence[Row], stands: Sequence[bool]) -> list[bool]:
    """Which rows get no answer, because a row before them in their block does not stand."""
    found = [False] * len(rows)
    for index, (_, row) in enumerate(pairwise(rows), start=1):
        found[index] = row.block and (found[index - 1] or not stands[index - 1])
    return found
