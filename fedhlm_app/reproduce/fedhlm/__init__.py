"""FedHLM's tables and figures (arXiv 2507.00082); a new one is a module and a line here."""

from __future__ import annotations

from fedhlm_app.reproduce.fedhlm.accuracy import FIG_10, TABLE_6
from fedhlm_app.reproduce.fedhlm.beyond import ABLATION, FRONTIER, RULES_PIECE
from fedhlm_app.reproduce.fedhlm.by_round import EQ_11, FIG_4, FIG_5, RATES_PIECE
from fedhlm_app.reproduce.fedhlm.clients import TABLE_5
from fedhlm_app.reproduce.fedhlm.guarantee import GUARANTEE
from fedhlm_app.reproduce.fedhlm.inputs import Inputs, opened, setup
from fedhlm_app.reproduce.fedhlm.overheads import OVERHEADS
from fedhlm_app.reproduce.fedhlm.published import PUBLISHED
from fedhlm_app.reproduce.fedhlm.resolved import FIG_8, TABLE_3, TABLE_4
from fedhlm_app.reproduce.fedhlm.similarity import SIMILARITY
from fedhlm_app.reproduce.pieces import Experiment

FEDHLM: Experiment[Inputs] = Experiment(
    "fedhlm",
    "FedHLM",
    setup,
    opened,
    (
        PUBLISHED, FIG_4, FIG_5, TABLE_3, TABLE_4, FIG_8, TABLE_5, FIG_10, SIMILARITY, TABLE_6,
        OVERHEADS, EQ_11, RATES_PIECE, FRONTIER, RULES_PIECE, GUARANTEE,
        ABLATION,
    ),
)  # fmt: skip
