"""Section VI-E: how close the embeddings of what comes out are to those of the true tokens."""

from __future__ import annotations

import numpy as np

from fedhlm_app.models.embeddings import slm_embeddings
from fedhlm_app.reproduce.fedhlm.inputs import Inputs
from fedhlm_app.reproduce.pieces import Cell, Finding, Measured, Piece, Table
from hlm.arrays import IntArray


def similarity(inputs: Inputs) -> Finding:
    """Mean cosine of tokens' embeddings to the true ones', over all of the data's tokens."""
    settings, trace = inputs.settings(), inputs.trace()
    vectors = slm_embeddings(settings)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    known = trace.answer >= 0
    right = trace.answer[known]

    def row(name: str, given: list[IntArray], paper: str = "-") -> tuple[Cell, ...]:
        made = [tokens[known] for tokens in given]
        cosines = [float((unit[one] * unit[right]).sum(axis=1).mean()) for one in made]
        equal = [100 * float((one == right).mean()) for one in made]
        theirs = [float((unit[one] * unit[trace.token[known]]).sum(axis=1).mean()) for one in made]
        return name, Measured.of(cosines), Measured.of(theirs), Measured.of(equal), paper

    thresholds = [inputs.run(s)["rounds"][-1]["threshold"]["global"] for s in inputs.seeds]
    uncertainty = trace.uncertainty[settings.uncertainty]
    mixed = [np.where(uncertainty <= th, trace.draft, trace.token) for th in thresholds]
    chance = [np.random.default_rng(s).permutation(trace.answer) for s in inputs.seeds]
    rows = [
        row("FedHLM's threshold", mixed, "over .95"),
        row("LLM (and speculative decoding)", [trace.token]),
        row("SLM only", [trace.draft]),
        row("true tokens of other places", chance),
    ]
    words = (
        "A cosine over .95 would take tokens that are nearly always the true ones, or embeddings "
        "that are all alike; the last row shows what chance gives here. The LLM itself guesses the "
        "next tokens of news far less often, so no routing comes near; to its tokens FedHLM is as "
        "close as the drafts are right that it keeps."
    )
    columns = ("method", "cosine to the true token", "to the LLM's", "equal to the true %", "paper")
    return Finding(words, Table(columns, rows))


SIMILARITY = Piece("similarity", "Section VI-E: similarity of embeddings", similarity)
